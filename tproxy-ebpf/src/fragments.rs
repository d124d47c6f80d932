//! What became of the fragments of a packet, by its identification.
//!
//! Written and read here for each fragment. The least recently seen packets are forgotten first. Two
//! fragments of one packet that arrive on two CPUs at once may each find nothing, and then each is
//! decided about by the addresses alone.

use aya_ebpf::{
    bindings::__sk_buff, btf_maps::LruHashMap, helpers::bpf_ktime_get_ns, macros::btf_map,
    programs::TcContext,
};
use tproxy_common::{
    flow::{Flow, Protocol, Scope},
    fragment::{Fate, FragmentedPacket, Way, parse_fragment},
    handover::Ends,
    limits::FRAGMENTED,
    outcome::Outcome,
    packed::PackedEnds,
};

use crate::{
    interfaces,
    new_flow::is_forwarded,
    rules,
    skb::{LONGEST_LINK_HEADER, Skb},
};

#[btf_map]
static FRAGMENTED_PACKETS: LruHashMap<FragmentedPacket, Fate, FRAGMENTED> = LruHashMap::new();

/// What is done with a fragment that has no ports: as with the others of its packet. The first one
/// that is seen may be any of them.
#[inline(always)]
pub fn decide_later(ctx: &TcContext, network_offset: usize) -> Outcome {
    match way(tproxy_later_fragment(ctx.skb.skb, network_offset as u32)) {
        Way::Own => Outcome::Fragment,
        Way::Here => Outcome::FragmentTaken,
        Way::Nowhere => Outcome::FragmentDropped,
    }
}

/// Lets the others of a packet go the way of its first fragment. They may have gone before it: then it
/// goes theirs.
#[inline(always)]
pub fn decide_first(ctx: &TcContext, network_offset: usize, outcome: Outcome) -> Outcome {
    let own = match outcome {
        Outcome::Taken | Outcome::Established | Outcome::EstablishedUdp => Way::Here,
        Outcome::Dropped
        | Outcome::DroppedMissing
        | Outcome::Rejected
        | Outcome::RejectedUnanswered
        | Outcome::RefusedMissing => Way::Nowhere,
        _ => Way::Own,
    };
    let taken = tproxy_first_fragment(ctx.skb.skb, network_offset as u32, own as u32);
    match (own, way(taken)) {
        (Way::Own, Way::Here) => Outcome::FragmentTaken,
        _ => outcome,
    }
}

#[inline(always)]
const fn way(number: u32) -> Way {
    match number {
        0 => Way::Own,
        1 => Way::Here,
        _ => Way::Nowhere,
    }
}

/// Global, as are the next: the verifier walks each once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_later_fragment(skb: *mut __sk_buff, network_offset: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let skb = Skb::new(&ctx);
    let network_offset = (network_offset & LONGEST_LINK_HEADER) as usize;
    let Some(family) = skb.family() else {
        return Way::Own as u32;
    };
    let Some(fragment) = parse_fragment(&skb, family, network_offset) else {
        return Way::Own as u32;
    };
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(known) = known(&fragment.packet, now) {
        return known as u32;
    }
    // What of a datagram overtakes its first fragment is kept here where a rule may want it: a
    // datagram that none takes is relayed then all the same. TCP sends again.
    let ends = PackedEnds::new(&Ends {
        protocol: fragment.protocol,
        source: fragment.source(),
        source_port: 0,
        destination: fragment.destination(),
        destination_port: 0,
    });
    if fragment.protocol != Protocol::Udp || tproxy_may_be_taken(ctx.skb.skb, &raw const ends) == 0
    {
        return Way::Own as u32;
    }
    remember(&fragment.packet, Way::Here, now);
    Way::Here as u32
}

/// Whether a rule may want what goes between these ends, whatever its ports are. Which rule it is does
/// not show yet, so that what most rules shun is left alone.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_may_be_taken(skb: *mut __sk_buff, ends: *const PackedEnds) -> u32 {
    // SAFETY: the caller's, which lives as long as this runs.
    let Some(ends) = (unsafe { ends.as_ref() }) else {
        return 0;
    };
    let ctx = TcContext::new(skb);
    let flow = Flow::between(&ends.ends(), Scope::Forward, Skb::new(&ctx).interface());
    let may_be_taken = rules::may_match(&flow)
        && !interfaces::takes_answers_only(flow.interface)
        && !flow.destination.is_v4_link_local()
        && is_forwarded(&flow);
    may_be_taken.into()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_first_fragment(skb: *mut __sk_buff, network_offset: u32, own: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let skb = Skb::new(&ctx);
    let network_offset = (network_offset & LONGEST_LINK_HEADER) as usize;
    let fragment = skb
        .family()
        .and_then(|family| parse_fragment(&skb, family, network_offset));
    let Some(fragment) = fragment else {
        return own;
    };
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    let own = way(own);
    if matches!(own, Way::Own) && matches!(known(&fragment.packet, now), Some(Way::Here)) {
        return Way::Here as u32;
    }
    remember(&fragment.packet, own, now);
    own as u32
}

#[inline(always)]
fn known(packet: &FragmentedPacket, now: u64) -> Option<Way> {
    // SAFETY: what is read may be half of one entry and half of another of the same packet.
    let fate = unsafe { FRAGMENTED_PACKETS.get(packet) }?;
    fate.way(now)
}

#[inline(always)]
fn remember(packet: &FragmentedPacket, way: Way, now: u64) {
    // A table without room forgets the oldest; it cannot be full.
    let _ = FRAGMENTED_PACKETS.insert(packet, Fate::new(way, now), 0);
}
