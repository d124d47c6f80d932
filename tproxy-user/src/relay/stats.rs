//! Counters of a worker, written by it alone and read by anybody.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Load;

/// The live counters of one worker, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Counters {
    pub(super) accepted: Counter,
    pub(super) flows: Counter,
    pub(super) refused: Counter,
    pub(super) own_port: Counter,
    pub(super) connect_failed: Counter,
    pub(super) shed: Counter,
    pub(super) over_limit: Counter,
    pub(super) pauses: Counter,
    pub(super) fallbacks: Counter,
    pub(super) pipes: Counter,
    pub(super) sessions: Counter,
    pub(super) sessions_opened: Counter,
    pub(super) evicted: Counter,
    pub(super) dropped: Counter,
    pub(super) to_upstream: Counter,
    pub(super) to_client: Counter,
}

impl Counters {
    pub(super) fn load(&self) -> Load {
        Load {
            flows: self.flows.get(),
            sessions: self.sessions.get(),
            dropped: self.dropped.get(),
        }
    }

    pub(super) fn read(&self) -> WorkerStats {
        WorkerStats {
            accepted: self.accepted.get(),
            flows: self.flows.get(),
            refused: self.refused.get(),
            own_port: self.own_port.get(),
            connect_failed: self.connect_failed.get(),
            shed: self.shed.get(),
            over_limit: self.over_limit.get(),
            pauses: self.pauses.get(),
            fallbacks: self.fallbacks.get(),
            pipes: self.pipes.get(),
            sessions: self.sessions.get(),
            sessions_opened: self.sessions_opened.get(),
            evicted: self.evicted.get(),
            dropped: self.dropped.get(),
            to_upstream: self.to_upstream.get(),
            to_client: self.to_client.get(),
        }
    }
}

/// What one worker has done since it started, and what it does now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerStats {
    /// Connections accepted.
    pub accepted: u64,
    /// TCP flows it serves now.
    pub flows: u64,
    /// Connections that the policy refused, and datagrams.
    pub refused: u64,
    /// Connections to a listener's own port, which would have made the relay connect to itself, and
    /// datagrams.
    pub own_port: u64,
    /// Flows whose upstream connection failed.
    pub connect_failed: u64,
    /// Connections that were accepted and then reset because descriptors or memory had run out, and
    /// UDP sessions that were not opened.
    pub shed: u64,
    /// Connections that were accepted and then reset because their client had as many flows as it may
    /// have.
    pub over_limit: u64,
    /// How often it stopped accepting because no descriptor or no place was free.
    pub pauses: u64,
    /// Flows that were to come from the client's address and came from this host's.
    pub fallbacks: u64,
    /// Pipes that flows hold now.
    pub pipes: u64,
    /// UDP sessions it serves now.
    pub sessions: u64,
    /// UDP sessions opened.
    pub sessions_opened: u64,
    /// UDP sessions ended while idle to make room for others of the same source.
    pub evicted: u64,
    /// Datagrams that were not passed on: those that came faster than they were read, those for which
    /// there was no session or no room in the send buffer, and those that the kernel refused to send.
    pub dropped: u64,
    /// Bytes of payload moved from clients to upstream, of flows that are over and as last reported
    /// of the others.
    pub to_upstream: u64,
    /// Bytes of payload moved from upstream to clients, likewise.
    pub to_client: u64,
}

/// A number with a single writer: its updates need no atomic read-modify-write.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.set(self.get() + more);
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
