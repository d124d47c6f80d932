//! The interfaces that this instance is attached to, by index, and for what.
//!
//! Written when an interface is attached or detached, read for every socket lookup and every new
//! flow. The programs on the interfaces are the attachment itself; this map tells sk_lookup, which
//! runs once for the whole network namespace, whose packets are ours, and the tc program on which
//! interfaces nothing but answers is. Values are those of [`tproxy_common::attachment`].

use aya_ebpf::{btf_maps::HashMap, macros::btf_map};
use tproxy_common::{
    attachment::{ANSWERS_ONLY, FULL},
    limits::INTERFACES,
};

#[btf_map]
static ATTACHED: HashMap<u32, u32, INTERFACES> = HashMap::new();

/// Whether flows that arrive on the interface are held against the rules.
#[inline(always)]
pub fn takes_flows(index: u32) -> bool {
    attachment(index) == Some(FULL)
}

/// Whether nothing but answers is looked for on the interface.
#[inline(always)]
pub fn takes_answers_only(index: u32) -> bool {
    attachment(index) == Some(ANSWERS_ONLY)
}

#[inline(always)]
fn attachment(index: u32) -> Option<u32> {
    // SAFETY: the value is one word, which is read and written whole.
    unsafe { ATTACHED.get(index) }.copied()
}
