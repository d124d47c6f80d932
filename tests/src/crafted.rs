//! Packets made by hand.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel, Ipv6Header,
    TcpHeader, UdpHeader,
};

use crate::wire::Frame;

/// The source port of SYNs made by hand, outside of what the kernel chooses from.
pub const PORT: u16 = 1999;

/// A SYN from [`PORT`], with its IP header.
#[must_use]
pub fn syn(source: IpAddr, destination: IpAddr, port: u16) -> Vec<u8> {
    ip(
        source,
        destination,
        IpNumber::TCP,
        &[],
        &tcp_syn(source, destination, port),
    )
}

/// The TCP header of a SYN from [`PORT`].
#[must_use]
pub fn tcp_syn(source: IpAddr, destination: IpAddr, port: u16) -> Vec<u8> {
    let mut header = TcpHeader::new(PORT, port, 1, 65_535);
    header.syn = true;
    header.checksum = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), &[])
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), &[])
        }
        _ => panic!("addresses of one family"),
    }
    .expect("a short packet");
    header.to_bytes().to_vec()
}

/// An IP packet. IPv4 has `options` in its header; IPv6 has them as they are behind its header.
#[must_use]
pub fn ip(
    source: IpAddr,
    destination: IpAddr,
    protocol: IpNumber,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let payload_length = u16::try_from(payload.len()).expect("a short packet");
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4Header::new(
                payload_length,
                64,
                protocol,
                source.octets(),
                destination.octets(),
            )
            .expect("short");
            header.options = Ipv4Options::try_from(options).expect("up to ten words of options");
            ipv4(header, payload)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: payload_length + u16::try_from(options.len()).expect("short"),
                next_header: protocol,
                hop_limit: 64,
                source: source.octets(),
                destination: destination.octets(),
            };
            [&header.to_bytes(), options, payload].concat()
        }
        _ => panic!("addresses of one family"),
    }
}

/// An IPv4 packet, with length and checksum of its header made right.
#[must_use]
pub fn ipv4(mut header: Ipv4Header, payload: &[u8]) -> Vec<u8> {
    let length = header.header_len() + payload.len();
    header.total_len = u16::try_from(length).expect("a short packet");
    header.header_checksum = header.calc_header_checksum();
    [&header.to_bytes(), payload].concat()
}

/// A UDP datagram, without an IP header.
#[must_use]
pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (source.port(), destination.port());
    let header = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let addresses = Ipv4Header {
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv4Header::default()
            };
            UdpHeader::with_ipv4_checksum(from, to, &addresses, payload)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let addresses = Ipv6Header {
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv6Header::default()
            };
            UdpHeader::with_ipv6_checksum(from, to, &addresses, payload)
        }
        _ => panic!("addresses of one family"),
    };
    [&header.expect("a short datagram").to_bytes(), payload].concat()
}

/// The IP packets that carry a UDP datagram in fragments, in order. Their payloads have up to `size` bytes, which is a
/// multiple of eight (RFC 791; RFC 8200, section 4.5).
#[must_use]
pub fn udp_fragments(
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
    (identification, size): (u16, usize),
) -> Vec<Vec<u8>> {
    let datagram = udp(source, destination, payload);
    let last = datagram.len().div_ceil(size) - 1;
    let pieces = datagram.chunks(size).enumerate();
    pieces
        .map(|(index, piece)| {
            let offset = u16::try_from(index * size / 8).expect("a short datagram");
            let more = index < last;
            match (source.ip(), destination.ip()) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    let header = Ipv4Header {
                        identification,
                        dont_fragment: false,
                        more_fragments: more,
                        fragment_offset: offset.try_into().expect("13 bits"),
                        time_to_live: 64,
                        protocol: IpNumber::UDP,
                        source: source.octets(),
                        destination: destination.octets(),
                        ..Ipv4Header::default()
                    };
                    ipv4(header, piece)
                }
                (source, destination) => {
                    let place = (offset << 3 | u16::from(more)).to_be_bytes();
                    let number = u32::from(identification).to_be_bytes();
                    let header = [&[IpNumber::UDP.0, 0], &place[..], &number].concat();
                    ip(
                        source,
                        destination,
                        IpNumber::IPV6_FRAGMENTATION_HEADER,
                        &header,
                        piece,
                    )
                }
            }
        })
        .collect()
}

/// The frame around an IP packet.
#[must_use]
pub fn ethernet(source: [u8; 6], destination: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 4 {
        EtherType::IPV4
    } else {
        EtherType::IPV6
    };
    let header = Ethernet2Header {
        source,
        destination,
        ether_type,
    };
    [&header.to_bytes(), packet].concat()
}

/// The source and destination ports of a TCP segment without options or extension headers.
#[must_use]
pub fn tcp_ports(frame: &Frame) -> Option<(u16, u16)> {
    let packet = frame.bytes.get(14..)?;
    let (protocol, header) = if packet.first()? >> 4 == 4 {
        (packet.get(9)?, 20)
    } else {
        (packet.get(6)?, 40)
    };
    let ports = packet.get(header..header + 4)?;
    (*protocol == 6).then(|| {
        (
            u16::from_be_bytes([ports[0], ports[1]]),
            u16::from_be_bytes([ports[2], ports[3]]),
        )
    })
}

/// An IPv6 extension header of `words` times eight bytes, filled with an option that a node skips when it does not
/// know it (RFC 8200, section 4.2: the highest bits of its type are zero).
#[must_use]
pub fn extension(next: IpNumber, words: u8) -> Vec<u8> {
    let length = usize::from(words) * 8;
    let mut header = vec![0; length];
    header[..4].copy_from_slice(&[
        next.0,
        words - 1,
        0x1e,
        u8::try_from(length - 4).expect("short"),
    ]);
    header
}
