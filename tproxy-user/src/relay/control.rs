//! What the owner of a relay tells its workers.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A command to all workers. A later one replaces an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Serve.
    Run,
    /// Take no new flows, end with the last flow or at the deadline.
    Drain(Instant),
    /// End at once.
    Stop,
}

/// The command in force.
#[derive(Debug)]
pub(super) struct Control(Mutex<Command>);

impl Control {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Command::Run))
    }

    pub(super) fn command(&self) -> Command {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, command: Command) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != Command::Stop {
            *current = command;
        }
    }
}
