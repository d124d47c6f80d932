//! The RST that answers a SYN, read by a parser that the programs have no part in.

use etherparse::{LinkSlice, NetSlice, SlicedPacket, TcpSlice, TransportSlice};

/// Checks that `answer` is the RST that a closed port would send for `syn`.
#[track_caller]
pub(crate) fn assert_answers(syn: &[u8], answer: &[u8]) {
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
