//! Upstream sockets: made, marked and told to connect, without waiting for the answer.

use std::io;
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
/// With `mark` every packet of it carries this mark, by which the kernel programs leave the relay's
/// own connections alone. With `source` it comes from this address, if [`source::is_unusable`] says
/// nothing else of the error.
///
/// The ACK that completes the handshake waits for the client's first bytes to go with it, which saves
/// a packet of most flows. When there are none yet, [`complete_handshake`] sends it.
pub(super) fn start(
    socket: Socket,
    upstream: SocketAddr,
    source: Option<IpAddr>,
    mark: Option<u32>,
) -> io::Result<Attempt> {
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    // Until the flow ends cleanly, a close is a RST: also the one that the kernel does for a killed
    // process.
    socket.set_linger(Some(Duration::ZERO))?;
    // The byte that urgent data points at stays in the stream, as it does at most receivers.
    socket.set_out_of_band_inline(true)?;
    sys::defer_handshake_ack(&socket)?;
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

/// Sends the ACK that [`start`] made wait: the server may be the one to speak first.
pub(super) fn complete_handshake(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_quickack(true)
}

/// Lets the kernel keep back no write because an earlier one is not acknowledged yet (`TCP_NODELAY`).
/// That concerns no first write, so a flow of one exchange does not need it.
pub(super) fn send_at_once(socket: &Socket) {
    // Fails for a socket that has been reset, which the write tells.
    let _ = socket.set_tcp_nodelay(true);
}
