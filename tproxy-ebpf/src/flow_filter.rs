//! Which flows a socket of this host may have; see [`tproxy_common::flow_filter`].
//!
//! Stamped here for each flow that is taken and each segment of one, and by the agent for every
//! socket there is before it turns the epoch. Two that stamp one slot at once write the same epoch,
//! or two that follow each other, either of which will do.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, btf_maps::Array, macros::btf_map};
use tproxy_common::{
    flow_filter::{FlowFilter, is_recent, slot_of},
    handover::Ends,
};

#[btf_map]
static FLOW_FILTER: Array<FlowFilter, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// A flow's stamp, and the epoch to compare it with.
#[derive(Clone, Copy)]
pub struct Stamp {
    place: *mut u8,
    epoch: u8,
    value: u8,
}

impl Stamp {
    /// The stamp of the flow between these ends. One that is current stands for a map that is not there,
    /// which verifiers before Linux 6.15 do not know to be impossible; an `Option` would leave them
    /// registers that nobody wrote.
    #[inline(always)]
    pub fn of(ends: &Ends) -> Self {
        let Some(filter) = FLOW_FILTER.get_ptr_mut(0) else {
            return Self {
                place: core::ptr::null_mut(),
                epoch: 0,
                value: 0,
            };
        };
        // SAFETY: the map has this one element, and the slot is one of its stamps.
        unsafe {
            let stamps = (&raw mut (*filter).stamps).cast::<u8>();
            let place = stamps.add(slot_of(ends));
            Self {
                place,
                epoch: (&raw const (*filter).epoch).read_volatile(),
                value: place.read_volatile(),
            }
        }
    }

    /// Whether a socket of this host may have the flow.
    #[inline(always)]
    pub const fn is_recent(&self) -> bool {
        is_recent(self.value, self.epoch)
    }

    /// Remembers that a socket has the flow, or is about to.
    #[inline(always)]
    pub fn renew(&self) {
        // Most find it current, and a cache line that nobody writes is one that all CPUs share.
        if self.value != self.epoch {
            // SAFETY: as in `of`.
            unsafe { self.place.write_volatile(self.epoch) };
        }
    }
}
