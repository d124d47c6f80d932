//! Answers a datagram with the ICMP error of a host where nobody has the port.

use core::hint::black_box;

use aya_ebpf::{
    bindings::{BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    btf_maps::PerCpuArray,
    helpers::{bpf_csum_diff, bpf_ktime_get_ns, bpf_skb_change_tail, bpf_skb_load_bytes},
    macros::btf_map,
    programs::TcContext,
};
use tproxy_common::{
    address::Family,
    allowance::Allowance,
    checksum::Sum,
    packet::Packet as _,
    unreachable::{
        BEFORE_QUOTE_V4, BEFORE_QUOTE_V6, QUOTE_V4, QUOTE_V6, before_quote_v4, before_quote_v6,
    },
};

use crate::{forward::Arrival, skb::Skb};

/// How many errors each CPU may still send. Nobody but the CPU itself touches its own.
#[btf_map]
static ERROR_ALLOWANCE: PerCpuArray<Allowance, 1> = PerCpuArray::new();

/// What is quoted, where helpers can sum it up. Used within one packet by the CPU that it is of.
#[btf_map]
static SCRATCH: PerCpuArray<[u8; SCRATCH_SIZE], 1> = PerCpuArray::new();

/// More than the longest quote; a power of two for the verifier.
const LONGEST: usize = 2048;
const _: () = assert!(QUOTE_V6 <= LONGEST);

/// Room for zeroes behind the longest.
const SCRATCH_SIZE: usize = LONGEST + WORD;

const WORD: usize = 4;

/// Octets of the UDP header, which any quote includes (RFC 792), and place of the checksum in it.
const UDP_HEADER: usize = 8;
const UDP_CHECKSUM: usize = 6;

/// Turns the datagram into the error, but for its link-layer addresses.
#[inline(always)]
pub fn make(arrival: &Arrival<'_>) -> Option<()> {
    let Arrival {
        ctx,
        family,
        headers,
        network_offset,
    } = *arrival;
    if !is_allowed() {
        return None;
    }
    let length = quoted(arrival)?;
    let sum = sum_of_quote(arrival, length)?;
    let (client, server) = (&headers.source, &headers.destination);
    match family {
        Family::V4 => {
            let before = before_quote_v4(client, server, length as u16, sum);
            make_room(ctx, BEFORE_QUOTE_V4)?;
            store(ctx, network_offset, &before)
        }
        Family::V6 => {
            let before = before_quote_v6(client, server, length as u16, sum);
            make_room(ctx, BEFORE_QUOTE_V6)?;
            store(ctx, network_offset, &before)
        }
    }
}

#[inline(always)]
fn is_allowed() -> bool {
    let Some(allowance) = ERROR_ALLOWANCE.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the element belongs to this CPU, and the helper takes nothing.
    unsafe { (*allowance).take(bpf_ktime_get_ns()) }
}

/// How many octets of the packet are quoted. `None` if there is no room for its UDP header, or its
/// length contradicts that.
#[inline(always)]
fn quoted(arrival: &Arrival<'_>) -> Option<usize> {
    const FIXED_HEADER_V6: usize = 40;
    let skb = Skb::new(arrival.ctx);
    let at = arrival.network_offset;
    let (length, most) = match arrival.family {
        Family::V4 => (u16::from_be_bytes(skb.read(at + 2)?) as usize, QUOTE_V4),
        Family::V6 => {
            let payload = u16::from_be_bytes(skb.read(at + 4)?) as usize;
            (payload + FIXED_HEADER_V6, QUOTE_V6)
        }
    };
    // A frame may be longer than its packet.
    let there = (arrival.ctx.len() as usize).checked_sub(at)?;
    let length = length.min(there).min(most);
    let least = arrival.headers.transport_offset - at + UDP_HEADER;
    (length >= least).then_some(length)
}

/// The sum of the octets to be quoted, to which the packet is cut.
#[inline(always)]
fn sum_of_quote(arrival: &Arrival<'_>, length: usize) -> Option<Sum> {
    let Arrival {
        ctx,
        headers,
        network_offset,
        ..
    } = *arrival;
    let scratch = SCRATCH.get_ptr_mut(0)?.cast::<u8>();
    resize(ctx, network_offset + length)?;
    load(ctx, network_offset, scratch, length)?;
    let checksum: [u8; 2] = Skb::new(ctx).read(headers.transport_offset + UDP_CHECKSUM)?;
    if is_checksum_open(ctx, headers.transport_offset + UDP_CHECKSUM, checksum)? {
        // Whoever sends this on completes that checksum over all from the UDP header on, which then
        // sums up to the complement of what stands in its place now.
        let of_headers = sum_of(scratch, headers.transport_offset - network_offset)?;
        return Some(of_headers.plus(&[!checksum[0], !checksum[1]]));
    }
    sum_of(scratch, length)
}

/// Copies a part of the packet into the scratch space, and zeroes behind it.
#[inline(always)]
fn load(ctx: &TcContext, offset: usize, scratch: *mut u8, length: usize) -> Option<()> {
    // Says to the verifier what `quoted` made sure of: that there is something, and not too much. That
    // a number is not zero would say nothing to the one of Linux 6.1.
    let length = (black_box(length).wrapping_sub(1) & (LONGEST - 1)) + 1;
    // SAFETY: the scratch space is longer than `length` by a word at least.
    unsafe {
        let loaded = bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            offset as u32,
            scratch.cast(),
            length as u32,
        );
        scratch.add(length).cast::<u32>().write_unaligned(0);
        (loaded == 0).then_some(())
    }
}

