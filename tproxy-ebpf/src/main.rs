//! Entry points of the kernel programs, and the one table from outcome to verdict.
#![no_std]
#![no_main]
#![expect(
    clippy::inline_always,
    reason = "the verifier follows one straight program better than calls with pointers to the stack"
)]
#![expect(
    clippy::needless_pass_by_value,
    missing_docs,
    reason = "the macros of entry points pass contexts by value and drop documentation"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "halves of words, small lengths and verdicts; try_from would add branches that can panic"
)]

mod agent;
mod answer;
mod connect;
mod counters;
mod established;
mod explain;
mod flow_filter;
mod forward;
mod fragments;
mod handover;
mod interfaces;
mod local;
mod local_prefixes;
mod local_udp;
mod lookup;
mod new_flow;
mod opening;
mod presence;
mod reset;
mod rules;
mod sendmsg;
mod skb;
mod sockets;
mod turn;
mod unreachable;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, sk_action},
    helpers::bpf_set_retval,
    macros::{cgroup_sock_addr, classifier, sk_lookup, sock_ops},
    programs::{SkLookupContext, SockAddrContext, SockOpsContext, TcContext},
};
use tproxy_common::outcome::Outcome;

use forward::Decision;

const ETHERNET_HEADER: usize = 14;

/// Ingress of interfaces whose frames begin with an Ethernet header.
#[classifier]
pub fn tproxy_ether(ctx: TcContext) -> i32 {
    steer(&ctx, ETHERNET_HEADER)
}

/// Ingress of interfaces whose packets begin with the IP header: tun, ppp, `WireGuard`.
#[classifier]
pub fn tproxy_ip(ctx: TcContext) -> i32 {
    steer(&ctx, 0)
}

/// Choice of the socket for what is delivered to this host.
#[sk_lookup]
pub fn tproxy_lookup(ctx: SkLookupContext) -> u32 {
    let outcome = lookup::choose(&ctx);
    counters::count(outcome);
    match verdict(outcome) {
        Verdict::Continue | Verdict::Mark | Verdict::Answer => sk_action::SK_PASS,
        Verdict::Discard => sk_action::SK_DROP,
    }
}

/// A process of this host connects a socket to an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub fn tproxy_connect4(ctx: SockAddrContext) -> i32 {
    permit(connect::decide_v4(&ctx))
}

/// The same to an IPv6 address.
#[cgroup_sock_addr(connect6)]
pub fn tproxy_connect6(ctx: SockAddrContext) -> i32 {
    permit(connect::decide_v6(&ctx))
}

/// A process of this host sends a datagram to an IPv4 address by a socket that is not connected.
#[cgroup_sock_addr(sendmsg4)]
pub fn tproxy_sendmsg4(ctx: SockAddrContext) -> i32 {
    permit(sendmsg::decide_v4(&ctx))
}

/// The same to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub fn tproxy_sendmsg6(ctx: SockAddrContext) -> i32 {
    permit(sendmsg::decide_v6(&ctx))
}

/// A TCP socket of this host is about to send its SYN, among other occasions.
#[sock_ops]
pub fn tproxy_opening(ctx: SockOpsContext) -> u32 {
    opening::mark(&ctx);
    1
}

/// Counts what was decided about a system call, and answers it.
#[inline(always)]
fn permit(outcome: Option<Outcome>) -> i32 {
    // include/uapi/asm-generic/errno.h
    const ECONNREFUSED: i32 = 111;
    const ALLOWED: i32 = 1;
    const REFUSED: i32 = 0;
    let Some(outcome) = outcome else {
        return ALLOWED;
    };
    counters::count(outcome);
    match verdict(outcome) {
        Verdict::Continue | Verdict::Mark => ALLOWED,
        // The kernel's own word for it is EPERM.
        Verdict::Discard => REFUSED,
        Verdict::Answer => {
            // SAFETY: the helper takes a number.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            REFUSED
        }
    }
}

