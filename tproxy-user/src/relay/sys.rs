//! The socket options that no library wraps.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

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

/// The shortest round trip that the kernel has measured on a connection (`tcpi_min_rtt`, tcp(7)).
/// `None` when it has measured none yet.
///
/// Not by nix, which refuses what an older kernel returns: it knows fewer fields of the struct.
pub(super) fn shortest_round_trip(socket: &Socket) -> io::Result<Option<Duration>> {
    // SAFETY: the struct has integers only, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).expect("some hundred bytes");
    // SAFETY: the descriptor is open while `socket` lives; the pointers are to a struct of `length`
    // bytes and to `length`, which live throughout the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    Ok(match info.tcpi_min_rtt {
        0 | u32::MAX => None,
        microseconds => Some(Duration::from_micros(microseconds.into())),
    })
}

/// The scheduling policy of the calling thread (sched(7)).
pub(super) fn scheduling_policy() -> io::Result<libc::c_int> {
    // SAFETY: it takes no pointers.
    let policy = unsafe { libc::sched_getscheduler(0) };
    Ok(Errno::result(policy)?)
}

/// Gives the calling thread a scheduling policy without real-time priority (sched(7)). Its nice value
/// stays.
pub(super) fn set_scheduling_policy(policy: libc::c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is to a struct that lives throughout the call.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    Errno::result(result)?;
    Ok(())
}
