//! connect(2) of a process of this host.
//!
//! A TCP socket gets its mark only when the kernel has chosen its source address (`opening`), so
//! that this is the one of the real way. A UDP socket gets it here: there is no later hook.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr, sockaddr},
    helpers::{bpf_bind, bpf_get_prandom_u32, bpf_setsockopt},
    programs::SockAddrContext,
};
use tproxy_common::{
    address::{Address, Family},
    flow::Protocol,
    local_udp::LocalUdp,
    outcome::Outcome,
    tables::RuleEntry,
};

use crate::{
    agent, counters,
    local::{
        Decision, Opening, bound_v4, bound_v6, decide, destination_v4, destination_v6, is_here,
        socket,
    },
    local_udp, opening,
};

/// Decides about connect(2) to an IPv4 address; `None` about what is none of ours.
#[inline(always)]
pub fn decide_v4(ctx: &SockAddrContext) -> Option<Outcome> {
    if !is_here(ctx) {
        return None;
    }
    let (socket, opening) = opening_v4(ctx)?;
    forget_earlier(ctx, &opening);
    let decision = Decision::from_word(tproxy_decide_connect4(ctx.sock_addr));
    Some(connect(ctx, socket, opening, decision, Family::V4))
}

/// The same to an IPv6 address, which may be a v4-mapped one.
#[inline(always)]
pub fn decide_v6(ctx: &SockAddrContext) -> Option<Outcome> {
    if !is_here(ctx) {
        return None;
    }
    let (socket, opening) = opening_v6(ctx)?;
    forget_earlier(ctx, &opening);
    let decision = Decision::from_word(tproxy_decide_connect6(ctx.sock_addr));
    Some(connect(ctx, socket, opening, decision, Family::V6))
}

/// A global function, as is the next: the verifier walks the rules once, and not again for all that can
/// come of them.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_decide_connect4(ctx: *mut bpf_sock_addr) -> u64 {
    let decision = match opening_v4(&SockAddrContext::new(ctx)) {
        Some((_, opening)) => decide(&opening),
        None => Decision::Leave(Outcome::LocalNoRule),
    };
    decision.to_word()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_decide_connect6(ctx: *mut bpf_sock_addr) -> u64 {
    let decision = match opening_v6(&SockAddrContext::new(ctx)) {
        Some((_, opening)) => decide(&opening),
        None => Decision::Leave(Outcome::LocalNoRule),
    };
    decision.to_word()
}

#[inline(always)]
fn opening_v4(ctx: &SockAddrContext) -> Option<(*mut bpf_sock, Opening)> {
    let (socket, protocol) = socket(ctx)?;
    let destination = destination_v4(ctx);
    let opening = Opening::of(ctx, socket, protocol, bound_v4(socket), destination);
    Some((socket, opening))
}

#[inline(always)]
fn opening_v6(ctx: &SockAddrContext) -> Option<(*mut bpf_sock, Opening)> {
    let (socket, protocol) = socket(ctx)?;
    let destination = Address::v6_or_mapped(destination_v6(ctx));
    let bound = match destination.family() {
        Family::V4 => bound_v4(socket),
        Family::V6 => bound_v6(socket),
    };
    let opening = Opening::of(ctx, socket, protocol, bound, destination);
    Some((socket, opening))
}

/// A mark of ours is that of an earlier connection of the socket, to somewhere else. Before the decision,
/// of which nothing is looked at twice then: verifiers up to that of Linux 6.1 see ways there on which it
/// comes out differently.
#[inline(always)]
fn forget_earlier(ctx: &SockAddrContext, opening: &Opening) {
    if opening.mark != 0 && opening.mark == agent::mark() {
        set_mark(ctx, 0);
    }
}

