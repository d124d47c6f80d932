//! How much of a long transfer waits in the socket that it leaves by.
//!
//! The kernel lets a send queue grow to megabytes when the sender is faster than the receiver. A path
//! within the host needs none of that, and pays for it: what waits has left the caches when the
//! receiver copies it. On a longer path the queue is what fills it, and is left to the kernel.

use std::time::Duration;

use log::debug;
use socket2::Socket;

use super::sys;

/// A round trip that only a path within a host, or to a virtual machine on it, has.
const WITHIN_HOST: Duration = Duration::from_micros(50);
/// What the send queue of such a path may take, in bytes; the kernel grants twice that, for the memory
/// that goes with the bytes (socket(7), `SO_SNDBUF`). Over the longest such path it is 2.6 GB/s.
const SEND_BUFFER: usize = 128 * 1024;

/// Keeps the send queue of a socket short if its path is within the host.
pub(super) fn fit_to_path(socket: &Socket) {
    let fitted = match sys::shortest_round_trip(socket) {
        Ok(Some(round_trip)) if round_trip <= WITHIN_HOST => {
            socket.set_send_buffer_size(SEND_BUFFER)
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = fitted {
        // The flow goes on with a longer queue.
        debug!("cannot shorten the send queue of a socket: {error}");
    }
}
