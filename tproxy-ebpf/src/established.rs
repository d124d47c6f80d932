//! Whether a socket of this host already has the flow of a TCP segment or UDP datagram.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_sock, bpf_sock_tuple, bpf_tunnel_key},
    btf_maps::PerCpuArray,
    helpers::{
        bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_set_tunnel_key, bpf_skc_lookup_tcp,
        bpf_tcp_check_syncookie,
    },
    macros::btf_map,
    programs::TcContext,
};
use core::ffi::c_void;
use tproxy_common::{
    address::Family,
    flow::{Protocol, worker_of},
    handover::Ends,
    packet::Packet,
};

use crate::{
    agent,
    forward::Arrival,
    handover,
    skb::{LONGEST_LINK_HEADER, Skb},
    sockets::Target,
};

/// Set while this CPU looks for established sockets only.
///
/// Written and read on one CPU within one packet: a lookup that finds no established socket goes
/// on to the listeners by way of the sk_lookup program, which then answers at once.
#[btf_map]
static PROBING: PerCpuArray<u32, 1> = PerCpuArray::new();

const BPF_F_CURRENT_NETNS: u64 = u64::MAX;

/// Whether sk_lookup runs for a lookup of [`holder`].
#[inline(always)]
pub fn is_probing() -> bool {
    PROBING.get(0).is_some_and(|probing| *probing != 0)
}

/// The socket that has a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// None, or one that listens.
    Nobody,
    /// One that is connected or in handshake.
    Connection,
    /// What is left of a connection for a while (RFC 9293, 3.6.1).
    TimeWait,
}

/// Finds the socket that has this flow.
#[inline(always)]
pub fn holder(ctx: &TcContext, ends: &Ends) -> Holder {
    match ends.protocol {
        Protocol::Tcp => tcp_holder(ctx, ends),
        Protocol::Udp => udp_holder(ctx, ends),
    }
}

/// Finds the connected UDP socket that has this flow.
#[inline(always)]
pub fn udp_holder(ctx: &TcContext, ends: &Ends) -> Holder {
    match state_of_holder(ctx, ends, bpf_sk_lookup_udp) {
        // A UDP socket that is connected is in this state.
        Some(TCP_ESTABLISHED) => Holder::Connection,
        _ => Holder::Nobody,
    }
}

/// Finds the socket that has this TCP flow.
#[inline(always)]
pub fn tcp_holder(ctx: &TcContext, ends: &Ends) -> Holder {
    match state_of_holder(ctx, ends, bpf_skc_lookup_tcp) {
        None | Some(TCP_LISTEN) => Holder::Nobody,
        Some(TCP_TIME_WAIT) => Holder::TimeWait,
        Some(_) => Holder::Connection,
    }
}

// include/net/tcp_states.h
const TCP_ESTABLISHED: u32 = 1;
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;

type Lookup = unsafe fn(*mut c_void, *mut bpf_sock_tuple, u32, u64, u64) -> *mut bpf_sock;

/// The state of the socket that a lookup gives the flow to.
#[inline(always)]
fn state_of_holder(ctx: &TcContext, ends: &Ends, lookup: Lookup) -> Option<u32> {
    let (mut tuple, length) = tuple(ends);
    let probing = PROBING.get_ptr_mut(0)?;
    // SAFETY: the slot belongs to this CPU.
    unsafe { *probing = 1 };
    // SAFETY: tuple is initialised up to length.
    let socket = unsafe { lookup(ctx.as_ptr(), &raw mut tuple, length, BPF_F_CURRENT_NETNS, 0) };
    // SAFETY: as above.
    unsafe { *probing = 0 };
    if socket.is_null() {
        return None;
    }
    // SAFETY: not null, and the reference is held until it is released here.
    unsafe {
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        Some(state)
    }
}

/// Keeps the kernel from finding a socket for this packet by itself.
///
/// Early demux would give it to the TIME_WAIT socket, and forwarding drops what has a socket. It
/// leaves packets with a destination alone, and tunnel metadata looks like one until the packet is
/// routed (`ip_rcv_finish_core`, `ip6_rcv_finish_core`).
#[inline(always)]
pub fn hide_from_early_demux(ctx: &TcContext) {
    // SAFETY: plain integers, for which zero is a value.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    let size = size_of::<bpf_tunnel_key>() as u32;
    // SAFETY: the key is valid up to its size. A refusal leaves the packet as it was.
    let _ = unsafe { bpf_skb_set_tunnel_key(ctx.skb.skb, &raw mut key, size, 0) };
}

