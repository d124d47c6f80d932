//! The moment before a process's SYN is sent: source address and port are chosen, and a mark that the
//! socket gets now makes the SYN take the way to this host's own sockets.
//!
//! What connect(2) decided is kept with the socket until then. Written and read by one thread, which
//! holds the socket.

use aya_ebpf::{
    bindings::bpf_sock,
    btf_maps::SkStorage,
    helpers::{bpf_setsockopt, bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::btf_map,
    programs::{SockAddrContext, SockOpsContext},
};
use core::ffi::c_void;
use tproxy_common::{
    address::Address,
    flow::Protocol,
    handover::{Ends, Taken},
};

use crate::{agent, handover, lookup::octets};

/// What the socket is to be taken by: slot, and whether it is redirected.
#[repr(C)]
#[derive(Clone, Copy)]
struct Expected {
    slot: u32,
    redirected: u32,
}

#[btf_map]
static EXPECTED: SkStorage<Expected> = SkStorage::new();

/// Remembers that the flow is to be taken. False when there is no memory for that.
#[inline(always)]
pub fn expect(ctx: &SockAddrContext, taken: Taken) -> bool {
    let mut expected = Expected {
        slot: taken.slot,
        redirected: u32::from(taken.redirected),
    };
    // SAFETY: the context's socket; what comes back is its storage, or nothing.
    unsafe {
        let place = EXPECTED.get_or_insert_ptr_mut(ctx, Some(&mut expected));
        if place.is_null() {
            return false;
        }
        *place = expected;
    }
    true
}

/// Forgets what was to become of the socket's flow.
#[inline(always)]
pub fn expect_nothing(socket: *mut bpf_sock) {
    // SAFETY: the context gave this socket. There mostly is nothing to delete.
    unsafe { bpf_sk_storage_delete(map(), socket.cast()) };
}

#[inline(always)]
fn map() -> *mut c_void {
    core::ptr::from_ref(&EXPECTED).cast_mut().cast()
}

/// Marks the socket if its flow is to be taken.
#[inline(always)]
pub fn mark(ctx: &SockOpsContext) {
    // include/uapi/linux/bpf.h
    const BPF_SOCK_OPS_TCP_CONNECT_CB: u32 = 3;
    if ctx.op() != BPF_SOCK_OPS_TCP_CONNECT_CB {
        return;
    }
    // SAFETY: the context is valid while the program runs.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return;
    }
    // SAFETY: the socket is not null; what comes back is its storage, or nothing.
    let expected = unsafe {
        let place = bpf_sk_storage_get(map(), socket.cast(), core::ptr::null_mut(), 0);
        if place.is_null() {
            return;
        }
        *place.cast::<Expected>()
    };
    let Some(ends) = ends(ctx) else {
        return;
    };
    let taken = Taken {
        slot: expected.slot,
        redirected: expected.redirected != 0,
    };
    handover::announce(&ends.before_routing(), taken);
    set_mark(ctx, agent::mark());
    // SAFETY: as above.
    unsafe { bpf_sk_storage_delete(map(), socket.cast()) };
}

#[inline(always)]
fn ends(ctx: &SockOpsContext) -> Option<Ends> {
    // include/linux/socket.h
    const AF_INET: u32 = 2;
    const AF_INET6: u32 = 10;
    let destination = match ctx.family() {
        AF_INET => Address::v4(ctx.remote_ip4().to_ne_bytes()),
        AF_INET6 => {
            // SAFETY: the context is valid while the program runs.
            let words = unsafe {
                [
                    (*ctx.ops).remote_ip6[0],
                    (*ctx.ops).remote_ip6[1],
                    (*ctx.ops).remote_ip6[2],
                    (*ctx.ops).remote_ip6[3],
                ]
            };
            Address::v6_or_mapped(octets(&words))
        }
        _ => return None,
    };
    Some(Ends {
        protocol: Protocol::Tcp,
        source: Address::unspecified(destination.family()),
        source_port: ctx.local_port() as u16,
        destination,
        // In network byte order, in the upper half of the word on a little-endian machine.
        destination_port: u32::from_be(ctx.remote_port()) as u16,
    })
}

#[inline(always)]
fn set_mark(ctx: &SockOpsContext, mut mark: u32) {
    // include/uapi/asm-generic/socket.h
    const SOL_SOCKET: i32 = 1;
    const SO_MARK: i32 = 36;
    // SAFETY: the value is a word on the stack.
    unsafe {
        bpf_setsockopt(
            ctx.ops.cast(),
            SOL_SOCKET,
            SO_MARK,
            (&raw mut mark).cast(),
            size_of::<u32>() as i32,
        );
    }
}
