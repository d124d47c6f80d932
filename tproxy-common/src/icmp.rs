//! Which flow an ICMP error is about.
//!
//! A relayed flow's packets to the client leave under the server's address, so errors about them
//! (above all "too big", on which path MTU discovery rests) are addressed to the server and would
//! pass by here. They belong to the socket that has the flow.

use crate::{
    address::{Address, Family},
    flow::Protocol,
    packet::{Bounded, Headers, MoreFragments, Packet, TcpFlags},
};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// The header of a fragment of IPv6.
const FRAGMENT: u8 = 44;

/// Octets before the packet that an error quotes (RFC 792; RFC 4443, 2.1).
const ICMP_HEADER: usize = 8;

/// The flow that the ICMP error with its IP header at `offset` quotes, as its client's packets
/// show it: the quoted packet's ends exchanged. `None` for everything else.
#[must_use]
#[inline(always)]
pub fn quoted_flow<P: Packet + ?Sized>(
    packet: &P,
    family: Family,
    offset: usize,
) -> Option<Headers> {
    let quoted = match family {
        Family::V4 => quoted_v4(packet, offset)?,
        Family::V6 => quoted_v6(packet, offset)?,
    };
    let [source_high, source_low, destination_high, destination_low] = quoted.ports;
    Some(Headers {
        protocol: quoted.protocol,
        source: quoted.destination,
        destination: quoted.source,
        source_port: u16::from_be_bytes([destination_high, destination_low]),
        destination_port: u16::from_be_bytes([source_high, source_low]),
        flags: TcpFlags::default(),
        transport_offset: quoted.transport_offset,
        more_fragments: MoreFragments::default(),
    })
}

/// The headers of a quoted packet, as its sender wrote them.
struct Quoted {
    protocol: Protocol,
    source: Address,
    destination: Address,
    ports: [u8; 4],
    transport_offset: usize,
}

#[inline(always)]
const fn protocol(number: u8) -> Option<Protocol> {
    match number {
        TCP => Some(Protocol::Tcp),
        UDP => Some(Protocol::Udp),
        _ => None,
    }
}

#[inline(always)]
fn quoted_v4<P: Packet + ?Sized>(frame: &P, offset: usize) -> Option<Quoted> {
    const ICMP: u8 = 1;
    // RFC 792: destination unreachable, time exceeded, parameter problem.
    const ERRORS: [u8; 3] = [3, 11, 12];

    let outer: [u8; 20] = frame.read(offset)?;
    if outer[9] != ICMP || outer[6] & 0x3f != 0 || outer[7] != 0 {
        return None;
    }
    let packet = Bounded::by_v4(frame, offset, &outer);
    let icmp = offset + usize::from(outer[0] & 0x0f) * 4;
    let [kind] = packet.read::<1>(icmp)?;
    if kind != ERRORS[0] && kind != ERRORS[1] && kind != ERRORS[2] {
        return None;
    }
    let at = icmp + ICMP_HEADER;
    let quoted: [u8; 20] = packet.read(at)?;
    // A later fragment has no ports.
    let offset_of_fragment = quoted[6] & 0x1f != 0 || quoted[7] != 0;
    if quoted[0] >> 4 != 4 || offset_of_fragment {
        return None;
    }
    let transport_offset = at + usize::from(quoted[0] & 0x0f) * 4;
    Some(Quoted {
        protocol: protocol(quoted[9])?,
        source: Address::v4([quoted[12], quoted[13], quoted[14], quoted[15]]),
        destination: Address::v4([quoted[16], quoted[17], quoted[18], quoted[19]]),
        ports: packet.read(transport_offset)?,
        transport_offset,
    })
}

/// As [`quoted_v4`]. Of extension headers, neither errors nor what the relay sends have any in
/// practice but that of a fragment; those that do are passed on.
#[inline(always)]
fn quoted_v6<P: Packet + ?Sized>(frame: &P, offset: usize) -> Option<Quoted> {
    const ICMPV6: u8 = 58;
    const FIXED_HEADER: usize = 40;
    // RFC 4443: destination unreachable, too big, time exceeded, parameter problem.
    const LAST_ERROR: u8 = 4;

    let outer: [u8; 8] = frame.read(offset)?;
    let packet = Bounded::by_v6(frame, offset, &outer);
    let icmp = offset + FIXED_HEADER;
    let [kind] = packet.read::<1>(icmp)?;
    if outer[6] != ICMPV6 || kind == 0 || kind > LAST_ERROR {
        return None;
    }
    let at = icmp + ICMP_HEADER;
    let quoted: [u8; 8] = packet.read(at)?;
    if quoted[0] >> 4 != 6 {
        return None;
    }
    let (number, transport_offset) = match quoted[6] {
        FRAGMENT => first_fragment(&packet, at + FIXED_HEADER)?,
        number => (number, at + FIXED_HEADER),
    };
    Some(Quoted {
        protocol: protocol(number)?,
        source: Address::v6(packet.read(at + 8)?),
        destination: Address::v6(packet.read(at + 24)?),
        ports: packet.read(transport_offset)?,
        transport_offset,
    })
}

/// The protocol of what the fragment header at `offset` belongs to, and where that begins (RFC 8200,
/// 4.5). `None` for a later fragment, which has no ports.
#[inline(always)]
fn first_fragment<P: Packet + ?Sized>(packet: &P, offset: usize) -> Option<(u8, usize)> {
    let header: [u8; 8] = packet.read(offset)?;
    // Beside the offset there are two reserved bits, and the one for more fragments.
    let is_first = header[2] == 0 && header[3] & 0xf8 == 0;
    is_first.then_some((header[0], offset + header.len()))
}

