//! Rules that can never match, because earlier ones take all their flows.
//!
//! The tables tell it. In each dimension the keys are divided into classes, and a flow is one class
//! of each; the rules that match it are those that all of these classes have. So a rule can never
//! match when every choice of classes that it has leaves an earlier rule that all of them have, too.
//! The choices are many, but most are settled at once: an earlier rule that is in every class of a
//! rule, in all dimensions that are still open, takes whatever is chosen there.
//!
//! Control groups are the exception: a process is in all groups on the way from the root to its own,
//! and so in several classes at once. Which these can be is in the paths that the rules name.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use tproxy_common::{
    flow::ORIGINS,
    tables::{CLASS_WORDS, Child, Dimension, Header, Tables, Target},
};

use super::{arena::Bitmap, sweep::set_bit};
use crate::rule::{Cgroup, Rule};

/// A rule that can never match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shadowed {
    /// Its place in the order, from 0.
    pub rule: usize,
    /// The places of earlier rules that take all its flows between them, ascending.
    pub by: Vec<usize>,
}

impl Shadowed {
    /// What is to be said of it. `name` gives the name of the rule at a place.
    #[must_use]
    pub fn text<'n>(&self, name: impl Fn(usize) -> &'n str) -> String {
        const SHOWN: usize = 4;
        let rule = name(self.rule);
        let by: Vec<&str> = self
            .by
            .iter()
            .take(SHOWN)
            .map(|place| name(*place))
            .collect();
        match (by.as_slice(), self.by.len().saturating_sub(SHOWN)) {
            ([one], _) => {
                format!("rule {rule} can never match: rule {one} before it takes all its flows")
            }
            (few, 0) => format!(
                "rule {rule} can never match: rules {} before it take all its flows",
                few.join(", ")
            ),
            (few, more) => format!(
                "rule {rule} can never match: rules {} and {more} more before it take all its flows",
                few.join(", ")
            ),
        }
    }
}

/// Rules of these tables that can never match; rules that match nothing by themselves are not among
/// them. `rules` are those that the tables were compiled from, and `lasting` says of a place whether
/// its rule will stay: one that will not hides none.
///
/// Every rule named is one. One that a single rule hides is always found; one that several hide
/// between them unless that takes too many [`STEPS`] to tell, or more [`MEMBERSHIPS`] than are kept.
#[must_use]
pub fn shadowed<T: Tables + ?Sized>(
    tables: &T,
    rules: &[&Rule],
    lasting: impl Fn(usize) -> bool,
) -> Vec<Shadowed> {
    let Some(header) = tables.header() else {
        return Vec::new();
    };
    let faces = Dimension::ALL.map(|dimension| {
        let classes = match dimension {
            Dimension::Cgroup => classes_of_processes(rules),
            _ => classes(tables, header, dimension),
        };
        Face::of(classes, rules.len())
    });
    let mut before = EMPTY;
    let mut found = Vec::new();
    for rule in 0..rules.len() {
        if let Some(by) = hiding(&faces, rule, &before) {
            found.push(Shadowed { rule, by });
        }
        if lasting(rule) {
            before[rule / 64] |= 1 << (rule % 64);
        }
    }
    found
}

/// The choices that are looked at for one rule before it is given up, and taken for one that can
/// match.
const STEPS: usize = 4096;

/// The places of rules in classes of a dimension that are kept: 64 MiB of them.
const MEMBERSHIPS: usize = 1 << 24;

/// The dimensions that tell flows of a family apart.
const FAMILIES: [[Dimension; 8]; 2] = [
    [
        Dimension::Origin,
        Dimension::Interface,
        Dimension::SourceV4,
        Dimension::DestinationV4,
        Dimension::SourcePort,
        Dimension::DestinationPort,
        Dimension::User,
        Dimension::Cgroup,
    ],
    [
        Dimension::Origin,
        Dimension::Interface,
        Dimension::SourceV6,
        Dimension::DestinationV6,
        Dimension::SourcePort,
        Dimension::DestinationPort,
        Dimension::User,
        Dimension::Cgroup,
    ],
];

const EMPTY: Bitmap = [0; CLASS_WORDS];

