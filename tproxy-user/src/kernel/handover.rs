//! The agent's side of [`tproxy_common::handover`].

use std::sync::atomic::Ordering;

use tproxy_common::{
    handover::{Place, Taken},
    limits::HANDOVERS,
};

use super::{Error, Maps};
use crate::sys::SharedArray;

const NAME: &str = "HANDOVER";

/// The table by which the kernel hands flows over with their rule.
pub struct Handover {
    memory: SharedArray<u64>,
}

impl Handover {
    /// Maps the table into memory.
    ///
    /// # Errors
    ///
    /// When it is not there or not mappable.
    pub fn open(maps: &Maps) -> Result<Self, Error> {
        let memory = maps.share(NAME, HANDOVERS)?;
        Ok(Self { memory })
    }

    /// What took the flow with this place, unless another flow has overwritten that.
    #[must_use]
    pub fn taken(&self, place: Place) -> Option<Taken> {
        let word = self.memory.words()[place.index as usize].load(Ordering::Relaxed);
        place.taken(word)
    }
}
