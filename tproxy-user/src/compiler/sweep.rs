//! From overlapping spans of many rules to disjoint intervals, each with the set of rules that it
//! satisfies.

use tproxy_common::tables::{CLASS_WORDS, Child};

use super::arena::{Arena, Bitmap};

/// Keys from `first` to `last`, inclusive, that a rule wants or does not want.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) first: u128,
    pub(super) last: u128,
    pub(super) rule: u32,
    pub(super) polarity: Polarity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Polarity {
    Include,
    Exclude,
}

/// The keys from `first` up to the next interval's belong to `class`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) first: u128,
    pub(super) class: Child,
}

/// Sweeps over all boundaries. `always` are the rules that want every key, but for exclusions.
/// The first interval begins at 0; neighbours differ.
pub(super) fn intervals(spans: Vec<Span>, always: &[u32], arena: &mut Arena) -> Vec<Interval> {
    let mut edges = edges(spans);
    edges.sort_unstable_by_key(|edge| edge.at);
    let mut state = State::new(always);
    let mut intervals = Vec::with_capacity(edges.len() + 1);
    let mut edges = edges.into_iter().peekable();
    let mut at = 0;
    loop {
        while let Some(edge) = edges.next_if(|edge| edge.at == at) {
            state.cross(&edge);
        }
        let class = state.class(arena);
        if intervals
            .last()
            .is_none_or(|last: &Interval| last.class != class)
        {
            intervals.push(Interval { first: at, class });
        }
        let Some(next) = edges.peek() else {
            return intervals;
        };
        at = next.at;
    }
}

struct Edge {
    at: u128,
    rule: u32,
    polarity: Polarity,
    opens: bool,
}

fn edges(spans: Vec<Span>) -> Vec<Edge> {
    let mut edges = Vec::with_capacity(spans.len() * 2);
    for Span {
        first,
        last,
        rule,
        polarity,
    } in spans
    {
        let edge = |at, opens| Edge {
            at,
            rule,
            polarity,
            opens,
        };
        edges.push(edge(first, true));
        // A span up to the very end has no edge behind it.
        edges.extend(last.checked_add(1).map(|at| edge(at, false)));
    }
    edges
}

/// How many spans of each rule are open, and the rules satisfied by that.
struct State {
    included: Vec<u32>,
    excluded: Vec<u32>,
    satisfied: Bitmap,
    class: Option<(Bitmap, Child)>,
}

impl State {
    fn new(always: &[u32]) -> Self {
        let rules = CLASS_WORDS * 64;
        let mut state = Self {
            included: vec![0; rules],
            excluded: vec![0; rules],
            satisfied: [0; CLASS_WORDS],
            class: None,
        };
        for rule in always {
            state.included[*rule as usize] = 1;
            state.settle(*rule);
        }
        state
    }

    fn cross(&mut self, edge: &Edge) {
        let open = match edge.polarity {
            Polarity::Include => &mut self.included,
            Polarity::Exclude => &mut self.excluded,
        };
        let open = &mut open[edge.rule as usize];
        if edge.opens {
            *open += 1;
        } else {
            *open -= 1;
        }
        self.settle(edge.rule);
    }

    fn settle(&mut self, rule: u32) {
        let place = rule as usize;
        let satisfied = self.included[place] > 0 && self.excluded[place] == 0;
        let bit = 1 << (place % 64);
        if satisfied {
            self.satisfied[place / 64] |= bit;
        } else {
            self.satisfied[place / 64] &= !bit;
        }
    }

    fn class(&mut self, arena: &mut Arena) -> Child {
        match self.class {
            Some((bitmap, class)) if bitmap == self.satisfied => class,
            _ => {
                let class = arena.class(&self.satisfied);
                self.class = Some((self.satisfied, class));
                class
            }
        }
    }
}

const _: () = assert!(CLASS_WORDS * 64 == tproxy_common::limits::RULES);
