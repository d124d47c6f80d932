//! Changes within tables: what leads to a part that changes is written anew, all else is shared.

use tproxy_common::tables::{ADDRESS_HALF_DEPTH, Block, Child, NODE_CHILDREN, Tables, Target};

use super::{
    arena::Arena,
    sweep::Interval,
    tree::{self, Branch, high, low},
};
use crate::set::prefix::Prefix;

/// Tables in force, and blocks that are to follow them.
///
/// Methods that give an option give `None` when the tables cannot be changed this way: when more
/// would have to be looked at than is worth it, a tree would get too deep, or blocks are damaged.
pub(super) struct Patch<'a, T: Tables + ?Sized> {
    old: &'a T,
    pub(super) arena: Arena,
}

/// Keys from `first` to `last`, both among them.
#[derive(Clone, Copy)]
struct Span {
    first: u64,
    last: u64,
}

impl Span {
    const ALL: Self = Self {
        first: 0,
        last: u64::MAX,
    };

    const fn meets(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl<'a, T: Tables + ?Sized> Patch<'a, T> {
    pub(super) fn new(old: &'a T) -> Option<Self> {
        let arena = Arena::behind(old.head()?.checked_add(1)?);
        Some(Self { old, arena })
    }

    /// The block of this number, old or new.
    pub(super) fn block(&self, number: u32) -> Option<&Block> {
        self.arena.block(number).or_else(|| self.old.block(number))
    }

    /// The intervals of a tree within a prefix, at most `limit`. Classes that are met on the way are
    /// there to be used again.
    pub(super) fn intervals(
        &mut self,
        root: Child,
        within: Prefix,
        limit: usize,
    ) -> Option<Vec<Interval>> {
        let mut intervals = Vec::new();
        let span = Span {
            first: high(within.first()),
            last: high(within.last()),
        };
        for branch in self.leaves(root, span, limit)? {
            let upper = u128::from(branch.first) << 64;
            let Target::LowNode(block) = branch.child.leads_to() else {
                intervals.push(Interval {
                    first: upper.max(within.first()),
                    class: branch.child,
                });
                continue;
            };
            let here = Span {
                first: low(within.first().max(upper)),
                last: low(within.last().min(upper | u128::from(u64::MAX))),
            };
            let lower = self.leaves(Child::node(block), here, limit)?;
            intervals.extend(lower.into_iter().map(|branch| Interval {
                first: upper | u128::from(branch.first),
                class: branch.child,
            }));
        }
        (intervals.len() <= limit).then_some(intervals)
    }

    /// The tree with other intervals within a prefix. The first of them begins where the prefix does.
    pub(super) fn replace(
        &mut self,
        root: Child,
        within: Prefix,
        intervals: &[Interval],
    ) -> Option<Child> {
        let upper = Span {
            first: high(within.first()),
            last: high(within.last()),
        };
        if within.length() <= 64 {
            let branches = tree::upper_branches(&mut self.arena, intervals);
            return self.replace_keys(root, upper, &branches);
        }
        let leaf = self.leaves(root, upper, 1)?.first()?.child;
        let lower_root = match leaf.leads_to() {
            Target::LowNode(block) => Child::node(block),
            _ => leaf,
        };
        let lower = Span {
            first: low(within.first()),
            last: low(within.last()),
        };
        let branches: Vec<Branch> = intervals
            .iter()
            .map(|interval| Branch {
                first: low(interval.first),
                child: interval.class,
            })
            .collect();
        let child = self.replace_keys(lower_root, lower, &branches)?;
        let branch = Branch {
            first: upper.first,
            child: child.over_low_half(),
        };
        self.replace_keys(root, upper, &[branch])
    }

    /// What keys of a span lead to, at most `limit` leaves.
    fn leaves(&mut self, root: Child, span: Span, limit: usize) -> Option<Vec<Branch>> {
        let mut leaves = Vec::new();
        self.descend(root, Span::ALL, span, ADDRESS_HALF_DEPTH, &mut |leaf| {
            leaves.push(leaf);
            (leaves.len() <= limit).then_some(())
        })?;
        Some(leaves)
    }

    /// `here` are the keys that lead to `child`.
    fn descend(
        &mut self,
        child: Child,
        here: Span,
        wanted: Span,
        levels: usize,
        found: &mut impl FnMut(Branch) -> Option<()>,
    ) -> Option<()> {
        let Target::Node(number) = child.leads_to() else {
            let first = here.first.max(wanted.first);
            return found(Branch { first, child });
        };
        let levels = levels.checked_sub(1)?;
        for (child, span) in self.children(number, here)? {
            self.know(child)?;
            if span.meets(wanted) {
                self.descend(child, span, wanted, levels, found)?;
            }
        }
        Some(())
    }

    /// The children of a node, each with the keys that lead to it.
    fn children(&self, number: u32, here: Span) -> Option<Vec<(Child, Span)>> {
        let mut children: Vec<(Child, Span)> = Vec::with_capacity(NODE_CHILDREN);
        for (first, child) in self.block(number)?.children() {
            let first = first.max(here.first);
            if let Some((_, before)) = children.last_mut() {
                before.last = first.checked_sub(1)?;
            }
            let last = here.last;
            children.push((child, Span { first, last }));
        }
        Some(children)
    }

    fn know(&mut self, child: Child) -> Option<()> {
        if let Target::Class(number) = child.leads_to() {
            let bitmap = *self.block(number)?.bitmap();
            self.arena.know_class(&bitmap, child);
        }
        Some(())
    }

    /// The tree with other branches for the keys of a span. The first of them begins where the span
    /// does.
    fn replace_keys(&mut self, root: Child, wanted: Span, branches: &[Branch]) -> Option<Child> {
        // A lower tree at the last key has a branch behind it for keys that stay as they are.
        let end = branches.partition_point(|branch| branch.first <= wanted.last);
        let siblings = self.splice(root, Span::ALL, wanted, &branches[..end])?;
        let mut root = tree::build(&mut self.arena, siblings);
        while let Target::Node(number) = root.leads_to() {
            let mut children = self.block(number)?.children();
            match (children.next(), children.next()) {
                (Some((_, only)), None) => root = only,
                _ => break,
            }
        }
        (self.levels(root)? <= ADDRESS_HALF_DEPTH).then_some(root)
    }

    /// What takes a child's place among its siblings, for the keys `here` that led to it. It is
    /// nothing where the sibling before leads them to the right place.
    fn splice(
        &mut self,
        child: Child,
        here: Span,
        wanted: Span,
        new: &[Branch],
    ) -> Option<Vec<Branch>> {
        let Target::Node(number) = child.leads_to() else {
            return Some(split_leaf(child, here, wanted, new));
        };
        let mut siblings: Vec<Branch> = Vec::new();
        for (child, span) in self.children(number, here)? {
            if span.meets(wanted) {
                siblings.extend(self.splice(child, span, wanted, new)?);
            } else {
                siblings.push(Branch {
                    first: span.first,
                    child,
                });
            }
        }
        siblings.dedup_by_key(|branch| branch.child);
        if siblings.is_empty() {
            return Some(siblings);
        }
        let nodes = siblings.len().div_ceil(NODE_CHILDREN);
        let each = siblings.len().div_ceil(nodes);
        let packed = siblings.chunks(each).map(|chunk| Branch {
            first: chunk[0].first,
            child: tree::node(&mut self.arena, chunk),
        });
        Some(packed.collect())
    }

    fn levels(&self, root: Child) -> Option<usize> {
        let (mut levels, mut child) = (0, root);
        while let Target::Node(number) = child.leads_to() {
            child = self.block(number)?.children().next()?.1;
            levels += 1;
            if levels > 2 * ADDRESS_HALF_DEPTH {
                return None;
            }
        }
        Some(levels)
    }
}

/// What takes a leaf's place for the keys `here` that led to it.
fn split_leaf(leaf: Child, here: Span, wanted: Span, new: &[Branch]) -> Vec<Branch> {
    let mut pieces = Vec::new();
    if here.first < wanted.first {
        pieces.push(Branch {
            first: here.first,
            child: leaf,
        });
    }
    let first = here.first.max(wanted.first);
    let last = here.last.min(wanted.last);
    let begun = new.partition_point(|branch| branch.first <= first);
    if let Some(in_force) = begun.checked_sub(1).map(|place| new[place]) {
        // One that began before these keys has a place already, that of the keys before.
        if in_force.first == first {
            pieces.push(Branch {
                first,
                child: in_force.child,
            });
        }
    }
    let within = new[begun..].iter();
    pieces.extend(within.take_while(|branch| branch.first <= last));
    if let Some(behind) = wanted
        .last
        .checked_add(1)
        .filter(|first| *first <= here.last)
    {
        pieces.push(Branch {
            first: behind,
            child: leaf,
        });
    }
    pieces.dedup_by_key(|branch| branch.child);
    pieces
}
