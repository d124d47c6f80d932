//! The places of sockets in the map from which flows get theirs.

use crate::{
    address::Family,
    flow::Protocol,
    limits::{COUNTER_SLOTS, WORKERS},
};

/// Sockets that one listener of another program is kept by: members of a reuseport group, of which
/// the kernel chooses one by itself. More than one, so that a flow finds the group when a member has
/// just been closed.
pub const MEMBERS: u32 = 4;

const PROTOCOLS: u32 = 2;
const FAMILIES: u32 = 2;

/// The place of the socket that shows that the agent lives.
pub const LIFELINE: u32 = PROTOCOLS * WORKERS;

const FIRST_DISCARDING: u32 = LIFELINE + 1;
const FIRST_REDIRECT: u32 = FIRST_DISCARDING + PROTOCOLS;

/// Number of places.
pub const PLACES: usize =
    FIRST_REDIRECT as usize + COUNTER_SLOTS * (PROTOCOLS * FAMILIES * MEMBERS) as usize;

#[inline(always)]
const fn number(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
    }
}

/// The place of a worker's socket. `worker` is less than [`WORKERS`].
#[must_use]
#[inline(always)]
pub const fn relay(protocol: Protocol, worker: u32) -> u32 {
    number(protocol) * WORKERS + worker
}

/// The place of the socket that discards what it is given.
#[must_use]
#[inline(always)]
pub const fn discarding(protocol: Protocol) -> u32 {
    FIRST_DISCARDING + number(protocol)
}

/// The first of the [`MEMBERS`] places of the listener that a rule hands its flows of one family to.
/// `slot` is the rule's counter slot.
///
/// Each family has its own, because a program cannot ask whether a socket of IPv6 takes IPv4 as well
/// (`IPV6_V6ONLY`, ipv6(7)). A listener of both is in the places of both.
#[must_use]
#[inline(always)]
pub const fn redirect(protocol: Protocol, family: Family, slot: u32) -> u32 {
    let family = match family {
        Family::V4 => 0,
        Family::V6 => 1,
    };
    FIRST_REDIRECT + ((slot * PROTOCOLS + number(protocol)) * FAMILIES + family) * MEMBERS
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_sockets_have_one_place_and_all_are_within_the_map() {
        let mut places = vec![LIFELINE];
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            places.extend((0..WORKERS).map(|worker| relay(protocol, worker)));
            places.push(discarding(protocol));
            for slot in 0..COUNTER_SLOTS as u32 {
                for family in [Family::V4, Family::V6] {
                    let first = redirect(protocol, family, slot);
                    places.extend(first..first + MEMBERS);
                }
            }
        }
        assert_eq!(places.len(), PLACES);
        let distinct: HashSet<u32> = places.iter().copied().collect();
        assert_eq!(distinct.len(), PLACES);
        assert!(places.iter().all(|place| (*place as usize) < PLACES));
    }
}
