//! The listening sockets that flows are given to, and one that shows that the agent lives.
//!
//! Written by the agent when it starts; the kernel takes a socket out when it is closed. A flow
//! that finds its place empty is one that nobody is there to take.

use aya_ebpf::{
    btf_maps::SockMap,
    helpers::{bpf_map_lookup_elem, bpf_sk_release},
    macros::btf_map,
    programs::SkLookupContext,
};
use core::{ffi::c_void, ptr::NonNull};
use tproxy_common::limits::{LIFELINE, WORKERS};

const PLACES: usize = WORKERS as usize + 1;

#[btf_map]
static RELAY_LISTENERS: SockMap<PLACES> = SockMap::new();

/// Gives the flow to a worker's listener. False when it has none.
#[inline(always)]
pub fn assign(ctx: &SkLookupContext, worker: u32) -> bool {
    // The kernel's choice within a reuseport group would undo ours.
    const BPF_SK_LOOKUP_F_NO_REUSEPORT: u64 = 1 << 1;
    RELAY_LISTENERS
        .redirect_sk_lookup(ctx, worker, BPF_SK_LOOKUP_F_NO_REUSEPORT)
        .is_ok()
}

/// Whether the process is there that registered the listeners, even if it has closed them.
#[inline(always)]
pub fn agent_lives() -> bool {
    with_socket(LIFELINE, |_| ()).is_some()
}

/// Runs `inspect` on a worker's listener. `None` when it has none.
#[inline(always)]
pub fn with_listener<R>(worker: u32, inspect: impl FnOnce(*mut c_void) -> R) -> Option<R> {
    if worker < WORKERS {
        with_socket(worker, inspect)
    } else {
        None
    }
}

#[inline(always)]
fn with_socket<R>(place: u32, inspect: impl FnOnce(*mut c_void) -> R) -> Option<R> {
    let map = core::ptr::from_ref(&RELAY_LISTENERS)
        .cast_mut()
        .cast::<c_void>();
    // SAFETY: map and key are valid; the reference that the kernel takes is released below.
    let socket = unsafe { bpf_map_lookup_elem(map, core::ptr::from_ref(&place).cast()) };
    let socket = NonNull::new(socket)?;
    let result = inspect(socket.as_ptr());
    // SAFETY: the lookup above returned this reference.
    unsafe { bpf_sk_release(socket.as_ptr()) };
    Some(result)
}
