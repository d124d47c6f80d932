//! Where the BPF file system is.
//!
//! Pins that were made in the mount namespace of `ip netns exec` would be seen by nobody else and
//! vanish with the command, so the file system of the one that the command was started from is used.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::mount_namespace::outer_process;

/// Where it is mounted.
pub const MOUNT_POINT: &str = "/sys/fs/bpf";

/// No BPF file system.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Mounting failed.
    #[error(
        "cannot mount a BPF file system on {MOUNT_POINT}: {0}; mount it with `mount -t bpf bpf {MOUNT_POINT}`"
    )]
    Mount(Errno),
    /// The outer mount namespace cannot be entered.
    #[error(
        "the BPF file system of this machine is out of reach, because this command runs in a mount namespace of its own: {0}; use `nsenter --net=PATH` in place of `ip netns exec`, or `--netns`"
    )]
    Unreachable(io::Error),
}

/// The BPF file system as this process reaches it; mounted when it is not there.
///
/// # Errors
///
/// When it cannot be mounted.
pub fn mounted() -> Result<PathBuf, Error> {
    if let Some(path) = find() {
        return Ok(path);
    }
    match outer_process() {
        None => mount_here().map_err(Error::Mount)?,
        Some(process) => mount_there(process).map_err(Error::Unreachable)?,
    }
    find().ok_or(Error::Mount(Errno::ENOENT))
}

/// The BPF file system, if there is one. Changes nothing.
#[must_use]
pub fn find() -> Option<PathBuf> {
    // Kept open, because the outer process may end before this one does.
    static OUTER: OnceLock<File> = OnceLock::new();
    let Some(process) = outer_process() else {
        return is_bpffs(Path::new(MOUNT_POINT)).then(|| MOUNT_POINT.into());
    };
    if OUTER.get().is_none() {
        let directory = format!("/proc/{process}/root{MOUNT_POINT}");
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(directory)
            .ok()?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        if !is_bpffs(&path) {
            return None;
        }
        let _ = OUTER.set(directory);
    }
    let directory = OUTER.get()?;
    Some(format!("/proc/self/fd/{}", directory.as_raw_fd()).into())
}

/// The BPF file system of an agent that could not reach the one outside, as seen from here.
#[must_use]
pub fn of_process(pid: u32) -> PathBuf {
    format!("/proc/{pid}/root{MOUNT_POINT}").into()
}

/// Only a thread with file system attributes of its own may change its mount namespace.
fn mount_there(process: u32) -> io::Result<()> {
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_FS)?;
        let namespace = File::open(format!("/proc/{process}/ns/mnt"))?;
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNS)?;
        mount_here().map_err(io::Error::from)
    })
    .join()
    .unwrap_or_else(|_| Err(io::Error::other("the mounting thread died")))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

fn mount_here() -> Result<(), Errno> {
    mount(
        Some("bpf"),
        MOUNT_POINT,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
}
