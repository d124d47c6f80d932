//! sendmsg(2) of an unconnected UDP socket of a process of this host.
//!
//! A mark that the socket gets here comes too late for the datagram: the kernel has read it. But its
//! source address can still be set: a policy rule brings what comes from our stand-in to this host's
//! own sockets, with its real destination. The answers go to the stand-in, and the process gets them
//! from where it sent to. A process that has bound its socket to an address gets them there.

use aya_ebpf::programs::SockAddrContext;
use tproxy_common::{
    address::Address, handover::Taken, limits::UNATTRIBUTED_SLOT, local_udp::LocalUdp,
    outcome::Outcome,
};

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
    let (outcome, is_taken) = take(&opening);
    if is_taken {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*ctx.sock_addr).msg_src_ip4 = agent::stand_in_v4() };
    }
    Some(outcome)
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
    let (outcome, is_taken) = take(&opening);
    if is_taken {
        let stand_in = agent::stand_in_v6();
        // SAFETY: the context is valid while the program runs. It is written by words.
        unsafe {
            (*context).msg_src_ip6[0] = stand_in[0];
            (*context).msg_src_ip6[1] = stand_in[1];
            (*context).msg_src_ip6[2] = stand_in[2];
            (*context).msg_src_ip6[3] = stand_in[3];
        }
    }
    Some(outcome)
}

/// Decides, and notes a datagram that is to come from the stand-in.
#[inline(always)]
fn take(opening: &Opening) -> (Outcome, bool) {
    match decide(opening) {
        Decision::Take(rule) => {
            // The datagrams of a flow that follow each other are counted once.
            if note(opening, rule.taken()) {
                counters::count_flow(rule);
            }
            (Outcome::LocalTaken, true)
        }
        Decision::Leave(outcome) => {
            let goes_its_own_way = matches!(
                outcome,
                Outcome::LocalNoRule | Outcome::LocalPassed | Outcome::LocalPassedMissing
            );
            // A socket that is connected to where a rule takes it has our mark, which brings here what
            // it sends elsewhere as well: the agent sees to it that it arrives.
            let is_marked = opening.mark != 0 && opening.mark == agent::mark();
            let is_taken = goes_its_own_way && is_marked;
            if is_taken {
                note(
                    opening,
                    Taken {
                        slot: UNATTRIBUTED_SLOT,
                        redirected: false,
                    },
                );
            }
            (outcome, is_taken)
        }
    }
}

/// False when it was noted already.
#[inline(always)]
fn note(opening: &Opening, taken: Taken) -> bool {
    let is_bound = opening.bound.high() != 0 || opening.bound.low() != 0;
    let bound = if is_bound { Some(&opening.bound) } else { None };
    let entry = LocalUdp::new(&opening.ends(), taken, bound);
    local_udp::note(opening.destination.family(), opening.port, &entry)
}
