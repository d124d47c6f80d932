//! sendmsg(2) of an unconnected UDP socket of a process of this host.
//!
//! A mark that the socket gets here comes too late for the datagram: the kernel has read it. But its
//! source address can still be set: a policy rule brings what comes from our stand-in to this host's
//! own sockets, with its real destination. The answers go to the stand-in, and the process gets them
//! from where it sent to. A process that has bound its socket to an address gets them there.

use aya_ebpf::programs::SockAddrContext;
use tproxy_common::{address::Address, local_udp::LocalUdp, outcome::Outcome, tables::RuleEntry};

use crate::{
    agent, counters,
    local::{Decision, Opening, decide, destination_v4, destination_v6, is_here, socket},
    local_udp,
    lookup::octets,
};

/// Decides about a datagram to an IPv4 address; `None` about what is none of ours.
#[inline(always)]
pub fn decide_v4(ctx: &SockAddrContext) -> Option<Outcome> {
    if !is_here(ctx) {
        return None;
    }
    let (socket, protocol) = socket(ctx)?;
    // SAFETY: the context is valid while the program runs.
    let from = Address::v4(unsafe { (*ctx.sock_addr).msg_src_ip4 }.to_ne_bytes());
    let opening = Opening::of(ctx, socket, protocol, from, destination_v4(ctx));
    match decide(&opening) {
        Decision::Take(rule) => {
            note(&opening, rule);
            // SAFETY: the context is valid while the program runs.
            unsafe { (*ctx.sock_addr).msg_src_ip4 = agent::stand_in_v4() };
            Some(Outcome::LocalTaken)
        }
        Decision::Leave(outcome) => Some(outcome),
    }
}

/// The same to an IPv6 address. One to a v4-mapped address is sent as IPv4.
#[inline(always)]
pub fn decide_v6(ctx: &SockAddrContext) -> Option<Outcome> {
    if !is_here(ctx) {
        return None;
    }
    let (socket, protocol) = socket(ctx)?;
    let context = ctx.sock_addr;
    // SAFETY: the context is valid while the program runs. It is read by words.
    let from = unsafe {
        [
            (*context).msg_src_ip6[0],
            (*context).msg_src_ip6[1],
            (*context).msg_src_ip6[2],
            (*context).msg_src_ip6[3],
        ]
    };
    let (from, destination) = (octets(&from), destination_v6(ctx));
    let (from, destination) = (Address::v6(from), Address::v6(destination));
    let opening = Opening::of(ctx, socket, protocol, from, destination);
    match decide(&opening) {
        Decision::Take(rule) => {
            note(&opening, rule);
            let stand_in = agent::stand_in_v6();
            // SAFETY: the context is valid while the program runs. It is written by words.
            unsafe {
                (*context).msg_src_ip6[0] = stand_in[0];
                (*context).msg_src_ip6[1] = stand_in[1];
                (*context).msg_src_ip6[2] = stand_in[2];
                (*context).msg_src_ip6[3] = stand_in[3];
            }
            Some(Outcome::LocalTaken)
        }
        Decision::Leave(outcome) => Some(outcome),
    }
}

#[inline(always)]
fn note(opening: &Opening, rule: RuleEntry) {
    let is_bound = opening.bound.high() != 0 || opening.bound.low() != 0;
    let bound = if is_bound { Some(&opening.bound) } else { None };
    let entry = LocalUdp::new(&opening.ends(), rule.taken(), bound);
    // The datagrams of a flow that follow each other are counted once.
    if local_udp::note(opening.port, &entry) {
        counters::count_flow(rule);
    }
}
