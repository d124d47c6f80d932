//! Prefixes and ranges of addresses as numbers, the way the search trees have them.

use std::{
    iter::Peekable,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use tproxy_common::address::Family;

/// A prefix of one family. An IPv4 address is the upper 32 bits of the number, so that prefixes of
/// both families are alike; see [`tproxy_common::address::Address`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Prefix {
    first: u128,
    length: u8,
}

impl Prefix {
    /// The prefix of this length that holds an address. Bits behind the length are taken out.
    pub(crate) fn new(address: u128, length: u8) -> Self {
        Self {
            first: address & !hosts(length),
            length,
        }
    }

    /// An address and the family that it is of.
    pub(crate) fn of_address(address: IpAddr) -> (Family, Self) {
        Self::of(&IpNet::from(address))
    }

    /// A CIDR and the family that it is of.
    pub(crate) fn of(net: &IpNet) -> (Family, Self) {
        match net {
            IpNet::V4(net) => (Family::V4, Self::v4(net.addr(), net.prefix_len())),
            IpNet::V6(net) => (Family::V6, Self::v6(net.addr(), net.prefix_len())),
        }
    }

    pub(crate) fn v4(address: Ipv4Addr, length: u8) -> Self {
        Self::new(u128::from(u32::from(address)) << 96, length)
    }

    pub(crate) fn v6(address: Ipv6Addr, length: u8) -> Self {
        Self::new(u128::from(address), length)
    }

    /// The CIDR; `None` for a length that the family does not have, which only damaged files hold.
    pub(crate) fn to_net(self, family: Family) -> Option<IpNet> {
        let address = match family {
            Family::V4 => Ipv4Addr::from((self.first >> 96) as u32).into(),
            Family::V6 => Ipv6Addr::from(self.first).into(),
        };
        IpNet::new(address, self.length).ok()
    }

    /// The first address.
    pub(crate) const fn first(self) -> u128 {
        self.first
    }

    /// The last address.
    pub(crate) fn last(self) -> u128 {
        self.first | hosts(self.length)
    }

    /// The number of leading bits that count.
    pub(crate) const fn length(self) -> u8 {
        self.length
    }

    /// Whether every address of `other` is one of this prefix.
    pub(crate) fn holds(self, other: Self) -> bool {
        self.length <= other.length && self.first == other.first & !hosts(self.length)
    }

    /// This prefix and all that hold it, the shortest first.
    pub(crate) fn holders(self) -> impl Iterator<Item = Self> {
        (0..=self.length).map(move |length| Self::new(self.first, length))
    }

    /// Its addresses.
    pub(crate) fn range(self) -> Range {
        Range {
            first: self.first,
            last: self.last(),
        }
    }
}

/// The bits that vary within a prefix of this length.
fn hosts(length: u8) -> u128 {
    u128::MAX.checked_shr(u32::from(length)).unwrap_or(0)
}

/// Addresses from `first` to `last`, both among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: u128,
    pub(crate) last: u128,
}

