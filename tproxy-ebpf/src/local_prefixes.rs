//! The prefixes that are this host's own, IPv4 as v4-mapped IPv6.
//!
//! Written by the agent whenever the kernel's local routes change, read for new flows that a rule
//! matches. Until a change arrives here, a flow to a new address of this host counts as forwarded.

use aya_ebpf::{
    btf_maps::{LpmTrie, lpm_trie::Key},
    macros::btf_map,
};
use tproxy_common::{address::Address, limits::LOCAL_PREFIXES};

#[btf_map]
static LOCAL: LpmTrie<[u8; 16], u32, LOCAL_PREFIXES> = LpmTrie::new();

/// Whether the address is one of this host's own.
#[inline(always)]
pub fn contains(address: &Address) -> bool {
    LOCAL.get(&Key::new(128, address.mapped_octets())).is_some()
}
