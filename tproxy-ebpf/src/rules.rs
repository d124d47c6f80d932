//! The compiled rules in force.
//!
//! Written by whoever changes rules: a new generation is filled in a map of its own and put here
//! with one write. A program takes the map once and so sees one generation whole.

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE},
    btf_maps::{Array, ArrayOfMaps},
    macros::btf_map,
};
use tproxy_common::{
    classifier::{Match, classify},
    flow::Flow,
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
