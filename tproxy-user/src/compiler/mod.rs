//! Compiles rules to the tables that the classifier reads; see [`tproxy_common::tables`].

mod arena;
mod sweep;
mod tree;

use ipnet::IpNet;
use tproxy_common::{
    flow::{ORIGINS, origin},
    limits::{CIDRS, OWNERS, RULES},
    tables::{BLOCK_ENTRIES, Block, Child, Dimension, Header, RuleEntry},
};

use crate::rule::{AddressMatch, PortRange, Rule};
use arena::Arena;
use sweep::{Interval, Polarity, Span};

/// A rule with what the compiler needs to know beside it.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// Its counter slot.
    pub slot: u32,
    /// The indexes of the interfaces that it names. A rule that names some, none of which is
    /// there, matches nothing.
    pub interfaces: Vec<u32>,
    /// The ids of the control groups that it names, likewise.
    pub cgroups: Vec<u64>,
}

/// Why rules cannot be compiled. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// Over [`RULES`].
    #[error("{0} rules are more than the limit of {RULES}: remove some or join them by lists")]
    TooManyRules(usize),
    /// Over [`CIDRS`].
    #[error("{0} CIDRs are more than the limit of {CIDRS}: aggregate or remove some")]
    TooManyCidrs(usize),
    /// Over [`OWNERS`].
    #[error("{0} users and control groups are more than the limit of {OWNERS}: use ranges of ids")]
    TooManyOwners(usize),
}

