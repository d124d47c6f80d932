//! Which rule takes a flow: the one piece of code that every hook, the agent and the tests run.

use crate::{
    address::{Address, Family},
    flow::{Flow, Owner, origin},
    tables::{Block, CLASS_WORDS, Dimension, Header, RuleEntry, Tables},
};

/// The rule that takes a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Its place in the order, from 0.
    pub rule: u32,
    /// What to do.
    pub entry: RuleEntry,
}

/// The first rule that matches `flow`, or `None`.
///
/// Costs a walk down one shallow tree for each dimension, whatever the number of prefixes, and an
/// AND for each 64 rules.
#[inline(always)]
pub fn classify<T: Tables + ?Sized>(tables: &T, flow: &Flow) -> Option<Match> {
    let header = tables.header()?;
    let classes = flow_classes(tables, &header, flow)?;
    first_match(tables, &header, &classes)
}

/// The first rule that matches a flow that a process of this host opens, or `None`.
///
/// What it asks beyond [`classify`] costs flows of the other scopes nothing.
#[inline(always)]
pub fn classify_local<T: Tables + ?Sized>(tables: &T, flow: &Flow, owner: &Owner) -> Option<Match> {
    let header = tables.header()?;
    let [origin, interface, from_port, to_port, from, to] = flow_classes(tables, &header, flow)?;
    let user = tables.class(&header, Dimension::User, u64::from(owner.uid), 0)?;
    let cgroup = tables.class(&header, Dimension::Cgroup, owner.cgroup, 0)?;
    let classes = [
        origin, interface, from_port, to_port, from, to, user, cgroup,
    ];
    first_match(tables, &header, &classes)
}

#[inline(always)]
fn flow_classes<'t, T: Tables + ?Sized>(
    tables: &'t T,
    header: &Header<'_>,
    flow: &Flow,
) -> Option<[&'t Block; 6]> {
    Some([
        tables.class(
            header,
            Dimension::Origin,
            origin(flow.scope, flow.protocol),
            0,
        )?,
        tables.class(header, Dimension::Interface, u64::from(flow.interface), 0)?,
        tables.class(
            header,
            Dimension::SourcePort,
            u64::from(flow.source_port),
            0,
        )?,
        tables.class(
            header,
            Dimension::DestinationPort,
            u64::from(flow.destination_port),
            0,
        )?,
        address_class(
            tables,
            header,
            &flow.source,
            Dimension::SourceV4,
            Dimension::SourceV6,
        )?,
        address_class(
            tables,
            header,
            &flow.destination,
            Dimension::DestinationV4,
            Dimension::DestinationV6,
        )?,
    ])
}

#[inline(always)]
fn first_match<T: Tables + ?Sized, const CLASSES: usize>(
    tables: &T,
    header: &Header<'_>,
    classes: &[&Block; CLASSES],
) -> Option<Match> {
    let rule = first_common_bit(classes, header.rules())?;
    let entry = tables.entry(header, rule)?;
    Some(Match { rule, entry })
}

#[inline(always)]
fn address_class<'t, T: Tables + ?Sized>(
    tables: &'t T,
    header: &Header<'_>,
    address: &Address,
    v4: Dimension,
    v6: Dimension,
) -> Option<&'t Block> {
    let dimension = match address.family() {
        Family::V4 => v4,
        Family::V6 => v6,
    };
    tables.class(header, dimension, address.high(), address.low())
}

#[inline(always)]
fn first_common_bit<const CLASSES: usize>(classes: &[&Block; CLASSES], rules: u32) -> Option<u32> {
    for word in 0..CLASS_WORDS {
        let first = word as u32 * 64;
        if first >= rules {
            return None;
        }
        let mut common = u64::MAX;
        for class in classes {
            common &= class.words[word];
        }
        if common != 0 {
            return Some(first + common.trailing_zeros());
        }
    }
    None
}