/// Says which rule takes an Ethernet frame (`tproxy_common::explanation`). It is loaded by who asks,
/// over the maps that are there, and never attached.
#[classifier]
pub fn tproxy_explain(ctx: TcContext) -> i32 {
    explain::explain(&ctx, ETHERNET_HEADER) as i32
}

#[inline(always)]
fn steer(ctx: &TcContext, network_offset: usize) -> i32 {
    let outcome = match forward::decide(ctx, network_offset) {
        Decision::Whole(Outcome::Fragment) => fragments::decide_later(ctx, network_offset),
        Decision::Whole(outcome) => outcome,
        Decision::FirstFragment(outcome) => fragments::decide_first(ctx, network_offset, outcome),
    };
    let outcome = match outcome {
        Outcome::Rejected if !answer::refuse(ctx, network_offset) => Outcome::RejectedUnanswered,
        Outcome::RefusedMissing if !answer::refuse(ctx, network_offset) => Outcome::DroppedMissing,
        outcome => outcome,
    };
    counters::count(outcome);
    match verdict(outcome) {
        // Not TC_ACT_OK: that would keep programs after this one from running.
        Verdict::Continue => TC_ACT_UNSPEC,
        Verdict::Mark => {
            forward::mark(ctx);
            TC_ACT_UNSPEC
        }
        Verdict::Discard => TC_ACT_SHOT,
        Verdict::Answer => answer::send_back(ctx),
    }
}

#[derive(Clone, Copy)]
enum Verdict {
    /// The packet goes on as if there were no program.
    Continue,
    /// The packet is marked, so that it is delivered to this host.
    Mark,
    /// tc: the packet has become its own answer and goes back. connect, sendmsg: ECONNREFUSED.
    Answer,
    /// tc: the packet is discarded. sk_lookup: no socket takes it, so TCP answers with RST and UDP
    /// with an ICMP error. connect, sendmsg: EPERM.
    Discard,
}

#[inline(always)]
const fn verdict(outcome: Outcome) -> Verdict {
    match outcome {
        Outcome::NotIp
        | Outcome::Vlan
        | Outcome::NotForThisHost
        | Outcome::Malformed
        | Outcome::Fragment
        | Outcome::OtherProtocol
        | Outcome::TooManyExtensions
        | Outcome::OwnUpstream
        | Outcome::NotForwarded
        | Outcome::AnswersOnly
        | Outcome::NoRule
        | Outcome::Passed
        | Outcome::PassedMissing
        | Outcome::PassedDraining
        | Outcome::Foreign
        | Outcome::NotOurs
        | Outcome::Assigned
        | Outcome::InboundTaken
        | Outcome::InboundPassed
        | Outcome::InboundPassedMissing
        // A socket has it that discards it.
        | Outcome::InboundDropped
        | Outcome::LocalMarked
        | Outcome::LocalToDevice
        | Outcome::LocalNotForwarded
        | Outcome::LocalNoRule
        | Outcome::LocalPassed
        | Outcome::LocalPassedMissing
        // The socket is marked, or its datagram comes from the stand-in.
        | Outcome::LocalTaken => Verdict::Continue,
        Outcome::Taken
        | Outcome::Established
        | Outcome::EstablishedUdp
        | Outcome::FragmentTaken
        | Outcome::SynCookie
        | Outcome::Orphaned
        | Outcome::IcmpError => Verdict::Mark,
        Outcome::RefusedMissing
        | Outcome::Rejected
        | Outcome::LocalRejected
        | Outcome::LocalRefusedMissing => Verdict::Answer,
        Outcome::Dropped
        | Outcome::FragmentDropped
        | Outcome::InboundRejected
        | Outcome::InboundRefusedMissing
        | Outcome::LocalDropped
        | Outcome::DroppedMissing
        | Outcome::RejectedUnanswered
        | Outcome::Missing
        | Outcome::DirectRefused
        | Outcome::Probe => Verdict::Discard,
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers of the kernel are open to programs under a GPL-compatible licence only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
