//! Which rule takes a flow: the one piece of code that every hook, the agent and the tests run.

use crate::{
    flow::{Flow, origin},
    limits::CGROUP_LEVELS,
    tables::{Block, CLASS_WORDS, Dimension, End, Header, RuleEntry, Tables},
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
/// `groups` gives, for each control group that the process is in, the block of its class: of the one
/// below the root for 1, and so on down to its own; see [`group_class`]. What this asks beyond
/// [`classify`] costs flows of the other scopes nothing.
#[inline(always)]
pub fn classify_local<T: Tables + ?Sized>(
    tables: &T,
    flow: &Flow,
    user: u32,
    groups: impl Fn(&Header<'_>, u32) -> Option<u32>,
) -> Option<Match> {
    let header = tables.header()?;
    let [origin, interface, from_port, to_port, from, to] = flow_classes(tables, &header, flow)?;
    let user = tables.class(&header, Dimension::User, u64::from(user))?;
    // A rule that names groups is satisfied by each that the process is in; none has the number 0.
    let anywhere = tables.class(&header, Dimension::Cgroup, 0)?;
    let mut of_groups = [anywhere; CGROUP_LEVELS as usize];
    // Most instances have no rule that names one.
    if !header.root(Dimension::Cgroup).is_class() {
        for level in 0..CGROUP_LEVELS {
            let Some(block) = groups(&header, level + 1) else {
                break;
            };
            of_groups[level as usize] = tables.block(block)?;
        }
    }
    let classes = [origin, interface, from_port, to_port, from, to, user];
    let rule = first_common(header.rules(), |word| {
        let mut in_group = anywhere.words[word];
        for class in &of_groups {
            in_group |= class.words[word];
        }
        common(&classes, word) & in_group
    })?;
    let entry = tables.entry(&header, rule)?;
    Some(Match { rule, entry })
}

/// The block of the class of a control group, by its number.
#[inline(always)]
pub fn group_class<T: Tables + ?Sized>(
    tables: &T,
    header: &Header<'_>,
    cgroup: u64,
) -> Option<u32> {
    tables.class_block(header, Dimension::Cgroup, cgroup)
}

/// Whether a rule may match such a flow, whatever its ports are.
#[inline(always)]
pub fn may_match<T: Tables + ?Sized>(tables: &T, flow: &Flow) -> Option<bool> {
    let header = tables.header()?;
    let classes = [
        tables.class(
            &header,
            Dimension::Origin,
            origin(flow.scope, flow.protocol),
        )?,
        tables.class(&header, Dimension::Interface, u64::from(flow.interface))?,
        tables.address_class(&header, End::Source, &flow.source)?,
        tables.address_class(&header, End::Destination, &flow.destination)?,
    ];
    Some(first_common_bit(&classes, header.rules()).is_some())
}

#[inline(always)]
fn flow_classes<'t, T: Tables + ?Sized>(
    tables: &'t T,
    header: &Header<'_>,
    flow: &Flow,
) -> Option<[&'t Block; 6]> {
    let origin = tables.class(header, Dimension::Origin, origin(flow.scope, flow.protocol))?;
    // Where no rule is about such flows at all, as with most datagrams to a host's own services.
    first_common_bit(&[origin], header.rules())?;
    Some([
        origin,
        tables.class(header, Dimension::Interface, u64::from(flow.interface))?,
        tables.class(header, Dimension::SourcePort, u64::from(flow.source_port))?,
        tables.class(
            header,
            Dimension::DestinationPort,
            u64::from(flow.destination_port),
        )?,
        tables.address_class(header, End::Source, &flow.source)?,
        tables.address_class(header, End::Destination, &flow.destination)?,
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
fn first_common_bit<const CLASSES: usize>(classes: &[&Block; CLASSES], rules: u32) -> Option<u32> {
    first_common(rules, |word| common(classes, word))
}

/// The rules, of the 64 of a word, that are in all of the classes.
#[inline(always)]
fn common<const CLASSES: usize>(classes: &[&Block; CLASSES], word: usize) -> u64 {
    let mut common = u64::MAX;
    for class in classes {
        common &= class.words[word];
    }
    common
}

/// The first of so many rules that is in a bitmap, whose words are made as they are needed.
#[inline(always)]
fn first_common(rules: u32, bitmap: impl Fn(usize) -> u64) -> Option<u32> {
    for word in 0..CLASS_WORDS {
        let first = word as u32 * 64;
        if first >= rules {
            return None;
        }
        let common = bitmap(word);
        if common != 0 {
            return Some(first + common.trailing_zeros());
        }
    }
    None
}
