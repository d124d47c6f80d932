//! The agent's side of [`tproxy_common::turn`].

use std::sync::atomic::Ordering;

use tproxy_common::{limits::WORKERS, turn::CONNECTIONS};

use super::{Error, Maps};
use crate::sys::SharedArray;

const NAME: &str = "REMAINING";

/// How many more connections each worker gets in its turn.
pub struct Turns {
    memory: SharedArray<u64>,
}

impl Turns {
    /// Maps them into memory.
    ///
    /// # Errors
    ///
    /// When they are not there or not mappable.
    pub fn open(maps: &Maps) -> Result<Self, Error> {
        let memory = maps.share(NAME, WORKERS as usize)?;
        Ok(Self { memory })
    }

    /// Lets a worker have as many more connections as at the beginning of its turn. Changes nothing while
    /// it is another's.
    pub fn prolong(&self, worker: usize) {
        if let Some(remaining) = self.memory.words().get(worker) {
            remaining.store(CONNECTIONS.into(), Ordering::Relaxed);
        }
    }
}
