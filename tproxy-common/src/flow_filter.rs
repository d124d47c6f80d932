//! Which TCP flows a socket of this host may have: an approximate set with an age, by which most
//! segments of other people's flows are told without a socket lookup.
//!
//! Each flow has a slot by a hash of its ends. The slot holds the epoch in which a socket here was
//! last known to have a flow with that hash. A slot whose stamp is older than [`GRACE`] epochs says
//! that no socket has the flow. Everything that goes wrong here goes wrong to the safe side: flows
//! that share a slot, more flows than slots, an epoch that does not turn any more, and one that
//! comes around to an old stamp each cost lookups that find nothing.

use crate::{handover::Ends, limits::FLOW_SLOTS};

/// Epochs for which a stamp counts after the one that it names.
///
/// A socket gets its stamp just before the epoch turns, so it may be missed one time less than this
/// in a row before it is lost.
pub const GRACE: u8 = 3;

/// The one element of the map.
#[repr(C)]
pub struct FlowFilter {
    /// The epoch, which wraps around.
    pub epoch: u8,
    /// The stamps of busy slots are not to share a cache line with the epoch.
    unused: [u8; 63],
    /// The stamps.
    pub stamps: [u8; FLOW_SLOTS],
}

const _: () = assert!(size_of::<FlowFilter>() == 64 + FLOW_SLOTS);
const _: () = assert!(FLOW_SLOTS.is_power_of_two());

/// Where the stamps begin, in bytes.
pub const STAMPS_OFFSET: usize = core::mem::offset_of!(FlowFilter, stamps);

/// The slot of the flow between these ends.
#[must_use]
#[inline(always)]
pub const fn slot_of(ends: &Ends) -> usize {
    // The upper bits: the lower ones are the place of the handover word.
    (ends.hash() >> 32) as usize & (FLOW_SLOTS - 1)
}

/// Whether a stamp is young enough in this epoch for a socket to have the flow.
#[must_use]
#[inline(always)]
pub const fn is_recent(stamp: u8, epoch: u8) -> bool {
    epoch.wrapping_sub(stamp) <= GRACE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    #[test]
    fn a_stamp_counts_for_its_own_epoch_and_those_of_grace() {
        for stamp in 0..=u8::MAX {
            let recent: Vec<u8> = (0..=u8::MAX)
                .filter(|age| is_recent(stamp, stamp.wrapping_add(*age)))
                .collect();
            assert_eq!(recent, [0, 1, 2, 3]);
        }
    }

    #[test]
    fn flows_spread_over_the_slots() {
        let slots: std::collections::HashSet<usize> = (0..u16::MAX)
            .map(|port| {
                slot_of(&Ends {
                    protocol: crate::flow::Protocol::Tcp,
                    source: Address::v4([10, 0, 0, 1]),
                    source_port: port,
                    destination: Address::v4([192, 0, 2, 1]),
                    destination_port: 443,
                })
            })
            .inspect(|slot| assert!(*slot < FLOW_SLOTS))
            .collect();
        // Of 65,535 flows in 1,048,576 slots about 63,500 are alone or first in theirs.
        assert!(slots.len() > 63_000, "{}", slots.len());
    }
}
