//! The ICMP error that answers a datagram to a port where nobody is (RFC 792, RFC 4443).
//!
//! It comes from the address that the datagram was sent to, as from a host where nobody has the
//! port.

use crate::{address::Address, checksum::Sum};

/// Octets before the quoted packet: an IPv4 header without options and that of ICMP.
pub const BEFORE_QUOTE_V4: usize = 28;

/// The same for IPv6.
pub const BEFORE_QUOTE_V6: usize = 48;

/// Most octets of a packet that are quoted over IPv4, where the error has at most 576 (RFC 1812,
/// 4.3.2.3).
pub const QUOTE_V4: usize = 576 - BEFORE_QUOTE_V4;

/// The same over IPv6, where the error has at most 1280 (RFC 4443, 2.4).
pub const QUOTE_V6: usize = 1280 - BEFORE_QUOTE_V6;

const HOP_LIMIT: u8 = 64;

/// What stands before the first `length` octets of a datagram from `client` to `server`, whose sum
/// is `quote`.
#[must_use]
#[inline(always)]
pub fn before_quote_v4(
    client: &Address,
    server: &Address,
    length: u16,
    quote: Sum,
) -> [u8; BEFORE_QUOTE_V4] {
    const ICMP: u8 = 1;
    // RFC 1812, 4.3.2.5.
    const INTERNETWORK_CONTROL: u8 = 0xc0;
    const DONT_FRAGMENT: u8 = 0x40;
    const DESTINATION_UNREACHABLE: u8 = 3;
    const PORT_UNREACHABLE: u8 = 3;

    let mut octets = [0; BEFORE_QUOTE_V4];
    octets[0] = 0x45;
    octets[1] = INTERNETWORK_CONTROL;
    put(
        &mut octets,
        2,
        (BEFORE_QUOTE_V4 as u16 + length).to_be_bytes(),
    );
    octets[6] = DONT_FRAGMENT;
    octets[8] = HOP_LIMIT;
    octets[9] = ICMP;
    put(&mut octets, 12, v4_octets(server));
    put(&mut octets, 16, v4_octets(client));
    let header = Sum::default().plus(&octets);
    put(&mut octets, 10, header.checksum());
    let icmp = [DESTINATION_UNREACHABLE, PORT_UNREACHABLE];
    put(&mut octets, 20, icmp);
    put(&mut octets, 22, quote.plus(&icmp).checksum());
    octets
}

/// The same over IPv6.
#[must_use]
#[inline(always)]
pub fn before_quote_v6(
    client: &Address,
    server: &Address,
    length: u16,
    quote: Sum,
) -> [u8; BEFORE_QUOTE_V6] {
    const ICMPV6: u8 = 58;
    const DESTINATION_UNREACHABLE: u8 = 1;
    const PORT_UNREACHABLE: u8 = 4;
    const ICMP_HEADER: u16 = 8;

    let mut octets = [0; BEFORE_QUOTE_V6];
    let payload = (ICMP_HEADER + length).to_be_bytes();
    octets[0] = 0x60;
    put(&mut octets, 4, payload);
    octets[6] = ICMPV6;
    octets[7] = HOP_LIMIT;
    let (client, server) = (client.mapped_octets(), server.mapped_octets());
    put(&mut octets, 8, server);
    put(&mut octets, 24, client);
    let icmp = [DESTINATION_UNREACHABLE, PORT_UNREACHABLE];
    put(&mut octets, 40, icmp);
    // The pseudo header of RFC 8200, 8.1.
    let pseudo = Sum::default()
        .plus(&server)
        .plus(&client)
        .plus(&payload)
        .plus(&[0, ICMPV6]);
    put(&mut octets, 42, quote.with(pseudo).plus(&icmp).checksum());
    octets
}

#[inline(always)]
fn put<const LENGTH: usize>(octets: &mut [u8], at: usize, field: [u8; LENGTH]) {
    let mut place = 0;
    while place < LENGTH {
        octets[at + place] = field[place];
        place += 1;
    }
}

#[inline(always)]
const fn v4_octets(address: &Address) -> [u8; 4] {
    ((address.high() >> 32) as u32).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use etherparse::{
        Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice,
        icmpv4, icmpv6,
    };
    use proptest::prelude::*;

    use super::*;

    fn octets<const LENGTH: usize>(before: [u8; LENGTH], quote: &[u8]) -> Vec<u8> {
        [&before[..], quote].concat()
    }

    fn sum(quote: &[u8]) -> Sum {
        let whole = quote.chunks(2).map(|pair| match pair {
            [first, second] => [*first, *second],
            _ => [pair[0], 0],
        });
        whole.fold(Sum::default(), |sum, pair| sum.plus(&pair))
    }

    proptest! {
        #[test]
        fn a_parser_finds_a_port_unreachable_over_ipv4(
            client: [u8; 4],
            server: [u8; 4],
            quote in proptest::collection::vec(any::<u8>(), 28..=QUOTE_V4),
        ) {
            let of = |octets: [u8; 4]| Address::from(IpAddr::from(octets));
            let length = quote.len() as u16;
            let before = before_quote_v4(&of(client), &of(server), length, sum(&quote));
            let packet = octets(before, &quote);
            prop_assert!(packet.len() <= 576);
            let parsed = SlicedPacket::from_ip(&packet).unwrap();
            let Some(NetSlice::Ipv4(ip)) = &parsed.net else { panic!() };
            let header = ip.header();
            prop_assert_eq!((header.source(), header.destination()), (server, client));
            prop_assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
            prop_assert_eq!(usize::from(header.total_len()), packet.len());
            let Some(TransportSlice::Icmpv4(icmp)) = &parsed.transport else { panic!() };
            let unreachable = icmpv4::DestUnreachableHeader::Port;
            prop_assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(unreachable));
            prop_assert_eq!(icmp.payload(), quote);
            prop_assert_eq!(icmp.checksum(), calculated_v4(icmp));
        }

        #[test]
        fn a_parser_finds_a_port_unreachable_over_ipv6(
            client: [u8; 16],
            server: [u8; 16],
            quote in proptest::collection::vec(any::<u8>(), 48..=QUOTE_V6),
        ) {
            let of = |octets: [u8; 16]| Address::from(IpAddr::from(octets));
            let length = quote.len() as u16;
            let before = before_quote_v6(&of(client), &of(server), length, sum(&quote));
            let packet = octets(before, &quote);
            prop_assert!(packet.len() <= 1280);
            let parsed = SlicedPacket::from_ip(&packet).unwrap();
            let Some(NetSlice::Ipv6(ip)) = &parsed.net else { panic!() };
            let header = ip.header();
            prop_assert_eq!((header.source(), header.destination()), (server, client));
            prop_assert_eq!(usize::from(header.payload_length()) + 40, packet.len());
            let Some(TransportSlice::Icmpv6(icmp)) = &parsed.transport else { panic!() };
            let unreachable = icmpv6::DestUnreachableCode::Port;
            prop_assert_eq!(icmp.icmp_type(), Icmpv6Type::DestinationUnreachable(unreachable));
            prop_assert_eq!(icmp.payload(), quote);
            prop_assert!(is_valid_v6(icmp, server, client));
        }
    }

    fn calculated_v4(icmp: &Icmpv4Slice<'_>) -> u16 {
        icmp.icmp_type().calc_checksum(icmp.payload())
    }

    fn is_valid_v6(icmp: &Icmpv6Slice<'_>, source: [u8; 16], destination: [u8; 16]) -> bool {
        icmp.is_checksum_valid(source, destination)
    }
}
