//! From ranges that rules want or do not want to disjoint intervals, each with the set of rules that
//! it satisfies.

use tproxy_common::tables::{CLASS_WORDS, Child};

use super::{
    CompileError,
    arena::{Arena, Bitmap},
};
use crate::set::prefix::Range;

/// Disjoint ranges of keys, ascending, and what rules think of them.
pub(super) struct Atom {
    pub(super) users: Users,
    pub(super) ranges: Vec<Range>,
}

/// The rules that ask about an atom.
#[derive(Clone)]
pub(super) enum Users {
    /// One rule's own ranges that it wants.
    Wanted(u32),
    /// One rule's own ranges that it does not want.
    Unwanted(u32),
    /// A set: rules that want it, and rules that do not.
    Set {
        include: Box<Bitmap>,
        exclude: Box<Bitmap>,
    },
}

/// The keys from `first` up to the next interval's belong to `class`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) first: u128,
    pub(super) class: Child,
}

/// Sweeps over all boundaries. `always` are the rules that want every key, but for exclusions.
/// The first interval begins at 0; neighbours differ.
pub(super) fn intervals(
    always: &Bitmap,
    atoms: &[Atom],
    arena: &mut Arena,
) -> Result<Vec<Interval>, CompileError> {
    let mut edges = edges(atoms).into_iter().peekable();
    let mut open = Open::new(always, atoms.iter().map(|atom| &atom.users).collect());
    let mut intervals = Vec::with_capacity(edges.len() + 1);
    let mut last: Option<(Bitmap, Child)> = None;
    let mut at = 0;
    loop {
        while let Some(edge) = edges.next_if(|edge| edge.at == at) {
            open.toggle(edge.atom);
        }
        let satisfied = open.satisfied();
        if last.is_none_or(|(bitmap, _)| bitmap != satisfied) {
            let class = arena.class(&satisfied);
            arena.check_size()?;
            intervals.push(Interval { first: at, class });
            last = Some((satisfied, class));
        }
        let Some(next) = edges.peek() else {
            return Ok(intervals);
        };
        at = next.at;
    }
}

/// Where the keys of an atom begin, or have ended.
#[derive(Clone, Copy)]
pub(super) struct Edge {
    pub(super) at: u128,
    pub(super) atom: u32,
}

/// The edges of all atoms in ascending order.
pub(super) fn edges(atoms: &[Atom]) -> Vec<Edge> {
    let ranges = atoms.iter().map(|atom| atom.ranges.len()).sum::<usize>();
    let mut edges = Vec::with_capacity(2 * ranges);
    for (atom, Atom { ranges, .. }) in (0..).zip(atoms) {
        for Range { first, last } in ranges {
            edges.push(Edge { at: *first, atom });
            // A range up to the very end has no edge behind it.
            edges.extend(last.checked_add(1).map(|at| Edge { at, atom }));
        }
    }
    // The edges of each atom ascend already; a stable sort makes use of such runs.
    edges.sort_by_key(|edge| edge.at);
    edges
}

/// The atoms that a key lies in, and the rules satisfied by that.
pub(super) struct Open<'a> {
    always: &'a Bitmap,
    users: Vec<&'a Users>,
    wanted: Bitmap,
    unwanted: Bitmap,
    sets: Vec<u32>,
}

impl<'a> Open<'a> {
    pub(super) fn new(always: &'a Bitmap, users: Vec<&'a Users>) -> Self {
        Self {
            always,
            users,
            wanted: [0; CLASS_WORDS],
            unwanted: [0; CLASS_WORDS],
            sets: Vec::new(),
        }
    }

    /// Goes into an atom or out of it.
    pub(super) fn toggle(&mut self, atom: u32) {
        match self.users[atom as usize] {
            Users::Wanted(rule) => toggle_bit(&mut self.wanted, *rule),
            Users::Unwanted(rule) => toggle_bit(&mut self.unwanted, *rule),
            Users::Set { .. } => match self.sets.iter().position(|open| *open == atom) {
                Some(place) => {
                    self.sets.swap_remove(place);
                }
                None => self.sets.push(atom),
            },
        }
    }

    /// The rules that are satisfied here. What one does not want wins over what it wants.
    pub(super) fn satisfied(&self) -> Bitmap {
        let mut satisfied = self.wanted;
        let mut unwanted = self.unwanted;
        join(&mut satisfied, self.always);
        for atom in &self.sets {
            if let Users::Set { include, exclude } = self.users[*atom as usize] {
                join(&mut satisfied, include);
                join(&mut unwanted, exclude);
            }
        }
        for (word, unwanted) in satisfied.iter_mut().zip(unwanted) {
            *word &= !unwanted;
        }
        satisfied
    }
}

/// Adds a rule to a bitmap.
pub(super) fn set_bit(bitmap: &mut Bitmap, rule: u32) {
    bitmap[rule as usize / 64] |= 1 << (rule % 64);
}

fn toggle_bit(bitmap: &mut Bitmap, rule: u32) {
    bitmap[rule as usize / 64] ^= 1 << (rule % 64);
}

fn join(bitmap: &mut Bitmap, other: &Bitmap) {
    for (word, other) in bitmap.iter_mut().zip(other) {
        *word |= other;
    }
}
