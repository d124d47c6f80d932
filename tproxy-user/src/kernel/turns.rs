//! The agent's side of [`tproxy_common::turn`].

use std::sync::atomic::Ordering;

use aya::maps::Map;
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
        let map = maps.open(NAME, Ok)?;
        let Map::Array(map) = map else {
            return Err(Error::not_an_array(NAME));
        };
        let memory = SharedArray::map(map.fd(), WORKERS as usize).map_err(Error::Memory)?;
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