#[inline(always)]
fn tuple(ends: &Ends) -> (bpf_sock_tuple, u32) {
    // SAFETY: plain integers, for which zero is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    match ends.destination.family() {
        Family::V4 => {
            // SAFETY: the variant is chosen by the length returned with it.
            let v4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
            v4.saddr = ((ends.source.high() >> 32) as u32).to_be();
            v4.daddr = ((ends.destination.high() >> 32) as u32).to_be();
            v4.sport = ends.source_port.to_be();
            v4.dport = ends.destination_port.to_be();
            (tuple, 12)
        }
        Family::V6 => {
            // SAFETY: the variant is chosen by the length returned with it.
            let v6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
            v6.saddr = words(ends.source.high(), ends.source.low());
            v6.daddr = words(ends.destination.high(), ends.destination.low());
            v6.sport = ends.source_port.to_be();
            v6.dport = ends.destination_port.to_be();
            (tuple, 36)
        }
    }
}

#[inline(always)]
const fn words(high: u64, low: u64) -> [u32; 4] {
    [
        ((high >> 32) as u32).to_be(),
        (high as u32).to_be(),
        ((low >> 32) as u32).to_be(),
        (low as u32).to_be(),
    ]
}

/// Whether this ACK carries a SYN cookie of one of our listeners.
#[inline(always)]
pub fn completes_cookie_handshake(arrival: &Arrival<'_>, ends: &Ends) -> bool {
    let Arrival {
        ctx,
        family,
        headers,
        network_offset,
    } = *arrival;
    if !headers.flags.completes() {
        return false;
    }
    // Whichever listener has sent the cookie: they are one group.
    let worker = worker_of(&ends.source, ends.source_port, agent::state().workers());
    let target = match handover::taken(ends) {
        Some(taken) => Target::of(taken, Protocol::Tcp, family, worker),
        None => Target::worker(Protocol::Tcp, worker),
    };
    let skb = ctx.skb.skb;
    let transport_offset = headers.transport_offset as u32;
    tproxy_has_cookie(
        skb,
        network_offset as u32,
        transport_offset,
        target.to_word(),
    ) != 0
}

/// Whether the ACK carries a cookie of a listener of this target. A global function: the verifier walks
/// it once, and not again for each of the many ways through the headers of a packet.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tproxy_has_cookie(
    skb: *mut __sk_buff,
    network_offset: u32,
    transport_offset: u32,
    target: u32,
) -> u32 {
    let ctx = TcContext::new(skb);
    let network_offset = (network_offset & LONGEST_LINK_HEADER) as usize;
    let target = Target::from_word(target);
    has_cookie(&ctx, network_offset, transport_offset as usize, target).into()
}

#[inline(always)]
fn has_cookie(
    ctx: &TcContext,
    network_offset: usize,
    transport_offset: usize,
    target: Target,
) -> bool {
    let skb = Skb::new(ctx);
    let Some(family) = skb.family() else {
        return false;
    };
    let Some(mut tcp) = skb.read::<20>(transport_offset) else {
        return false;
    };
    let tcp = &raw mut tcp;
    let check = |ip: *mut u8, length: u32| {
        let valid = |listener: *mut bpf_sock| {
            // SAFETY: both headers are copies on the stack of the lengths given.
            unsafe {
                bpf_tcp_check_syncookie(
                    listener.cast(),
                    ip.cast(),
                    length,
                    tcp.cast(),
                    size_of::<[u8; 20]>() as u32,
                ) == 0
            }
        };
        target.any(family, valid)
    };
    match family {
        Family::V4 => skb
            .read::<20>(network_offset)
            .is_some_and(|mut ip| check((&raw mut ip).cast(), 20)),
        Family::V6 => skb
            .read::<40>(network_offset)
            .is_some_and(|mut ip| check((&raw mut ip).cast(), 40)),
    }
}
