//! What is done with a packet that arrives on an attached interface.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use tproxy_common::{
    address::Family,
    flow::Protocol,
    handover::Ends,
    icmp::quoted_flow,
    outcome::Outcome,
    packet::{Headers, MoreFragments, Unreadable, parse},
};

use crate::{
    agent,
    established::{self, Holder},
    flow_filter::Stamp,
    handover, new_flow,
    skb::{LONGEST_LINK_HEADER, Skb},
};

/// A TCP segment or UDP datagram, and where it is.
#[derive(Clone, Copy)]
pub struct Arrival<'a> {
    /// The packet.
    pub ctx: &'a TcContext,
    /// Its family.
    pub family: Family,
    /// Its headers.
    pub headers: Headers,
    /// Where its IP header begins.
    pub network_offset: usize,
}

/// What was decided about a packet, but for a later fragment, about which the caller is to find out.
#[derive(Clone, Copy)]
pub enum Decision {
    /// About a whole packet, or one that cannot be read.
    Whole(Outcome),
    /// About the first of several fragments.
    FirstFragment(Outcome),
}

/// Decides about a packet whose IP header comes behind that of a link layer.
#[inline(always)]
pub fn decide(ctx: &TcContext, network_offset: usize) -> Decision {
    let word = tproxy_forward(ctx.skb.skb, network_offset as u32);
    if let Some(outcome) = Outcome::from_number(word) {
        return Decision::Whole(outcome);
    }
    let outcome = Outcome::from_number(word & !FIRST_FRAGMENT);
    Decision::FirstFragment(outcome.unwrap_or(Outcome::Malformed))
}

/// Set beside the number of the outcome. No outcome has so great a number.
const FIRST_FRAGMENT: u32 = 1 << FIRST_FRAGMENT_SHIFT;
const FIRST_FRAGMENT_SHIFT: u32 = 16;

/// A global function: the verifier walks it once, and what was decided is one number to it from then on.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_forward(skb: *mut __sk_buff, network_offset: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let network_offset = (network_offset & LONGEST_LINK_HEADER) as usize;
    let mut fragmented = MoreFragments::default();
    let outcome = decide_whole(&ctx, network_offset, &mut fragmented);
    // Of a branch here the verifier would follow both ways.
    outcome as u32 | u32::from(fragmented.bits()) << FIRST_FRAGMENT_SHIFT
}

#[inline(always)]
fn decide_whole(ctx: &TcContext, network_offset: usize, fragmented: &mut MoreFragments) -> Outcome {
    let skb = Skb::new(ctx);

    // 1. Only IP packets for this host's link-layer address can be routed by it.
    let Some(family) = skb.family() else {
        return Outcome::NotIp;
    };
    if skb.has_vlan_tag() {
        return Outcome::Vlan;
    }
    if !skb.is_for_this_host() {
        return Outcome::NotForThisHost;
    }
    let headers = match parse(&skb, family, network_offset) {
        Ok(headers) => headers,
        Err(Unreadable::Malformed) => return Outcome::Malformed,
        Err(Unreadable::Fragment) if is_own_upstream(&skb) => return Outcome::OwnUpstream,
        Err(Unreadable::Fragment) => return Outcome::Fragment,
        Err(Unreadable::OtherProtocol) => return decide_other(ctx, network_offset),
        Err(Unreadable::TooManyExtensions) => return Outcome::TooManyExtensions,
    };

    // 2. The agent's own connections keep their mark within the network namespace.
    if is_own_upstream(&skb) {
        return Outcome::OwnUpstream;
    }

    *fragmented = headers.more_fragments;

    // 3. What is in mid-flow is ours when a socket has the flow, whatever the rules say now.
    let ends = headers.ends();
    match headers.protocol {
        Protocol::Tcp if !headers.flags.opens() => {
            return decide_in_flow(&Arrival {
                ctx,
                family,
                headers,
                network_offset,
            });
        }
        Protocol::Tcp => {}
        Protocol::Udp => {
            let stamp = Stamp::of(&ends);
            if stamp.is_recent() && established::udp_holder(ctx, &ends) == Holder::Connection {
                stamp.renew();
                return Outcome::EstablishedUdp;
            }
        }
    }

    // 4. A new flow is for the rules to decide.
    new_flow::decide(ctx, network_offset, &ends)
}

#[inline(always)]
fn is_own_upstream(skb: &Skb<'_>) -> bool {
    let upstream_mark = agent::upstream_mark();
    skb.mark() & (agent::mark() | upstream_mark) == upstream_mark
}

#[inline(always)]
fn decide_in_flow(arrival: &Arrival<'_>) -> Outcome {
    let Arrival { ctx, headers, .. } = arrival;
    let ends = headers.ends();
    let stamp = Stamp::of(&ends);
    // A flow that began at this host shows with the answer to its SYN: that is always looked up.
    if !headers.flags.answers_opening() && !stamp.is_recent() {
        return without_socket(&ends);
    }
    let outcome = match established::tcp_holder(ctx, &ends) {
        Holder::Nobody if established::completes_cookie_handshake(arrival, &ends) => {
            Outcome::SynCookie
        }
        Holder::Nobody => return without_socket(&ends),
        Holder::TimeWait if handover::was_let_go(&ends) => {
            established::hide_from_early_demux(ctx);
            Outcome::Foreign
        }
        Holder::Connection | Holder::TimeWait => Outcome::Established,
    };
    stamp.renew();
    outcome
}

/// No socket has this flow. One that was taken has lost it: its agent has reset it, or was killed,
/// and the client does not know yet.
#[inline(always)]
fn without_socket(ends: &Ends) -> Outcome {
    if handover::taken(ends).is_some() {
        Outcome::Orphaned
    } else {
        Outcome::Foreign
    }
}

/// Marks the packet, so that the policy rule routes it to this host.
#[inline(always)]
pub fn mark(ctx: &TcContext) {
    ctx.set_mark(Skb::new(ctx).mark() | agent::mark());
}

/// Neither TCP nor UDP: only ICMP errors about flows of ours concern us.
#[inline(always)]
fn decide_other(ctx: &TcContext, network_offset: usize) -> Outcome {
    if tproxy_quotes_flow(ctx.skb.skb, network_offset as u32) != 0 {
        Outcome::IcmpError
    } else {
        Outcome::OtherProtocol
    }
}

/// Whether a socket of this host has the flow that the packet, an ICMP error, quotes. Global as well.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_quotes_flow(skb: *mut __sk_buff, network_offset: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let skb = Skb::new(&ctx);
    let network_offset = (network_offset & LONGEST_LINK_HEADER) as usize;
    let quoted = skb
        .family()
        .and_then(|family| quoted_flow(&skb, family, network_offset));
    let has_socket =
        quoted.is_some_and(|headers| established::holder(&ctx, &headers.ends()) != Holder::Nobody);
    has_socket.into()
}
