//! Network namespaces by identity.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sched::{CloneFlags, setns},
};
use serde::{Deserialize, Serialize};

/// That of the calling thread.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// Device and inode of a network namespace, unique while it exists (namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

impl NamespaceId {
    /// The calling thread's.
    ///
    /// # Errors
    ///
    /// When /proc is not there.
    pub fn current() -> io::Result<Self> {
        Self::of(Path::new(CURRENT))
    }

    /// That of this file, which a namespace is mounted on or which is `ns/net` of a process.
    ///
    /// # Errors
    ///
    /// When there is no such file.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// Waits until nobody else has the calling thread's namespace to itself, and has it from then on.
    /// Two instances that begin at once in one namespace would choose the same mark and table.
    ///
    /// # Errors
    ///
    /// When /proc is not there or the kernel refuses.
    pub fn have_alone() -> io::Result<Flock<File>> {
        let file = File::open(CURRENT)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
    }

    /// Its inode.
    #[must_use]
    pub const fn inode(&self) -> u64 {
        self.inode
    }

    /// Moves the calling thread into this namespace, which an agent lives in or `ip netns` has a
    /// name for. False when neither has it nor any process: then it is gone.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn enter(self, agent: Option<u32>) -> io::Result<bool> {
        if Self::current()? == self {
            return Ok(true);
        }
        let of_agent = agent.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")));
        let named = fs::read_dir("/run/netns").into_iter().flatten();
        let named = named.filter_map(|entry| Some(entry.ok()?.path()));
        // Those without a name, of containers for instance, have processes.
        let processes = fs::read_dir("/proc").into_iter().flatten();
        let of_processes = processes.filter_map(|entry| Some(entry.ok()?.path().join("ns/net")));
        let found = of_agent
            .into_iter()
            .chain(named)
            .chain(of_processes)
            .find(|path| Self::of(path).is_ok_and(|id| id == self));
        let Some(path) = found else { return Ok(false) };
        enter(&path)?;
        Ok(true)
    }
}

/// Moves the calling thread into the network namespace of this file.
///
/// # Errors
///
/// When there is no such file or the kernel refuses.
pub fn enter(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}
