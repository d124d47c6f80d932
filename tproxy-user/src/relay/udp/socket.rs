//! The sockets of datagrams: the one that all new ones come to, and the two of a session.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::sys::set_option;
use crate::relay::source::bind_with_port;

/// What may wait at the socket of a worker, in bytes as the kernel counts them. `net.core.rmem_max`
/// bounds it where `CAP_NET_ADMIN` is missing.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// The same for each socket of a session, and what it may have on its way out. As a rule it is twice
/// `net.core.rmem_max`, which is twice what a socket has that does not ask.
const SESSION_BUFFER: usize = 1024 * 1024;

/// Lets a socket tell where each datagram was sent to, and gives it a large buffer.
pub(in crate::relay) fn prepare(socket: &UdpSocket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    setsockopt(socket, sockopt::Ipv4OrigDstAddr, &true)?;
    if socket.local_addr()?.is_ipv6() {
        setsockopt(socket, sockopt::Ipv6OrigDstAddr, &true)?;
    }
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        SockRef::from(socket).set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    Ok(())
}

/// A socket that sends to `upstream`, from the address `source` if there is one, and hears nobody else.
pub(super) fn upstream(
    upstream: SocketAddr,
    source: Option<IpAddr>,
    mark: Option<u32>,
) -> io::Result<Socket> {
    let socket = datagram_socket(upstream, mark)?;
    if let Some(source) = source {
        bind_with_port(&socket, source)?;
    }
    match socket.connect(&upstream.into()) {
        // No port is free at all addresses at once, of which those of clients count as well.
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && source.is_none() => {
            socket.bind(&source_towards(upstream, mark)?.into())?;
            socket.connect(&upstream.into())?;
        }
        connected => connected?,
    }
    receive_joined(&socket)?;
    Ok(socket)
}

/// The address that the kernel chooses for what this host sends to `upstream`, without a port.
fn source_towards(mut upstream: SocketAddr, mark: Option<u32>) -> io::Result<SocketAddr> {
    // It sends and receives nothing, and connecting it takes no port.
    let socket = Socket::new_raw(
        Domain::for_address(upstream),
        Type::RAW.cloexec().nonblocking(),
        Some(Protocol::from(libc::IPPROTO_RAW)),
    )?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    // A port stands for the number of a protocol there (raw(7), ipv6(7)), so none is given.
    upstream.set_port(0);
    socket.connect(&upstream.into())?;
    let source = socket.local_addr()?.as_socket();
    let mut source = source.ok_or(io::ErrorKind::AddrNotAvailable)?;
    source.set_port(0);
    Ok(source)
}

/// A socket that has `destination` as its own address, sends to `client` and hears nobody else.
///
/// `None` when that address is not to be had: a program on this host has the port and does not share
/// it, or the port is one below `net.ipv4.ip_unprivileged_port_start` and `CAP_NET_BIND_SERVICE` is
/// missing.
pub(super) fn reply(
    destination: SocketAddr,
    client: SocketAddr,
    mark: Option<u32>,
) -> io::Result<Option<Socket>> {
    let socket = datagram_socket(destination, mark)?;
    transparent(&socket, destination)?;
    // All sessions to this destination have the same address.
    socket.set_reuse_address(true)?;
    match socket.bind(&destination.into()) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EADDRINUSE | libc::EACCES)) => {
            return Ok(None);
        }
        bound => bound?,
    }
    socket.connect(&client.into())?;
    receive_joined(&socket)?;
    Ok(Some(socket))
}

/// Lets a socket of the family of `address` send from addresses that are not of this host.
pub(super) fn transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true)
    } else {
        socket.set_ip_transparent_v6(true)
    }
}

/// Lets the kernel cut what a socket sends into fragments, here or on the way. The client may have
/// relied on that: whether its datagrams may be cut is not known here.
pub(super) fn allow_fragments(socket: &impl AsFd, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv4() {
        set_option(
            socket,
            libc::SOL_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DONT,
        )
    } else {
        set_option(
            socket,
            libc::SOL_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DONT,
        )
    }
}

/// With `mark` every packet of the socket carries this mark, by which the kernel programs leave alone
/// what the relay itself sends, be it to upstream or to a client on this host.
fn datagram_socket(address: SocketAddr, mark: Option<u32>) -> io::Result<Socket> {
    let socket = Socket::new_raw(
        Domain::for_address(address),
        Type::DGRAM.cloexec().nonblocking(),
        Some(Protocol::UDP),
    )?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    allow_fragments(&socket, address)?;
    socket.set_recv_buffer_size(SESSION_BUFFER)?;
    socket.set_send_buffer_size(SESSION_BUFFER)?;
    Ok(socket)
}

/// Datagrams of one sender that arrive together are received together (`UDP_GRO`, udp(7)). Only once
/// the socket is connected, so that none of somebody else is among them.
fn receive_joined(socket: &Socket) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::UdpGroSegment, &true)?)
}
