//! The sockets that flows are given to, and one that shows that the agent lives.
//!
//! Written by the agent when it starts, and whenever another program opens the listener of a rule;
//! the kernel takes a socket out when it is closed. A flow that finds its places empty is one that
//! nobody is there to take. The places are in [`tproxy_common::sockets`].

use aya_ebpf::{
    bindings::bpf_sock,
    btf_maps::SockMap,
    helpers::{bpf_map_lookup_elem, bpf_sk_release},
    macros::btf_map,
    programs::SkLookupContext,
};
use core::{ffi::c_void, ptr::NonNull};
use tproxy_common::{
    address::Family,
    flow::Protocol,
    handover::Taken,
    limits::WORKERS,
    sockets::{LIFELINE, MEMBERS, PLACES, discarding, redirect, relay},
};

#[btf_map]
static SOCKETS: SockMap<PLACES> = SockMap::new();

/// Who gets a flow: the places of the sockets that can have it.
#[derive(Clone, Copy)]
pub struct Target {
    first: u32,
    places: u32,
}

impl Target {
    /// Who gets the flows of a rule; of those that the agent relays, a worker does.
    #[inline(always)]
    pub const fn of(taken: Taken, protocol: Protocol, family: Family, worker: u32) -> Self {
        if taken.redirected {
            Self {
                first: redirect(protocol, family, taken.slot),
                places: MEMBERS,
            }
        } else {
            Self::worker(protocol, worker)
        }
    }

    /// A worker of the agent.
    #[inline(always)]
    pub const fn worker(protocol: Protocol, worker: u32) -> Self {
        // What a damaged state says leads to no other's socket.
        let worker = if worker < WORKERS { worker } else { 0 };
        Self {
            first: relay(protocol, worker),
            places: 1,
        }
    }

    /// As one word, for a function that the verifier walks by itself.
    #[inline(always)]
    pub const fn to_word(self) -> u32 {
        self.first << 8 | self.places
    }

    /// What was made such a word.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self {
            first: word >> 8,
            places: word & 0xff,
        }
    }

    /// Whether some socket is such, of those that are there and can have a flow of this family.
    #[inline(always)]
    pub fn any(self, family: Family, is_such: impl Fn(*mut bpf_sock) -> bool) -> bool {
        // include/linux/socket.h
        const AF_INET: u32 = 2;
        for member in 0..MEMBERS {
            if member >= self.places {
                break;
            }
            let found = with_socket(self.first + member, |socket| {
                // SAFETY: the map gave this socket, and it is held until this returns.
                let is_v4 = unsafe { (*socket).family } == AF_INET;
                (!is_v4 || family == Family::V4) && is_such(socket)
            });
            if found == Some(true) {
                return true;
            }
        }
        false
    }

    /// Whether somebody is there to take flows of this family.
    #[inline(always)]
    pub fn is_there(self, family: Family) -> bool {
        self.any(family, |_| true)
    }

    /// Gives the flow to the first socket that can have it. False when there is none.
    #[inline(always)]
    pub fn assign(self, ctx: &SkLookupContext, reuseport: Reuseport) -> bool {
        for member in 0..MEMBERS {
            if member >= self.places {
                break;
            }
            if assign(ctx, self.first + member, reuseport) {
                return true;
            }
        }
        false
    }
}

/// Whether the kernel chooses again, within the group that the socket is of.
#[derive(Clone, Copy)]
pub enum Reuseport {
    /// The choice of a worker stands.
    Ignored,
    /// Another program's group decides for itself.
    Honoured,
}

/// Gives the flow to a socket that discards what it gets. False when there is none.
#[inline(always)]
pub fn discard(ctx: &SkLookupContext, protocol: Protocol) -> bool {
    assign(ctx, discarding(protocol), Reuseport::Ignored)
}

#[inline(always)]
fn assign(ctx: &SkLookupContext, place: u32, reuseport: Reuseport) -> bool {
    const BPF_SK_LOOKUP_F_NO_REUSEPORT: u64 = 1 << 1;
    let flags = match reuseport {
        Reuseport::Ignored => BPF_SK_LOOKUP_F_NO_REUSEPORT,
        Reuseport::Honoured => 0,
    };
    SOCKETS.redirect_sk_lookup(ctx, place, flags).is_ok()
}

/// Whether the process is there that registered the sockets, even if it has closed them.
#[inline(always)]
pub fn agent_lives() -> bool {
    with_socket(LIFELINE, |_| ()).is_some()
}

#[inline(always)]
fn with_socket<R>(place: u32, inspect: impl FnOnce(*mut bpf_sock) -> R) -> Option<R> {
    let map = core::ptr::from_ref(&SOCKETS).cast_mut().cast::<c_void>();
    // SAFETY: map and key are valid; the reference that the kernel takes is released below.
    let socket = unsafe { bpf_map_lookup_elem(map, core::ptr::from_ref(&place).cast()) };
    let socket = NonNull::new(socket)?;
    let result = inspect(socket.as_ptr().cast());
    // SAFETY: the lookup above returned this reference.
    unsafe { bpf_sk_release(socket.as_ptr()) };
    Some(result)
}
