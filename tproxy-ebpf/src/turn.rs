//! Workers get connections in turn, so that a few long ones do not meet at one of them.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};

/// Whose turn is next. Each CPU counts for itself, which shares no cache line.
#[btf_map]
static TURN: PerCpuArray<u32, 1> = PerCpuArray::new();

/// The next one of so many workers.
#[inline(always)]
pub fn next(workers: u32) -> u32 {
    let Some(turn) = TURN.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the entry is this CPU's own. A program that interrupts this one repeats a turn at most.
    let turn = unsafe {
        *turn = (*turn).wrapping_add(1);
        *turn
    };
    turn.checked_rem(workers).unwrap_or(0)
}
