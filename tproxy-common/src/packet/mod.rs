//! Reads the headers of one packet: IPv4 with options, IPv6 with extension headers, TCP, UDP.

use crate::{
    address::{Address, Family},
    flow::Protocol,
    handover::Ends,
    limits::EXTENSION_HEADERS,
};

/// Bytes of a packet. The only way in which the parser touches one.
pub trait Packet {
    /// The `LENGTH` bytes at `offset`, or `None` when the packet ends before.
    fn read<const LENGTH: usize>(&self, offset: usize) -> Option<[u8; LENGTH]>;
}

impl Packet for [u8] {
    fn read<const LENGTH: usize>(&self, offset: usize) -> Option<[u8; LENGTH]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

/// The packet as far as its IP header says that it goes. What a frame has behind that is padding,
/// which a sender may have filled with anything.
#[derive(Clone, Copy)]
pub struct Bounded<'a, P: ?Sized> {
    frame: &'a P,
    end: usize,
}

impl<'a, P: Packet + ?Sized> Bounded<'a, P> {
    /// The IPv4 packet at `offset` of `frame` with this header: by its total length (RFC 791, 3.1).
    #[must_use]
    #[inline(always)]
    pub fn by_v4(frame: &'a P, offset: usize, header: &[u8; 20]) -> Self {
        let total = u16::from_be_bytes([header[2], header[3]]);
        Self::ending(frame, offset, total, 0)
    }

    /// The IPv6 packet at `offset` of `frame`, whose header begins so: by its payload length
    /// (RFC 8200, 3).
    #[must_use]
    #[inline(always)]
    pub fn by_v6(frame: &'a P, offset: usize, header: &[u8; 8]) -> Self {
        let payload = u16::from_be_bytes([header[4], header[5]]);
        Self::ending(frame, offset, payload, V6_HEADER)
    }

    /// A length of zero stands for one too great for the field (RFC 2675; BIG TCP in Linux) when the
    /// frame has more than the field can say. Such a packet ends with its frame.
    #[inline(always)]
    fn ending(frame: &'a P, offset: usize, length: u16, fixed: usize) -> Self {
        let start = offset + fixed;
        let end = if length == 0 && frame.read::<1>(start + usize::from(u16::MAX)).is_some() {
            usize::MAX
        } else {
            start + usize::from(length)
        };
        Self { frame, end }
    }
}

impl<P: Packet + ?Sized> Packet for Bounded<'_, P> {
    #[inline(always)]
    fn read<const LENGTH: usize>(&self, offset: usize) -> Option<[u8; LENGTH]> {
        if offset + LENGTH > self.end {
            return None;
        }
        self.frame.read(offset)
    }
}

/// The headers that matter of a TCP segment or UDP datagram. Ports in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Its protocol.
    pub protocol: Protocol,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// TCP flags; none for UDP.
    pub flags: TcpFlags,
    /// Where the transport header begins, in bytes from the beginning of the frame.
    pub transport_offset: usize,
    /// Whether this is the first of several fragments: then more are to come.
    pub more_fragments: MoreFragments,
}

/// The flag of an IP header that says that more fragments follow, as it was read. A `bool` would make
/// the verifier walk all that comes after it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MoreFragments(u8);

impl MoreFragments {
    /// The flag.
    #[must_use]
    #[inline(always)]
    pub const fn is_set(self) -> bool {
        self.0 != 0
    }

    /// Zero when it is not set.
    #[must_use]
    #[inline(always)]
    pub const fn bits(self) -> u8 {
        self.0
    }
}

impl From<bool> for MoreFragments {
    fn from(set: bool) -> Self {
        Self(set.into())
    }
}

impl Headers {
    /// The two ends of the flow, as seen from the sender of this packet.
    #[must_use]
    #[inline(always)]
    pub const fn ends(&self) -> Ends {
        Ends {
            protocol: self.protocol,
            source: self.source,
            source_port: self.source_port,
            destination: self.destination,
            destination_port: self.destination_port,
        }
    }
}

/// The control bits of a TCP segment (RFC 9293, 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpFlags(u8);

impl TcpFlags {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// The flags as they stand in byte 13 of the TCP header.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Whether this segment asks for a new connection.
    #[must_use]
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }

    /// Whether this segment can be the answer to a SYN: the flow may be a moment old.
    #[must_use]
    #[inline(always)]
    pub const fn answers_opening(self) -> bool {
        self.0 & (Self::SYN | Self::RST) != 0
    }

    /// Whether this segment can complete a handshake by SYN cookie.
    #[must_use]
    #[inline(always)]
    pub const fn completes(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::ACK
    }
}

/// Why a packet carries nothing to match rules against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Headers cut short, by the end of the frame or by the length in the IP header, or
    /// contradictory.
    Malformed,
    /// A fragment of a larger packet, other than its first.
    Fragment,
    /// Neither TCP nor UDP.
    OtherProtocol,
    /// More IPv6 extension headers than [`EXTENSION_HEADERS`].
    TooManyExtensions,
}

const TCP: u8 = 6;
const UDP: u8 = 17;

const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const V6_HEADER: usize = 40;

