//! How workers give long flows to one another.

use std::os::fd::AsRawFd;

use log::error;
use mio::unix::SourceFd;

use super::{Command, Worker, report};
use crate::relay::End;
use crate::relay::side::Side;

impl Worker {
    /// Counts a flow that has turned out to be long, and gives it away if another worker has fewer.
    pub(super) fn spread(&mut self, key: usize) {
        let Some(Some(flow)) = self.flows.get_mut(key) else {
            return;
        };
        flow.counted_long = true;
        self.shared.balance.add_long(self.number);
        if self.command == Command::Run
            && let Some(other) = self.shared.balance.better_place(self.number)
        {
            self.give(key, other);
        }
    }

    /// Gives a flow to another worker, unless that has ended.
    fn give(&mut self, key: usize, other: usize) {
        let Some(mut inbox) = self.shared.balance.open_inbox(other) else {
            return;
        };
        let Some(mut flow) = self.flows.get_mut(key).and_then(Option::take) else {
            return;
        };
        self.vacated.push(key);
        for side in [Side::Client, Side::Upstream] {
            if flow.registered(side).take().is_some() {
                let descriptor = flow.socket(side).as_raw_fd();
                let source = &mut SourceFd(&descriptor);
                if let Err(error) = self.poll.registry().deregister(source) {
                    error!("cannot stop watching a flow that another worker gets: {error}");
                }
            }
        }
        report(&mut flow, &*self.shared.policy, &self.counters);
        self.resources.pipes.let_go(flow.pipes());
        self.shared.balance.move_long(self.number, other);
        inbox.put(flow);
        drop(inbox);
        self.shared.wake(other);
    }

    /// Takes up what other workers have given to this one.
    pub(super) fn take_given(&mut self) {
        for mut flow in self.shared.balance.take(self.number) {
            self.resources.pipes.take_over(flow.pipes());
            // What either worker has not been told of yet shows when the sockets are registered.
            flow.queued = false;
            flow.unreported = false;
            let key = self.flows.insert(Some(flow));
            self.count_flows();
            if self.must_end() {
                self.end(key, End::Drained);
            } else if self.watch(key, Side::Upstream) && self.watch(key, Side::Client) {
                self.turn(key);
            }
        }
    }
}
