//! Keeps the workers equally busy.
//!
//! Connections that a client opens at once come to one worker, where they keep their order, and those
//! that come faster than it goes to sleep come to it too (`tproxy_common::turn`), which wakes the
//! fewest. Flows of them that turn out to be long are given to workers that have fewer of these.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::flow::Flow;

/// With so many flows more than another, a worker asks for no more.
const UNEQUAL: usize = 64;

/// What each worker has.
#[derive(Debug)]
pub(super) struct Balance(Box<[Share]>);

/// What one worker has, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Share {
    flows: AtomicUsize,
    /// How many of them are long, those in its inbox included.
    long_flows: AtomicUsize,
    inbox: Mutex<Inbox>,
}

/// Flows that others have given to a worker.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    flows: Vec<Flow>,
    /// The worker has ended.
    closed: bool,
}

impl Balance {
    pub(super) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Share::default()).collect())
    }

    /// Says how many flows a worker has.
    pub(super) fn set_flows(&self, worker: usize, flows: usize) {
        self.0[worker].flows.store(flows, Ordering::Relaxed);
    }

    /// A flow of a worker has turned out to be long.
    pub(super) fn add_long(&self, worker: usize) {
        self.0[worker].long_flows.fetch_add(1, Ordering::Relaxed);
    }

    /// A long flow of a worker is over.
    pub(super) fn remove_long(&self, worker: usize) {
        self.0[worker].long_flows.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a long flow of worker `from` as one of worker `to`.
    pub(super) fn move_long(&self, from: usize, to: usize) {
        self.remove_long(from);
        self.add_long(to);
    }

    /// Whether another worker has fewer long flows, or far fewer flows.
    pub(super) fn another_has_less(&self, worker: usize) -> bool {
        let own = &self.0[worker];
        self.0.iter().any(|other| {
            other.long_flows() < own.long_flows() || other.flows() + UNEQUAL <= own.flows()
        })
    }

    /// The worker that has the fewest long flows, if `worker` has at least two more, so that giving
    /// one away makes things more equal.
    pub(super) fn better_place(&self, worker: usize) -> Option<usize> {
        let shares = self.0.iter().map(Share::long_flows).enumerate();
        let (other, fewest) = shares.min_by_key(|(_, number)| *number)?;
        (self.0[worker].long_flows() >= fewest + 2).then_some(other)
    }

    /// The inbox of a worker that takes flows; `None` of one that has ended.
    pub(super) fn open_inbox(&self, worker: usize) -> Option<MutexGuard<'_, Inbox>> {
        let inbox = self.inbox(worker);
        (!inbox.closed).then_some(inbox)
    }

    /// What has been given to a worker.
    pub(super) fn take(&self, worker: usize) -> Vec<Flow> {
        std::mem::take(&mut self.inbox(worker).flows)
    }

    /// Closes the inbox of a worker that is about to end, unless there is something in it.
    pub(super) fn close(&self, worker: usize) -> bool {
        let mut inbox = self.inbox(worker);
        inbox.closed = inbox.flows.is_empty();
        inbox.closed
    }

    fn inbox(&self, worker: usize) -> MutexGuard<'_, Inbox> {
        let inbox = &self.0[worker].inbox;
        inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    fn flows(&self) -> usize {
        self.flows.load(Ordering::Relaxed)
    }

    fn long_flows(&self) -> usize {
        self.long_flows.load(Ordering::Relaxed)
    }
}

impl Inbox {
    pub(super) fn put(&mut self, flow: Flow) {
        self.flows.push(flow);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_moves_where_that_makes_things_more_equal() {
        let balance = Balance::new(3);
        assert_eq!(balance.better_place(0), None);
        balance.add_long(0);
        assert_eq!(
            balance.better_place(0),
            None,
            "its place would only be another"
        );
        balance.add_long(0);
        balance.add_long(1);
        assert_eq!(balance.better_place(0), Some(2));
        assert_eq!(balance.better_place(1), None);
        balance.move_long(0, 2);
        assert_eq!(balance.better_place(0), None);
        balance.remove_long(1);
        balance.add_long(2);
        assert_eq!(balance.better_place(2), Some(1));
    }

    #[test]
    fn a_worker_compares_its_flows_with_those_of_others() {
        let balance = Balance::new(3);
        balance.set_flows(0, UNEQUAL + 9);
        balance.set_flows(1, 10);
        balance.set_flows(2, 11);
        assert!(!balance.another_has_less(0));
        balance.set_flows(2, 9);
        assert!(balance.another_has_less(0));
        assert!(!balance.another_has_less(2));
        balance.add_long(2);
        assert!(balance.another_has_less(2), "few flows, one of them long");
    }

    #[test]
    fn an_inbox_that_is_closed_takes_nothing() {
        let balance = Balance::new(2);
        assert!(balance.open_inbox(1).is_some());
        assert!(balance.close(1));
        assert!(balance.open_inbox(1).is_none());
        assert!(balance.open_inbox(0).is_some());
    }
}
