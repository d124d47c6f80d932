//! Which socket takes a flow that is delivered to this host.

use aya_ebpf::{bindings::bpf_sk_lookup, programs::SkLookupContext};
use tproxy_common::{
    address::{Address, Family},
    flow::{Flow, Protocol, Scope, worker_of},
    handover::{Ends, Taken},
    outcome::Outcome,
    tables::{Action, OnMissing, RuleEntry},
};

use crate::{
    agent, counters, established, handover, interfaces, local_prefixes, local_udp, rules,
    sockets::{self, Reuseport, Target},
    turn,
};

/// `LOOPBACK_IFINDEX`, include/net/flow.h.
const LOOPBACK: u32 = 1;

/// Decides about one lookup.
#[inline(always)]
pub fn choose(ctx: &SkLookupContext) -> Outcome {
    // 1. The tc program asked for established sockets, and there is none.
    if established::is_probing() {
        return Outcome::Probe;
    }
    let Some(ends) = ends(ctx) else {
        return Outcome::NotOurs;
    };
    // SAFETY: the context is valid while the program runs.
    let interface = unsafe { (*ctx.lookup).ingress_ifindex };
    let state = agent::state();
    let to_this_host = local_prefixes::contains(&ends.destination);

    // 2. Nobody talks to the agent's sockets directly: it would relay to itself.
    if ends.destination_port == state.port()
        && to_this_host
        && Target::worker(ends.protocol, 0).is_there(Family::V4)
    {
        return Outcome::DirectRefused;
    }

    // 3. What is addressed to this host is for the rules of scope inbound.
    if to_this_host {
        return choose_inbound(ctx, &ends, interface, state.workers());
    }

    // 4. What arrives for another address on an attached interface was brought here by the tc program,
    //    and on the loopback device by whom its word says: it is ours even if the rules changed a moment
    //    ago.
    let taken = if interfaces::takes_flows(interface) {
        match handover::taken(&ends) {
            Some(taken) => taken,
            None => classify_again(ctx),
        }
    } else if interface == LOOPBACK {
        match taken_here(&ends) {
            Some(taken) => taken,
            None => return Outcome::NotOurs,
        }
    } else {
        return Outcome::NotOurs;
    };
    if assign(ctx, taken, &ends, state.workers()) {
        Outcome::Assigned
    } else {
        Outcome::Missing
    }
}

/// Who gets a forwarded flow whose word another one has overwritten: who would if it began now. Most are
/// the agent's.
#[inline(always)]
fn classify_again(ctx: &SkLookupContext) -> Taken {
    match find(ctx, Scope::Forward) {
        Some(rule) => rule.taken(),
        None => RELAYED,
    }
}

/// Who gets a flow on the loopback device, if a hook of ours has brought it there. Other instances and
/// other programs bring theirs there, too, and nobody can be asked again whose a flow was.
#[inline(always)]
fn taken_here(ends: &Ends) -> Option<Taken> {
    if ends.protocol == Protocol::Tcp {
        return handover::taken(&ends.before_routing());
    }
    match local_udp::taken(ends) {
        // The stand-in is nobody else's.
        None if is_stand_in(&ends.source) => Some(RELAYED),
        taken => taken,
    }
}

#[inline(always)]
fn is_stand_in(address: &Address) -> bool {
    *address
        == match address.family() {
            Family::V4 => Address::v4(agent::stand_in_v4().to_ne_bytes()),
            Family::V6 => Address::v6(octets(&agent::stand_in_v6())),
        }
}

/// Nothing tells a program that chooses a socket how long the packet is (`struct bpf_sk_lookup`,
/// linux/bpf.h).
const UNKNOWN_LENGTH: u64 = 0;

/// A flow of the agent's, by a rule that is not known any more.
const RELAYED: Taken = Taken {
    slot: 0,
    redirected: false,
};

/// The rule of this scope that takes the flow.
#[inline(always)]
fn find(ctx: &SkLookupContext, scope: Scope) -> Option<RuleEntry> {
    match tproxy_find(ctx.lookup, matches!(scope, Scope::Inbound).into()) {
        NO_RULE => None,
        word => Some(RuleEntry::from_word(word)),
    }
}

/// No slot is that large.
const NO_RULE: u64 = u64::MAX;

