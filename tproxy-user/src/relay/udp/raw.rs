//! Packets from addresses that no socket of a session has: replies of sessions whose destination's
//! port belongs to a program on this host, and ICMP errors.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use etherparse::UdpHeader;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, SockaddrIn6, sendmsg};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::fragments::{self, Identifications};
use super::socket::{allow_fragments, transparent};
use super::unreachable::{self, Reason};

/// The raw sockets of a worker, made when they are first needed.
#[derive(Debug, Default)]
pub(super) struct RawSockets {
    /// What their packets carry, as those of the sockets of sessions do.
    mark: Option<u32>,
    udp_v4: Option<Socket>,
    udp_v6: Option<Socket>,
    fragments_v6: Option<Socket>,
    identifications: Identifications,
    icmp_v4: Option<Socket>,
    icmp_v6: Option<Socket>,
}

impl RawSockets {
    pub(super) fn new(mark: Option<u32>) -> Self {
        Self {
            mark,
            ..Self::default()
        }
    }

    /// Sends a datagram from `source`. The kernel fragments it as needed in IPv4, where routers do so
    /// as well. A router of IPv6 says that a packet is too long, but what it says comes to no socket:
    /// long ones are sent in short fragments.
    pub(super) fn reply(
        &mut self,
        source: SocketAddr,
        client: SocketAddr,
        payload: &[u8],
    ) -> io::Result<()> {
        let header = udp_header(source, client, payload)?;
        if source.is_ipv6() && fragments::is_long(header.length.into()) {
            let datagram = [&header.to_bytes(), payload].concat();
            return self.reply_in_fragments(source, client, &datagram);
        }
        let (socket, protocol) = match source {
            SocketAddr::V4(_) => (&mut self.udp_v4, Protocol::UDP),
            SocketAddr::V6(_) => (&mut self.udp_v6, Protocol::UDP),
        };
        send(
            made(socket, source, protocol, self.mark)?,
            source,
            client,
            &[&header.to_bytes(), payload],
        )
    }

    fn reply_in_fragments(
        &mut self,
        source: SocketAddr,
        client: SocketAddr,
        datagram: &[u8],
    ) -> io::Result<()> {
        let protocol = Protocol::from(libc::IPPROTO_FRAGMENT);
        let socket = made(&mut self.fragments_v6, source, protocol, self.mark)?;
        for (header, part) in fragments::of(datagram, self.identifications.next()) {
            send(socket, source, client, &[&header, part])?;
        }
        Ok(())
    }

    /// Tells the client that its datagram of `length` bytes has not arrived at `destination`, as if
    /// that said so.
    pub(super) fn unreachable(
        &mut self,
        client: SocketAddr,
        destination: SocketAddr,
        length: u16,
        reason: Reason,
    ) -> io::Result<()> {
        let message = unreachable::message(client, destination, length, reason);
        let (socket, protocol) = match destination {
            SocketAddr::V4(_) => (&mut self.icmp_v4, Protocol::ICMPV4),
            SocketAddr::V6(_) => (&mut self.icmp_v6, Protocol::ICMPV6),
        };
        send(
            made(socket, destination, protocol, self.mark)?,
            destination,
            client,
            &[&message],
        )
    }
}

