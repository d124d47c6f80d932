//! Whose turn it is to get a connection; see [`tproxy_common::turn`].

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE, btf_maps::Array, helpers::bpf_ktime_get_ns, macros::btf_map,
};
use tproxy_common::{limits::WORKERS, turn::CONNECTIONS};

/// A turn is over when no connection has come for so long, in nanoseconds: longer than a worker waits for
/// its CPU.
const PAUSE: u64 = 5_000_000;

/// Whose turn it is, of all CPUs, since the connections of one client may arrive on several. Programs that
/// run at once may both change it: then a turn is longer or shorter than another.
#[btf_map]
static TURN: Array<Turn, 1> = Array::new();

/// How many more connections each worker gets in its turn. It writes that too, when it prolongs its turn.
#[btf_map]
static REMAINING: Array<u64, { WORKERS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

#[repr(C)]
struct Turn {
    /// When a connection came last, in nanoseconds since the boot.
    last: u64,
    /// How many turns there have been.
    number: u64,
}

/// The one of so many workers whose turn it is for a connection.
#[inline(always)]
pub fn next(workers: u32) -> u32 {
    let Some(turn) = TURN.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the entries are valid while the program runs, and whatever is in them is a turn and a number.
    unsafe {
        let now = bpf_ktime_get_ns();
        let paused = now.wrapping_sub((*turn).last) >= PAUSE;
        (*turn).last = now;
        let worker = worker_of((*turn).number, workers);
        if !paused
            && let Some(remaining) = REMAINING.get_ptr_mut(worker)
            && *remaining > 0
        {
            *remaining -= 1;
            return worker;
        }
        (*turn).number = (*turn).number.wrapping_add(1);
        let worker = worker_of((*turn).number, workers);
        if let Some(remaining) = REMAINING.get_ptr_mut(worker) {
            *remaining = u64::from(CONNECTIONS) - 1;
        }
        worker
    }
}

#[inline(always)]
fn worker_of(turn: u64, workers: u32) -> u32 {
    turn.checked_rem(u64::from(workers)).unwrap_or(0) as u32
}
