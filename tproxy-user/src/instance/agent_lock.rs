//! Who the agent of an instance is, and whether it lives.
//!
//! The lock is of the kind that belongs to an open file (`F_OFD_SETLK`, fcntl(2)): it goes with the
//! process, and whoever asks about it does not have to take it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::PathBuf,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
};
use serde::{Deserialize, Serialize};

use super::{Error, Instance, private_directory};

/// The file that is locked, in the instance's directory.
pub const AGENT_LOCK_FILE: &str = "agent.lock";

/// Octets of a record: more than three numbers and their keys take.
const RECORD_LENGTH: usize = 128;

/// What an agent says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Its process, as it is numbered in its own PID namespace.
    pub pid: u32,
    /// The inode of that namespace.
    pid_namespace: u64,
    /// The port that its workers listen on.
    pub port: u16,
    /// How many workers.
    pub workers: u32,
}

impl AgentRecord {
    /// The calling process as an agent with so many workers, which listen on this port.
    ///
    /// # Errors
    ///
    /// When /proc is not there.
    pub fn of_this_process(port: u16, workers: u32) -> io::Result<Self> {
        Ok(Self {
            pid: std::process::id(),
            pid_namespace: pid_namespace()?,
            port,
            workers,
        })
    }

    /// Its process, if the caller has the same numbers for processes.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        let same = pid_namespace().is_ok_and(|own| own == self.pid_namespace);
        same.then_some(self.pid)
    }
}

fn pid_namespace() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/self/ns/pid")?.ino())
}

/// Held by an agent for as long as it lives; the kernel lets go of it when the agent dies.
#[derive(Debug)]
pub struct AgentLock {
    file: File,
}

impl AgentLock {
    /// Becomes the agent of the instance.
    ///
    /// # Errors
    ///
    /// [`Error::Running`] when there is one.
    pub fn acquire(instance: &Instance) -> Result<Self, Error> {
        private_directory(std::path::Path::new(super::RUN))?;
        private_directory(instance.run_directory())?;
        let path = path(instance);
        let failed = |cause| Error::File {
            path: path.clone(),
            cause,
        };
        let mut file = open(&path).map_err(failed)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => Ok(Self { file }),
            Err(Errno::EAGAIN | Errno::EACCES) => Err(Error::Running {
                name: instance.name().to_owned(),
                pid: read(&mut file).map_or(0, |record| record.pid),
            }),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Publishes the record.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn publish(&mut self, record: AgentRecord) -> io::Result<()> {
        // Of one length and in one piece: a reader sees this record or the one before.
        let text = format!("{:<RECORD_LENGTH$}", serde_json::to_string(&record)?);
        self.file.write_all_at(text.as_bytes(), 0)
    }

    /// The agent of the instance, if it lives.
    #[must_use]
    pub fn holder(instance: &Instance) -> Option<AgentRecord> {
        let mut file = File::open(path(instance)).ok()?;
        let mut lock = whole_file(libc::F_WRLCK);
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).ok()?;
        if i32::from(lock.l_type) == libc::F_UNLCK {
            return None;
        }
        read(&mut file)
    }

    /// Waits until the instance has no agent.
    ///
    /// # Errors
    ///
    /// When the lock cannot be waited for.
    pub fn wait_for_end(instance: &Instance) -> io::Result<()> {
        let file = match File::open(path(instance)) {
            // The agent took its files along.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        fcntl(&file, FcntlArg::F_OFD_SETLKW(&whole_file(libc::F_RDLCK)))?;
        Ok(())
    }
}

fn path(instance: &Instance) -> PathBuf {
    instance.run_directory().join(AGENT_LOCK_FILE)
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        // The constants are small; their types differ between architectures.
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn open(path: &std::path::Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn read(file: &mut File) -> Option<AgentRecord> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}
