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
mod counters;
mod established;
mod explain;
mod flow_filter;
mod forward;
mod handover;
mod interfaces;
mod local_prefixes;
mod lookup;
mod reset;
mod rules;
mod skb;
mod sockets;
mod unreachable;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, sk_action},
    macros::{classifier, sk_lookup},
    programs::{SkLookupContext, TcContext},
};
use tproxy_common::outcome::Outcome;

const ETHERNET_HEADER: usize = 14;

/// Ingress of interfaces whose frames begin with an Ethernet header.
#[classifier]
pub fn tproxy_ether(ctx: TcContext) -> i32 {
    steer::<ETHERNET_HEADER>(&ctx)
}

/// Ingress of interfaces whose packets begin with the IP header: tun, ppp, `WireGuard`.
#[classifier]
pub fn tproxy_ip(ctx: TcContext) -> i32 {
    steer::<0>(&ctx)
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

/// Says which rule takes an Ethernet frame (`tproxy_common::explanation`). It is loaded by who asks,
/// over the maps that are there, and never attached.
#[classifier]
pub fn tproxy_explain(ctx: TcContext) -> i32 {
    explain::explain(&ctx, ETHERNET_HEADER).to_code() as i32
}

#[inline(always)]
fn steer<const NETWORK_OFFSET: usize>(ctx: &TcContext) -> i32 {
    let outcome = match decide::<NETWORK_OFFSET>(ctx.skb.skb) {
        Outcome::Rejected if !answer::refuse(ctx, NETWORK_OFFSET) => Outcome::RejectedUnanswered,
        Outcome::RefusedMissing if !answer::refuse(ctx, NETWORK_OFFSET) => Outcome::DroppedMissing,
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

/// A function of its own, so that its stack is free again for the one that makes answers: there are
/// 512 bytes for all that are called from one another.
#[inline(never)]
fn decide<const NETWORK_OFFSET: usize>(skb: *mut __sk_buff) -> Outcome {
    forward::decide(&TcContext::new(skb), NETWORK_OFFSET)
}

#[derive(Clone, Copy)]
enum Verdict {
    /// The packet goes on as if there were no program.
    Continue,
    /// The packet is marked, so that it is delivered to this host.
    Mark,
    /// The packet has become its own answer and goes back.
    Answer,
    /// tc: the packet is discarded. sk_lookup: no socket takes it, so TCP answers with RST.
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
        | Outcome::NoRule
        | Outcome::Passed
        | Outcome::PassedMissing
        | Outcome::PassedDraining
        | Outcome::Foreign
        | Outcome::NotOurs
        | Outcome::Assigned => Verdict::Continue,
        Outcome::Taken
        | Outcome::Established
        | Outcome::SynCookie
        | Outcome::Orphaned
        | Outcome::IcmpError => Verdict::Mark,
        Outcome::RefusedMissing | Outcome::Rejected => Verdict::Answer,
        Outcome::Dropped
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
