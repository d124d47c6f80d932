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
    classifier::{self, Match, classify, classify_local, group_class},
    flow::{Flow, Scope},
    handover::Ends,
    packed::PackedEnds,
    tables::{BLOCK_WORDS, Block, RuleEntry, Tables},
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
pub fn find_local(ends: &Ends) -> Option<RuleEntry> {
    let packed = PackedEnds::new(ends);
    match tproxy_find_local(&raw const packed) {
        NO_RULE => None,
        word => Some(RuleEntry::from_word(word)),
    }
}

/// No slot is that large.
const NO_RULE: u64 = u64::MAX;

/// A global function: the verifier walks the rules once, and not again for each family.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_find_local(ends: *const PackedEnds) -> u64 {
    // SAFETY: the caller's, which lives as long as this runs.
    let found = unsafe { ends.as_ref() }.and_then(|ends| {
        let user = bpf_get_current_uid_gid() as u32;
        let flow = Flow::between(&ends.ends(), Scope::Local, 0);
        classify_local(
            &InForce(GENERATION.get(0)?),
            &flow,
            user,
            |header, level| match tproxy_group_class(header.generation(), level) {
                NO_GROUP => None,
                block => Some(block),
            },
        )
    });
    found.map_or(NO_RULE, |found| found.entry.to_word())
}

/// No class is in the block that names the header.
const NO_GROUP: u32 = 0;

/// The block of the class of a control group that the running process is in. A global function: the
/// verifier walks it once, and not again for each level. The tables that it finds may have taken the
/// place of those that it was asked about: then it knows of no group.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_group_class(generation: u64, level: u32) -> u32 {
    // SAFETY: the helper takes a number; no group has the number 0, which is the answer for a level
    // below the process's own.
    let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
    if cgroup == 0 {
        return NO_GROUP;
    }
    let Some(tables) = GENERATION.get(0) else {
        return NO_GROUP;
    };
    let tables = InForce(tables);
    let Some(header) = tables.header() else {
        return NO_GROUP;
    };
    if header.generation() != generation {
        return NO_GROUP;
    }
    group_class(&tables, &header, cgroup).unwrap_or(NO_GROUP)
}

/// Whether a rule may take such a flow, whatever its ports are.
#[inline(always)]
pub fn may_match(flow: &Flow) -> bool {
    let matches = GENERATION
        .get(0)
        .and_then(|tables| classifier::may_match(&InForce(tables), flow));
    matches.unwrap_or(false)
}
