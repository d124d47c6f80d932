//! The agent's side of [`tproxy_common::flow_filter`].

use std::sync::atomic::Ordering;

use tproxy_common::{
    flow_filter::{FlowFilter as Element, STAMPS_OFFSET, slot_of},
    handover::Ends,
};

use super::{Error, Maps};
use crate::sys::SharedArray;

const NAME: &str = "FLOW_FILTER";

/// Where the epoch is, in bytes.
const EPOCH: usize = std::mem::offset_of!(Element, epoch);

/// The filter by which the kernel tells segments of other people's flows.
pub struct FlowFilter {
    memory: SharedArray<u64>,
}

impl FlowFilter {
    /// Maps the filter into memory.
    ///
    /// # Errors
    ///
    /// When it is not there or not mappable.
    pub fn open(maps: &Maps) -> Result<Self, Error> {
        let words = size_of::<Element>() / size_of::<u64>();
        let memory = maps.share(NAME, words)?;
        Ok(Self { memory })
    }

    /// Notes that a socket has the flow between these ends, as seen from its peer.
    pub fn stamp(&self, ends: &Ends) {
        let stamps = &self.memory.bytes()[STAMPS_OFFSET..];
        stamps[slot_of(ends)].store(self.epoch(), Ordering::Relaxed);
    }

    /// Begins the next epoch. Every socket has to have been stamped since the last turn.
    pub fn turn(&self) {
        let next = self.epoch().wrapping_add(1);
        self.memory.bytes()[EPOCH].store(next, Ordering::Release);
    }

    /// The epoch, which wraps around.
    #[must_use]
    pub fn epoch(&self) -> u8 {
        self.memory.bytes()[EPOCH].load(Ordering::Relaxed)
    }
}