#[cfg(test)]
mod tests {
    use std::{vec, vec::Vec};

    use super::*;

    /// An ICMP error from a router to the server, about a segment from the server to the client.
    fn error_v4(kind: u8) -> Vec<u8> {
        let mut quoted = vec![0x45, 0, 5, 0xdc, 0, 0, 0x40, 0, 64, TCP, 0, 0];
        quoted.extend([192, 0, 2, 9, 10, 0, 0, 1, 1, 0xbb, 0x9c, 0x40, 0, 0, 0, 0]);
        let mut packet = vec![0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0];
        packet.extend([10, 0, 0, 254, 192, 0, 2, 9, kind, 4, 0, 0, 0, 0, 5, 0]);
        packet.extend(quoted);
        packet
    }

    fn error_v6(kind: u8) -> Vec<u8> {
        let header = |next, length, source: u8, destination: u8| {
            let mut header = vec![0x60, 0, 0, 0, 0, length, next, 64];
            for last in [source, destination] {
                header.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
            }
            header
        };
        let mut packet = header(58, 56, 3, 9);
        packet.extend([kind, 0, 0, 0, 0, 0, 5, 0]);
        packet.extend(header(TCP, 28, 9, 1));
        packet.extend([1, 0xbb, 0x9c, 0x40, 0, 0, 0, 0]);
        packet
    }

    #[test]
    fn the_quoted_flow_is_seen_from_its_client() {
        for (packet, family) in [(error_v4(3), Family::V4), (error_v6(2), Family::V6)] {
            let flow = quoted_flow(packet.as_slice(), family, 0).unwrap();
            assert_eq!((flow.source_port, flow.destination_port), (40000, 443));
            let (client, server) = match family {
                Family::V4 => (Address::v4([10, 0, 0, 1]), Address::v4([192, 0, 2, 9])),
                Family::V6 => {
                    let address = |last| {
                        let mut octets = [0; 16];
                        octets[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
                        octets[15] = last;
                        Address::v6(octets)
                    };
                    (address(1), address(9))
                }
            };
            assert_eq!((flow.source, flow.destination), (client, server));
        }
    }

    /// An error about a segment in fragments, of which it quotes one that begins at `offset`.
    fn error_about_fragment(offset: u16) -> Vec<u8> {
        const QUOTED: usize = 40 + ICMP_HEADER;
        let mut packet = error_v6(2);
        packet[5] += 8;
        packet[QUOTED + 6] = FRAGMENT;
        let [high, low] = (offset | 1).to_be_bytes();
        let header = [TCP, 0, high, low, 0, 0, 0, 7];
        packet.splice(QUOTED + 40..QUOTED + 40, header);
        packet
    }

    #[test]
    fn the_first_fragment_tells_the_flow() {
        let whole = quoted_flow(error_v6(2).as_slice(), Family::V6, 0).unwrap();
        let first = error_about_fragment(0);
        let flow = quoted_flow(first.as_slice(), Family::V6, 0).unwrap();
        let transport_offset = whole.transport_offset + 8;
        assert_eq!(
            flow,
            Headers {
                transport_offset,
                ..whole
            }
        );
        for offset in [8, 1 << 8, 1 << 15] {
            let later = error_about_fragment(offset);
            assert_eq!(quoted_flow(later.as_slice(), Family::V6, 0), None);
        }
        for length in 0..first.len() - 4 {
            assert_eq!(quoted_flow(&first[..length], Family::V6, 0), None);
        }
    }

    #[test]
    fn an_echo_is_no_error() {
        for kind in [0, 8] {
            assert_eq!(quoted_flow(error_v4(kind).as_slice(), Family::V4, 0), None);
        }
        for kind in [0, 128, 129, 135] {
            assert_eq!(quoted_flow(error_v6(kind).as_slice(), Family::V6, 0), None);
        }
    }

    #[test]
    fn a_quotation_behind_the_length_of_the_packet_is_padding() {
        for (packet, family, field) in [(error_v4(3), Family::V4, 2), (error_v6(2), Family::V6, 4)]
        {
            let stated = u16::from_be_bytes([packet[field], packet[field + 1]]);
            let quoted = |length: u16| {
                let mut packet = packet.clone();
                packet[field..field + 2].copy_from_slice(&length.to_be_bytes());
                quoted_flow(packet.as_slice(), family, 0)
            };
            // The ports are the first four of the eight octets that are quoted of the segment.
            for length in 0..stated - 4 {
                assert_eq!(quoted(length), None, "{length}, {family:?}");
            }
            for length in [stated - 4, stated, 0xffff] {
                assert!(quoted(length).is_some(), "{length}, {family:?}");
            }
        }
    }

    #[test]
    fn what_is_cut_short_or_quotes_neither_tcp_nor_udp_is_none() {
        for (packet, family) in [(error_v4(3), Family::V4), (error_v6(2), Family::V6)] {
            let ports_end = packet.len() - 4;
            for length in 0..ports_end {
                assert_eq!(quoted_flow(&packet[..length], family, 0), None, "{length}");
            }
            assert!(quoted_flow(&packet[..ports_end], family, 0).is_some());
        }
        let mut quoting = error_v4(3);
        for (number, protocol) in [
            (TCP, Some(Protocol::Tcp)),
            (UDP, Some(Protocol::Udp)),
            (1, None),
        ] {
            quoting[28 + 9] = number;
            let flow = quoted_flow(quoting.as_slice(), Family::V4, 0);
            assert_eq!(flow.map(|flow| flow.protocol), protocol);
        }
    }
}
