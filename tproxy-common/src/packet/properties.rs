//! Generated packets: none makes the parser panic, and it agrees with what they were built from,
//! with a plain reading of the protocols, and with another parser.

use etherparse::{
    IpAuthHeader, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options,
    Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions,
    PacketBuilder, SlicedPacket, TcpHeader, TransportSlice,
};
use proptest::prelude::*;

use super::*;

/// A well-formed packet, as another library writes it.
#[derive(Clone, Debug)]
struct Built {
    network: IpHeaders,
    transport: Transport,
    payload: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Transport {
    Tcp {
        ports: (u16, u16),
        flags: u8,
        options: Vec<u8>,
    },
    Udp {
        ports: (u16, u16),
    },
}

impl Built {
    fn family(&self) -> Family {
        match self.network {
            IpHeaders::Ipv4(..) => Family::V4,
            IpHeaders::Ipv6(..) => Family::V6,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let builder = PacketBuilder::ip(self.network.clone());
        let mut bytes = Vec::new();
        let written = match &self.transport {
            Transport::Tcp {
                ports: (source, destination),
                flags,
                options,
            } => {
                let bit = |place: u8| flags >> place & 1 != 0;
                let mut header = TcpHeader::new(*source, *destination, 7, 8);
                (header.fin, header.syn, header.rst) = (bit(0), bit(1), bit(2));
                (header.psh, header.ack, header.urg) = (bit(3), bit(4), bit(5));
                (header.ece, header.cwr) = (bit(6), bit(7));
                header.set_options_raw(options).unwrap();
                builder.tcp_header(header).write(&mut bytes, &self.payload)
            }
            Transport::Udp {
                ports: (source, destination),
            } => builder
                .udp(*source, *destination)
                .write(&mut bytes, &self.payload),
        };
        written.unwrap();
        bytes
    }

    fn headers(&self, bytes: &[u8]) -> Headers {
        let (source, destination) = match &self.network {
            IpHeaders::Ipv4(header, _) => {
                (Address::v4(header.source), Address::v4(header.destination))
            }
            IpHeaders::Ipv6(header, _) => {
                (Address::v6(header.source), Address::v6(header.destination))
            }
        };
        let (protocol, ports, flags, length) = match &self.transport {
            Transport::Tcp {
                ports,
                flags,
                options,
            } => (Protocol::Tcp, ports, *flags, 20 + options.len()),
            Transport::Udp { ports } => (Protocol::Udp, ports, 0, 8),
        };
        Headers {
            protocol,
            source,
            destination,
            source_port: ports.0,
            destination_port: ports.1,
            flags: TcpFlags::from_bits(flags),
            transport_offset: bytes.len() - self.payload.len() - length,
            more_fragments: MoreFragments::default(),
        }
    }
}

fn any_packet() -> impl Strategy<Value = Built> {
    (
        prop_oneof![any_v4(), any_v6()],
        any_transport(),
        prop::collection::vec(any::<u8>(), 0..32),
    )
        .prop_map(|(network, transport, payload)| Built {
            network,
            transport,
            payload,
        })
}

fn any_transport() -> impl Strategy<Value = Transport> {
    prop_oneof![
        (any::<(u16, u16)>(), any::<u8>(), 0_usize..=10).prop_map(|(ports, flags, words)| {
            Transport::Tcp {
                ports,
                flags,
                options: vec![1; words * 4],
            }
        }),
        any::<(u16, u16)>().prop_map(|ports| Transport::Udp { ports }),
    ]
}

fn any_v4() -> impl Strategy<Value = IpHeaders> {
    (
        any::<[u8; 4]>(),
        any::<[u8; 4]>(),
        0_usize..=10,
        any::<bool>(),
    )
        .prop_map(|(source, destination, words, dont_fragment)| {
            let header = Ipv4Header {
                source,
                destination,
                dont_fragment,
                options: Ipv4Options::try_from(vec![1; words * 4].as_slice()).unwrap(),
                ..Ipv4Header::default()
            };
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        })
}

fn any_v6() -> impl Strategy<Value = IpHeaders> {
    let octets = |length| prop::collection::vec(any::<u8>(), length);
    let options =
        || prop::option::of((0_usize..3).prop_flat_map(move |units| octets(6 + 8 * units)));
    (
        (any::<[u8; 16]>(), any::<[u8; 16]>()),
        (options(), options(), options(), options()),
        any::<bool>(),
        prop::option::of(0_usize..5),
    )
        .prop_map(
            |((source, destination), (hop_by_hop, options, routing, last), atomic, check)| {
                let raw =
                    |octets: Vec<u8>| Ipv6RawExtHeader::new_raw(IpNumber::TCP, &octets).unwrap();
                let header = Ipv6Header {
                    source,
                    destination,
                    ..Ipv6Header::default()
                };
                let extensions = Ipv6Extensions {
                    hop_by_hop_options: hop_by_hop.map(raw),
                    destination_options: options.map(raw),
                    routing: routing.map(|mut octets| {
                        // No segments left.
                        octets[1] = 0;
                        Ipv6RoutingExtensions {
                            routing: raw(octets),
                            final_destination_options: last.map(raw),
                        }
                    }),
                    fragment: atomic.then(|| {
                        Ipv6FragmentHeader::new(IpNumber::TCP, IpFragOffset::ZERO, false, 7)
                    }),
                    auth: check.map(|words| {
                        IpAuthHeader::new(IpNumber::TCP, 1, 2, &vec![0xff; words * 4]).unwrap()
                    }),
                };
                IpHeaders::Ipv6(header, extensions)
            },
        )
}

/// Octets that are changed, anywhere; the packet's length, if it is another; where the frame ends.
type Damage = (
    Vec<(prop::sample::Index, u8)>,
    Option<u16>,
    Option<prop::sample::Index>,
);

fn any_damage() -> impl Strategy<Value = Damage> {
    // Most fields that matter are among the first octets, and small numbers mean something there.
    let octet = prop_oneof![
        any::<u8>(),
        prop::sample::select(vec![0, 6, 17, 43, 44, 51, 60])
    ];
    (
        prop::collection::vec((any::<prop::sample::Index>(), octet), 0..4),
        // Most packets are shorter than this.
        prop::option::weighted(0.3, prop_oneof![0_u16..120, any::<u16>()]),
        prop::option::weighted(0.2, any::<prop::sample::Index>()),
    )
}

fn damaged(mut bytes: Vec<u8>, (changes, length, end): &Damage) -> Vec<u8> {
    for (place, octet) in changes {
        let place = place.index(bytes.len());
        bytes[place] = *octet;
    }
    if let Some(length) = length {
        let field = if bytes[0] >> 4 == 4 { 2 } else { 4 };
        bytes[field..field + 2].copy_from_slice(&length.to_be_bytes());
    }
    if let Some(end) = end {
        bytes.truncate(end.index(bytes.len()));
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn arbitrary_octets_never_panic_and_agree_with_a_plain_reading(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        family in prop_oneof![Just(Family::V4), Just(Family::V6)],
        offset in 0_usize..220,
        right_version in any::<bool>(),
    ) {
        if let Some(first) = bytes.get_mut(offset).filter(|_| right_version) {
            *first = *first & 0x0f | if family == Family::V4 { 0x40 } else { 0x60 };
        }
        prop_assert_eq!(
            parse(bytes.as_slice(), family, offset),
            plain_reading(&bytes, family, offset)
        );
    }

    #[test]
    fn packets_of_another_library_are_read_as_they_were_meant(packet in any_packet()) {
        let bytes = packet.bytes();
        prop_assert_eq!(
            parse(bytes.as_slice(), packet.family(), 0),
            Ok(packet.headers(&bytes))
        );
        let other = if packet.family() == Family::V4 { Family::V6 } else { Family::V4 };
        prop_assert_eq!(parse(bytes.as_slice(), other, 0), Err(Unreadable::Malformed));
    }

    #[test]
    fn damaged_packets_agree_with_a_plain_reading(
        packet in any_packet(),
        damage in any_damage(),
    ) {
        let bytes = damaged(packet.bytes(), &damage);
        let family = packet.family();
        prop_assert_eq!(
            parse(bytes.as_slice(), family, 0),
            plain_reading(&bytes, family, 0),
            "{:02x?}", bytes
        );
    }

    /// The other library refuses more, and leaves the payload of fragments and unfinished routes
    /// to its caller. What it does find, we find as well.
    #[test]
    fn damaged_packets_agree_with_another_library(
        packet in any_packet(),
        damage in any_damage(),
    ) {
        let bytes = damaged(packet.bytes(), &damage);
        let Ok(SlicedPacket { transport: Some(transport), .. }) = SlicedPacket::from_ip(&bytes)
        else {
            return Ok(());
        };
        let (protocol, source, destination) = match &transport {
            TransportSlice::Tcp(tcp) => (Protocol::Tcp, tcp.source_port(), tcp.destination_port()),
            TransportSlice::Udp(udp) => (Protocol::Udp, udp.source_port(), udp.destination_port()),
            _ => return Ok(()),
        };
        let family = if bytes[0] >> 4 == 4 { Family::V4 } else { Family::V6 };
        let ours = parse(bytes.as_slice(), family, 0);
        let without_length = family == Family::V6 && bytes[4..6] == [0, 0];
        let unread = matches!(ours, Err(Unreadable::OtherProtocol | Unreadable::TooManyExtensions));
        if unread || without_length {
            // It reads beyond authentication headers of IPv4 and unfinished routes, and takes every
            // IPv6 packet without a length for one that is too long to have one.
            prop_assert_eq!(plain_reading(&bytes, family, 0), ours);
            return Ok(());
        }
        let ours = ours.map(|found| (found.protocol, found.source_port, found.destination_port));
        prop_assert_eq!(ours, Ok((protocol, source, destination)), "{:02x?}", bytes);
    }
}

/// The protocols as their documents describe them, with no thought for cost.
fn plain_reading(frame: &[u8], family: Family, offset: usize) -> Result<Headers, Unreadable> {
    let cut = Unreadable::Malformed;
    let packet = frame.get(offset..).ok_or(cut)?;
    let octet = |at: usize| packet.get(at).map(|octet| usize::from(*octet)).ok_or(cut);
    let version = octet(0)? >> 4;
    // Nothing is read behind the packet's own end.
    let within = |length: usize| packet.get(..length).unwrap_or(packet);
    let (source, destination, protocol, transport, packet, fragmented) = match family {
        Family::V4 => {
            let fixed = packet.get(..20).ok_or(cut)?;
            let length = (octet(0)? & 0xf) * 4;
            if version != 4 || length < 20 {
                return Err(Unreadable::Malformed);
            }
            let fragment = octet(6)? * 256 + octet(7)?;
            if fragment & 0x1fff != 0 {
                return Err(Unreadable::Fragment);
            }
            (
                Address::v4(fixed[12..16].try_into().unwrap()),
                Address::v4(fixed[16..20].try_into().unwrap()),
                fixed[9],
                length,
                within(octet(2)? * 256 + octet(3)?),
                fragment & 0x2000 != 0,
            )
        }
        Family::V6 => {
            let fixed = packet.get(..40).ok_or(cut)?;
            if version != 6 {
                return Err(Unreadable::Malformed);
            }
            let packet = within(40 + octet(4)? * 256 + octet(5)?);
            let (protocol, transport, fragmented) = plain_walk(packet, fixed[6], 40, 0, false)?;
            (
                Address::v6(fixed[8..24].try_into().unwrap()),
                Address::v6(fixed[24..40].try_into().unwrap()),
                protocol,
                transport,
                packet,
                fragmented,
            )
        }
    };
    let (protocol, length) = match protocol {
        6 => (Protocol::Tcp, 20),
        17 => (Protocol::Udp, 8),
        _ => return Err(Unreadable::OtherProtocol),
    };
    let header = packet.get(transport..transport + length).ok_or(cut)?;
    if protocol == Protocol::Tcp && (header[12] / 16) * 4 < 20 {
        return Err(Unreadable::Malformed);
    }
    Ok(Headers {
        protocol,
        source,
        destination,
        source_port: u16::from(header[0]) * 256 + u16::from(header[1]),
        destination_port: u16::from(header[2]) * 256 + u16::from(header[3]),
        flags: TcpFlags::from_bits(if protocol == Protocol::Tcp {
            header[13]
        } else {
            0
        }),
        transport_offset: offset + transport,
        more_fragments: fragmented.into(),
    })
}

/// Number and place of the first header that is no extension header, and whether it is in a fragment.
fn plain_walk(
    packet: &[u8],
    number: u8,
    at: usize,
    walked: usize,
    mut fragmented: bool,
) -> Result<(u8, usize, bool), Unreadable> {
    if ![0, 43, 44, 51, 60].contains(&number) {
        return Ok((number, at, fragmented));
    }
    if walked == EXTENSION_HEADERS {
        return Err(Unreadable::TooManyExtensions);
    }
    let header = packet.get(at..at + 4).ok_or(Unreadable::Malformed)?;
    let length = usize::from(header[1]);
    let octets = match number {
        43 if header[3] > 0 => return Err(Unreadable::OtherProtocol),
        44 => {
            let field = u16::from_be_bytes([header[2], header[3]]);
            let (fragment_offset, more) = (field >> 3, field & 1);
            if fragment_offset != 0 {
                return Err(Unreadable::Fragment);
            }
            fragmented = more == 1;
            8
        }
        51 => (length + 2) * 4,
        _ => 8 + length * 8,
    };
    plain_walk(packet, header[0], at + octets, walked + 1, fragmented)
}
