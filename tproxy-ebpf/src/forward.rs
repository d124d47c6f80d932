//! What is done with a packet that arrives on an attached interface.

use aya_ebpf::programs::TcContext;
use tproxy_common::{
    flow::{Flow, Protocol, Scope, worker_of},
    outcome::Outcome,
    packet::{Headers, Unreadable, parse},
    tables::{Action, OnMissing, RuleEntry},
};

use crate::{agent, counters, established, handover, local_prefixes, rules, skb::Skb, sockets};

/// Decides about one packet.
#[inline(always)]
pub fn decide(ctx: &TcContext, network_offset: usize) -> Outcome {
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
        Err(Unreadable::Fragment) => return Outcome::Fragment,
        Err(Unreadable::OtherProtocol) => return Outcome::OtherProtocol,
        Err(Unreadable::TooManyExtensions) => return Outcome::TooManyExtensions,
    };

    // 2. The agent's own connections keep their mark within the network namespace.
    let upstream_mark = agent::upstream_mark();
    if skb.mark() & (agent::mark() | upstream_mark) == upstream_mark {
        return Outcome::OwnUpstream;
    }

    // 3. A segment in mid-flow is ours when a socket has the flow, whatever the rules say now.
    if headers.protocol == Protocol::Tcp && !headers.flags.opens() {
        if established::has_socket(ctx, family, &headers) {
            return Outcome::Established;
        }
        if established::completes_cookie_handshake(&skb, family, &headers, network_offset) {
            return Outcome::SynCookie;
        }
        return Outcome::Foreign;
    }

    // 4. A new flow is for the rules to decide.
    decide_new(ctx, &skb, &headers, network_offset)
}

/// Marks the packet, so that the policy rule routes it to this host.
#[inline(always)]
pub fn mark(ctx: &TcContext) {
    ctx.set_mark(Skb::new(ctx).mark() | agent::mark());
}

#[inline(always)]
fn decide_new(ctx: &TcContext, skb: &Skb<'_>, headers: &Headers, network_offset: usize) -> Outcome {
    let flow = Flow {
        scope: Scope::Forward,
        protocol: headers.protocol,
        interface: skb.interface(),
        source: headers.source,
        source_port: headers.source_port,
        destination: headers.destination,
        destination_port: headers.destination_port,
    };
    let Some(found) = rules::find(&flow) else {
        return Outcome::NoRule;
    };
    // After the rules, because most flows that no rule wants are spared these two lookups.
    if !is_forwarded(&flow) {
        return Outcome::NotForwarded;
    }
    counters::count_flow(found.entry);
    match found.entry.action() {
        Action::Pass => Outcome::Passed,
        Action::Drop => {
            let bytes = u64::from(ctx.len()).saturating_sub(network_offset as u64);
            counters::count_discarded(found.entry, bytes);
            Outcome::Dropped
        }
        Action::Relay => hand_over(&flow, found.entry),
    }
}

/// Neither end is this host: what comes from it is its own traffic on a way back, what goes to it
/// is not routed onwards.
#[inline(always)]
fn is_forwarded(flow: &Flow) -> bool {
    flow.destination.is_forwardable()
        && !local_prefixes::contains(&flow.destination)
        && !local_prefixes::contains(&flow.source)
}

#[inline(always)]
fn hand_over(flow: &Flow, rule: RuleEntry) -> Outcome {
    let state = agent::state();
    if !state.is_accepting() {
        return Outcome::PassedDraining;
    }
    let worker = worker_of(&flow.source, flow.source_port, state.workers());
    if sockets::with_listener(worker, |_| ()).is_some() {
        handover::announce(flow, rule);
        return Outcome::Taken;
    }
    match rule.on_missing() {
        OnMissing::Pass => Outcome::PassedMissing,
        // Delivered all the same: sk_lookup finds no socket and the kernel answers with RST.
        OnMissing::Drop => Outcome::Taken,
    }
}
