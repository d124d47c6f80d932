//! What a named set holds: a list, and what was added to it and taken out of it since.

use std::{collections::BTreeSet, io, net::IpAddr, path::Path};

use ipnet::IpNet;
use tproxy_common::address::Family;

use super::{
    CidrList, Damaged,
    prefix::{self, Prefix, Range, join, merge, without},
};

/// CIDRs of a named set.
#[derive(Debug, Default)]
pub struct Set {
    base: CidrList,
    /// None of them is in the base.
    added: Overlay,
    /// All of them are in the base.
    removed: Overlay,
}

#[derive(Debug, Default)]
struct Overlay {
    v4: BTreeSet<Prefix>,
    v6: BTreeSet<Prefix>,
}

impl Set {
    /// A set of this list.
    #[must_use]
    pub fn new(base: CidrList) -> Self {
        Self {
            base,
            ..Self::default()
        }
    }

    /// A list and what was added to it and taken out of it.
    #[must_use]
    pub(crate) fn with_overlay(base: CidrList, added: &[IpNet], removed: &[IpNet]) -> Self {
        let mut set = Self::new(base);
        for net in removed {
            set.remove(net);
        }
        for net in added {
            set.insert(net);
        }
        set
    }

    /// How many CIDRs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.base.len() + self.added.len() - self.removed.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many CIDRs were added to the list or taken out of it.
    #[must_use]
    pub(crate) fn overlay_len(&self) -> usize {
        self.added.len() + self.removed.len()
    }

    /// What was added to the list.
    pub(crate) fn added(&self) -> Vec<IpNet> {
        self.added.nets()
    }

    /// What was taken out of the list.
    pub(crate) fn removed(&self) -> Vec<IpNet> {
        self.removed.nets()
    }

    /// Whether this very CIDR is one of the set.
    #[must_use]
    pub fn contains(&self, net: &IpNet) -> bool {
        let (family, prefix) = Prefix::of(net);
        self.has(family, prefix)
    }

    /// The most specific CIDR that holds this address.
    #[must_use]
    pub fn find(&self, address: IpAddr) -> Option<IpNet> {
        let (family, address) = Prefix::of_address(address);
        self.longest_holder(family, address)
    }

    /// The most specific CIDR that holds this one.
    #[must_use]
    pub fn find_holder(&self, net: &IpNet) -> Option<IpNet> {
        let (family, prefix) = Prefix::of(net);
        self.longest_holder(family, prefix)
    }

    /// Whether one of the CIDRs lies within this one, or is it.
    #[must_use]
    pub(crate) fn has_within(&self, net: &IpNet) -> bool {
        let (family, within) = Prefix::of(net);
        self.prefixes_from(family, within)
            .next()
            .is_some_and(|prefix| within.holds(prefix))
    }

    /// Adds a CIDR; `false` when it was there.
    pub fn insert(&mut self, net: &IpNet) -> bool {
        let (family, prefix) = Prefix::of(net);
        if self.has(family, prefix) {
            return false;
        }
        if !self.removed.of_mut(family).remove(&prefix) {
            self.added.of_mut(family).insert(prefix);
        }
        true
    }

    /// Takes out a CIDR; `false` when it was not there.
    pub fn remove(&mut self, net: &IpNet) -> bool {
        let (family, prefix) = Prefix::of(net);
        if !self.has(family, prefix) {
            return false;
        }
        if !self.added.of_mut(family).remove(&prefix) {
            self.removed.of_mut(family).insert(prefix);
        }
        true
    }

    /// The CIDRs, IPv4 first, in the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + '_ {
        [Family::V4, Family::V6].into_iter().flat_map(|family| {
            self.prefixes(family)
                .filter_map(move |prefix| prefix.to_net(family))
        })
    }

    /// The same CIDRs as one list.
    pub(crate) fn to_list(&self) -> CidrList {
        CidrList::from_sorted(self.prefixes(Family::V4), self.prefixes(Family::V6))
    }

    /// Writes the CIDRs to a file as one list, whole or not at all.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        if self.overlay_len() == 0 {
            self.base.write(path)
        } else {
            self.to_list().write(path)
        }
    }

    /// The addresses of one family, as disjoint ranges.
    ///
    /// # Errors
    ///
    /// When the list is damaged.
    pub(crate) fn ranges(&self, family: Family) -> Result<Vec<Range>, Damaged> {
        self.base.records(family).check()?;
        Ok(join(self.prefixes(family).map(Prefix::range)))
    }

    /// The addresses within a prefix, as disjoint ranges; `None` when more than `limit` CIDRs would
    /// have to be looked at.
    pub(crate) fn ranges_within(
        &self,
        family: Family,
        within: Prefix,
        limit: usize,
    ) -> Option<Vec<Range>> {
        if within.holders().any(|holder| self.has(family, holder)) {
            return Some(vec![within.range()]);
        }
        let here = |prefix: &Prefix| within.holds(*prefix);
        let (added, removed) = (self.added.of(family), self.removed.of(family));
        let stored = self.base.records(family).from(within).iter();
        let kept = without(
            stored.take_while(here).take(limit + 1),
            removed.range(within..).copied().peekable(),
        );
        let new = added.range(within..).copied().take_while(here);
        let mut looked_at = 0;
        let counted = merge(kept, new).inspect(|_| looked_at += 1);
        let ranges = join(counted.map(Prefix::range));
        (looked_at + removed.len() <= limit).then_some(ranges)
    }

    fn prefixes(&self, family: Family) -> impl Iterator<Item = Prefix> + '_ {
        let removed = self.removed.of(family).iter().copied().peekable();
        merge(
            without(self.base.records(family).iter(), removed),
            self.added.of(family).iter().copied(),
        )
    }

    /// Those that are not below `first`.
    fn prefixes_from(&self, family: Family, first: Prefix) -> impl Iterator<Item = Prefix> + '_ {
        let removed = self.removed.of(family).range(first..).copied();
        merge(
            without(
                self.base.records(family).from(first).iter(),
                removed.peekable(),
            ),
            self.added.of(family).range(first..).copied(),
        )
    }

    fn has(&self, family: Family, prefix: Prefix) -> bool {
        self.added.of(family).contains(&prefix)
            || self.base.records(family).contains(prefix)
                && !self.removed.of(family).contains(&prefix)
    }

    fn longest_holder(&self, family: Family, prefix: Prefix) -> Option<IpNet> {
        let holders = prefix.holders().filter(|holder| self.has(family, *holder));
        holders.last()?.to_net(family)
    }
}

/// The CIDRs that are in one of two sets alone.
pub(crate) fn differences<'a>(one: &'a Set, other: &'a Set) -> impl Iterator<Item = IpNet> + 'a {
    [Family::V4, Family::V6].into_iter().flat_map(|family| {
        prefix::differences(one.prefixes(family), other.prefixes(family))
            .filter_map(move |prefix| prefix.to_net(family))
    })
}

impl Overlay {
    fn of(&self, family: Family) -> &BTreeSet<Prefix> {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn of_mut(&mut self, family: Family) -> &mut BTreeSet<Prefix> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    fn nets(&self) -> Vec<IpNet> {
        let v4 = self
            .v4
            .iter()
            .filter_map(|prefix| prefix.to_net(Family::V4));
        let v6 = self
            .v6
            .iter()
            .filter_map(|prefix| prefix.to_net(Family::V6));
        v4.chain(v6).collect()
    }
}
