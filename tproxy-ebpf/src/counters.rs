//! Counters: one for each outcome, and those of the rules.
//!
//! Written here on the CPU that runs the program, summed up by user space. A sum taken while
//! packets flow may lack the latest of them.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use tproxy_common::{
    counters::RuleCounter,
    limits::COUNTER_SLOTS,
    outcome::{OUTCOMES, Outcome},
    tables::RuleEntry,
};

#[btf_map]
static OUTCOME_COUNTERS: PerCpuArray<u64, OUTCOMES> = PerCpuArray::new();

#[btf_map]
static RULE_COUNTERS: PerCpuArray<RuleCounter, COUNTER_SLOTS> = PerCpuArray::new();

/// Counts one outcome.
#[inline(always)]
pub fn count(outcome: Outcome) {
    if let Some(counter) = OUTCOME_COUNTERS.get_ptr_mut(outcome as u32) {
        // SAFETY: the slot belongs to this CPU and no other code runs on it meanwhile.
        unsafe { *counter += 1 };
    }
}

/// Counts a new flow of a rule.
#[inline(always)]
pub fn count_flow(rule: RuleEntry) {
    if let Some(counter) = RULE_COUNTERS.get_ptr_mut(rule.slot()) {
        // SAFETY: as in `count`.
        unsafe { (*counter).flows += 1 };
    }
}

/// Counts a packet of `bytes` that a rule discards.
#[inline(always)]
pub fn count_discarded(rule: RuleEntry, bytes: u64) {
    if let Some(counter) = RULE_COUNTERS.get_ptr_mut(rule.slot()) {
        // SAFETY: as in `count`.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
        }
    }
}