/// Joins ranges that overlap or touch. They come in ascending order of their first addresses.
pub(crate) fn join(ranges: impl Iterator<Item = Range>) -> Vec<Range> {
    let mut joined: Vec<Range> = Vec::with_capacity(ranges.size_hint().0);
    for range in ranges {
        match joined.last_mut() {
            Some(before)
                if before
                    .last
                    .checked_add(1)
                    .is_none_or(|next| range.first <= next) =>
            {
                before.last = before.last.max(range.last);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// Two ascending sequences as one.
pub(crate) fn merge<T: Ord>(
    one: impl Iterator<Item = T>,
    other: impl Iterator<Item = T>,
) -> impl Iterator<Item = T> {
    let (mut one, mut other) = (one.peekable(), other.peekable());
    std::iter::from_fn(move || match (one.peek(), other.peek()) {
        (Some(a), Some(b)) if b < a => other.next(),
        (Some(_), _) => one.next(),
        (None, _) => other.next(),
    })
}

/// The items of an ascending sequence that are not in another one.
pub(crate) fn without<T: Ord>(
    all: impl Iterator<Item = T>,
    mut unwanted: Peekable<impl Iterator<Item = T>>,
) -> impl Iterator<Item = T> {
    all.filter(move |item| {
        while unwanted.next_if(|unwanted| unwanted < item).is_some() {}
        unwanted.peek() != Some(item)
    })
}

/// The items that are in one of two ascending sequences alone.
pub(crate) fn differences<T: Ord>(
    one: impl Iterator<Item = T>,
    other: impl Iterator<Item = T>,
) -> impl Iterator<Item = T> {
    let (mut one, mut other) = (one.peekable(), other.peekable());
    std::iter::from_fn(move || {
        loop {
            return match (one.peek(), other.peek()) {
                (Some(a), Some(b)) if a == b => {
                    one.next();
                    other.next();
                    continue;
                }
                (Some(a), Some(b)) if b < a => other.next(),
                (Some(_), _) => one.next(),
                (None, _) => other.next(),
            };
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(word: &str) -> Prefix {
        Prefix::of(&word.parse().unwrap()).1
    }

    #[test]
    fn prefixes_of_both_families_are_ranges_of_the_same_numbers() {
        assert_eq!(prefix("10.0.0.0/8").first(), 10 << 120);
        assert_eq!(prefix("10.0.0.0/8").last() >> 96, 0x0aff_ffff);
        assert_eq!(prefix("10.1.2.3/8"), prefix("10.0.0.0/8"));
        assert_eq!(prefix("::/0").range(), prefix("0.0.0.0/0").range());
        assert_eq!(prefix("::1/128").range(), Range { first: 1, last: 1 });
        for (family, word) in [(Family::V4, "192.0.2.0/25"), (Family::V6, "2001:db8::/47")] {
            assert_eq!(
                prefix(word).to_net(family).map(|net| net.to_string()),
                Some(word.to_owned())
            );
        }
        assert_eq!(Prefix::new(0, 33).to_net(Family::V4), None);
        assert_eq!(Prefix::new(0, 255).last(), 0);
    }

    #[test]
    fn a_prefix_holds_itself_and_what_is_more_specific() {
        let wide = prefix("10.0.0.0/8");
        assert!(wide.holds(wide) && wide.holds(prefix("10.9.0.0/16")));
        assert!(!wide.holds(prefix("11.0.0.0/16")) && !wide.holds(prefix("0.0.0.0/0")));
        assert!(prefix("0.0.0.0/0").holds(wide));
        let holders: Vec<Prefix> = prefix("192.0.0.0/2").holders().collect();
        let expected = ["0.0.0.0/0", "128.0.0.0/1", "192.0.0.0/2"];
        assert_eq!(holders, expected.map(prefix));
    }

    #[test]
    fn ranges_that_touch_are_joined() {
        let words = [
            "10.0.0.0/9",
            "10.1.0.0/16",
            "10.128.0.0/9",
            "12.0.0.0/8",
            "255.0.0.0/8",
            "255.255.255.255/32",
        ];
        let joined = join(words.iter().map(|word| prefix(word).range()));
        let expected = ["10.0.0.0/8", "12.0.0.0/8", "255.0.0.0/8"];
        assert_eq!(joined, expected.map(|word| prefix(word).range()));
    }

    #[test]
    fn sequences_are_merged_and_subtracted_in_order() {
        let merged: Vec<u8> = merge([1, 4, 9].into_iter(), [2, 4, 10].into_iter()).collect();
        assert_eq!(merged, [1, 2, 4, 4, 9, 10]);
        let rest: Vec<u8> = without(0..8, [0, 3, 4, 99].into_iter().peekable()).collect();
        assert_eq!(rest, [1, 2, 5, 6, 7]);
        let differing: Vec<u8> =
            differences([1, 2, 4].into_iter(), [2, 3, 4, 9].into_iter()).collect();
        assert_eq!(differing, [1, 3, 9]);
    }
}
