//! What was decided about the last flows to begin; see [`tproxy_common::handover`].
//!
//! Written here for each new flow, read here and by the agent when it gets one. A later flow may
//! overwrite an earlier one's word, which the fingerprint in it shows.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, btf_maps::Array, macros::btf_map};
use tproxy_common::{
    handover::{Ends, Place, Taken},
    limits::HANDOVERS,
};

#[btf_map]
static HANDOVER: Array<u64, HANDOVERS, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Tells which rule took the flow, and who gets it.
#[inline(always)]
pub fn announce(ends: &Ends, taken: Taken) {
    let place = Place::of(ends);
    write(&place, place.word(taken));
}

/// Which rule took the flow, and who gets it, if that is still known.
#[inline(always)]
pub fn taken(ends: &Ends) -> Option<Taken> {
    let place = Place::of(ends);
    HANDOVER
        .get(place.index)
        .and_then(|word| place.taken(*word))
}

/// Remembers that the flow goes its own way.
#[inline(always)]
pub fn let_go(ends: &Ends) {
    let place = Place::of(ends);
    write(&place, place.let_go());
}

/// Whether the flow is known to go its own way.
#[inline(always)]
pub fn was_let_go(ends: &Ends) -> bool {
    let place = Place::of(ends);
    HANDOVER
        .get(place.index)
        .is_some_and(|word| *word == place.let_go())
}

#[inline(always)]
fn write(place: &Place, value: u64) {
    if let Some(word) = HANDOVER.get_ptr_mut(place.index) {
        // SAFETY: an aligned word of the map; readers check what they find.
        unsafe { word.write_volatile(value) };
    }
}
