//! What answers the first packet of a refused flow, read by a parser that the programs have no part
//! in.

use etherparse::{
    Icmpv4Type, Icmpv6Type, LinkSlice, NetSlice, SlicedPacket, TcpSlice, TransportSlice, icmpv4,
    icmpv6,
};

/// Checks that `answer` is what a host sends back where nobody has the port of `frame`.
#[track_caller]
pub(crate) fn assert_answers(frame: &[u8], answer: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a readable frame");
    match packet.transport {
        Some(TransportSlice::Udp(_)) => {
            let (header, packet) = frame.split_at(14);
            let (answer_header, answer) = answer.split_at(14);
            assert_eq!(answer_header[..6], header[6..12]);
            assert_eq!(answer_header[6..12], header[..6]);
            assert_eq!(answer_header[12..], header[12..]);
            assert_unreachable(packet, answer);
        }
        _ => assert_resets(frame, answer),
    }
}

/// Checks that `answer` is the error that says of `datagram`, both from the IP header on, that
/// nobody has its port, and that it quotes as much of it as there is room for (RFC 1812, RFC 4443).
#[track_caller]
pub(crate) fn assert_unreachable(datagram: &[u8], answer: &[u8]) {
    let asked = SlicedPacket::from_ip(datagram).expect("a readable packet");
    let parsed = SlicedPacket::from_ip(answer).expect("a readable packet");
    match (asked.net, parsed.net, parsed.transport) {
        (
            Some(NetSlice::Ipv4(asked)),
            Some(NetSlice::Ipv4(ip)),
            Some(TransportSlice::Icmpv4(icmp)),
        ) => {
            let (asked, ip) = (asked.header(), ip.header());
            assert_eq!(ip.source(), asked.destination());
            assert_eq!(ip.destination(), asked.source());
            assert_eq!(usize::from(ip.total_len()), answer.len());
            assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
            let port = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
            assert_eq!(icmp.icmp_type(), port);
            assert_eq!(icmp.checksum(), port.calc_checksum(icmp.payload()));
            let whole = usize::from(asked.total_len());
            assert_eq!(icmp.payload(), &datagram[..whole.min(576 - 28)]);
        }
        (
            Some(NetSlice::Ipv6(asked)),
            Some(NetSlice::Ipv6(ip)),
            Some(TransportSlice::Icmpv6(icmp)),
        ) => {
            let (asked, ip) = (asked.header(), ip.header());
            assert_eq!(ip.source(), asked.destination());
            assert_eq!(ip.destination(), asked.source());
            assert_eq!(usize::from(ip.payload_length()) + 40, answer.len());
            let port = Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port);
            assert_eq!(icmp.icmp_type(), port);
            assert!(icmp.is_checksum_valid(ip.source(), ip.destination()));
            let whole = usize::from(asked.payload_length()) + 40;
            assert_eq!(icmp.payload(), &datagram[..whole.min(1280 - 48)]);
        }
        unexpected => panic!("no ICMP error: {unexpected:?}"),
    }
}

/// Checks that `answer` is the RST that a closed port would send for `syn`.
#[track_caller]
fn assert_resets(syn: &[u8], answer: &[u8]) {
    let syn = Segment::of(syn);
    let answer = Segment::of(answer);
    assert_eq!(answer.link, exchanged(syn.link));
    assert_eq!(answer.addresses, exchanged(syn.addresses.clone()));
    assert_eq!(answer.ports(), exchanged(syn.ports()));
    let tcp = &answer.tcp;
    assert!(tcp.rst() && tcp.ack() && !tcp.syn() && !tcp.fin() && !tcp.psh());
    assert_eq!(tcp.sequence_number(), 0);
    assert_eq!(
        tcp.acknowledgment_number(),
        syn.tcp.sequence_number().wrapping_add(1)
    );
    // The pseudo header sums up to the same, so a checksum that was right still is.
    assert_eq!(sum(answer.tcp.slice()), sum(syn.tcp.slice()));
}

struct Segment<'a> {
    link: ([u8; 6], [u8; 6]),
    addresses: (Vec<u8>, Vec<u8>),
    tcp: TcpSlice<'a>,
}

impl<'a> Segment<'a> {
    #[track_caller]
    fn of(frame: &'a [u8]) -> Self {
        let packet = SlicedPacket::from_ethernet(frame).expect("a readable frame");
        let Some(LinkSlice::Ethernet2(link)) = packet.link else {
            panic!("no Ethernet header");
        };
        let addresses = match packet.net {
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header();
                (header.source().to_vec(), header.destination().to_vec())
            }
            Some(NetSlice::Ipv6(ip)) => {
                let header = ip.header();
                (header.source().to_vec(), header.destination().to_vec())
            }
            _ => panic!("no IP header"),
        };
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
            panic!("no TCP header");
        };
        Self {
            link: (link.source(), link.destination()),
            addresses,
            tcp,
        }
    }

    fn ports(&self) -> (u16, u16) {
        (self.tcp.source_port(), self.tcp.destination_port())
    }
}

fn exchanged<T>((first, second): (T, T)) -> (T, T) {
    (second, first)
}

/// The one's complement sum of the segment with its checksum in place (RFC 1071), of which there
/// are two zeroes.
fn sum(segment: &[u8]) -> u32 {
    let words = segment.chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | word.get(1).copied().map_or(0, u32::from))
        .sum();
    let mut folded = sum;
    while folded > 0xffff {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    folded % 0xffff
}
