//! Sockets for flows to any address: one for TCP and one for UDP for each worker, all on one port.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use nix::libc;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Why the listening sockets could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another program, or another agent, has the port.
    #[error(
        "cannot listen on port {port}: the port is taken; `ss -tulnp sport = :{port}` names who holds it, choose another"
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

/// How many ports of the kernel's choice for TCP are tried for UDP.
const PORTS_TRIED: u32 = 64;

/// Where the flows of one worker come to.
#[derive(Debug)]
pub struct Listener {
    /// Takes TCP connections.
    pub tcp: TcpListener,
    /// Takes the datagrams that no session's socket gets.
    pub udp: UdpSocket,
}

/// Listens on `port` of every address of both families, for TCP and for UDP, once for each of
/// `workers`.
///
/// The sockets are transparent (`IP_TRANSPARENT`, ip(7); `IPV6_TRANSPARENT`, ipv6(7)): they take what
/// is for addresses that are not of this host, and an accepted socket has the original destination
/// as its own address. Port 0 lets the kernel choose one port for all. On a host without IPv6 they
/// take IPv4 alone.
///
/// # Errors
///
/// [`ListenError::PortTaken`] when any other socket is bound to the port, even if it would share
/// it.
pub fn bind(port: u16, workers: usize) -> Result<Vec<Listener>, ListenError> {
    let mut tries = 1..=PORTS_TRIED;
    loop {
        let tcp = bind_all(port, workers, Protocol::TCP)?;
        let chosen = port_of(&tcp[0], port)?;
        let udp = match bind_all(chosen, workers, Protocol::UDP) {
            Err(ListenError::PortTaken { .. }) if port == 0 && tries.next().is_some() => continue,
            bound => bound?,
        };
        for socket in &tcp {
            socket
                .listen(BACKLOG)
                .map_err(|source| busy_or(chosen, "listen", source))?;
        }
        let pairs = tcp.into_iter().zip(udp);
        return Ok(pairs
            .map(|(tcp, udp)| Listener {
                tcp: tcp.into(),
                udp: udp.into(),
            })
            .collect());
    }
}

/// Binds a socket for each worker to one port of a protocol.
fn bind_all(port: u16, workers: usize, protocol: Protocol) -> Result<Vec<Socket>, ListenError> {
    // Bound alone, the first socket proves that nobody else has the port. From then on it shares
    // it, but only with sockets of the same user that ask for it too.
    let first = bind_one(port, protocol, false)?;
    let call = |call| move |source| ListenError::Call { port, call, source };
    first
        .set_reuse_port(true)
        .map_err(call("setsockopt SO_REUSEPORT"))?;
    let port = port_of(&first, port)?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(bind_one(port, protocol, true)?);
    }
    for socket in &sockets {
        // The reply socket of a session may have this very port, at another host's address. Not
        // before all are bound: so nobody else's socket of UDP is taken for one that shares.
        socket
            .set_reuse_address(true)
            .map_err(call("setsockopt SO_REUSEADDR"))?;
    }
    Ok(sockets)
}

fn bind_one(port: u16, protocol: Protocol, share: bool) -> Result<Socket, ListenError> {
    let call = |call| move |source| ListenError::Call { port, call, source };
    let (socket, address) = match new_socket(Domain::IPV6, protocol) {
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
            let socket = new_socket(Domain::IPV4, protocol).map_err(call("socket"))?;
            (socket, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        }
        Err(error) => return Err(call("socket")(error)),
    };
    socket
        .set_ip_transparent_v4(true)
        .map_err(|source| ListenError::Transparent { source })?;
    if protocol == Protocol::TCP {
        // Connections of an earlier agent that linger in TIME_WAIT do not hold the port.
        socket
            .set_reuse_address(true)
            .map_err(call("setsockopt SO_REUSEADDR"))?;
    }
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

fn new_socket(domain: Domain, protocol: Protocol) -> io::Result<Socket> {
    let kind = if protocol == Protocol::TCP {
        Type::STREAM
    } else {
        Type::DGRAM
    };
    Socket::new(domain, kind, Some(protocol))
}

/// The port that a socket is bound to, when `asked` was asked for.
fn port_of(socket: &Socket, asked: u16) -> Result<u16, ListenError> {
    let address = socket.local_addr().map_err(|source| ListenError::Call {
        port: asked,
        call: "getsockname",
        source,
    })?;
    Ok(address.as_socket().map_or(asked, |address| address.port()))
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
