//! Fragments of IP packets: whose they are, and what became of the others of the same packet.
//!
//! Only the first fragment has ports. What it is decided about is remembered for the others, which may
//! also come before it.

use crate::{
    address::{Address, Family},
    flow::Protocol,
    limits::EXTENSION_HEADERS,
    packet::Packet,
};

/// How long fragments of one packet may be apart, in nanoseconds: as long as the kernel waits for
/// them (`net.ipv4.ipfrag_time`).
pub const PATIENCE: u64 = 30_000_000_000;

/// A fragment of a TCP segment or UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// What it has in common with the others of its packet.
    pub packet: FragmentedPacket,
    /// Protocol of what is in it.
    pub protocol: Protocol,
    family: Family,
}

impl Fragment {
    /// Source address.
    #[must_use]
    #[inline(always)]
    pub const fn source(&self) -> Address {
        address(self.family, &self.packet.source)
    }

    /// Destination address.
    #[must_use]
    #[inline(always)]
    pub const fn destination(&self) -> Address {
        address(self.family, &self.packet.destination)
    }
}

/// The address of which these are the [`mapped_octets`](Address::mapped_octets).
#[inline(always)]
const fn address(family: Family, octets: &[u8; 16]) -> Address {
    match family {
        Family::V4 => Address::v4([octets[12], octets[13], octets[14], octets[15]]),
        Family::V6 => Address::v6(*octets),
    }
}

/// By what fragments of one packet are known (RFC 791, 3.2; RFC 8200, 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentedPacket {
    source: [u8; 16],
    destination: [u8; 16],
    identification: u32,
    protocol: u32,
}

const _: () = assert!(size_of::<FragmentedPacket>() == 40);

/// What became of the fragments of a packet that were seen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// When that was, in nanoseconds since boot.
    at: u64,
    way: u64,
}

const _: () = assert!(size_of::<Fate>() == 16);

/// The way of all fragments of a packet.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// They go on unchanged.
    Own,
    /// They are marked.
    Here,
    /// They are discarded.
    Nowhere,
}

impl Fate {
    /// What became of a fragment at this time.
    #[must_use]
    #[inline(always)]
    pub const fn new(way: Way, at: u64) -> Self {
        Self {
            at,
            way: way as u64,
        }
    }

