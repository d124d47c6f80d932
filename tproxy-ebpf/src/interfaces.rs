//! The interfaces that this instance is attached to, by index.
//!
//! Written when an interface is attached or detached, read for every socket lookup. The programs
//! on the interfaces are the attachment itself; this map tells sk_lookup, which runs once for the
//! whole network namespace, whose packets are ours.

use aya_ebpf::{btf_maps::HashMap, macros::btf_map};
use tproxy_common::limits::INTERFACES;

#[btf_map]
static ATTACHED: HashMap<u32, u32, INTERFACES> = HashMap::new();

/// Whether this instance is attached to the interface.
#[inline(always)]
pub fn is_attached(index: u32) -> bool {
    // SAFETY: only the presence of the entry is looked at.
    unsafe { ATTACHED.get(index) }.is_some()
}
