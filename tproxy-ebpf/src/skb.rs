//! The one accessor of packets and their metadata.

use aya_ebpf::programs::TcContext;
use tproxy_common::{address::Family, packet::Packet};

/// Most that stands before the IP header, and the mask by which the verifier sees that: what a function
/// of its own is given may be anything to it.
pub const LONGEST_LINK_HEADER: u32 = 15;

/// A packet at tc ingress.
pub struct Skb<'a>(&'a TcContext);

impl<'a> Skb<'a> {
    /// The packet of this context.
    pub const fn new(ctx: &'a TcContext) -> Self {
        Self(ctx)
    }

    /// Address family by the `EtherType`, `None` for what is not IP.
    #[inline(always)]
    pub fn family(&self) -> Option<Family> {
        // IEEE 802 numbers, in network byte order as the kernel keeps them.
        const IPV4: u32 = 0x0800_u16.to_be() as u32;
        const IPV6: u32 = 0x86dd_u16.to_be() as u32;
        // SAFETY: the context is valid while the program runs.
        match unsafe { (*self.0.skb.skb).protocol } {
            IPV4 => Some(Family::V4),
            IPV6 => Some(Family::V6),
            _ => None,
        }
    }

    /// Whether it carries a VLAN tag that the device has taken out of the frame.
    #[inline(always)]
    pub fn has_vlan_tag(&self) -> bool {
        // The kernel takes frames of VLAN 0 as untagged: they carry a priority only (IEEE 802.1Q).
        const VLAN_ID: u32 = 0x0fff;
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0.skb.skb).vlan_present != 0 && (*self.0.skb.skb).vlan_tci & VLAN_ID != 0 }
    }

    /// Whether its link-layer destination is this host, and this host alone.
    #[inline(always)]
    pub fn is_for_this_host(&self) -> bool {
        // include/uapi/linux/if_packet.h
        const PACKET_HOST: u32 = 0;
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0.skb.skb).pkt_type == PACKET_HOST }
    }

    /// Its mark.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0.skb.skb).mark }
    }

    /// Index of the interface it arrived on.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0.skb.skb).ifindex }
    }
}

impl Packet for Skb<'_> {
    #[inline(always)]
    fn read<const LENGTH: usize>(&self, offset: usize) -> Option<[u8; LENGTH]> {
        self.0.load(offset).ok()
    }
}
