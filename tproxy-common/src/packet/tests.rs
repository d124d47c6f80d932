//! Each kind of header, by hand, and packets cut short at every byte.

use super::*;

const ETHERNET: usize = 14;
const ESP: u8 = 50;
const NO_NEXT_HEADER: u8 = 59;
const MOBILITY: u8 = 135;
const ICMP: u8 = 1;
const SYN: u8 = 0x02;

const SOURCE_V4: [u8; 4] = [10, 1, 0, 2];
const DESTINATION_V4: [u8; 4] = [192, 0, 2, 9];
const SOURCE_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
const DESTINATION_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

/// 40000 to 443, data offset 5.
fn tcp(flags: u8) -> Vec<u8> {
    let mut header = vec![0; 20];
    header[..4].copy_from_slice(&[0x9c, 0x40, 0x01, 0xbb]);
    header[12] = 5 << 4;
    header[13] = flags;
    header
}

/// 40000 to 443, no payload.
fn udp() -> Vec<u8> {
    vec![0x9c, 0x40, 0x01, 0xbb, 0, 8, 0, 0]
}

/// An Ethernet frame with an IPv4 packet; `options` in whole words.
fn v4(options: &[u8], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; 20];
    let length = u16::try_from(header.len() + options.len() + payload.len()).unwrap();
    header[0] = 0x40 | u8::try_from(5 + options.len() / 4).unwrap();
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[9] = protocol;
    header[12..16].copy_from_slice(&SOURCE_V4);
    header[16..20].copy_from_slice(&DESTINATION_V4);
    [&[0; ETHERNET], &header[..], options, payload].concat()
}

/// An extension header of its number with its octets from the length on.
type Extension<'a> = (u8, &'a [u8]);