fn udp_header(source: SocketAddr, client: SocketAddr, payload: &[u8]) -> io::Result<UdpHeader> {
    const HEADER: usize = 8;
    let length = u16::try_from(payload.len() + HEADER)
        .map_err(|_| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
    let mut header = UdpHeader {
        source_port: source.port(),
        destination_port: client.port(),
        length,
        checksum: 0,
    };
    let checksum = match (source.ip(), client.ip()) {
        (IpAddr::V4(source), IpAddr::V4(client)) => {
            header.calc_checksum_ipv4_raw(source.octets(), client.octets(), payload)
        }
        (IpAddr::V6(source), IpAddr::V6(client)) => {
            header.calc_checksum_ipv6_raw(source.octets(), client.octets(), payload)
        }
        _ => return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
    };
    header.checksum = checksum.map_err(|_| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
    Ok(header)
}

fn made(
    socket: &mut Option<Socket>,
    address: SocketAddr,
    protocol: Protocol,
    mark: Option<u32>,
) -> io::Result<&Socket> {
    match socket {
        Some(socket) => Ok(socket),
        socket => Ok(socket.insert(make(address, protocol, mark)?)),
    }
}

/// Makes a raw socket that sends from any address and receives nothing.
fn make(address: SocketAddr, protocol: Protocol, mark: Option<u32>) -> io::Result<Socket> {
    // `BPF_RET` of linux/bpf_common.h, with a constant: how many bytes to keep.
    const RETURN: u16 = 0x06;

    let socket = Socket::new_raw(
        Domain::for_address(address),
        Type::RAW.cloexec().nonblocking(),
        Some(protocol),
    )?;
    // The kernel gives every packet of the protocol to every raw socket of its address. This one has
    // an address that no packet has: the dummy address of RFC 7600, and the first of the discard
    // prefix of RFC 6666. Should one come all the same, the filter drops it.
    socket.attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)])?;
    transparent(&socket, address)?;
    let nobody = match address {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::new(192, 0, 0, 8)),
        SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0)),
    };
    socket.bind(&SocketAddr::from((nobody, 0)).into())?;
    allow_fragments(&socket, address)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    Ok(socket)
}

fn send(
    socket: &Socket,
    source: SocketAddr,
    client: SocketAddr,
    parts: &[&[u8]],
) -> io::Result<()> {
    let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let descriptor = socket.as_raw_fd();
    match (source, client) {
        (SocketAddr::V4(source), SocketAddr::V4(client)) => {
            let information = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(source.ip().octets()),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let control = [ControlMessage::Ipv4PacketInfo(&information)];
            let client = SockaddrIn::from(SocketAddrV4::new(*client.ip(), 0));
            sendmsg(descriptor, &slices, &control, flags, Some(&client))?;
        }
        (SocketAddr::V6(source), SocketAddr::V6(client)) => {
            let information = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: source.ip().octets(),
                },
                ipi6_ifindex: source.scope_id(),
            };
            let control = [ControlMessage::Ipv6PacketInfo(&information)];
            // Raw sockets of IPv6 read the port as a protocol (raw(7)).
            let client =
                SockaddrIn6::from(SocketAddrV6::new(*client.ip(), 0, 0, client.scope_id()));
            sendmsg(descriptor, &slices, &control, flags, Some(&client))?;
        }
        _ => return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_a_whole_datagram() {
        let payload: Vec<u8> = (0..=255).cycle().take(1001).collect();
        let of = |source: &str, client: &str| {
            udp_header(source.parse().unwrap(), client.parse().unwrap(), &payload).unwrap()
        };
        let header = of("192.0.2.9:53", "10.1.0.2:5000");
        let packet = etherparse::PacketBuilder::ipv4([192, 0, 2, 9], [10, 1, 0, 2], 64);
        let mut whole = Vec::new();
        packet.udp(53, 5000).write(&mut whole, &payload).unwrap();
        assert_eq!(header.to_bytes(), whole[20..28]);

        let header = of("[2001:db8::9]:53", "[2001:db8::2]:5000");
        let octets = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let packet =
            etherparse::PacketBuilder::ipv6(octets("2001:db8::9"), octets("2001:db8::2"), 64);
        let mut whole = Vec::new();
        packet.udp(53, 5000).write(&mut whole, &payload).unwrap();
        assert_eq!(header.to_bytes(), whole[40..48]);
    }

    #[test]
    fn what_no_datagram_can_hold_is_an_error() {
        let address = "192.0.2.9:53".parse().unwrap();
        let error = udp_header(address, address, &vec![0; 65_530]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }
}
