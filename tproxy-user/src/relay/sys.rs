//! The one system call that no library wraps.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use socket2::Socket;

/// Sets `TCP_DEFER_ACCEPT` (tcp(7)) on a socket that is about to connect: the ACK that completes
/// the handshake waits for data to go with it (Linux, `tcp_rcv_synsent_state_process`).
pub(super) fn defer_handshake_ack(socket: &Socket) -> io::Result<()> {
    let seconds: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&seconds)).expect("the size of an int");
    // SAFETY: the descriptor is open while `socket` lives; the pointer is to an int that lives
    // throughout the call, and `length` is its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            length,
        )
    };
    Errno::result(result)?;
    Ok(())
}
