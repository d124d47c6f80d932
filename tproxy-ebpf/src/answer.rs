//! Answers the first packet of a flow that is refused, in the place of who it was sent to.
//!
//! The packet is turned around and becomes its own answer, so that nothing is to be allocated.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_redirect, programs::TcContext};
use tproxy_common::{
    flow::Protocol,
    packet::{Packet as _, parse},
};

use crate::{
    forward::Arrival,
    reset,
    skb::{LONGEST_LINK_HEADER, Skb},
    unreachable,
};

/// Turns the packet into the answer that refuses it: RST, or ICMP port unreachable. False when that
/// cannot be, after which the packet is good for nothing but to be discarded.
#[inline(always)]
pub fn refuse(ctx: &TcContext, network_offset: usize) -> bool {
    tproxy_refuse(ctx.skb.skb, network_offset as u32) != 0
}

/// A global function: the verifier walks it once, and not again for each of the many ways on which a
/// program comes here. It knows nothing of its caller, so the packet is read anew.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_refuse(skb: *mut __sk_buff, network_offset: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let network_offset = (network_offset & LONGEST_LINK_HEADER) as usize;
    u32::from(make_answer(&ctx, network_offset).is_some())
}

#[inline(always)]
fn make_answer(ctx: &TcContext, network_offset: usize) -> Option<()> {
    let skb = Skb::new(ctx);
    let family = skb.family()?;
    let headers = parse(&skb, family, network_offset).ok()?;
    // Nobody in particular sent it, so nobody is to be answered (RFC 1122, 3.2.2).
    if !headers.source.is_forwardable() || headers.more_fragments.is_set() {
        return None;
    }
    let arrival = Arrival {
        ctx,
        family,
        headers,
        network_offset,
    };
    match headers.protocol {
        Protocol::Tcp => reset::make(&arrival),
        Protocol::Udp => unreachable::make(&arrival),
    }?;
    exchange_link_addresses(ctx, network_offset)
}

/// Sends the packet out of the interface that it came in by.
#[inline(always)]
pub fn send_back(ctx: &TcContext) -> i32 {
    // SAFETY: the helper takes plain numbers.
    unsafe { bpf_redirect(Skb::new(ctx).interface(), 0) as i32 }
}

#[inline(always)]
fn exchange_link_addresses(ctx: &TcContext, network_offset: usize) -> Option<()> {
    if network_offset == 0 {
        return Some(());
    }
    exchange::<6>(ctx, 0)
}

/// Exchanges two neighbouring fields.
#[inline(always)]
pub fn exchange<const LENGTH: usize>(ctx: &TcContext, offset: usize) -> Option<()> {
    let skb = Skb::new(ctx);
    let first: [u8; LENGTH] = skb.read(offset)?;
    let second: [u8; LENGTH] = skb.read(offset + LENGTH)?;
    ctx.store(offset, &second, 0).ok()?;
    ctx.store(offset + LENGTH, &first, 0).ok()
}
