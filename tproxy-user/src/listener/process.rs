//! A process as messages name it.

use std::{fmt, fs};

/// A process that has a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id, as this process's /proc shows it.
    pub pid: u32,
    /// The name of its command (`/proc/PID/comm`, at most 15 octets); empty when it is gone.
    pub command: String,
}

impl Process {
    pub(super) fn of(pid: u32) -> Self {
        let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Self {
            pid,
            command: command.trim_end().to_owned(),
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.command.is_empty() {
            return write!(formatter, "process {}", self.pid);
        }
        write!(formatter, "{} (process {})", self.command, self.pid)
    }
}