/// An Ethernet frame with an IPv6 packet.
fn v6(extensions: &[Extension<'_>], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let numbers: Vec<u8> = extensions
        .iter()
        .map(|(number, _)| *number)
        .chain([protocol])
        .collect();
    let mut frame = vec![0; ETHERNET + 8];
    frame[ETHERNET] = 0x60;
    frame[ETHERNET + 6] = numbers[0];
    frame.extend(SOURCE_V6);
    frame.extend(DESTINATION_V6);
    for ((_, octets), next) in extensions.iter().zip(&numbers[1..]) {
        frame.push(*next);
        frame.extend(*octets);
    }
    frame.extend(payload);
    let length = u16::try_from(frame.len() - ETHERNET - V6_HEADER).unwrap();
    frame[ETHERNET + 4..][..2].copy_from_slice(&length.to_be_bytes());
    frame
}

fn parsed(frame: &[u8], family: Family) -> Result<Headers, Unreadable> {
    parse(frame, family, ETHERNET)
}

fn expected_v4(protocol: Protocol, flags: u8, transport_offset: usize) -> Headers {
    Headers {
        protocol,
        source: Address::v4(SOURCE_V4),
        destination: Address::v4(DESTINATION_V4),
        source_port: 40000,
        destination_port: 443,
        flags: TcpFlags::from_bits(flags),
        transport_offset,
        more_fragments: MoreFragments::default(),
    }
}

fn expected_v6(protocol: Protocol, flags: u8, transport_offset: usize) -> Headers {
    Headers {
        source: Address::v6(SOURCE_V6),
        destination: Address::v6(DESTINATION_V6),
        ..expected_v4(protocol, flags, transport_offset)
    }
}

#[test]
fn plain_packets_of_both_families_and_protocols() {
    let tcp = tcp(SYN);
    assert_eq!(
        parsed(&v4(&[], TCP, &tcp), Family::V4),
        Ok(expected_v4(Protocol::Tcp, SYN, 34))
    );
    assert_eq!(
        parsed(&v4(&[], UDP, &udp()), Family::V4),
        Ok(expected_v4(Protocol::Udp, 0, 34))
    );
    assert_eq!(
        parsed(&v6(&[], TCP, &tcp), Family::V6),
        Ok(expected_v6(Protocol::Tcp, SYN, 54))
    );
    assert_eq!(
        parsed(&v6(&[], UDP, &udp()), Family::V6),
        Ok(expected_v6(Protocol::Udp, 0, 54))
    );
}

#[test]
fn a_packet_without_ethernet_header_begins_at_0() {
    let frame = v4(&[], TCP, &tcp(SYN));
    assert_eq!(
        parse(&frame[ETHERNET..], Family::V4, 0),
        Ok(expected_v4(Protocol::Tcp, SYN, 20))
    );
}

#[test]
fn ipv4_options_of_every_length_are_stepped_over() {
    for words in 0..=10 {
        // No-operation options (RFC 791, 3.1), which no transport header begins with.
        let frame = v4(&vec![1; words * 4], TCP, &tcp(SYN));
        assert_eq!(
            parsed(&frame, Family::V4),
            Ok(expected_v4(Protocol::Tcp, SYN, 34 + words * 4)),
            "{words} words"
        );
    }
}

#[test]
fn an_ipv4_header_of_less_than_20_octets_is_malformed() {
    for words in 0..5 {
        let mut frame = v4(&[], TCP, &tcp(SYN));
        frame[ETHERNET] = 0x40 | words;
        assert_eq!(parsed(&frame, Family::V4), Err(Unreadable::Malformed));
    }
}

#[test]
fn a_tcp_header_of_less_than_20_octets_is_malformed() {
    for words in 0..5 {
        let mut segment = tcp(SYN);
        segment[12] = words << 4 | 0x0f;
        assert_eq!(
            parsed(&v4(&[], TCP, &segment), Family::V4),
            Err(Unreadable::Malformed)
        );
        assert_eq!(
            parsed(&v6(&[], TCP, &segment), Family::V6),
            Err(Unreadable::Malformed)
        );
    }
}

#[test]
fn a_version_that_contradicts_the_ethertype_is_malformed() {
    for version in 0..16 {
        let mut frame = v4(&[], TCP, &tcp(SYN));
        frame[ETHERNET] = version << 4 | 5;
        assert_eq!(parsed(&frame, Family::V4).is_ok(), version == 4);
        let mut frame = v6(&[], TCP, &tcp(SYN));
        frame[ETHERNET] = version << 4;
        assert_eq!(parsed(&frame, Family::V6).is_ok(), version == 6);
    }
    let frame = v4(&[], TCP, &[tcp(SYN), vec![0; 40]].concat());
    assert_eq!(parsed(&frame, Family::V6), Err(Unreadable::Malformed));
}

#[test]
fn ipv4_fragments_are_recognised_by_offset_or_more_to_come() {
    const MORE_FRAGMENTS: u16 = 0x2000;
    const DO_NOT_FRAGMENT: u16 = 0x4000;
    for (field, fragmented) in [
        (0, Some(false)),
        (DO_NOT_FRAGMENT, Some(false)),
        // The reserved bit makes no fragment (RFC 791, 3.1).
        (0x8000, Some(false)),
        (MORE_FRAGMENTS, Some(true)),
        (1, None),
        (0x1fff, None),
        (0x0100, None),
        (MORE_FRAGMENTS | 0xb9, None),
    ] {
        let mut frame = v4(&[], UDP, &udp());
        frame[ETHERNET + 6..][..2].copy_from_slice(&field.to_be_bytes());
        let of_first = |more: bool| Headers {
            more_fragments: more.into(),
            ..expected_v4(Protocol::Udp, 0, 34)
        };
        let expected = fragmented.map(of_first).ok_or(Unreadable::Fragment);
        assert_eq!(parsed(&frame, Family::V4), expected, "{field:#06x}");
    }
}

#[test]
fn options_headers_are_as_long_as_they_say() {
    for number in [HOP_BY_HOP, DESTINATION_OPTIONS] {
        for units in [0_u8, 1, 7, 255] {
            let length = (usize::from(units) + 1) * 8;
            let mut octets = vec![0xff; length - 1];
            octets[0] = units;
            assert_eq!(
                parsed(&v6(&[(number, &octets)], TCP, &tcp(SYN)), Family::V6),
                Ok(expected_v6(Protocol::Tcp, SYN, 54 + length)),
                "header {number} of {length} octets"
            );
        }
    }
}

#[test]
fn an_authentication_header_counts_in_4_octets() {
    for words in [1_u8, 2, 4, 255] {
        let length = (usize::from(words) + 2) * 4;
        let mut octets = vec![0xff; length - 1];
        octets[0] = words;
        assert_eq!(
            parsed(
                &v6(&[(AUTHENTICATION, &octets)], TCP, &tcp(SYN)),
                Family::V6
            ),
            Ok(expected_v6(Protocol::Tcp, SYN, 54 + length)),
            "{length} octets"
        );
    }
}

#[test]
fn a_routing_header_is_stepped_over_when_no_segments_are_left() {
    let mut octets = [0xff; 23];
    octets[0] = 2;
    octets[2] = 0;
    let done = v6(&[(ROUTING, &octets)], UDP, &udp());
    assert_eq!(
        parsed(&done, Family::V6),
        Ok(expected_v6(Protocol::Udp, 0, 78))
    );
    octets[2] = 1;
    let waypoint = v6(&[(ROUTING, &octets)], UDP, &udp());
    assert_eq!(
        parsed(&waypoint, Family::V6),
        Err(Unreadable::OtherProtocol)
    );
}

#[test]
fn an_atomic_fragment_is_whole_and_others_are_not() {
    const MORE: u16 = 1;
    const RESERVED: u16 = 0b110;
    for (field, fragmented) in [
        (0, Some(false)),
        (RESERVED, Some(false)),
        (MORE, Some(true)),
        (1 << 3, None),
        (0x1fff << 3, None),
        (0xb9 << 3 | MORE, None),
        (0x0100, None),
    ] {
        let [high, low] = field.to_be_bytes();
        // The octet after the next header is reserved: not a length.
        let octets = [0xff, high, low, 1, 2, 3, 4];
        let of_first = |more: bool| Headers {
            more_fragments: more.into(),
            ..expected_v6(Protocol::Udp, 0, 62)
        };
        let expected = fragmented.map(of_first).ok_or(Unreadable::Fragment);
        assert_eq!(
            parsed(&v6(&[(FRAGMENT, &octets)], UDP, &udp()), Family::V6),
            expected,
            "{field:#06x}"
        );
    }
}

#[test]
fn what_cannot_be_read_is_another_protocol() {
    for protocol in [ICMP, ESP, NO_NEXT_HEADER, MOBILITY, 132, 255] {
        assert_eq!(
            parsed(&v6(&[], protocol, &tcp(SYN)), Family::V6),
            Err(Unreadable::OtherProtocol)
        );
        assert_eq!(
            parsed(
                &v6(&[(HOP_BY_HOP, &[0; 7])], protocol, &tcp(SYN)),
                Family::V6
            ),
            Err(Unreadable::OtherProtocol)
        );
        assert_eq!(
            parsed(&v4(&[], protocol, &tcp(SYN)), Family::V4),
            Err(Unreadable::OtherProtocol)
        );
    }
    // IPv4 has no extension headers: their numbers are protocols like any other there.
    for protocol in [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION] {
        assert_eq!(
            parsed(&v4(&[], protocol, &tcp(SYN)), Family::V4),
            Err(Unreadable::OtherProtocol)
        );
    }
}

#[test]
fn as_many_extension_headers_as_the_limit_are_walked_and_no_more() {
    let extension: Extension<'_> = (DESTINATION_OPTIONS, &[0; 7]);
    for count in 0..=EXTENSION_HEADERS {
        assert_eq!(
            parsed(&v6(&vec![extension; count], TCP, &tcp(SYN)), Family::V6),
            Ok(expected_v6(Protocol::Tcp, SYN, 54 + 8 * count)),
            "{count} headers"
        );
    }
    for count in [EXTENSION_HEADERS + 1, 20] {
        assert_eq!(
            parsed(&v6(&vec![extension; count], TCP, &tcp(SYN)), Family::V6),
            Err(Unreadable::TooManyExtensions),
            "{count} headers"
        );
    }
}

#[test]
fn every_kind_of_extension_header_in_one_packet() {
    let extensions: [Extension<'_>; 5] = [
        (
            HOP_BY_HOP,
            &[
                1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
        ),
        (DESTINATION_OPTIONS, &[0; 7]),
        (ROUTING, &[0, 4, 0, 0, 0, 0, 0]),
        (FRAGMENT, &[0; 7]),
        (AUTHENTICATION, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    assert_eq!(
        parsed(&v6(&extensions, TCP, &tcp(SYN)), Family::V6),
        Ok(expected_v6(Protocol::Tcp, SYN, 54 + 16 + 8 + 8 + 8 + 12))
    );
}

/// A packet that ends within its headers is malformed; behind them its length does not matter.
#[test]
fn packets_cut_short_at_every_byte() {
    let extensions: [Extension<'_>; 3] = [
        (HOP_BY_HOP, &[0; 7]),
        (FRAGMENT, &[0; 7]),
        (AUTHENTICATION, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    let payload = [tcp(SYN), vec![0; 10]].concat();
    for (family, frame) in [
        (Family::V4, v4(&[1; 8], TCP, &payload)),
        (Family::V4, v4(&[], UDP, &[udp(), vec![0; 10]].concat())),
        (Family::V6, v6(&extensions, TCP, &payload)),
        (Family::V6, v6(&[], UDP, &[udp(), vec![0; 10]].concat())),
    ] {
        let whole = parsed(&frame, family).unwrap();
        let complete = frame.len() - 10;
        for length in 0..=frame.len() {
            let expected = if length < complete {
                Err(Unreadable::Malformed)
            } else {
                Ok(whole)
            };
            assert_eq!(
                parsed(&frame[..length], family),
                expected,
                "{length} of {} octets, {family:?}",
                frame.len()
            );
        }
    }
}

/// What a frame has behind the end of its packet is padding, whatever it looks like.
#[test]
fn headers_behind_the_length_of_the_packet_are_not_there() {
    let extensions: [Extension<'_>; 2] = [
        (HOP_BY_HOP, &[0; 7]),
        (AUTHENTICATION, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    for (family, frame) in [
        (Family::V4, v4(&[], TCP, &tcp(SYN))),
        (Family::V4, v4(&[1; 8], UDP, &udp())),
        (Family::V6, v6(&[], TCP, &tcp(SYN))),
        (Family::V6, v6(&extensions, UDP, &udp())),
    ] {
        let whole = parsed(&frame, family).unwrap();
        let (field, stated) = match family {
            Family::V4 => (2, frame.len() - ETHERNET),
            Family::V6 => (4, frame.len() - ETHERNET - V6_HEADER),
        };
        let with_length = |length: usize| {
            let mut frame = frame.clone();
            let octets = u16::try_from(length).unwrap().to_be_bytes();
            frame[ETHERNET + field..][..2].copy_from_slice(&octets);
            frame
        };
        for length in 0..stated {
            assert_eq!(
                parsed(&with_length(length), family),
                Err(Unreadable::Malformed),
                "{length} of {stated} octets, {family:?}"
            );
        }
        for length in [stated, stated + 1, 0xffff] {
            assert_eq!(parsed(&with_length(length), family), Ok(whole), "{length}");
        }
        // Zero means more than the field can say, if the frame has more.
        let counted_from = if family == Family::V4 { 0 } else { V6_HEADER };
        let mut long = with_length(0);
        long.resize(ETHERNET + counted_from + 0xffff, 0);
        assert_eq!(parsed(&long, family), Err(Unreadable::Malformed));
        long.push(0);
        assert_eq!(parsed(&long, family), Ok(whole));
    }
}

/// An extension header in the padding does not even say that there is a fragment.
#[test]
fn extension_headers_behind_the_length_of_the_packet_are_not_walked() {
    for (number, octets) in [
        (FRAGMENT, [0, 0, 9, 0, 0, 0, 0]),
        (ROUTING, [0, 4, 1, 0, 0, 0, 0]),
    ] {
        let mut frame = v6(&[(HOP_BY_HOP, &[0; 7]), (number, &octets)], TCP, &tcp(SYN));
        for length in 8_u8..12 {
            frame[ETHERNET + 5] = length;
            assert_eq!(parsed(&frame, Family::V6), Err(Unreadable::Malformed));
        }
        frame[ETHERNET + 5] = 12;
        assert_ne!(parsed(&frame, Family::V6), Err(Unreadable::Malformed));
    }
}

/// For these one field is enough, wherever the packet ends behind it.
#[test]
fn fragments_and_other_protocols_need_no_transport_header() {
    let cases = [
        (v4(&[], ICMP, &[]), Family::V4, Unreadable::OtherProtocol),
        (v6(&[], ESP, &[]), Family::V6, Unreadable::OtherProtocol),
        (
            v6(&[(FRAGMENT, &[0, 0, 9])], UDP, &[]),
            Family::V6,
            Unreadable::Fragment,
        ),
    ];
    for (frame, family, expected) in cases {
        for length in 0..frame.len() {
            assert_eq!(parsed(&frame[..length], family), Err(Unreadable::Malformed));
        }
        assert_eq!(parsed(&frame, family), Err(expected));
    }
}

#[test]
fn only_a_bare_syn_opens_and_only_an_ack_without_syn_or_rst_completes() {
    const FIN: u8 = 0x01;
    const RST: u8 = 0x04;
    const PSH: u8 = 0x08;
    const ACK: u8 = 0x10;
    const URG: u8 = 0x20;
    const ECE: u8 = 0x40;
    const CWR: u8 = 0x80;
    for (bits, opens, completes) in [
        (SYN, true, false),
        // A SYN that asks for ECN (RFC 3168, 6.1.1).
        (SYN | ECE | CWR, true, false),
        (SYN | ACK, false, false),
        (SYN | RST, false, false),
        (SYN | FIN, false, false),
        (ACK, false, true),
        (ACK | PSH, false, true),
        (ACK | FIN, false, true),
        (ACK | RST, false, false),
        (RST, false, false),
        (FIN, false, false),
        (PSH | URG, false, false),
        (0, false, false),
    ] {
        let flags = TcpFlags::from_bits(bits);
        assert_eq!(
            (flags.opens(), flags.completes()),
            (opens, completes),
            "{bits:#04x}"
        );
    }
}
