//! Frames as the tests describe them, well-formed or not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// TCP flags, RFC 9293, 3.1.
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

/// The hardware address of `lo`.
pub(crate) const OF_LO: [u8; 6] = [0; 6];

/// Octets of an Ethernet header.
pub(crate) const ETHERNET_HEADER: usize = 14;

/// The shortest frame with these first octets that can be given to a test run: the kernel demands
/// the fixed part of the header that the `EtherType` promises.
pub(crate) fn shortest(frame: &[u8]) -> usize {
    match frame[12..ETHERNET_HEADER] {
        [0x08, 0x00] => ETHERNET_HEADER + 20,
        [0x86, 0xdd] => ETHERNET_HEADER + 40,
        _ => ETHERNET_HEADER,
    }
}

/// An Ethernet frame with an IP packet.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Its link-layer destination.
    pub(crate) link: [u8; 6],
    /// Its `EtherType`, when that is not the one of the packet.
    pub(crate) ether_type: Option<u16>,
    /// The IP header's addresses; both of one family.
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Words of options of an IPv4 header.
    pub(crate) option_words: u8,
    /// Flags and fragment offset of an IPv4 header, as they stand there.
    pub(crate) fragment: u16,
    /// What fragments of one packet have in common; of an IPv4 header, the lower half.
    pub(crate) identification: u32,
    /// Extension headers of an IPv6 packet.
    pub(crate) extensions: Vec<Extension>,
    /// What the packet carries.
    pub(crate) transport: Transport,
    /// Ports of a transport that has them.
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// Octets behind the transport header.
    pub(crate) payload: u16,
}

/// An IPv6 extension header, RFC 8200, 4, and RFC 4302.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extension {
    HopByHop { units: u8 },
    Routing { units: u8, segments_left: u8 },
    Fragment { field: u16 },
    Authentication { words: u8 },
    DestinationOptions { units: u8 },
}

/// What an IP packet carries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transport {
    Tcp {
        flags: u8,
        data_offset: u8,
    },
    Udp,
    /// Any other protocol, or one without its header.
    Other {
        protocol: u8,
    },
}

impl Frame {
    /// A TCP segment.
    pub(crate) fn tcp(source: &str, destination: &str, flags: u8) -> Self {
        Self::tcp_between(address(source), address(destination), flags)
    }

    /// A TCP segment.
    pub(crate) fn tcp_between(source: SocketAddr, destination: SocketAddr, flags: u8) -> Self {
        Self {
            link: OF_LO,
            ether_type: None,
            source: source.ip(),
            destination: destination.ip(),
            option_words: 0,
            fragment: 0,
            identification: 0,
            extensions: Vec::new(),
            transport: Transport::Tcp {
                flags,
                data_offset: 5,
            },
            source_port: source.port(),
            destination_port: destination.port(),
            payload: 0,
        }
    }

    /// A UDP datagram.
    pub(crate) fn udp(source: &str, destination: &str) -> Self {
        Self {
            transport: Transport::Udp,
            ..Self::tcp(source, destination, 0)
        }
    }

    /// A packet of another protocol.
    pub(crate) fn other(source: &str, destination: &str, protocol: u8) -> Self {
        Self {
            transport: Transport::Other { protocol },
            ..Self::tcp(source, destination, 0)
        }
    }

    /// The frame as it is on the wire. Checksums are left zero: the programs do not look at them.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let transport = self.transport_bytes();
        let (ether_type, packet) = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                (0x0800, self.v4(source, destination, &transport))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                (0x86dd, self.v6(source, destination, &transport))
            }
            _ => panic!("addresses of two families: {self:?}"),
        };
        let ether_type: u16 = self.ether_type.unwrap_or(ether_type);
        [
            &self.link[..],
            &[2, 0, 0, 0, 0, 99],
            &ether_type.to_be_bytes(),
            &packet,
        ]
        .concat()
    }

    fn v4(&self, source: Ipv4Addr, destination: Ipv4Addr, transport: &[u8]) -> Vec<u8> {
        let options = usize::from(self.option_words) * 4;
        let length = u16::try_from(20 + options + transport.len()).expect("a short packet");
        let mut header = vec![0; 20];
        header[0] = 0x40 | (5 + self.option_words);
        header[2..4].copy_from_slice(&length.to_be_bytes());
        let [_, _, identification @ ..] = self.identification.to_be_bytes();
        header[4..6].copy_from_slice(&identification);
        header[6..8].copy_from_slice(&self.fragment.to_be_bytes());
        header[8] = 64;
        header[9] = self.transport.protocol();
        header[12..16].copy_from_slice(&source.octets());
        header[16..20].copy_from_slice(&destination.octets());
        // No-operation options, RFC 791, 3.1.
        header.resize(20 + options, 1);
        [&header, transport].concat()
    }

    fn v6(&self, source: Ipv6Addr, destination: Ipv6Addr, transport: &[u8]) -> Vec<u8> {
        let numbers: Vec<u8> = self
            .extensions
            .iter()
            .map(|extension| extension.number())
            .chain([self.transport.protocol()])
            .collect();
        let mut payload = Vec::new();
        for (extension, next) in self.extensions.iter().zip(&numbers[1..]) {
            payload.extend(extension.bytes(*next, self.identification));
        }
        payload.extend(transport);
        let length = u16::try_from(payload.len()).expect("a short packet");
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(length.to_be_bytes());
        header.extend([numbers[0], 64]);
        [
            &header,
            &source.octets()[..],
            &destination.octets(),
            &payload,
        ]
        .concat()
    }

    fn transport_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !matches!(self.transport, Transport::Other { .. }) {
            bytes.extend(self.source_port.to_be_bytes());
            bytes.extend(self.destination_port.to_be_bytes());
        }
        match self.transport {
            Transport::Tcp { flags, data_offset } => {
                // Sequence and acknowledgment numbers.
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 1]);
                bytes.extend([data_offset << 4, flags]);
                bytes.extend([0xff, 0xff, 0, 0, 0, 0]);
            }
            Transport::Udp => {
                bytes.extend((8 + self.payload).to_be_bytes());
                bytes.extend([0, 0]);
            }
            Transport::Other { .. } => {}
        }
        bytes.resize(bytes.len() + usize::from(self.payload), 0xa5);
        bytes
    }
}

impl Extension {
    const fn number(self) -> u8 {
        match self {
            Self::HopByHop { .. } => 0,
            Self::Routing { .. } => 43,
            Self::Fragment { .. } => 44,
            Self::Authentication { .. } => 51,
            Self::DestinationOptions { .. } => 60,
        }
    }

    fn bytes(self, next: u8, identification: u32) -> Vec<u8> {
        let (mut bytes, length) = match self {
            Self::HopByHop { units } | Self::DestinationOptions { units } => {
                (vec![next, units], (usize::from(units) + 1) * 8)
            }
            Self::Routing {
                units,
                segments_left,
            } => (
                vec![next, units, 4, segments_left],
                (usize::from(units) + 1) * 8,
            ),
            Self::Fragment { field } => {
                let [high, low] = field.to_be_bytes();
                let number = identification.to_be_bytes();
                ([&[next, 0, high, low], &number[..]].concat(), 8)
            }
            Self::Authentication { words } => (vec![next, words], (usize::from(words) + 2) * 4),
        };
        bytes.resize(length, 0);
        bytes
    }
}

impl Transport {
    const fn protocol(self) -> u8 {
        match self {
            Self::Tcp { .. } => 6,
            Self::Udp => 17,
            Self::Other { protocol } => protocol,
        }
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address with a port")
}
