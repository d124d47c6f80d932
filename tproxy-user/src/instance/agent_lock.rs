//! Who the agent of an instance is, and whether it lives.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
};

use serde::{Deserialize, Serialize};

use super::{Error, Instance, private_directory};

/// What an agent says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Its process.
    pub pid: u32,
    /// The port that its workers listen on.
    pub port: u16,
    /// How many workers.
    pub workers: u32,
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
        let path = instance.run_directory().join("agent.lock");
        let failed = |cause| Error::File {
            path: path.clone(),
            cause,
        };
        let mut file = open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => Err(Error::Running {
                name: instance.name().to_owned(),
                pid: read(&mut file).map_or(0, |record| record.pid),
            }),
            Err(TryLockError::Error(cause)) => Err(failed(cause)),
        }
    }

    /// Publishes the record.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn publish(&mut self, record: AgentRecord) -> io::Result<()> {
        let text = serde_json::to_vec(&record)?;
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(&text)
    }

    /// The agent of the instance, if it lives.
    #[must_use]
    pub fn holder(instance: &Instance) -> Option<AgentRecord> {
        let path = instance.run_directory().join("agent.lock");
        let mut file = File::open(path).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => read(&mut file),
            _ => None,
        }
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