/// Compiles rules, in their order, to one generation of tables.
///
/// # Errors
///
/// When a limit is exceeded.
pub fn compile(rules: &[Source<'_>], generation: u64) -> Result<Vec<Block>, CompileError> {
    if rules.len() > RULES {
        return Err(CompileError::TooManyRules(rules.len()));
    }
    let cidrs = rules.iter().map(|source| cidrs(source.rule)).sum();
    if cidrs > CIDRS {
        return Err(CompileError::TooManyCidrs(cidrs));
    }
    let owners = rules.iter().map(|source| owners(source.rule)).sum();
    if owners > OWNERS {
        return Err(CompileError::TooManyOwners(owners));
    }
    let mut arena = Arena::new();
    let roots = Dimension::ALL.map(|dimension| match dimension {
        Dimension::Origin => narrow_dimension(&mut arena, rules, origins),
        Dimension::Interface => narrow_dimension(&mut arena, rules, interfaces),
        Dimension::SourcePort => {
            narrow_dimension(&mut arena, rules, |source| ports(&source.rule.source_ports))
        }
        Dimension::DestinationPort => narrow_dimension(&mut arena, rules, |source| {
            ports(&source.rule.destination_ports)
        }),
        Dimension::SourceV4 => address_dimension(&mut arena, rules, |rule| &rule.source, v4_span),
        Dimension::SourceV6 => address_dimension(&mut arena, rules, |rule| &rule.source, v6_span),
        Dimension::DestinationV4 => {
            address_dimension(&mut arena, rules, |rule| &rule.destination, v4_span)
        }
        Dimension::DestinationV6 => {
            address_dimension(&mut arena, rules, |rule| &rule.destination, v6_span)
        }
        Dimension::User => narrow_dimension(&mut arena, rules, users),
        Dimension::Cgroup => narrow_dimension(&mut arena, rules, cgroups),
    });
    let entries = write_entries(&mut arena, rules);
    let header = Header::encode(count(rules.len()), entries, roots, generation);
    Ok(arena.finish(header))
}

/// The CIDRs of a rule, which count against [`CIDRS`].
#[must_use]
pub fn cidrs(rule: &Rule) -> usize {
    [&rule.source, &rule.destination]
        .iter()
        .map(|addresses| addresses.include.len() + addresses.exclude.len())
        .sum()
}

/// Users and control groups of a rule, which count against [`OWNERS`].
fn owners(rule: &Rule) -> usize {
    rule.users.len() + rule.cgroups.len()
}

/// A dimension whose keys are at most 64 bits wide. `ranges` gives the inclusive ranges of a rule,
/// `None` for all keys.
fn narrow_dimension(
    arena: &mut Arena,
    rules: &[Source<'_>],
    ranges: impl Fn(&Source<'_>) -> Option<Vec<(u64, u64)>>,
) -> Child {
    let mut spans = Vec::new();
    let mut always = Vec::new();
    for (rule, source) in rules.iter().enumerate() {
        match ranges(source) {
            None => always.push(count(rule)),
            Some(ranges) => spans.extend(ranges.into_iter().map(|(first, last)| Span {
                first: u128::from(first),
                last: u128::from(last),
                rule: count(rule),
                polarity: Polarity::Include,
            })),
        }
    }
    let intervals = sweep::intervals(spans, &always, arena);
    tree::build_narrow(arena, &intervals)
}

fn address_dimension(
    arena: &mut Arena,
    rules: &[Source<'_>],
    side: impl Fn(&Rule) -> &AddressMatch,
    span: impl Fn(&IpNet) -> Option<(u128, u128)>,
) -> Child {
    let mut spans = Vec::new();
    let mut always = Vec::new();
    for (rule, source) in rules.iter().enumerate() {
        let rule = count(rule);
        let addresses = side(source.rule);
        if addresses.include.is_empty() {
            always.push(rule);
        }
        for (prefixes, polarity) in [
            (&addresses.include, Polarity::Include),
            (&addresses.exclude, Polarity::Exclude),
        ] {
            spans.extend(prefixes.iter().filter_map(&span).map(|(first, last)| Span {
                first,
                last,
                rule,
                polarity,
            }));
        }
    }
    let intervals: Vec<Interval> = sweep::intervals(spans, &always, arena);
    tree::build_address(arena, &intervals)
}

/// Addresses as 128-bit numbers whose upper half is the first key; see
/// [`tproxy_common::address::Address`].
fn v4_span(prefix: &IpNet) -> Option<(u128, u128)> {
    let IpNet::V4(prefix) = prefix else {
        return None;
    };
    let first = u128::from(u32::from(prefix.network())) << 96;
    let last = u128::from(u32::from(prefix.broadcast())) << 96 | (u128::MAX >> 32);
    Some((first, last))
}

fn v6_span(prefix: &IpNet) -> Option<(u128, u128)> {
    let IpNet::V6(prefix) = prefix else {
        return None;
    };
    Some((u128::from(prefix.network()), u128::from(prefix.broadcast())))
}

#[expect(clippy::unnecessary_wraps, reason = "the common shape of dimensions")]
fn origins(source: &Source<'_>) -> Option<Vec<(u64, u64)>> {
    let keys = source.rule.protocols.iter().map(|protocol| {
        let key = origin(source.rule.scope, *protocol);
        debug_assert!(key < ORIGINS);
        (key, key)
    });
    Some(keys.collect())
}

fn interfaces(source: &Source<'_>) -> Option<Vec<(u64, u64)>> {
    if source.rule.interfaces.is_empty() {
        return None;
    }
    let keys = source.interfaces.iter().map(|index| u64::from(*index));
    Some(keys.map(|key| (key, key)).collect())
}

fn users(source: &Source<'_>) -> Option<Vec<(u64, u64)>> {
    let users = &source.rule.users;
    if users.is_empty() {
        return None;
    }
    let keys = users
        .iter()
        .map(|range| (range.first.into(), range.last.into()));
    Some(keys.collect())
}

fn cgroups(source: &Source<'_>) -> Option<Vec<(u64, u64)>> {
    if source.rule.cgroups.is_empty() {
        return None;
    }
    Some(source.cgroups.iter().map(|id| (*id, *id)).collect())
}

fn ports(ranges: &[PortRange]) -> Option<Vec<(u64, u64)>> {
    if ranges.is_empty() {
        return None;
    }
    let keys = ranges
        .iter()
        .map(|range| (u64::from(range.first()), u64::from(range.last())));
    Some(keys.collect())
}

fn write_entries(arena: &mut Arena, rules: &[Source<'_>]) -> u32 {
    let blocks: Vec<Block> = rules
        .chunks(BLOCK_ENTRIES)
        .map(|chunk| {
            let mut block = Block::ZERO;
            for (word, source) in block.words.iter_mut().zip(chunk) {
                let rule = source.rule;
                *word = RuleEntry::new(rule.action, rule.on_missing, source.slot).to_word();
            }
            block
        })
        .collect();
    arena.append(&blocks)
}

/// Numbers of rules, interfaces and blocks fit 32 bits by the limits that were checked.
fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
