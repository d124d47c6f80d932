//! What rules ask of one end of a flow: lists of prefixes of their own, and sets that they share.

use std::collections::BTreeMap;

use ipnet::IpNet;
use tproxy_common::{
    address::Family,
    tables::{CLASS_WORDS, Dimension},
};

use super::{
    CompileError, Source,
    arena::Bitmap,
    sweep::{Atom, Users, set_bit},
};
use crate::{
    rule::AddressMatch,
    set::{
        Set, SetName, Sets,
        prefix::{Prefix, Range, join},
    },
};

/// Sources, or destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

impl End {
    pub(super) const BOTH: [Self; 2] = [Self::Source, Self::Destination];

    pub(super) fn of<'a>(self, source: &Source<'a>) -> &'a AddressMatch {
        match self {
            Self::Source => &source.rule.source,
            Self::Destination => &source.rule.destination,
        }
    }

    pub(super) const fn dimension(self, family: Family) -> Dimension {
        match (self, family) {
            (Self::Source, Family::V4) => Dimension::SourceV4,
            (Self::Source, Family::V6) => Dimension::SourceV6,
            (Self::Destination, Family::V4) => Dimension::DestinationV4,
            (Self::Destination, Family::V6) => Dimension::DestinationV6,
        }
    }
}

/// The lists and sets that rules ask one end about. However many rules name a set, it is there once.
pub(super) struct Side<'a> {
    /// Rules that want every address, but for exclusions.
    pub(super) always: Bitmap,
    lists: Vec<(Users, List<'a>)>,
}

enum List<'a> {
    Own(&'a [IpNet]),
    Set(&'a Set),
}

impl<'a> Side<'a> {
    /// What all rules ask of one end.
    pub(super) fn new(
        end: End,
        rules: &[Source<'a>],
        sets: &'a Sets,
    ) -> Result<Self, CompileError> {
        Self::of_some(end, rules, sets, |_| true)
    }

    /// What those rules ask of one end whose bits are wanted.
    pub(super) fn of_some(
        end: End,
        rules: &[Source<'a>],
        sets: &'a Sets,
        wanted: impl Fn(u32) -> bool,
    ) -> Result<Self, CompileError> {
        let mut always = [0; CLASS_WORDS];
        let mut lists = Vec::new();
        let mut shared: BTreeMap<&SetName, (Bitmap, Bitmap)> = BTreeMap::new();
        for (rule, source) in (0..).zip(rules).filter(|(rule, _)| wanted(*rule)) {
            let addresses = end.of(source);
            if addresses.includes_all() {
                set_bit(&mut always, rule);
            }
            if !addresses.include.is_empty() {
                lists.push((Users::Wanted(rule), List::Own(&addresses.include)));
            }
            if !addresses.exclude.is_empty() {
                lists.push((Users::Unwanted(rule), List::Own(&addresses.exclude)));
            }
            for name in &addresses.include_sets {
                set_bit(&mut shared.entry(name).or_default().0, rule);
            }
            for name in &addresses.exclude_sets {
                set_bit(&mut shared.entry(name).or_default().1, rule);
            }
        }
        for (name, (include, exclude)) in shared {
            let set = sets
                .get(name)
                .ok_or_else(|| CompileError::NoSuchSet(name.clone()))?;
            let (include, exclude) = (Box::new(include), Box::new(exclude));
            lists.push((Users::Set { include, exclude }, List::Set(set)));
        }
        Ok(Self { always, lists })
    }

    /// All addresses of one family.
    pub(super) fn atoms(&self, family: Family) -> Result<Vec<Atom>, CompileError> {
        let lists = self.lists.iter();
        lists
            .map(|(users, list)| {
                let ranges = match list {
                    List::Own(nets) => own_ranges(nets, family, |_| true),
                    List::Set(set) => set.ranges(family)?,
                };
                Ok(Atom {
                    users: users.clone(),
                    ranges,
                })
            })
            .collect()
    }

    /// The addresses of one family within a prefix; `None` when more than `limit` CIDRs of a set
    /// would have to be looked at.
    pub(super) fn atoms_within(
        &self,
        family: Family,
        within: Prefix,
        limit: usize,
    ) -> Option<Vec<Atom>> {
        let lists = self.lists.iter();
        lists
            .map(|(users, list)| {
                let ranges = match list {
                    List::Own(nets) => clipped(nets, family, within),
                    List::Set(set) => set.ranges_within(family, within, limit)?,
                };
                Some(Atom {
                    users: users.clone(),
                    ranges,
                })
            })
            .collect()
    }
}

fn own_ranges(nets: &[IpNet], family: Family, wanted: impl Fn(Prefix) -> bool) -> Vec<Range> {
    let mut prefixes: Vec<Prefix> = nets
        .iter()
        .map(Prefix::of)
        .filter(|(of, prefix)| *of == family && wanted(*prefix))
        .map(|(_, prefix)| prefix)
        .collect();
    prefixes.sort_unstable();
    join(prefixes.into_iter().map(Prefix::range))
}

fn clipped(nets: &[IpNet], family: Family, within: Prefix) -> Vec<Range> {
    let holder = own_ranges(nets, family, |prefix| prefix.holds(within));
    if holder.is_empty() {
        own_ranges(nets, family, |prefix| within.holds(prefix))
    } else {
        vec![within.range()]
    }
}
