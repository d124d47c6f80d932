//! Answers a SYN with a RST, as a closed port would.
//!
//! The kernel itself sends none for IPv4 addresses that are not its own, unless a transparent
//! socket asks for it, and here there is no socket. So the SYN is turned around in place: every
//! exchange of two fields leaves its checksums as they are, and what else changes is made up for.

use aya_ebpf::programs::TcContext;
use tproxy_common::{address::Family, packet::Packet as _};

use crate::{answer::exchange, forward::Arrival, skb::Skb};

/// Turns the SYN into the RST that answers it, but for its link-layer addresses.
#[inline(always)]
pub fn make(arrival: &Arrival<'_>) -> Option<()> {
    let Arrival {
        ctx,
        family,
        headers,
        network_offset,
    } = *arrival;
    match family {
        Family::V4 => exchange::<4>(ctx, network_offset + 12),
        Family::V6 => exchange::<16>(ctx, network_offset + 8),
    }?;
    exchange::<2>(ctx, headers.transport_offset)?;
    reset_flags(ctx, headers.transport_offset)
}

/// RFC 9293, 3.10.7.1: sequence number zero, the SYN acknowledged, RST and ACK set.
#[inline(always)]
fn reset_flags(ctx: &TcContext, transport_offset: usize) -> Option<()> {
    const SEQUENCE: usize = 4;
    const ACKNOWLEDGMENT: usize = 8;
    const OFFSET_AND_FLAGS: usize = 12;
    const RST_AND_ACK: u8 = 0x14;

    let skb = Skb::new(ctx);
    let sequence: [u8; 4] = skb.read(transport_offset + SEQUENCE)?;
    let acknowledged = u32::from_be_bytes(sequence).wrapping_add(1).to_be_bytes();
    let [data_offset, _] = skb.read::<2>(transport_offset + OFFSET_AND_FLAGS)?;
    replace(ctx, transport_offset, SEQUENCE, [0; 4])?;
    replace(ctx, transport_offset, ACKNOWLEDGMENT, acknowledged)?;
    replace(
        ctx,
        transport_offset,
        OFFSET_AND_FLAGS,
        [data_offset, RST_AND_ACK],
    )
}

/// Writes a field of the TCP header and makes up for it in the checksum.
#[inline(always)]
fn replace<const LENGTH: usize>(
    ctx: &TcContext,
    transport_offset: usize,
    field: usize,
    value: [u8; LENGTH],
) -> Option<()> {
    const CHECKSUM: usize = 16;
    let old: [u8; LENGTH] = Skb::new(ctx).read(transport_offset + field)?;
    ctx.l4_csum_replace(
        transport_offset + CHECKSUM,
        number(old),
        number(value),
        LENGTH as u64,
    )
    .ok()?;
    ctx.store(transport_offset + field, &value, 0).ok()
}

/// The field as the helper takes it: in network byte order in the lower bytes.
#[inline(always)]
fn number<const LENGTH: usize>(octets: [u8; LENGTH]) -> u64 {
    let mut word = [0; 8];
    let mut at = 0;
    while at < LENGTH {
        word[at] = octets[at];
        at += 1;
    }
    u64::from_ne_bytes(word)
}
