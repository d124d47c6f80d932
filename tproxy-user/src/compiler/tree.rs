//! Search trees over intervals, built from the bottom.

use tproxy_common::tables::{Block, Child, NODE_CHILDREN};

use super::{arena::Arena, sweep::Interval};

/// A key range and what it leads to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Branch {
    pub(super) first: u64,
    pub(super) child: Child,
}

/// The tree over intervals whose keys fit 64 bits.
pub(super) fn build_narrow(arena: &mut Arena, intervals: &[Interval]) -> Child {
    let branches = intervals
        .iter()
        // An interval that begins above the last 64-bit key holds none.
        .filter_map(|interval| {
            Some(Branch {
                first: u64::try_from(interval.first).ok()?,
                child: interval.class,
            })
        })
        .collect();
    build(arena, branches)
}

/// The tree over 128-bit keys: one over the upper halves, which leads to one over the lower halves
/// wherever these matter.
pub(super) fn build_address(arena: &mut Arena, intervals: &[Interval]) -> Child {
    let branches = upper_branches(arena, intervals);
    build(arena, branches)
}

/// What the tree over the upper halves leads to. The first interval begins with a lower half of
/// zeroes.
pub(super) fn upper_branches(arena: &mut Arena, intervals: &[Interval]) -> Vec<Branch> {
    let mut branches: Vec<Branch> = Vec::with_capacity(intervals.len());
    let mut rest = intervals;
    let mut before = None;
    while let Some(interval) = rest.first() {
        let high = high(interval.first);
        let same = rest.partition_point(|interval| self::high(interval.first) == high);
        let (here, behind) = rest.split_at(same);
        rest = behind;
        let last = here[same - 1];
        if same == 1 && low(interval.first) == 0 {
            branches.push(Branch {
                first: high,
                child: interval.class,
            });
        } else {
            let child = low_tree(arena, here, before);
            branches.push(Branch { first: high, child });
            // Upper halves above this one go on with its last class, unless they begin anew.
            let next = high.checked_add(1);
            let begins_anew = rest.first().is_some_and(|next_interval| {
                next.map(|next| u128::from(next) << 64) == Some(next_interval.first)
            });
            if let Some(next) = next.filter(|_| !begins_anew) {
                // A lower tree at `next` takes this branch's place.
                let taken = rest
                    .first()
                    .is_some_and(|interval| self::high(interval.first) == next);
                if !taken {
                    branches.push(Branch {
                        first: next,
                        child: last.class,
                    });
                }
            }
        }
        before = Some(last.class);
    }
    branches
}

/// The tree over the lower halves of `intervals`, which share their upper half; `before` is the
/// class in force up to the first of them.
fn low_tree(arena: &mut Arena, intervals: &[Interval], before: Option<Child>) -> Child {
    let leading = before
        .filter(|_| low(intervals[0].first) != 0)
        .map(|child| Branch { first: 0, child });
    let branches = leading
        .into_iter()
        .chain(intervals.iter().map(|interval| Branch {
            first: low(interval.first),
            child: interval.class,
        }))
        .collect();
    build(arena, branches).over_low_half()
}

/// Packs branches into nodes, and the nodes into nodes, until one is left.
pub(super) fn build(arena: &mut Arena, mut branches: Vec<Branch>) -> Child {
    while branches.len() > 1 {
        branches = branches
            .chunks(NODE_CHILDREN)
            .map(|chunk| Branch {
                first: chunk[0].first,
                child: node(arena, chunk),
            })
            .collect();
    }
    branches[0].child
}

/// One node.
pub(super) fn node(arena: &mut Arena, branches: &[Branch]) -> Child {
    let boundaries: Vec<u64> = branches[1..].iter().map(|branch| branch.first).collect();
    let children: Vec<Child> = branches.iter().map(|branch| branch.child).collect();
    Child::node(arena.append(&[Block::node(&boundaries, &children)]))
}

/// The upper half of an address.
pub(super) const fn high(key: u128) -> u64 {
    (key >> 64) as u64
}

/// The lower half of an address.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half is what is asked for"
)]
pub(super) const fn low(key: u128) -> u64 {
    key as u64
}