/// The sum of the first octets of the scratch space, up to a whole number of words.
#[inline(always)]
fn sum_of(scratch: *mut u8, length: usize) -> Option<Sum> {
    // As many as the helper takes at once (`struct bpf_scratchpad`, net/core/filter.c).
    const PART: usize = 512;
    let mut sum = Sum::default();
    let mut at = 0;
    while at < LONGEST {
        // A mask, because what the comparison says is lost on the verifier of Linux 6.1.
        let left = black_box(length.next_multiple_of(WORD).saturating_sub(at)) & (2 * LONGEST - 1);
        let part = if left > PART { PART } else { left };
        // SAFETY: the part is within the scratch space.
        let partial = unsafe {
            bpf_csum_diff(
                core::ptr::null_mut(),
                0,
                scratch.add(at).cast(),
                part as u32,
                0,
            )
        };
        sum = sum.plus_partial(u32::try_from(partial).ok()?);
        at += PART;
    }
    Some(sum)
}

/// Whether the device or the peer is to complete this checksum: a packet that was not on a wire
/// yet (`CHECKSUM_PARTIAL`). The helper that adapts checksums leaves such a one as it is.
#[inline(always)]
fn is_checksum_open(ctx: &TcContext, at: usize, checksum: [u8; 2]) -> Option<bool> {
    ctx.l4_csum_replace(at, 0, 1, 2).ok()?;
    let adapted: [u8; 2] = Skb::new(ctx).read(at)?;
    ctx.store(at, &checksum, 0).ok()?;
    Some(adapted == checksum)
}

/// Cuts the frame to this length. Segmentation that is still to be done is forgotten.
#[inline(always)]
fn resize(ctx: &TcContext, length: usize) -> Option<()> {
    // SAFETY: the context is valid while the program runs.
    let result = unsafe { bpf_skb_change_tail(ctx.skb.skb, length as u32, 0) };
    (result == 0).then_some(())
}

/// Moves the IP packet back within its frame.
#[inline(always)]
fn make_room(ctx: &TcContext, length: usize) -> Option<()> {
    ctx.adjust_room(length as i32, BPF_ADJ_ROOM_MAC, 0).ok()
}

#[inline(always)]
fn store<const LENGTH: usize>(ctx: &TcContext, offset: usize, octets: &[u8; LENGTH]) -> Option<()> {
    ctx.store(offset, octets, u64::from(BPF_F_RECOMPUTE_CSUM))
        .ok()
}