/// What the classes of one dimension say.
struct Face {
    classes: Vec<Bitmap>,
    /// For each rule: the classes that it is in. Nothing when these are too many altogether.
    of_rule: Option<Vec<Vec<u32>>>,
    /// For each rule: the rules that are in some class that it is in. Itself, unless it is in none.
    meets: Vec<Bitmap>,
    /// For each rule: the rules that are in every class that it is in.
    follows: Vec<Bitmap>,
}

impl Face {
    fn of(classes: Vec<Bitmap>, rules: usize) -> Self {
        let memberships: u32 = classes.iter().flatten().map(|word| word.count_ones()).sum();
        let is_kept = usize::try_from(memberships).is_ok_and(|all| all <= MEMBERSHIPS);
        let mut face = Self {
            classes,
            of_rule: is_kept.then(|| vec![Vec::new(); rules]),
            meets: vec![EMPTY; rules],
            follows: vec![[u64::MAX; CLASS_WORDS]; rules],
        };
        for (number, class) in (0..).zip(&face.classes) {
            for rule in members(class).take_while(|rule| *rule < rules) {
                if let Some(of_rule) = &mut face.of_rule {
                    of_rule[rule].push(number);
                }
                let (meets, follows) = (&mut face.meets[rule], &mut face.follows[rule]);
                for word in 0..CLASS_WORDS {
                    meets[word] |= class[word];
                    follows[word] &= class[word];
                }
            }
        }
        face
    }

    /// What is left of `earlier` rules by each class that `rule` has: without doubles, and without
    /// what leaves more than another class does, because whatever is hidden with less is hidden with
    /// more. `None` when a class leaves none, or when it is not known.
    fn choices(&self, rule: usize, earlier: &Bitmap) -> Option<Vec<Bitmap>> {
        const MOST_COMPARED: usize = 512;
        let mut left = HashSet::new();
        for number in &self.of_rule.as_ref()?[rule] {
            let choice = and(&self.classes[*number as usize], earlier);
            if choice == EMPTY {
                return None;
            }
            left.insert(choice);
        }
        let left: Vec<Bitmap> = left.into_iter().collect();
        if left.len() > MOST_COMPARED {
            return Some(left);
        }
        let is_least = |one: &&Bitmap| {
            !left
                .iter()
                .any(|other| other != *one && and(other, one) == *other)
        };
        Some(left.iter().filter(is_least).copied().collect())
    }
}

/// The rules of `before` that take all flows of `rule` between them, if they do and it has some.
fn hiding(
    faces: &[Face; Dimension::ALL.len()],
    rule: usize,
    before: &Bitmap,
) -> Option<Vec<usize>> {
    let mut by = BTreeSet::new();
    let mut has_flows = false;
    for family in FAMILIES {
        let faces = family.map(|dimension| &faces[dimension as usize]);
        if faces.iter().any(|face| face.meets[rule] == EMPTY) {
            continue;
        }
        has_flows = true;
        let meeting = faces
            .iter()
            .fold(*before, |all, face| and(&all, &face.meets[rule]));
        let followed = faces
            .iter()
            .fold(meeting, |all, face| and(&all, &face.follows[rule]));
        if let Some(one) = members(&followed).next() {
            by.insert(one);
            continue;
        }
        let choices = faces.iter().map(|face| face.choices(rule, &meeting));
        let mut search = Search::new(choices.collect::<Option<_>>()?);
        if !search.is_hidden(0, meeting) {
            return None;
        }
        by.extend(search.by);
    }
    has_flows.then(|| by.into_iter().collect())
}

/// The search for a choice that leaves no earlier rule.
struct Search {
    choices: Vec<Vec<Bitmap>>,
    /// For each dimension: rules that are left by every choice in it and in those behind it.
    certain: Vec<Bitmap>,
    /// The rules that settled a choice.
    by: BTreeSet<usize>,
    steps: usize,
}

impl Search {
    fn new(mut choices: Vec<Vec<Bitmap>>) -> Self {
        choices.sort_by_key(Vec::len);
        let mut certain = vec![[u64::MAX; CLASS_WORDS]];
        for choice in choices.iter().rev() {
            let behind = certain[certain.len() - 1];
            certain.push(choice.iter().fold(behind, |all, one| and(&all, one)));
        }
        certain.reverse();
        Self {
            choices,
            certain,
            by: BTreeSet::new(),
            steps: 0,
        }
    }

