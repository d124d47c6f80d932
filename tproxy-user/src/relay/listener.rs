//! Listening sockets for flows to any address: one for each worker, all on one port.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use nix::libc;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Why the listening sockets could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another program, or another agent, has the port.
    #[error(
        "cannot listen on port {port}: the port is taken; `ss -tlnp sport = :{port}` names who holds it, choose another"
    )]
    PortTaken {
        /// The port asked for.
        port: u16,
    },
    /// `IP_TRANSPARENT` was refused.
    #[error("cannot make the listener transparent: {source}; run as root or with CAP_NET_RAW")]
    Transparent {
        /// What the kernel answered.
        source: io::Error,
    },
    /// Any other call failed.
    #[error("cannot listen on port {port}: {call}: {source}")]
    Call {
        /// The port asked for.
        port: u16,
        /// The call that failed.
        call: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// How many connections wait to be accepted at most, unless `net.core.somaxconn` is lower
/// (listen(2)).
const BACKLOG: i32 = 65_535;

/// Listens on `port` of every address of both families, once for each of `workers`.
///
/// The sockets are transparent (`IP_TRANSPARENT`, ip(7); `IPV6_TRANSPARENT`, ipv6(7)): they accept
/// connections to addresses that are not of this host, and an accepted socket has the original
/// destination as its own address. Port 0 lets the kernel choose one port for all. On a host
/// without IPv6 they take IPv4 alone.
///
/// # Errors
///
/// [`ListenError::PortTaken`] when any other socket is bound to the port, even if it would share
/// it.
pub fn bind(port: u16, workers: usize) -> Result<Vec<TcpListener>, ListenError> {
    // Bound alone, the first socket proves that nobody else has the port. From then on it shares
    // it, but only with sockets of the same user that ask for it too.
    let first = bind_one(port, false)?;
    let call = |call| move |source| ListenError::Call { port, call, source };
    first
        .set_reuse_port(true)
        .map_err(call("setsockopt SO_REUSEPORT"))?;
    let port = first
        .local_addr()
        .map_err(call("getsockname"))?
        .as_socket()
        .map_or(port, |address| address.port());

    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(bind_one(port, true)?);
    }
    for socket in &sockets {
        socket
            .listen(BACKLOG)
            .map_err(|source| busy_or(port, "listen", source))?;
    }
    Ok(sockets.into_iter().map(TcpListener::from).collect())
}

fn bind_one(port: u16, share: bool) -> Result<Socket, ListenError> {
    let call = |call| move |source| ListenError::Call { port, call, source };
    let (socket, address) = match stream_socket(Domain::IPV6) {
        Ok(socket) => {
            socket
                .set_only_v6(false)
                .map_err(call("setsockopt IPV6_V6ONLY"))?;
            socket
                .set_ip_transparent_v6(true)
                .map_err(|source| ListenError::Transparent { source })?;
            (socket, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        }
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            let socket = stream_socket(Domain::IPV4).map_err(call("socket"))?;
            (socket, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        }
        Err(error) => return Err(call("socket")(error)),
    };
    socket
        .set_ip_transparent_v4(true)
        .map_err(|source| ListenError::Transparent { source })?;
    // Connections of an earlier agent that linger in TIME_WAIT do not hold the port.
    socket
        .set_reuse_address(true)
        .map_err(call("setsockopt SO_REUSEADDR"))?;
    if share {
        socket
            .set_reuse_port(true)
            .map_err(call("setsockopt SO_REUSEPORT"))?;
    }
    socket
        .bind(&address.into())
        .map_err(|source| busy_or(port, "bind", source))?;
    Ok(socket)
}

fn stream_socket(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP))
}

fn busy_or(port: u16, call: &'static str, source: io::Error) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::PortTaken { port },
        _ => ListenError::Call { port, call, source },
    }
}

/// A client that has vanished without a word is noticed after ten minutes and some probes.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(10);

/// Sets what accepted sockets inherit from their listener, which saves these calls for every flow.
pub(super) fn prepare(listener: &TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let socket = SockRef::from(listener);
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_out_of_band_inline(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE))
}

/// An IPv4 address that a dual-stack socket reports as v4-mapped IPv6 (RFC 4291, 2.5.5.2), as what
/// it is.
pub(super) fn unmapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::from((v4, v6.port())),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn mapped_addresses_become_ipv4_and_others_stay() {
        assert_eq!(
            unmapped(address("[::ffff:192.0.2.9]:80")),
            address("192.0.2.9:80")
        );
        assert_eq!(
            unmapped(address("[2001:db8::9]:80")),
            address("[2001:db8::9]:80")
        );
        assert_eq!(unmapped(address("192.0.2.9:80")), address("192.0.2.9:80"));
    }
}
