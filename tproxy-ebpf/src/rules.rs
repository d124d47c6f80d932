//! The compiled rules in force.
//!
//! Written by whoever changes rules: a new generation is filled in a map of its own and put here
//! with one write. A program takes the map once and so sees one generation whole.

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE},
    btf_maps::{Array, ArrayOfMaps},
    helpers::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_uid_gid},
    macros::btf_map,
};
use tproxy_common::{
    address::Address,
    classifier::{self, Match, classify, classify_local},
    flow::{Flow, Protocol, Scope},
    tables::{BLOCK_WORDS, Block, Tables},
};

const ARENA_FLAGS: usize = (BPF_F_MMAPABLE | BPF_F_INNER_MAP) as usize;

/// Words rather than [`Block`]s: up to Linux 6.1 a map whose values are described as a struct does
/// not equal one whose values are not described, such as the agent creates (`timer_off` in
/// `bpf_map_meta_equal`, `kernel/bpf/map_in_map.c`).
type Arena = Array<[u64; BLOCK_WORDS], 1, ARENA_FLAGS>;

#[btf_map]
static GENERATION: ArrayOfMaps<Arena, 1> = ArrayOfMaps::new();

struct InForce<'a>(&'a Arena);

impl Tables for InForce<'_> {
    #[inline(always)]
    fn block(&self, index: u32) -> Option<&Block> {
        self.0.get(index).map(Block::from_words)
    }
}

/// The rule that takes this flow.
#[inline(always)]
pub fn find(flow: &Flow) -> Option<Match> {
    classify(&InForce(GENERATION.get(0)?), flow)
}

/// The rule that takes a flow that the running process opens.
#[inline(always)]
pub fn find_local(flow: &Flow) -> Option<Match> {
    let user = bpf_get_current_uid_gid() as u32;
    classify_local(&InForce(GENERATION.get(0)?), flow, user, |level| {
        // SAFETY: the helper takes a number; no group has the number 0, which is the answer for a
        // level below the process's own.
        match unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) } {
            0 => None,
            cgroup => Some(cgroup),
        }
    })
}

/// Whether a rule may take a flow between these addresses.
#[inline(always)]
pub fn may_match(
    scope: Scope,
    protocol: Protocol,
    interface: u32,
    source: &Address,
    destination: &Address,
) -> bool {
    let matches = GENERATION.get(0).and_then(|tables| {
        let tables = InForce(tables);
        classifier::may_match(&tables, scope, protocol, interface, source, destination)
    });
    matches.unwrap_or(false)
}
