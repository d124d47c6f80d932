//! Sockets that swallow whatever is given to them, without an answer.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
};

use nix::libc;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

/// The filter `ret #0` of classic BPF (`BPF_RET | BPF_K`): keeps no octet of any packet, so that the
/// kernel drops it before the socket sees it.
const KEEP_NOTHING: u16 = 0x06;

/// A listener and a datagram socket, for flows that are to be dropped. Both take both families, and
/// foreign addresses.
///
/// No SYN gets an answer and no datagram an ICMP error: to a client it looks as if its packets were
/// lost. Never accept or receive from them.
#[derive(Debug)]
pub struct Discard {
    /// For connections. It listens on a port of the kernel's choice.
    pub tcp: TcpListener,
    /// For datagrams. It is bound to a port of the kernel's choice.
    pub udp: UdpSocket,
}

/// Makes these sockets in the calling thread's network namespace.
///
/// # Errors
///
/// When the kernel refuses, for instance without `CAP_NET_RAW`.
pub fn discard() -> io::Result<Discard> {
    let tcp = discarding(Type::STREAM, Protocol::TCP)?;
    tcp.listen(1)?;
    let udp = discarding(Type::DGRAM, Protocol::UDP)?;
    Ok(Discard {
        tcp: tcp.into(),
        udp: udp.into(),
    })
}

fn discarding(kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let (socket, address) = match Socket::new(Domain::IPV6, kind, Some(protocol)) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            (socket, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))
        }
        // A host without IPv6.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
            (socket, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))
        }
        Err(error) => return Err(error),
    };
    // One flag for both families.
    socket.set_ip_transparent_v4(true)?;
    // Before it has a port: nothing can come through.
    socket.attach_filter(&[SockFilter::new(KEEP_NOTHING, 0, 0, 0)])?;
    socket.bind(&address.into())?;
    Ok(socket)
}
