//! Where the BPF file system is.
//!
//! `ip netns exec` gives a command a mount namespace of its own with another `/sys`. Pins that were
//! made in there would be seen by nobody else and vanish with the command, so the file system of
//! the machine's own mount namespace, that of process 1, is used from everywhere.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

const MOUNT_POINT: &str = "/sys/fs/bpf";
const OF_PROCESS_1: &str = "/proc/1/root/sys/fs/bpf";

/// No BPF file system.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Mounting failed.
    #[error(
        "cannot mount a BPF file system on {MOUNT_POINT}: {0}; mount it with `mount -t bpf bpf {MOUNT_POINT}`"
    )]
    Mount(Errno),
    /// The mount namespace of process 1 cannot be entered.
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
    if in_namespace_of_process_1() {
        mount_here().map_err(Error::Mount)?;
        return Ok(MOUNT_POINT.into());
    }
    // Only a thread with file system attributes of its own may change its mount namespace.
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_FS).map_err(io::Error::from)?;
        let namespace = File::open("/proc/1/ns/mnt")?;
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNS).map_err(io::Error::from)?;
        mount_here().map_err(io::Error::from)
    })
    .join()
    .unwrap_or_else(|_| Err(io::Error::other("the mounting thread died")))
    .map_err(Error::Unreachable)?;
    Ok(OF_PROCESS_1.into())
}

/// The BPF file system, if there is one. Changes nothing.
#[must_use]
pub fn find() -> Option<PathBuf> {
    let path = if in_namespace_of_process_1() {
        MOUNT_POINT
    } else {
        OF_PROCESS_1
    };
    is_bpffs(Path::new(path)).then(|| path.into())
}

fn in_namespace_of_process_1() -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    // A process 1 that may not be asked is one of a container: its namespace is the only one.
    namespace("1").is_none_or(|of_1| Some(of_1) == namespace("self"))
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
