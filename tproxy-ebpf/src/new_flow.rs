//! What is done with the first packet of a flow that arrives on an attached interface.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use tproxy_common::{
    explanation::Presence,
    flow::{Flow, Protocol, Scope},
    handover::Ends,
    outcome::Outcome,
    packed::PackedEnds,
    tables::{Action, OnMissing, RuleEntry},
};

use crate::{
    counters,
    established::{self, Holder},
    flow_filter::Stamp,
    handover, interfaces, local_prefixes, presence, rules,
    skb::Skb,
};

/// Decides about a SYN, or a datagram that no connected socket has.
#[inline(always)]
pub fn decide(ctx: &TcContext, network_offset: usize, ends: &Ends) -> Outcome {
    let packed = PackedEnds::new(ends);
    let number = tproxy_new_flow(ctx.skb.skb, network_offset as u32, &raw const packed);
    Outcome::from_number(number).unwrap_or(Outcome::NoRule)
}

/// A global function: the verifier walks it once, and not again for each of the many ways through the
/// headers of a packet.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_new_flow(
    skb: *mut __sk_buff,
    network_offset: u32,
    ends: *const PackedEnds,
) -> u32 {
    // SAFETY: the caller's, which lives as long as this runs.
    let Some(ends) = (unsafe { ends.as_ref() }) else {
        return Outcome::NoRule as u32;
    };
    let ctx = TcContext::new(skb);
    decide_whole(&ctx, network_offset, &ends.ends()) as u32
}

#[inline(always)]
fn decide_whole(ctx: &TcContext, network_offset: u32, ends: &Ends) -> Outcome {
    // What comes from where servers are is not for the rules.
    let interface = Skb::new(ctx).interface();
    let outcome = if interfaces::takes_answers_only(interface) {
        Outcome::AnswersOnly
    } else {
        by_rules(ctx, network_offset, ends, interface)
    };
    let goes_its_own_way = matches!(
        outcome,
        Outcome::AnswersOnly
            | Outcome::NoRule
            | Outcome::Passed
            | Outcome::PassedMissing
            | Outcome::PassedDraining
    );
    if goes_its_own_way && ends.protocol == Protocol::Tcp {
        // Its ports may be those of an earlier flow of ours, whose TIME_WAIT socket must not get it.
        handover::let_go(ends);
        if established::tcp_holder(ctx, ends) == Holder::TimeWait {
            established::hide_from_early_demux(ctx);
        }
    }
    outcome
}

#[inline(always)]
fn by_rules(ctx: &TcContext, network_offset: u32, ends: &Ends, interface: u32) -> Outcome {
    let flow = Flow::between(ends, Scope::Forward, interface);
    let Some(found) = rules::find(&flow) else {
        return Outcome::NoRule;
    };
    // After the rules, because most flows that no rule wants are spared these two lookups.
    if !is_forwarded(&flow) || found.entry.shuns(&flow.destination) {
        return Outcome::NotForwarded;
    }
    counters::count_flow(found.entry);
    // Of the packet, from its IP header on, in bytes.
    let length = || ctx.len().saturating_sub(network_offset).into();
    match found.entry.action() {
        Action::Pass => Outcome::Passed,
        Action::Drop => {
            counters::count_discarded(found.entry, length());
            Outcome::Dropped
        }
        Action::Reject => {
            counters::count_discarded(found.entry, length());
            Outcome::Rejected
        }
        Action::Relay | Action::Redirect => hand_over(ends, found.entry),
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
fn hand_over(ends: &Ends, rule: RuleEntry) -> Outcome {
    match (presence::of(ends, rule.taken()), rule.on_missing()) {
        (Presence::There, _) => {
            handover::announce(ends, rule.taken());
            Stamp::of(ends).renew();
            Outcome::Taken
        }
        (Presence::LeftAlone, _) => Outcome::PassedDraining,
        (Presence::Missing, OnMissing::Pass) => Outcome::PassedMissing,
        (Presence::Missing, OnMissing::Drop) if ends.protocol == Protocol::Tcp => {
            Outcome::RefusedMissing
        }
        (Presence::Missing, OnMissing::Drop) => Outcome::DroppedMissing,
    }
}
