//! The address that an upstream connection comes from.

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockRef, Socket};

/// Lets a socket come from the address of a client. A port is chosen when it is connected, so that
/// connections to different servers can have the same.
pub(super) fn bind_to(socket: &Socket, source: IpAddr) -> io::Result<()> {
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    bind_with_port(socket, source)
}

/// The same with a port that is chosen at once.
pub(super) fn bind_with_port(socket: &Socket, source: IpAddr) -> io::Result<()> {
    let socket = SockRef::from(socket);
    if source.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
    }
    socket.bind(&SocketAddr::new(source, 0).into())
}

/// Whether a socket could not come from a client's address where one of this host may do: all ports
/// are taken, or it is not an address to come from.
pub(super) fn is_unusable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EADDRNOTAVAIL
                | libc::EADDRINUSE
                | libc::EAGAIN
                | libc::EINVAL
                | libc::EPERM
                | libc::EACCES
        )
    )
}

/// What is logged, from time to time, when it could not.
pub(super) fn warn_of_fallback(
    protocol: &str,
    client: SocketAddr,
    server: SocketAddr,
    error: &io::Error,
) {
    log::warn!(
        "{protocol} {client} -> {server}: the server sees this host's address instead of the client's: {error}; `tproxy status` counts such flows, net.ipv4.ip_local_port_range bounds how many have a client's address to one server"
    );
}
