//! The table by which the agent learns which rule took a flow; see [`tproxy_common::handover`].
//!
//! Written here for each flow that is taken, read by the agent when it accepts the flow.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, btf_maps::Array, macros::btf_map};
use tproxy_common::{
    flow::Flow,
    handover::{Ends, Place},
    limits::HANDOVERS,
    tables::RuleEntry,
};

#[btf_map]
static HANDOVER: Array<u64, HANDOVERS, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Tells the agent which rule took the flow.
#[inline(always)]
pub fn announce(flow: &Flow, rule: RuleEntry) {
    let place = Place::of(&Ends {
        source: flow.source,
        source_port: flow.source_port,
        destination: flow.destination,
        destination_port: flow.destination_port,
    });
    if let Some(word) = HANDOVER.get_ptr_mut(place.index) {
        // SAFETY: an aligned word of the map; readers check what they find.
        unsafe { word.write_volatile(place.word(rule.slot())) };
    }
}