/// Parses the packet whose IP header begins at `offset`.
///
/// # Errors
///
/// Says why there is no TCP or UDP header to read; such packets are passed on unchanged.
#[inline(always)]
pub fn parse<P: Packet + ?Sized>(
    packet: &P,
    family: Family,
    offset: usize,
) -> Result<Headers, Unreadable> {
    let network = match family {
        Family::V4 => parse_v4(packet, offset)?,
        Family::V6 => parse_v6(packet, offset)?,
    };
    let at = network.transport_offset;
    let (protocol, ports, flags) = match network.protocol {
        TCP => {
            let header: [u8; TCP_HEADER] = network.packet.read(at).ok_or(Unreadable::Malformed)?;
            if header[12] >> 4 < 5 {
                return Err(Unreadable::Malformed);
            }
            let ports = [header[0], header[1], header[2], header[3]];
            (Protocol::Tcp, ports, TcpFlags(header[13]))
        }
        UDP => {
            let header: [u8; UDP_HEADER] = network.packet.read(at).ok_or(Unreadable::Malformed)?;
            let ports = [header[0], header[1], header[2], header[3]];
            (Protocol::Udp, ports, TcpFlags::default())
        }
        _ => return Err(Unreadable::OtherProtocol),
    };
    let [source_high, source_low, destination_high, destination_low] = ports;
    Ok(Headers {
        protocol,
        source: network.source,
        destination: network.destination,
        source_port: u16::from_be_bytes([source_high, source_low]),
        destination_port: u16::from_be_bytes([destination_high, destination_low]),
        flags,
        transport_offset: at,
        more_fragments: network.more_fragments,
    })
}

struct Network<'a, P: ?Sized> {
    packet: Bounded<'a, P>,
    protocol: u8,
    source: Address,
    destination: Address,
    transport_offset: usize,
    more_fragments: MoreFragments,
}

/// Of the flags of an IPv4 header (RFC 791, 3.1).
const MORE_FRAGMENTS: u8 = 0x20;

/// RFC 791, 3.1.
#[inline(always)]
fn parse_v4<P: Packet + ?Sized>(frame: &P, offset: usize) -> Result<Network<'_, P>, Unreadable> {
    let header: [u8; 20] = frame.read(offset).ok_or(Unreadable::Malformed)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_length < header.len() {
        return Err(Unreadable::Malformed);
    }
    // What begins behind the transport header has no ports.
    if header[6] & 0x1f != 0 || header[7] != 0 {
        return Err(Unreadable::Fragment);
    }
    Ok(Network {
        packet: Bounded::by_v4(frame, offset, &header),
        protocol: header[9],
        source: Address::v4([header[12], header[13], header[14], header[15]]),
        destination: Address::v4([header[16], header[17], header[18], header[19]]),
        transport_offset: offset + header_length,
        // One bit, wherever it is.
        more_fragments: MoreFragments((header[6] & MORE_FRAGMENTS) >> 5),
    })
}

/// RFC 8200, 3 and 4; the authentication header counts its length in 4 octets (RFC 4302, 2.2).
#[inline(always)]
fn parse_v6<P: Packet + ?Sized>(frame: &P, offset: usize) -> Result<Network<'_, P>, Unreadable> {
    let fixed: [u8; 8] = frame.read(offset).ok_or(Unreadable::Malformed)?;
    if fixed[0] >> 4 != 6 {
        return Err(Unreadable::Malformed);
    }
    let source: [u8; 16] = frame.read(offset + 8).ok_or(Unreadable::Malformed)?;
    let destination: [u8; 16] = frame.read(offset + 24).ok_or(Unreadable::Malformed)?;
    let packet = Bounded::by_v6(frame, offset, &fixed);
    let mut protocol = fixed[6];
    let mut at = offset + V6_HEADER;
    let mut more_fragments = MoreFragments::default();
    for _ in 0..EXTENSION_HEADERS {
        if !is_extension(protocol) {
            break;
        }
        let extension: [u8; 4] = packet.read(at).ok_or(Unreadable::Malformed)?;
        at += match protocol {
            FRAGMENT => {
                if extension[2] != 0 || extension[3] & 0xf8 != 0 {
                    return Err(Unreadable::Fragment);
                }
                // One with no more to come (RFC 6946) is whole.
                more_fragments = MoreFragments(extension[3] & 1);
                8
            }
            AUTHENTICATION => (usize::from(extension[1]) + 2) * 4,
            // The address in the fixed header is a waypoint while segments are left.
            ROUTING if extension[3] != 0 => return Err(Unreadable::OtherProtocol),
            _ => (usize::from(extension[1]) + 1) * 8,
        };
        protocol = extension[0];
    }
    if is_extension(protocol) {
        return Err(Unreadable::TooManyExtensions);
    }
    Ok(Network {
        packet,
        protocol,
        source: Address::v6(source),
        destination: Address::v6(destination),
        transport_offset: at,
        more_fragments,
    })
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Whether a header that can be walked over has this number. Encrypted payload (50) and no next
/// header (59) end the walk: nothing behind them can be read.
#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    // A bit for each: of so many comparisons the verifier would follow every outcome.
    const EXTENSIONS: u64 = 1 << HOP_BY_HOP
        | 1 << ROUTING
        | 1 << FRAGMENT
        | 1 << AUTHENTICATION
        | 1 << DESTINATION_OPTIONS;
    protocol < 64 && EXTENSIONS >> protocol & 1 != 0
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
