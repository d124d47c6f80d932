//! What is done with a packet that arrives on an attached interface.

use aya_ebpf::programs::TcContext;
use tproxy_common::{
    address::Family,
    flow::{Flow, Protocol, Scope, worker_of},
    icmp::quoted_flow,
    outcome::Outcome,
    packet::{Headers, Unreadable, parse},
    tables::{Action, OnMissing, RuleEntry},
};

use crate::{
    agent, counters,
    established::{self, Holder},
    flow_filter::Stamp,
    handover, interfaces, local_prefixes, rules,
    skb::Skb,
    sockets::{self, Target},
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

impl Arrival<'_> {
    /// Its length from the IP header on, in bytes.
    #[inline(always)]
    fn length(&self) -> u64 {
        u64::from(self.ctx.len()).saturating_sub(self.network_offset as u64)
    }
}

/// Decides about one packet, and says whether it is the first of several fragments. What is said of
/// later ones is for the caller to find out.
#[inline(always)]
pub fn decide(ctx: &TcContext, network_offset: usize, fragmented: &mut u32) -> Outcome {
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
        Err(Unreadable::OtherProtocol) => return decide_other(ctx, family, network_offset),
        Err(Unreadable::TooManyExtensions) => return Outcome::TooManyExtensions,
    };

    // 2. The agent's own connections keep their mark within the network namespace.
    if is_own_upstream(&skb) {
        return Outcome::OwnUpstream;
    }

    let arrival = Arrival {
        ctx,
        family,
        headers,
        network_offset,
    };
    *fragmented = headers.more_fragments.bits().into();

    // 3. What is in mid-flow is ours when a socket has the flow, whatever the rules say now.
    match headers.protocol {
        Protocol::Tcp if !headers.flags.opens() => return decide_in_flow(&arrival),
        Protocol::Tcp => {}
        Protocol::Udp => {
            let stamp = Stamp::of(&headers);
            if stamp.is_recent()
                && established::udp_holder(ctx, family, &headers) == Holder::Connection
            {
                stamp.renew();
                return Outcome::EstablishedUdp;
            }
        }
    }

    // 4. A new flow is for the rules to decide, but for one that comes from where servers are.
    let outcome = if interfaces::takes_answers_only(skb.interface()) {
        Outcome::AnswersOnly
    } else {
        decide_new(&arrival)
    };
    let goes_its_own_way = matches!(
        outcome,
        Outcome::AnswersOnly
            | Outcome::NoRule
            | Outcome::Passed
            | Outcome::PassedMissing
            | Outcome::PassedDraining
    );
    if goes_its_own_way && headers.protocol == Protocol::Tcp {
        // Its ports may be those of an earlier flow of ours, whose TIME_WAIT socket must not get it.
        handover::let_go(&headers);
        if established::tcp_holder(ctx, family, &headers) == Holder::TimeWait {
            established::hide_from_early_demux(ctx);
        }
    }
    outcome
}

#[inline(always)]
fn is_own_upstream(skb: &Skb<'_>) -> bool {
    let upstream_mark = agent::upstream_mark();
    skb.mark() & (agent::mark() | upstream_mark) == upstream_mark
}

#[inline(always)]
fn decide_in_flow(arrival: &Arrival<'_>) -> Outcome {
    let Arrival {
        ctx,
        family,
        headers,
        ..
    } = arrival;
    let stamp = Stamp::of(headers);
    // A flow that began at this host shows with the answer to its SYN: that is always looked up.
    if !headers.flags.answers_opening() && !stamp.is_recent() {
        return without_socket(headers);
    }
    let outcome = match established::tcp_holder(ctx, *family, headers) {
        Holder::Nobody if established::completes_cookie_handshake(arrival) => Outcome::SynCookie,
        Holder::Nobody => return without_socket(headers),
        Holder::TimeWait if handover::was_let_go(headers) => {
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
fn without_socket(headers: &Headers) -> Outcome {
    if handover::was_taken(headers) {
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
fn decide_other(ctx: &TcContext, family: Family, network_offset: usize) -> Outcome {
    match quoted_flow(&Skb::new(ctx), family, network_offset) {
        Some(flow) if established::holder(ctx, family, &flow) != Holder::Nobody => {
            Outcome::IcmpError
        }
        _ => Outcome::OtherProtocol,
    }
}

#[inline(always)]
fn decide_new(arrival: &Arrival<'_>) -> Outcome {
    let interface = Skb::new(arrival.ctx).interface();
    let flow = Flow::of(&arrival.headers, Scope::Forward, interface);
    let Some(found) = rules::find(&flow) else {
        return Outcome::NoRule;
    };
    // After the rules, because most flows that no rule wants are spared these two lookups.
    if !is_forwarded(&flow) || found.entry.shuns(&flow.destination) {
        return Outcome::NotForwarded;
    }
    counters::count_flow(found.entry);
    match found.entry.action() {
        Action::Pass => Outcome::Passed,
        Action::Drop => {
            counters::count_discarded(found.entry, arrival.length());
            Outcome::Dropped
        }
        Action::Reject => {
            counters::count_discarded(found.entry, arrival.length());
            Outcome::Rejected
        }
        Action::Relay | Action::Redirect => hand_over(arrival, &flow, found.entry),
    }
}

/// Neither end is this host: what comes from it is its own traffic on a way back, what goes to it
/// is not routed onwards.
#[inline(always)]
pub fn is_forwarded(flow: &Flow) -> bool {
    flow.destination.is_forwardable()
        && !local_prefixes::contains(&flow.destination)
        && !local_prefixes::contains(&flow.source)
}

#[inline(always)]
fn hand_over(arrival: &Arrival<'_>, flow: &Flow, rule: RuleEntry) -> Outcome {
    let state = agent::state();
    // An agent that was killed while it drained is missing like any other.
    if !state.is_accepting() && (state.workers() == 0 || sockets::agent_lives()) {
        return Outcome::PassedDraining;
    }
    // That of a datagram; where one worker has a listener, all have.
    let worker = worker_of(&flow.source, flow.source_port, state.workers());
    let target = Target::of(rule.taken(), flow.protocol, arrival.family, worker);
    if target.is_there(arrival.family) {
        handover::announce(&arrival.headers.ends(), rule.taken());
        Stamp::of(&arrival.headers).renew();
        return Outcome::Taken;
    }
    match rule.on_missing() {
        OnMissing::Pass => Outcome::PassedMissing,
        OnMissing::Drop if flow.protocol == Protocol::Tcp => Outcome::RefusedMissing,
        OnMissing::Drop => Outcome::DroppedMissing,
    }
}
