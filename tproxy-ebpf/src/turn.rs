//! Workers get connections in turn. Those that come at once, as a client opens them, are one worker's, so
//! that they reach their server in the order in which they were opened.

use aya_ebpf::{btf_maps::Array, helpers::bpf_ktime_get_ns, macros::btf_map};

/// Connections that a worker gets in one turn at most, if they come at once.
const RUN: u32 = 16;

/// A turn is over when no connection has come for so long, in nanoseconds: longer than a worker waits for
/// its CPU.
const PAUSE: u64 = 5_000_000;

/// Whose turn it is, of all CPUs, since the connections of one client may arrive on several. Programs that
/// run at once may both change it: then a turn is longer or shorter than another.
#[btf_map]
static TURN: Array<Turn, 1> = Array::new();

#[repr(C)]
struct Turn {
    /// When a connection came last, in nanoseconds since the boot.
    last: u64,
    /// How many turns there have been.
    number: u32,
    /// Connections that came in this one.
    connections: u32,
}

/// The one of so many workers whose turn it is for a connection.
#[inline(always)]
pub fn next(workers: u32) -> u32 {
    let Some(turn) = TURN.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the entry is valid while the program runs, and whatever is in it is a turn.
    let number = unsafe {
        let now = bpf_ktime_get_ns();
        let goes_on = now.wrapping_sub((*turn).last) < PAUSE && (*turn).connections < RUN;
        (*turn).last = now;
        if goes_on {
            (*turn).connections += 1;
        } else {
            (*turn).connections = 1;
            (*turn).number = (*turn).number.wrapping_add(1);
        }
        (*turn).number
    };
    number.checked_rem(workers).unwrap_or(0)
}
