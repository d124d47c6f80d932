//! Upstream sockets: made, marked and told to connect, without waiting for the answer.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::{source, sys};

/// A socket on its way to upstream.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) socket: Socket,
    /// The connection stands already, as it may on the loopback device.
    pub(super) connected: bool,
}

/// Makes a socket of the address's family. The only step that fails for want of descriptors.
pub(super) fn socket(upstream: SocketAddr) -> io::Result<Socket> {
    Socket::new_raw(
        Domain::for_address(upstream),
        Type::STREAM.cloexec().nonblocking(),
        Some(Protocol::TCP),
    )
}

/// Starts connecting `socket` to `upstream`.
///
/// `speaks_first` says that bytes of the client are waiting to be sent. They then carry the ACK
/// that completes the handshake, which saves a packet. With `mark` every packet of it carries this
/// mark, by which the kernel programs leave the relay's own connections alone. With `source` it comes
/// from this address, if [`source::is_unusable`] says nothing else of the error.
pub(super) fn start(
    socket: Socket,
    upstream: SocketAddr,
    source: Option<IpAddr>,
    mark: Option<u32>,
    speaks_first: bool,
) -> io::Result<Attempt> {
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    // Until the flow ends cleanly, a close is a RST: also the one that the kernel does for a killed
    // process.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    // The byte that urgent data points at stays in the stream, as it does at most receivers.
    socket.set_out_of_band_inline(true)?;
    if speaks_first {
        sys::defer_handshake_ack(&socket)?;
    }
    if let Some(source) = source {
        source::bind_to(&socket, source)?;
    }
    let connected = match socket.connect(&upstream.into()) {
        Ok(()) => true,
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => false,
        Err(error) => return Err(error),
    };
    Ok(Attempt { socket, connected })
}

/// Whether the client has sent something already. Looks at it and leaves it where it is.
///
/// An error is the end of the client's connection. It has to be acted upon, for a socket reports
/// each error once.
pub(super) fn speaks_first(client: &Socket) -> io::Result<bool> {
    match client.peek(&mut [MaybeUninit::uninit()]) {
        Ok(length) => Ok(length > 0),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}
