//! How the hooks at connect(2) and sendmsg(2) of UDP sockets hand their flows over: by the port that
//! the socket has, for the source address is not known there, or is replaced.
//!
//! A table with a place for each port of either family. A socket that sends to many destinations at once
//! overwrites its own entry with each datagram, which is delivered before the next is sent; the word in
//! it shows when that was not so.

use crate::{
    address::{Address, Family},
    handover::{Ends, Place, Taken},
};

/// Number of places: the ports of both families.
pub const PLACES: usize = 2 << 16;

/// The place of a socket with this port that sends packets of this family.
#[must_use]
#[inline(always)]
pub const fn place_of(family: Family, port: u16) -> u32 {
    let of_family = match family {
        Family::V4 => 0,
        Family::V6 => 1 << 16,
    };
    of_family | port as u32
}

/// The last flow of the socket with a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalUdp {
    word: u64,
    /// The address that the socket is bound to, IPv4 as v4-mapped IPv6; zero when it is bound to
    /// none.
    bound: [u8; 16],
}

const _: () = assert!(size_of::<LocalUdp>() == 24);

impl LocalUdp {
    /// The entry of a flow. Answers go to `bound` if the socket takes no others.
    #[must_use]
    #[inline(always)]
    pub const fn new(ends: &Ends, taken: Taken, bound: Option<&Address>) -> Self {
        Self {
            word: Place::of(&ends.before_routing()).word(taken),
            bound: match bound {
                Some(address) => address.mapped_octets(),
                None => [0; 16],
            },
        }
    }

    /// The entry that memory shared with the kernel holds.
    #[must_use]
    pub const fn from_words(words: [u64; 3]) -> Self {
        let [high, low] = [words[1].to_ne_bytes(), words[2].to_ne_bytes()];
        let mut bound = [0; 16];
        let mut octet = 0;
        while octet < 8 {
            bound[octet] = high[octet];
            bound[8 + octet] = low[octet];
            octet += 1;
        }
        Self {
            word: words[0],
            bound,
        }
    }

    /// What became of the flow with these ends, if this is its entry.
    #[must_use]
    #[inline(always)]
    pub const fn taken(&self, ends: &Ends) -> Option<Taken> {
        Place::of(&ends.before_routing()).taken(self.word)
    }

    /// The only address at which the socket takes answers, IPv4 as v4-mapped IPv6; `None` when it
    /// takes them at any.
    #[must_use]
    pub fn bound(&self) -> Option<[u8; 16]> {
        (self.bound != [0; 16]).then_some(self.bound)
    }
}

#[cfg(feature = "user")]
// SAFETY: repr(C), no padding (asserted above) and every bit pattern is valid.
unsafe impl aya::Pod for LocalUdp {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Protocol;

    #[test]
    fn every_port_of_each_family_has_a_place() {
        let mut places: Vec<u32> = [Family::V4, Family::V6]
            .into_iter()
            .flat_map(|family| (0..=u16::MAX).map(move |port| place_of(family, port)))
            .collect();
        places.sort_unstable();
        assert!(places.iter().copied().eq(0..PLACES as u32));
    }

    #[test]
    fn an_entry_is_that_of_one_destination_whatever_the_source_address() {
        let ends = Ends {
            protocol: Protocol::Udp,
            source: Address::v4([127, 116, 29, 46]),
            source_port: 40000,
            destination: Address::v4([192, 0, 2, 9]),
            destination_port: 53,
        };
        let taken = Taken {
            slot: 7,
            redirected: true,
        };
        let entry = LocalUdp::new(&ends, taken, None);
        assert_eq!(entry.taken(&ends), Some(taken));
        let routed = Ends {
            source: Address::v4([10, 0, 0, 1]),
            ..ends
        };
        assert_eq!(entry.taken(&routed), Some(taken));
        for other in [
            Ends {
                destination_port: 54,
                ..ends
            },
            Ends {
                source_port: 40001,
                ..ends
            },
            Ends {
                destination: Address::v4([192, 0, 2, 8]),
                ..ends
            },
        ] {
            assert_eq!(entry.taken(&other), None);
        }
        assert_eq!(entry.bound(), None);
        let bound = LocalUdp::new(&ends, taken, Some(&routed.source));
        assert_eq!(bound.bound(), Some(routed.source.mapped_octets()));
        assert_eq!(LocalUdp::default().taken(&ends), None);
    }
}
