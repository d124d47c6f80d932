//! A few CIDRs more or fewer in sets: new blocks behind the tables in force, rather than new tables.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use tproxy_common::{
    address::Family,
    tables::{Block, CLASS_WORDS, Child, Dimension, Tables},
};

use super::{
    Source,
    arena::Bitmap,
    patch::Patch,
    side::{End, Side},
    sweep::{self, Interval, Open, set_bit},
};
use crate::rule::LINK_LOCAL;
use crate::set::{SetName, Sets, prefix::Prefix};

/// More intervals or CIDRs than this within one that changes, and all is compiled anew.
const LIMIT: usize = 4096;

/// A CIDR that was added to a set or taken out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetEdit {
    /// The set.
    pub set: SetName,
    /// The CIDR.
    pub net: IpNet,
}

/// What a change adds to tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edited {
    /// The number of the header block that is in force before.
    pub behind: u32,
    /// Blocks that follow it. The last one is the new header.
    pub blocks: Vec<Block>,
}

/// Changes tables by what differs in sets. `rules` are those that the tables were compiled from;
/// `sets` are as they are to be, and no others than those of `edits` have changed since. At most
/// `room` blocks are added.
///
/// `None` when that is not possible or not worth it: then all is to be compiled anew.
pub fn edit<T: Tables + ?Sized>(
    tables: &T,
    rules: &[Source<'_>],
    sets: &Sets,
    edits: &[SetEdit],
    generation: u64,
    room: usize,
) -> Option<Edited> {
    let (head, header) = (tables.head()?, tables.header()?);
    if changes_entries(tables, rules, sets, edits)? {
        return None;
    }
    let mut roots = Dimension::ALL.map(|dimension| header.root(dimension));
    let mut patch = Patch::new(tables)?;
    let changed = changed_prefixes(edits);
    for end in End::BOTH {
        for (name, prefixes) in &changed {
            let users = users_of(end, rules, name);
            if users == [0; CLASS_WORDS] {
                continue;
            }
            let named = |rule: u32| users[rule as usize / 64] >> (rule % 64) & 1 == 1;
            let side = Side::of_some(end, rules, sets, named).ok()?;
            for (family, prefix) in prefixes {
                let tree = &mut roots[end.dimension(*family) as usize];
                *tree = reclassify(&mut patch, *tree, *family, *prefix, &side, &users)?;
                if patch.arena.len() >= room {
                    return None;
                }
            }
        }
    }
    patch.arena.append(&[header.successor(roots, generation)]);
    (patch.arena.len() <= room).then(|| Edited {
        behind: head,
        blocks: patch.arena.into_blocks(),
    })
}

/// Whether a rule comes to name link-local destinations, or no longer does. Entries are not written
/// anew.
fn changes_entries<T: Tables + ?Sized>(
    tables: &T,
    rules: &[Source<'_>],
    sets: &Sets,
    edits: &[SetEdit],
) -> Option<bool> {
    let header = tables.header()?;
    let edited: BTreeSet<&SetName> = edits
        .iter()
        .filter(|edit| LINK_LOCAL.contains(&edit.net))
        .map(|edit| &edit.set)
        .collect();
    for (number, Source { rule, .. }) in (0..).zip(rules) {
        let mut named = rule.destination.include_sets.iter();
        if named.any(|name| edited.contains(name)) {
            let entry = tables.entry(&header, number)?;
            if entry.names_link_local() != rule.names_link_local(sets) {
                return Some(true);
            }
        }
    }
    Some(false)
}

type Prefixes = BTreeSet<(Family, Prefix)>;

/// What changed, by sets; without prefixes that lie in others.
fn changed_prefixes(edits: &[SetEdit]) -> BTreeMap<&SetName, Prefixes> {
    let mut all: BTreeMap<&SetName, Prefixes> = BTreeMap::new();
    for edit in edits {
        all.entry(&edit.set)
            .or_default()
            .insert(Prefix::of(&edit.net));
    }
    for prefixes in all.values_mut() {
        let mut last: Option<(Family, Prefix)> = None;
        // They come in order, so what holds a prefix comes before it.
        prefixes.retain(|(family, prefix)| {
            let held = last.is_some_and(|(of, holder)| of == *family && holder.holds(*prefix));
            if !held {
                last = Some((*family, *prefix));
            }
            !held
        });
    }
    all
}

fn users_of(end: End, rules: &[Source<'_>], name: &SetName) -> Bitmap {
    let mut users = [0; CLASS_WORDS];
    for (rule, source) in (0..).zip(rules) {
        let addresses = end.of(source);
        if addresses.include_sets.contains(name) || addresses.exclude_sets.contains(name) {
            set_bit(&mut users, rule);
        }
    }
    users
}

/// The tree of a dimension with the bits of `users` made right within a prefix; `side` is what they
/// ask of it.
fn reclassify<T: Tables + ?Sized>(
    patch: &mut Patch<'_, T>,
    root: Child,
    family: Family,
    within: Prefix,
    side: &Side<'_>,
    users: &Bitmap,
) -> Option<Child> {
    let old = patch.intervals(root, within, LIMIT)?;
    let atoms = side.atoms_within(family, within, LIMIT)?;
    let edges = sweep::edges(&atoms);
    if edges.len() > LIMIT {
        return None;
    }
    let mut open = Open::new(&side.always, atoms.iter().map(|atom| &atom.users).collect());
    let (mut old, mut edges) = (old.iter().peekable(), edges.iter().peekable());
    let mut before = *old.peek()?;
    let mut at = within.first();
    let mut new: Vec<Interval> = Vec::new();
    loop {
        while let Some(interval) = old.next_if(|interval| interval.first == at) {
            before = interval;
        }
        while let Some(edge) = edges.next_if(|edge| edge.at == at) {
            open.toggle(edge.atom);
        }
        let class = with_bits(patch, before.class, users, &open.satisfied())?;
        if new.last().is_none_or(|last| last.class != class) {
            new.push(Interval { first: at, class });
        }
        let next = [
            old.peek().map(|old| old.first),
            edges.peek().map(|edge| edge.at),
        ];
        match next.into_iter().flatten().min() {
            Some(next) if next <= within.last() => at = next,
            _ => break,
        }
    }
    patch.replace(root, within, &new)
}

/// The class that differs from `class` in the bits of `users` alone.
fn with_bits<T: Tables + ?Sized>(
    patch: &mut Patch<'_, T>,
    class: Child,
    users: &Bitmap,
    satisfied: &Bitmap,
) -> Option<Child> {
    let tproxy_common::tables::Target::Class(number) = class.leads_to() else {
        return None;
    };
    let old = *patch.block(number)?.bitmap();
    let mut bitmap = old;
    for ((word, users), satisfied) in bitmap.iter_mut().zip(users).zip(satisfied) {
        *word = *word & !users | satisfied & users;
    }
    if bitmap == old {
        return Some(class);
    }
    Some(patch.arena.class(&bitmap))
}