    /// Whether every choice from this dimension on leaves one of these rules.
    fn is_hidden(&mut self, dimension: usize, left: Bitmap) -> bool {
        self.steps += 1;
        if let Some(rule) = members(&and(&left, &self.certain[dimension])).next() {
            self.by.insert(rule);
            return true;
        }
        if self.steps > STEPS || left == EMPTY || dimension == self.choices.len() {
            return false;
        }
        (0..self.choices[dimension].len()).all(|choice| {
            let left = and(&left, &self.choices[dimension][choice]);
            self.is_hidden(dimension + 1, left)
        })
    }
}

/// The different classes that keys of a dimension have.
fn classes<T: Tables + ?Sized>(
    tables: &T,
    header: Header<'_>,
    dimension: Dimension,
) -> Vec<Bitmap> {
    let mut leaves = Vec::new();
    let mut open = vec![header.root(dimension)];
    while let Some(child) = open.pop() {
        match child.leads_to() {
            Target::Class(block) => leaves.push(block),
            Target::Node(block) => open.extend(children(tables, block, last_key(dimension))),
            Target::LowNode(block) => open.extend(children(tables, block, u64::MAX)),
        }
    }
    leaves.sort_unstable();
    leaves.dedup();
    let bitmaps = leaves.into_iter().filter_map(|block| tables.block(block));
    bitmaps.map(|block| *block.bitmap()).collect()
}

/// What control groups make of a process, by the one of them that is furthest down: the rules that
/// name it, a group above it, or none. A process outside of them all is another one.
fn classes_of_processes(rules: &[&Rule]) -> Vec<Bitmap> {
    let mut anywhere = EMPTY;
    let mut named: BTreeMap<Cgroup, Bitmap> = BTreeMap::new();
    for (place, rule) in (0..).zip(rules) {
        if rule.cgroups.is_empty() {
            set_bit(&mut anywhere, place);
        }
        for group in &rule.cgroups {
            set_bit(named.entry(group.clone()).or_insert(EMPTY), place);
        }
    }
    let within = |group: &Cgroup| {
        let holders = group.path_from_root();
        let holding = holders.filter_map(|holder| named.get(&holder));
        holding.fold(anywhere, |all, one| or(&all, one))
    };
    let classes: BTreeSet<Bitmap> = named.keys().map(within).chain([anywhere]).collect();
    classes.into_iter().collect()
}

fn children<T: Tables + ?Sized>(tables: &T, block: u32, last: u64) -> Vec<Child> {
    let Some(node) = tables.block(block) else {
        return Vec::new();
    };
    let there = node.children().filter(|(first, _)| *first <= last);
    there.map(|(_, child)| child).collect()
}

/// The last key that a flow can have. Trees go on behind it, as if there were more.
const fn last_key(dimension: Dimension) -> u64 {
    match dimension {
        Dimension::Origin => ORIGINS - 1,
        Dimension::Interface => u32::MAX as u64,
        Dimension::SourcePort | Dimension::DestinationPort => u16::MAX as u64,
        // The very last is no user, see `UidRange`.
        Dimension::User => u32::MAX as u64 - 1,
        Dimension::SourceV4
        | Dimension::SourceV6
        | Dimension::DestinationV4
        | Dimension::DestinationV6
        | Dimension::Cgroup => u64::MAX,
    }
}

fn and(one: &Bitmap, other: &Bitmap) -> Bitmap {
    std::array::from_fn(|word| one[word] & other[word])
}

fn or(one: &Bitmap, other: &Bitmap) -> Bitmap {
    std::array::from_fn(|word| one[word] | other[word])
}

/// The rules of a set, ascending.
fn members(rules: &Bitmap) -> impl Iterator<Item = usize> + '_ {
    rules.iter().enumerate().flat_map(|(place, word)| {
        let mut rest = *word;
        std::iter::from_fn(move || {
            let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
            rest &= rest - 1;
            Some(place * 64 + bit)
        })
    })
}

#[cfg(test)]
mod tests;
