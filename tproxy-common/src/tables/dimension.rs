//! What rules ask about, and how deep the trees for it are.

use super::block::NODE_CHILDREN;
use crate::{
    flow::ORIGINS,
    limits::{CIDRS, INTERFACES, OWNERS},
};

/// The things that rules ask about, each with a tree of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dimension {
    /// Scope and protocol, see [`crate::flow::origin`].
    Origin,
    /// Interface index.
    Interface,
    /// IPv4 source address.
    SourceV4,
    /// IPv6 source address.
    SourceV6,
    /// IPv4 destination address.
    DestinationV4,
    /// IPv6 destination address.
    DestinationV6,
    /// Source port.
    SourcePort,
    /// Destination port.
    DestinationPort,
    /// User id of the process that opened the flow. Asked for local flows only, as is the next.
    User,
    /// Control group of that process.
    Cgroup,
}

impl Dimension {
    /// All of them, in the order of the header.
    pub const ALL: [Self; 10] = [
        Self::Origin,
        Self::Interface,
        Self::SourceV4,
        Self::SourceV6,
        Self::DestinationV4,
        Self::DestinationV6,
        Self::SourcePort,
        Self::DestinationPort,
        Self::User,
        Self::Cgroup,
    ];

    /// Levels that a lookup descends at most. Every level that is allowed costs the verifier another
    /// walk, so no dimension has more than the most intervals that it can be cut into need.
    #[inline(always)]
    pub(super) const fn depth(self) -> usize {
        match self {
            Self::Origin => ORIGIN_DEPTH,
            Self::Interface => INTERFACE_DEPTH,
            Self::SourcePort | Self::DestinationPort => PORT_DEPTH,
            Self::User | Self::Cgroup => OWNER_DEPTH,
            Self::SourceV4 | Self::SourceV6 | Self::DestinationV4 | Self::DestinationV6 => {
                2 * ADDRESS_HALF_DEPTH
            }
        }
    }
}

/// The end of a flow whose address is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Where it comes from.
    Source,
    /// Where it wants to go.
    Destination,
}

impl End {
    /// Its dimension for IPv4, which is in the same word of the header as the one for IPv6.
    #[inline(always)]
    pub(super) const fn v4(self) -> Dimension {
        match self {
            Self::Source => Dimension::SourceV4,
            Self::Destination => Dimension::DestinationV4,
        }
    }
}

const _: () = {
    assert!((Dimension::SourceV4 as usize).is_multiple_of(2));
    assert!((Dimension::DestinationV4 as usize).is_multiple_of(2));
    assert!(Dimension::SourceV6 as usize == Dimension::SourceV4 as usize + 1);
    assert!(Dimension::DestinationV6 as usize == Dimension::DestinationV4 as usize + 1);
};

const ORIGIN_DEPTH: usize = 1;
const INTERFACE_DEPTH: usize = 3;
const PORT_DEPTH: usize = 5;
const OWNER_DEPTH: usize = 4;
/// Levels of one tree over the upper half of an address and, for IPv6, of one over the lower half.
pub const ADDRESS_HALF_DEPTH: usize = 6;

// A tree of full nodes has this many leaves. A range of keys begins and ends an interval.
const _: () = assert!(NODE_CHILDREN.pow(ORIGIN_DEPTH as u32) > ORIGINS as usize);
const _: () = assert!(NODE_CHILDREN.pow(INTERFACE_DEPTH as u32) > 2 * INTERFACES);
const _: () = assert!(NODE_CHILDREN.pow(PORT_DEPTH as u32) > u16::MAX as usize + 1);
const _: () = assert!(NODE_CHILDREN.pow(OWNER_DEPTH as u32) > 2 * OWNERS);
// The tree over the upper halves has one leaf more for each lower tree.
const _: () = assert!(NODE_CHILDREN.pow(ADDRESS_HALF_DEPTH as u32) > 2 * (2 * CIDRS + 1));
