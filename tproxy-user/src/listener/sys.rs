//! Descriptors of other processes: the system calls that no library wraps.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use nix::libc;

/// A descriptor that stands for a process, and is readable once that has ended (`pidfd_open(2)`).
pub(super) fn open_process(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: takes two numbers.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    descriptor(answer)
}

/// A duplicate of a descriptor of another process (`pidfd_getfd(2)`, Linux 5.6), closed on exec.
pub(super) fn duplicate(process: &impl AsFd, number: RawFd) -> io::Result<OwnedFd> {
    let process = process.as_fd().as_raw_fd();
    // SAFETY: takes three numbers, the first of which is an open descriptor.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, number, 0) };
    descriptor(answer)
}

fn descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(answer).map_err(io::Error::other)? {
        ..0 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel made this descriptor for this call.
        number => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
    }
}
