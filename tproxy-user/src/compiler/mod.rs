//! Compiles rules to the tables that the classifier reads; see [`tproxy_common::tables`].

mod arena;
mod edit;
mod patch;
mod shadow;
mod side;
mod sweep;
mod tree;

pub use edit::{Edited, SetEdit, edit};
pub use shadow::{Shadowed, shadowed};

use tproxy_common::{
    address::Family,
    flow::{ORIGINS, origin},
    limits::{BLOCKS, CIDRS, OWNERS, RULES, SETS},
    tables::{BLOCK_ENTRIES, Block, CLASS_WORDS, Child, Dimension, Header, RuleEntry},
};

use crate::{
    rule::{PortRange, Rule},
    set::{
        Damaged, Set, SetName, Sets,
        prefix::{Range, join},
    },
};
use arena::Arena;
use side::{End, Side};
use sweep::{Atom, Users, set_bit};

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

/// What was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The tables, to be put in force as they are.
    pub blocks: Vec<Block>,
    /// How many different sets of rules there are that a key of some dimension satisfies.
    pub classes: usize,
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
    /// Over [`SETS`].
    #[error("{0} sets are more than the limit of {SETS}: join or remove some")]
    TooManySets(usize),
    /// Over [`BLOCKS`].
    #[error(
        "the tables would need more than the limit of {most} blocks, with {classes} different sets of rules by then that addresses and ports satisfy: remove CIDRs, or let rules overlap less"
    )]
    TooManyBlocks {
        /// The limit.
        most: usize,
        /// Classes that were found by then.
        classes: usize,
    },
    /// A rule names a set that is not there.
    #[error("there is no set {0}: `tproxy set add` or `tproxy set load` makes one")]
    NoSuchSet(SetName),
    /// A set's list is no such list.
    #[error("a set is damaged ({0}): `tproxy unload` removes the instance")]
    Damaged(#[from] Damaged),
}

/// Compiles rules, in their order, to one generation of tables. `sets` are all sets of the instance;
/// those that no rule names count as well.
///
/// # Errors
///
/// When a limit is exceeded, a set is not there or is damaged.
pub fn compile(
    rules: &[Source<'_>],
    sets: &Sets,
    generation: u64,
) -> Result<Compiled, CompileError> {
    let own: usize = rules.iter().map(|source| cidrs(source.rule)).sum();
    let shared: usize = sets.values().map(Set::len).sum();
    check_limits(rules.len(), sets.len(), own + shared)?;
    let owners = rules.iter().map(|source| owners(source.rule)).sum();
    if owners > OWNERS {
        return Err(CompileError::TooManyOwners(owners));
    }
    compile_within(BLOCKS, rules, sets, generation)
}

/// [`compile`] to at most so many blocks.
fn compile_within(
    most_blocks: usize,
    rules: &[Source<'_>],
    sets: &Sets,
    generation: u64,
) -> Result<Compiled, CompileError> {
    let mut arena = Arena::new(most_blocks);
    let mut roots = [Child::class(0); Dimension::ALL.len()];
    roots[Dimension::Origin as usize] = narrow_dimension(&mut arena, rules, origins)?;
    roots[Dimension::Interface as usize] = narrow_dimension(&mut arena, rules, interfaces)?;
    roots[Dimension::SourcePort as usize] =
        narrow_dimension(&mut arena, rules, |source| ports(&source.rule.source_ports))?;
    roots[Dimension::DestinationPort as usize] = narrow_dimension(&mut arena, rules, |source| {
        ports(&source.rule.reached_ports())
    })?;
    roots[Dimension::User as usize] = narrow_dimension(&mut arena, rules, users)?;
    roots[Dimension::Cgroup as usize] = narrow_dimension(&mut arena, rules, cgroups)?;
    for end in End::BOTH {
        let side = Side::new(end, rules, sets)?;
        for family in [Family::V4, Family::V6] {
            let intervals = sweep::intervals(&side.always, &side.atoms(family)?, &mut arena)?;
            roots[end.dimension(family) as usize] = tree::build_address(&mut arena, &intervals);
        }
    }
    let entries = write_entries(&mut arena, rules, sets);
    arena.check_size()?;
    let header = Header::encode(count(rules.len()), entries, roots, generation);
    Ok(Compiled {
        classes: arena.classes(),
        blocks: arena.finish(header),
    })
}

/// Whether an instance of this size can be compiled.
///
/// # Errors
///
/// When a limit is exceeded.
pub fn check_limits(rules: usize, sets: usize, cidrs: usize) -> Result<(), CompileError> {
    if rules > RULES {
        return Err(CompileError::TooManyRules(rules));
    }
    if sets > SETS {
        return Err(CompileError::TooManySets(sets));
    }
    if cidrs > CIDRS {
        return Err(CompileError::TooManyCidrs(cidrs));
    }
    Ok(())
}

/// The CIDRs that a rule has of its own, which count against [`CIDRS`].
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
) -> Result<Child, CompileError> {
    let mut always = [0; CLASS_WORDS];
    let mut atoms = Vec::new();
    for (rule, source) in (0..).zip(rules) {
        match ranges(source) {
            None => set_bit(&mut always, rule),
            Some(mut ranges) => {
                ranges.sort_unstable();
                atoms.push(Atom {
                    users: Users::Wanted(rule),
                    ranges: join(ranges.into_iter().map(|(first, last)| Range {
                        first: u128::from(first),
                        last: u128::from(last),
                    })),
                });
            }
        }
    }
    let intervals = sweep::intervals(&always, &atoms, arena)?;
    Ok(tree::build_narrow(arena, &intervals))
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

fn write_entries(arena: &mut Arena, rules: &[Source<'_>], sets: &Sets) -> u32 {
    let blocks: Vec<Block> = rules
        .chunks(BLOCK_ENTRIES)
        .map(|chunk| {
            let mut block = Block::ZERO;
            for (word, source) in block.words.iter_mut().zip(chunk) {
                let rule = source.rule;
                *word = RuleEntry::new(rule.action, rule.on_missing, source.slot)
                    .naming_link_local(rule.names_link_local(sets))
                    .to_word();
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
