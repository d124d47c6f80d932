//! Errors that tell a client why its datagram did not arrive (RFC 792, RFC 4443).
//!
//! They quote the headers of the datagram as the client has sent it, by which its kernel finds the
//! socket.

use std::io;
use std::net::SocketAddr;

use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6Header,
    UdpHeader, icmpv4, icmpv6,
};
use nix::libc;

/// Hop limit of quoted headers: what most systems send with (RFC 1700, "IP time to live").
const HOP_LIMIT: u8 = 64;

/// Why a datagram did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// Nobody has the port.
    Port,
    /// There is no way to the host.
    Host,
    /// There is no way to its network.
    Network,
    /// An administrator forbids it.
    Prohibited,
}

impl Reason {
    /// What an error of a socket means that is connected to the destination, if it says that nothing
    /// arrives there.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        match error.raw_os_error()? {
            libc::ECONNREFUSED => Some(Self::Port),
            libc::EHOSTUNREACH | libc::EHOSTDOWN => Some(Self::Host),
            libc::ENETUNREACH | libc::ENETDOWN => Some(Self::Network),
            libc::EACCES => Some(Self::Prohibited),
            _ => None,
        }
    }
}

/// An ICMP message about a datagram with `length` bytes of payload. That over IPv6 has no checksum
/// yet: the kernel computes it (RFC 3542, 3.1).
pub(super) fn message(
    client: SocketAddr,
    destination: SocketAddr,
    length: u16,
    reason: Reason,
) -> Vec<u8> {
    let udp = UdpHeader {
        source_port: client.port(),
        destination_port: destination.port(),
        length: length.saturating_add(8),
        // Not known: the payload is not kept.
        checksum: 0,
    };
    match (client, destination) {
        (SocketAddr::V4(client), SocketAddr::V4(destination)) => {
            let mut header = Ipv4Header {
                total_len: udp.length.saturating_add(20),
                time_to_live: HOP_LIMIT,
                protocol: IpNumber::UDP,
                source: client.ip().octets(),
                destination: destination.ip().octets(),
                ..Ipv4Header::default()
            };
            header.header_checksum = header.calc_header_checksum();
            let quote = [&header.to_bytes()[..], &udp.to_bytes()].concat();
            let kind = Icmpv4Type::DestinationUnreachable(reason.into());
            let icmp = Icmpv4Header::with_checksum(kind, &quote);
            [&icmp.to_bytes()[..], &quote].concat()
        }
        (client, destination) => {
            let header = Ipv6Header {
                payload_length: udp.length,
                next_header: IpNumber::UDP,
                hop_limit: HOP_LIMIT,
                source: octets(client),
                destination: octets(destination),
                ..Ipv6Header::default()
            };
            let kind = Icmpv6Type::DestinationUnreachable(reason.into());
            let icmp = Icmpv6Header::new(kind);
            [&icmp.to_bytes()[..], &header.to_bytes(), &udp.to_bytes()].concat()
        }
    }
}

fn octets(address: SocketAddr) -> [u8; 16] {
    match address {
        SocketAddr::V4(address) => address.ip().to_ipv6_mapped().octets(),
        SocketAddr::V6(address) => address.ip().octets(),
    }
}

impl From<Reason> for icmpv4::DestUnreachableHeader {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Port => Self::Port,
            Reason::Host => Self::Host,
            Reason::Network => Self::Network,
            Reason::Prohibited => Self::FilterProhibited,
        }
    }
}

impl From<Reason> for icmpv6::DestUnreachableCode {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Port => Self::Port,
            Reason::Host => Self::Address,
            Reason::Network => Self::NoRoute,
            Reason::Prohibited => Self::Prohibited,
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Slice, Icmpv6Slice};

    use super::*;

    #[test]
    fn over_ipv4_the_headers_of_the_datagram_are_quoted() {
        let client = "10.1.0.2:5000".parse().unwrap();
        let destination = "192.0.2.9:53".parse().unwrap();
        let octets = message(client, destination, 33, Reason::Port);
        let icmp = Icmpv4Slice::from_slice(&octets).unwrap();
        let unreachable = icmpv4::DestUnreachableHeader::Port;
        assert_eq!(
            icmp.icmp_type(),
            Icmpv4Type::DestinationUnreachable(unreachable)
        );
        assert_eq!(
            icmp.checksum(),
            icmp.icmp_type().calc_checksum(icmp.payload())
        );
        let quote = etherparse::Ipv4HeaderSlice::from_slice(icmp.payload()).unwrap();
        assert_eq!(quote.source(), [10, 1, 0, 2]);
        assert_eq!(quote.destination(), [192, 0, 2, 9]);
        assert_eq!(quote.protocol(), IpNumber::UDP);
        assert_eq!(quote.total_len(), 20 + 8 + 33);
        assert_eq!(
            quote.header_checksum(),
            quote.to_header().calc_header_checksum()
        );
        let udp = etherparse::UdpHeaderSlice::from_slice(&icmp.payload()[20..]).unwrap();
        assert_eq!((udp.source_port(), udp.destination_port()), (5000, 53));
        assert_eq!(udp.length(), 8 + 33);
    }

    #[test]
    fn over_ipv6_the_headers_of_the_datagram_are_quoted() {
        let client = "[2001:db8::2]:5000".parse().unwrap();
        let destination = "[2001:db8::9]:53".parse().unwrap();
        let octets = message(client, destination, 65_507, Reason::Host);
        let icmp = Icmpv6Slice::from_slice(&octets).unwrap();
        let unreachable = icmpv6::DestUnreachableCode::Address;
        assert_eq!(
            icmp.icmp_type(),
            Icmpv6Type::DestinationUnreachable(unreachable)
        );
        let quote = etherparse::Ipv6HeaderSlice::from_slice(icmp.payload()).unwrap();
        assert_eq!(quote.source_addr().to_string(), "2001:db8::2");
        assert_eq!(quote.destination_addr().to_string(), "2001:db8::9");
        assert_eq!(quote.next_header(), IpNumber::UDP);
        assert_eq!(quote.payload_length(), 8 + 65_507);
        let udp = etherparse::UdpHeaderSlice::from_slice(&icmp.payload()[40..]).unwrap();
        assert_eq!((udp.source_port(), udp.destination_port()), (5000, 53));
        assert_eq!(udp.length(), 8 + 65_507);
    }
}