    /// The way that the others go, if that is not too long ago.
    #[must_use]
    #[inline(always)]
    pub const fn way(&self, now: u64) -> Option<Way> {
        if now.wrapping_sub(self.at) > PATIENCE {
            return None;
        }
        Some(match self.way {
            0 => Way::Own,
            1 => Way::Here,
            _ => Way::Nowhere,
        })
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIXED_V6: usize = 40;

#[inline(always)]
const fn protocol_of(number: u8) -> Option<Protocol> {
    match number {
        TCP => Some(Protocol::Tcp),
        UDP => Some(Protocol::Udp),
        _ => None,
    }
}

/// Reads the fragment whose IP header begins at `offset`. `None` for one of something else than TCP or
/// UDP, or that cannot be read.
#[must_use]
#[inline(always)]
pub fn parse_fragment<P: Packet + ?Sized>(
    frame: &P,
    family: Family,
    offset: usize,
) -> Option<Fragment> {
    match family {
        Family::V4 => parse_v4(frame, offset),
        Family::V6 => parse_v6(frame, offset),
    }
}

/// RFC 791, 3.1.
#[inline(always)]
fn parse_v4<P: Packet + ?Sized>(frame: &P, offset: usize) -> Option<Fragment> {
    let header: [u8; 20] = frame.read(offset)?;
    let protocol = protocol_of(header[9])?;
    let source = Address::v4([header[12], header[13], header[14], header[15]]);
    let destination = Address::v4([header[16], header[17], header[18], header[19]]);
    Some(Fragment {
        packet: FragmentedPacket {
            source: source.mapped_octets(),
            destination: destination.mapped_octets(),
            identification: u32::from(u16::from_be_bytes([header[4], header[5]])),
            protocol: u32::from(header[9]),
        },
        protocol,
        family: Family::V4,
    })
}

/// RFC 8200, 4.5. What senders make has TCP or UDP right behind the fragment header.
#[inline(always)]
fn parse_v6<P: Packet + ?Sized>(frame: &P, offset: usize) -> Option<Fragment> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION_OPTIONS: u8 = 60;

    let fixed: [u8; 8] = frame.read(offset)?;
    let source: [u8; 16] = frame.read(offset + 8)?;
    let destination: [u8; 16] = frame.read(offset + 24)?;
    let mut number = fixed[6];
    let mut at = offset + FIXED_V6;
    for _ in 0..EXTENSION_HEADERS {
        if number != HOP_BY_HOP && number != ROUTING && number != DESTINATION_OPTIONS {
            break;
        }
        let extension: [u8; 4] = frame.read(at)?;
        if number == ROUTING && extension[3] != 0 {
            return None;
        }
        at += (usize::from(extension[1]) + 1) * 8;
        number = extension[0];
    }
    if number != FRAGMENT {
        return None;
    }
    let header: [u8; 8] = frame.read(at)?;
    let protocol = protocol_of(header[0])?;
    Some(Fragment {
        packet: FragmentedPacket {
            source,
            destination,
            identification: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            protocol: u32::from(header[0]),
        },
        protocol,
        family: Family::V6,
    })
}

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above) and every bit pattern is valid.
unsafe impl aya::Pod for FragmentedPacket {}

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above) and every bit pattern is valid.
unsafe impl aya::Pod for Fate {}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn v4(field: u16, protocol: u8) -> Vec<u8> {
        let mut packet = std::vec![0; 40];
        packet[0] = 0x45;
        packet[4..6].copy_from_slice(&7_u16.to_be_bytes());
        packet[6..8].copy_from_slice(&field.to_be_bytes());
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        packet[16..20].copy_from_slice(&[192, 0, 2, 9]);
        packet
    }

    fn v6(field: u16, protocol: u8) -> Vec<u8> {
        let mut packet = std::vec![0; 72];
        packet[0] = 0x60;
        packet[6] = 44;
        packet[8] = 0xfd;
        packet[24] = 0x20;
        packet[40] = protocol;
        packet[42..44].copy_from_slice(&field.to_be_bytes());
        packet[44..48].copy_from_slice(&7_u32.to_be_bytes());
        packet
    }

    #[test]
    fn fragments_of_one_packet_are_known_by_it() {
        for (first, later, family) in [
            (v4(0x2000, UDP), v4(0x00b9, UDP), Family::V4),
            (v6(1, UDP), v6(8 * 185, UDP), Family::V6),
        ] {
            let first = parse_fragment(first.as_slice(), family, 0).unwrap();
            let later = parse_fragment(later.as_slice(), family, 0).unwrap();
            assert_eq!(first, later);
            assert_eq!(first.protocol, Protocol::Udp);
            assert_ne!(first.source(), first.destination());
        }
    }

    #[test]
    fn packets_differ_by_protocol_and_number_and_others_are_not_read() {
        let udp = parse_fragment(v4(0x2000, UDP).as_slice(), Family::V4, 0).unwrap();
        let tcp = parse_fragment(v4(0x2000, TCP).as_slice(), Family::V4, 0).unwrap();
        assert_ne!(udp.packet, tcp.packet);
        let mut other = v4(0x2000, UDP);
        other[5] += 1;
        let other = parse_fragment(other.as_slice(), Family::V4, 0).unwrap();
        assert_ne!(udp.packet, other.packet);
        assert_eq!(
            parse_fragment(v4(0x2000, 1).as_slice(), Family::V4, 0),
            None
        );
        assert_eq!(parse_fragment(v6(1, 58).as_slice(), Family::V6, 0), None);
        for length in 0..20 {
            let short = &v4(0x2000, UDP)[..length];
            assert_eq!(parse_fragment(short, Family::V4, 0), None, "{length}");
        }
    }

    #[test]
    fn a_fate_is_forgotten_with_time() {
        for way in [Way::Own, Way::Here, Way::Nowhere] {
            let fate = Fate::new(way, 5);
            assert_eq!(fate.way(5), Some(way));
            assert_eq!(fate.way(5 + PATIENCE), Some(way));
            assert_eq!(fate.way(6 + PATIENCE), None);
        }
    }
}
