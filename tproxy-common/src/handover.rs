//! How the hook that takes a flow tells the agent which rule took it, the one that chooses a socket
//! who gets it, and itself which flows it let go.
//!
//! A table of words, indexed by a hash of the flow's ends, in memory that both share. A later flow
//! may overwrite an earlier one's word before the agent read it; the fingerprint shows that.

use crate::{address::Address, flow::Protocol, limits::HANDOVERS};

/// Lower half of the word of a flow that was let go.
const LET_GO: u32 = u32::MAX;

/// Set in the lower half of the word of a flow that another program's listener gets.
const REDIRECTED: u32 = 1 << 16;

/// The two ends of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Its protocol.
    pub protocol: Protocol,
    /// The client's address.
    pub source: Address,
    /// The client's port.
    pub source_port: u16,
    /// Where the client wants to go.
    pub destination: Address,
    /// The port there.
    pub destination_port: u16,
}

impl Ends {
    /// A hash of all of them; every bit of it depends on every bit of them.
    #[must_use]
    #[inline(always)]
    pub const fn hash(&self) -> u64 {
        let protocol = match self.protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1 << 32,
        };
        let ports = protocol | (self.source_port as u64) << 16 | self.destination_port as u64;
        let mut hash = mix(self.source.high() ^ ports);
        hash = mix(hash ^ self.source.low());
        hash = mix(hash ^ self.destination.high());
        mix(hash ^ self.destination.low())
    }

    /// The same flow as it is known before its source address is: a process of this host has named
    /// its destination, and the kernel has yet to choose the way.
    #[must_use]
    #[inline(always)]
    pub const fn before_routing(&self) -> Self {
        Self {
            source: Address::unspecified(self.destination.family()),
            ..*self
        }
    }
}

/// Which rule took a flow, and who gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The counter slot of the rule.
    pub slot: u32,
    /// Whether another program's listener gets it rather than the agent.
    pub redirected: bool,
}

/// Where a flow's word is, and what distinguishes it from others there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the word.
    pub index: u32,
    fingerprint: u32,
}

impl Place {
    /// The place of a flow.
    #[must_use]
    #[inline(always)]
    pub const fn of(ends: &Ends) -> Self {
        let hash = ends.hash();
        Self {
            index: hash as u32 & (HANDOVERS as u32 - 1),
            fingerprint: (hash >> 32) as u32,
        }
    }

    /// The word that hands the flow over.
    #[must_use]
    #[inline(always)]
    pub const fn word(&self, taken: Taken) -> u64 {
        let redirected = if taken.redirected { REDIRECTED } else { 0 };
        (self.fingerprint as u64) << 32 | ((taken.slot + 1) | redirected) as u64
    }

    /// The word that says that the flow was let go.
    #[must_use]
    #[inline(always)]
    pub const fn let_go(&self) -> u64 {
        (self.fingerprint as u64) << 32 | LET_GO as u64
    }

    /// Whether a word is this flow's and says that it was taken.
    #[must_use]
    #[inline(always)]
    pub const fn is_taken(&self, word: u64) -> bool {
        let low = word as u32;
        (word >> 32) as u32 == self.fingerprint && low != LET_GO && low != 0
    }

    /// What a word hands over, when it is this flow's and that was taken.
    #[must_use]
    #[inline(always)]
    pub const fn taken(&self, word: u64) -> Option<Taken> {
        if self.is_taken(word) {
            let low = word as u32;
            Some(Taken {
                slot: (low & !REDIRECTED).wrapping_sub(1),
                redirected: low & REDIRECTED != 0,
            })
        } else {
            None
        }
    }
}

/// The finalizer of MurmurHash3 (A. Appleby), a bijection in which every bit depends on all.
#[inline(always)]
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::COUNTER_SLOTS;

    const fn to_relay(slot: u32) -> Taken {
        Taken {
            slot,
            redirected: false,
        }
    }

    fn ends(port: u16) -> Ends {
        Ends {
            protocol: Protocol::Tcp,
            source: Address::v4([10, 0, 0, 1]),
            source_port: port,
            destination: Address::v4([192, 0, 2, 1]),
            destination_port: 443,
        }
    }

    #[test]
    fn a_flow_finds_its_own_word_only() {
        let place = Place::of(&ends(40000));
        for slot in [0, 1, COUNTER_SLOTS as u32 - 1] {
            for redirected in [false, true] {
                let taken = Taken { slot, redirected };
                assert_eq!(place.taken(place.word(taken)), Some(taken));
            }
        }
        assert_eq!(place.taken(0), None);
        assert_eq!(place.taken(Place::of(&ends(40001)).word(to_relay(1))), None);
        assert_eq!(place.taken(place.let_go()), None);
    }

    /// The two agree on a place by every part of the flow, of both families.
    #[test]
    fn every_part_of_a_flow_makes_another_place() {
        let mut parts = vec![
            ends(1),
            Ends {
                destination_port: 444,
                ..ends(1)
            },
            Ends {
                protocol: Protocol::Udp,
                ..ends(1)
            },
            Ends {
                source: Address::v4([10, 0, 0, 2]),
                ..ends(1)
            },
            Ends {
                destination: Address::v4([192, 0, 2, 2]),
                ..ends(1)
            },
        ];
        for octet in 0..16 {
            let mut octets = [0x20; 16];
            octets[octet] = 0x21;
            parts.push(Ends {
                source: Address::v6(octets),
                destination: Address::v6([0x20; 16]),
                ..ends(1)
            });
            parts.push(Ends {
                source: Address::v6([0x20; 16]),
                destination: Address::v6(octets),
                ..ends(1)
            });
        }
        for (number, one) in parts.iter().enumerate() {
            for other in &parts[number + 1..] {
                let (one, other) = (Place::of(one), Place::of(other));
                assert_ne!(one, other);
                assert_eq!(one.taken(other.word(to_relay(5))), None);
                assert_eq!(one.taken(one.word(to_relay(5))), Some(to_relay(5)));
            }
        }
    }

    #[test]
    fn places_are_within_the_table() {
        for port in 0..=u16::MAX {
            assert!((Place::of(&ends(port)).index as usize) < HANDOVERS);
        }
    }

    #[test]
    fn neighbouring_ports_spread_over_the_table() {
        let places: std::collections::HashSet<u32> = (1..=10_000)
            .map(|port| Place::of(&ends(port)).index)
            .collect();
        assert!(places.len() > 9_000, "{}", places.len());
    }
}