/// `family` is that of the socket.
#[inline(always)]
fn connect(
    ctx: &SockAddrContext,
    socket: *mut bpf_sock,
    opening: Opening,
    decision: Decision,
    family: Family,
) -> Outcome {
    match (decision, opening.protocol) {
        (Decision::Take(rule), Protocol::Tcp) => {
            counters::count_flow(rule);
            if opening::expect(ctx, rule.taken()) {
                Outcome::LocalTaken
            } else {
                Outcome::LocalRefusedMissing
            }
        }
        (Decision::Take(rule), Protocol::Udp) => take_udp(ctx, &opening, family, rule),
        (Decision::Leave(outcome), Protocol::Tcp) => {
            opening::expect_nothing(socket);
            outcome
        }
        (Decision::Leave(outcome), Protocol::Udp) => outcome,
    }
}

#[inline(always)]
fn take_udp(ctx: &SockAddrContext, opening: &Opening, family: Family, rule: RuleEntry) -> Outcome {
    counters::count_flow(rule);
    // The flow is known by its port, so it needs one now.
    let port = match opening.port {
        0 => give_port(ctx, family),
        port => Some(port),
    };
    let Some(port) = port else {
        return Outcome::LocalRefusedMissing;
    };
    let ends = Opening { port, ..*opening }.ends();
    // The packets' family: IPv6 sockets send IPv4, too.
    let of_packets = opening.destination.family();
    local_udp::note(of_packets, port, &LocalUdp::new(&ends, rule.taken(), None));
    set_mark(ctx, agent::mark());
    Outcome::LocalTaken
}

#[inline(always)]
fn set_mark(ctx: &SockAddrContext, mut mark: u32) {
    // include/uapi/asm-generic/socket.h
    const SOL_SOCKET: i32 = 1;
    const SO_MARK: i32 = 36;
    // SAFETY: the value is a word on the stack.
    unsafe {
        bpf_setsockopt(
            ctx.sock_addr.cast(),
            SOL_SOCKET,
            SO_MARK,
            (&raw mut mark).cast(),
            size_of::<u32>() as i32,
        );
    }
}

/// Binds the socket to a port as the kernel would a moment later, so that it is known.
#[inline(always)]
fn give_port(ctx: &SockAddrContext, family: Family) -> Option<u16> {
    // The range of Linux (`net.ipv4.ip_local_port_range`), so that ports look as they always do.
    const FIRST: u32 = 32768;
    const PORTS: u32 = 60999 - FIRST + 1;
    const TRIES: u32 = 8;
    for _ in 0..TRIES {
        // SAFETY: the helper takes nothing.
        let port = (FIRST + unsafe { bpf_get_prandom_u32() } % PORTS) as u16;
        if bind(ctx, family, port) {
            return Some(port);
        }
    }
    None
}

/// `struct sockaddr_in` (ip(7)) without an address.
#[repr(C)]
struct AnyV4 {
    family: u16,
    port: u16,
    rest: [u32; 3],
}

/// `struct sockaddr_in6` (ipv6(7)) without an address.
#[repr(C)]
struct AnyV6 {
    family: u16,
    port: u16,
    rest: [u32; 6],
}

#[inline(always)]
fn bind(ctx: &SockAddrContext, family: Family, port: u16) -> bool {
    // include/linux/socket.h
    const AF_INET: u16 = 2;
    const AF_INET6: u16 = 10;
    let port = port.to_be();
    match family {
        Family::V4 => {
            let mut address = AnyV4 {
                family: AF_INET,
                port,
                rest: [0; 3],
            };
            bind_to(ctx, (&raw mut address).cast(), size_of::<AnyV4>())
        }
        Family::V6 => {
            let mut address = AnyV6 {
                family: AF_INET6,
                port,
                rest: [0; 6],
            };
            bind_to(ctx, (&raw mut address).cast(), size_of::<AnyV6>())
        }
    }
}

#[inline(always)]
fn bind_to(ctx: &SockAddrContext, address: *mut sockaddr, length: usize) -> bool {
    // SAFETY: the address is on the stack, and of this length.
    unsafe { bpf_bind(ctx.sock_addr, address, length as i32) == 0 }
}
