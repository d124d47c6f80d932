//! Spreads long transfers over the workers.
//!
//! Connections that a client opens at once come to one worker, where they keep their order. Those of
//! them that turn out to be long are given to workers that have fewer of these.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::flow::Flow;

/// The long flows of all workers.
#[derive(Debug)]
pub(super) struct LongFlows(Box<[Share]>);

/// What there is of one worker.
#[derive(Debug, Default)]
struct Share {
    /// How many long flows it has, those in its inbox included.
    number: AtomicUsize,
    inbox: Mutex<Inbox>,
}

/// Flows that others have given to a worker.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    flows: Vec<Flow>,
    /// The worker has ended.
    closed: bool,
}

impl LongFlows {
    pub(super) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Share::default()).collect())
    }

    /// A flow of a worker has turned out to be long.
    pub(super) fn add(&self, worker: usize) {
        self.0[worker].number.fetch_add(1, Ordering::Relaxed);
    }

    /// A long flow of a worker is over.
    pub(super) fn remove(&self, worker: usize) {
        self.0[worker].number.fetch_sub(1, Ordering::Relaxed);
    }

    /// The worker that has the fewest, if `worker` has at least two more, so that giving one away makes
    /// things more equal.
    pub(super) fn better_place(&self, worker: usize) -> Option<usize> {
        let number = |share: &Share| share.number.load(Ordering::Relaxed);
        let shares = self.0.iter().map(number).enumerate();
        let (other, fewest) = shares.min_by_key(|(_, number)| *number)?;
        (number(&self.0[worker]) >= fewest + 2).then_some(other)
    }

    /// The inbox of a worker that takes flows; `None` of one that has ended.
    pub(super) fn open_inbox(&self, worker: usize) -> Option<MutexGuard<'_, Inbox>> {
        let inbox = self.inbox(worker);
        (!inbox.closed).then_some(inbox)
    }

    /// Counts a long flow of worker `from` as one of worker `to`.
    pub(super) fn move_one(&self, from: usize, to: usize) {
        self.remove(from);
        self.add(to);
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
        let flows = LongFlows::new(3);
        assert_eq!(flows.better_place(0), None);
        flows.add(0);
        assert_eq!(
            flows.better_place(0),
            None,
            "its place would only be another"
        );
        flows.add(0);
        flows.add(1);
        assert_eq!(flows.better_place(0), Some(2));
        assert_eq!(flows.better_place(1), None);
        flows.move_one(0, 2);
        assert_eq!(flows.better_place(0), None);
        flows.remove(1);
        flows.add(2);
        assert_eq!(flows.better_place(2), Some(1));
    }

    #[test]
    fn an_inbox_that_is_closed_takes_nothing() {
        let flows = LongFlows::new(2);
        assert!(flows.open_inbox(1).is_some());
        assert!(flows.close(1));
        assert!(flows.open_inbox(1).is_none());
        assert!(flows.open_inbox(0).is_some());
    }
}