/// A global function: the verifier walks the rules once, and not again for each scope and for all that
/// can come of them.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_find(ctx: *mut bpf_sk_lookup, inbound: u32) -> u64 {
    let ctx = SkLookupContext::new(ctx);
    let Some(ends) = ends(&ctx) else {
        return NO_RULE;
    };
    let scope = if inbound != 0 {
        Scope::Inbound
    } else {
        Scope::Forward
    };
    // SAFETY: the context is valid while the program runs.
    let interface = unsafe { (*ctx.lookup).ingress_ifindex };
    match rules::find(&Flow::between(&ends, scope, interface)) {
        Some(found) => found.entry.to_word(),
        None => NO_RULE,
    }
}

#[inline(always)]
fn choose_inbound(ctx: &SkLookupContext, ends: &Ends, interface: u32, workers: u32) -> Outcome {
    let Some(rule) = find(ctx, Scope::Inbound) else {
        return Outcome::NotOurs;
    };
    // What this host says to itself is never caught; the relay's own way to a service here is that.
    if interface == LOOPBACK || local_prefixes::contains(&ends.source) {
        return Outcome::NotOurs;
    }
    counters::count_flow(rule);
    match rule.action() {
        Action::Pass => Outcome::InboundPassed,
        action @ (Action::Drop | Action::Reject) => {
            counters::count_discarded(rule, UNKNOWN_LENGTH);
            if action == Action::Drop && sockets::discard(ctx, ends.protocol) {
                Outcome::InboundDropped
            } else {
                Outcome::InboundRejected
            }
        }
        Action::Relay | Action::Redirect => hand_over_inbound(ctx, ends, rule, workers),
    }
}

#[inline(always)]
fn hand_over_inbound(ctx: &SkLookupContext, ends: &Ends, rule: RuleEntry, workers: u32) -> Outcome {
    let state = agent::state();
    if !state.is_accepting() && (state.workers() == 0 || sockets::agent_lives()) {
        return Outcome::InboundPassedMissing;
    }
    handover::announce(ends, rule.taken());
    if assign(ctx, rule.taken(), ends, workers) {
        return Outcome::InboundTaken;
    }
    match rule.on_missing() {
        OnMissing::Pass => Outcome::InboundPassedMissing,
        OnMissing::Drop => Outcome::InboundRefusedMissing,
    }
}

#[inline(always)]
fn assign(ctx: &SkLookupContext, taken: Taken, ends: &Ends, workers: u32) -> bool {
    let reuseport = if taken.redirected {
        Reuseport::Honoured
    } else {
        Reuseport::Ignored
    };
    let family = ends.destination.family();
    let worker = match ends.protocol {
        // It is no worker's, and takes no turn from them.
        _ if taken.redirected => 0,
        // Asked once for a connection.
        Protocol::Tcp => turn::next(workers),
        // Asked again until there is a session.
        Protocol::Udp => worker_of(&ends.source, ends.source_port, workers),
    };
    Target::of(taken, ends.protocol, family, worker).assign(ctx, reuseport)
}

/// Client and destination; `None` for what is neither TCP nor UDP over IP.
#[inline(always)]
fn ends(ctx: &SkLookupContext) -> Option<Ends> {
    // include/linux/socket.h, include/uapi/linux/in.h
    const AF_INET: u32 = 2;
    const AF_INET6: u32 = 10;
    const IPPROTO_TCP: u32 = 6;
    const IPPROTO_UDP: u32 = 17;
    // SAFETY: the context is valid while the program runs.
    let lookup = unsafe { &*ctx.lookup };
    let protocol = match lookup.protocol {
        IPPROTO_TCP => Protocol::Tcp,
        IPPROTO_UDP => Protocol::Udp,
        _ => return None,
    };
    let (source, destination) = match lookup.family {
        AF_INET => (
            Address::v4(lookup.remote_ip4.to_ne_bytes()),
            Address::v4(lookup.local_ip4.to_ne_bytes()),
        ),
        AF_INET6 => (
            Address::v6(octets(&lookup.remote_ip6)),
            Address::v6(octets(&lookup.local_ip6)),
        ),
        _ => return None,
    };
    Some(Ends {
        protocol,
        source,
        source_port: u16::from_be(lookup.remote_port),
        destination,
        destination_port: lookup.local_port as u16,
    })
}

/// The octets of an IPv6 address as contexts have it: four words in network byte order.
#[inline(always)]
pub fn octets(words: &[u32; 4]) -> [u8; 16] {
    let mut octets = [0; 16];
    let mut word = 0;
    while word < 4 {
        let [a, b, c, d] = words[word].to_ne_bytes();
        octets[word * 4] = a;
        octets[word * 4 + 1] = b;
        octets[word * 4 + 2] = c;
        octets[word * 4 + 3] = d;
        word += 1;
    }
    octets
}
