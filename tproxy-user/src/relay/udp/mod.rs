//! Datagrams: a worker's socket that all new ones come to, and the sessions that they make.
//!
//! The first datagram of a flow comes to the worker's socket with its original destination. It opens
//! a session: a socket connected to upstream, and a reply socket that has the destination as its own
//! address and is connected to the client. The kernel's own lookup gives the reply socket all later
//! datagrams of the flow. Nothing is queued here: what a socket does not take at once is dropped, and
//! counted, as a router would.
//!
//! While a session lasts its reply socket holds the port at the destination's address. A program that
//! binds the port of all addresses shares it with `SO_REUSEADDR` (socket(7)), or gets `EADDRINUSE` if
//! it starts meanwhile. One that was there first is not in the way: such a session has no reply
//! socket. Its replies go out by a raw socket, and the client's datagrams come to the worker's.

mod forward;
mod fragments;
mod gathering;
mod raw;
mod recency;
mod session;
mod sessions;
mod socket;
mod sys;
mod table;
mod unreachable;

use std::io;
use std::net::UdpSocket;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use log::error;
use mio::unix::SourceFd;
use mio::{Interest, Registry};

use super::occasional::Occasional;
use super::side::Side;
use super::stats::Counters;
use super::token::Origin;
use super::worker::Shared;
use gathering::Gathering;
use sessions::{Opened, Sessions};
pub(super) use socket::prepare;
use sys::{BATCH, Inbox, overflow};
use table::Flow;

/// How many batches of the worker's socket are handled before sessions have their turn.
const BATCHES: usize = 2;
/// After so many batches a session reads its reply socket although the worker's socket has not been
/// empty since it was opened: what waited there then has been read by now.
const PATIENCE: u32 = 4096;

/// The datagrams of one worker.
pub(super) struct Datagrams {
    socket: UdpSocket,
    /// How many datagrams the socket had not taken at the last look.
    overflow: u32,
    counters: Arc<Counters>,
    /// Datagrams may wait at the socket. The poll says so once, so it is remembered.
    pending: bool,
    inbox: Inbox,
    sessions: Sessions,
    /// Sessions whose first datagrams may still wait at the worker's socket, the oldest first.
    unsettled: Vec<Opened>,
    /// How many batches of the worker's socket have been read since the first of them was opened.
    batches: u32,
    gathering: Gathering,
    last_error: Occasional,
}

impl Datagrams {
    pub(super) fn new(
        socket: UdpSocket,
        registry: &Registry,
        shared: Arc<Shared>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        registry.register(
            &mut SourceFd(&socket.as_raw_fd()),
            Origin::Datagrams.into(),
            Interest::READABLE,
        )?;
        Ok(Self {
            socket,
            overflow: 0,
            counters: Arc::clone(&counters),
            pending: true,
            inbox: Inbox::new(),
            sessions: Sessions::new(registry.try_clone()?, shared, counters),
            unsettled: Vec::new(),
            batches: 0,
            gathering: Gathering::default(),
            last_error: Occasional::default(),
        })
    }

    /// The poll has reported the worker's socket.
    pub(super) fn set_pending(&mut self) {
        self.pending = true;
    }

    /// The poll has reported a socket of a session.
    pub(super) fn note(&mut self, key: usize, side: Side) {
        self.sessions.note(key, side);
    }

    /// Handles what waits, within the bounds of one round.
    pub(super) fn work(&mut self, now: Duration) {
        self.sessions.set_time(now);
        for _ in 0..BATCHES {
            if self.pending {
                self.receive();
            }
        }
        self.sessions.give_turns(&mut self.inbox);
        self.sessions.expire(&mut self.inbox);
    }

    /// Called before the poll: what was handled may have others make more, which is better read
    /// together.
    pub(super) fn let_gather(&mut self) {
        self.gathering.let_others_run(self.inbox.total());
    }

    /// How long the poll may wait, at most.
    pub(super) fn wait(&self, now: Duration) -> Option<Duration> {
        if self.pending || self.sessions.has_work() {
            return Some(Duration::ZERO);
        }
        self.sessions.wait(now)
    }

    /// Opens no more sessions, and ends those that there are as soon as they are idle.
    pub(super) fn drain(&mut self) {
        self.sessions.drain();
    }

    /// Ends all sessions, and opens no more.
    pub(super) fn stop(&mut self) {
        self.sessions.drain();
        self.sessions.end_all();
    }

    /// Whether there are no sessions any more, nor will be.
    pub(super) fn is_over(&self) -> bool {
        self.sessions.is_over()
    }

    /// Reads one batch of the worker's socket.
    fn receive(&mut self) {
        // Sessions from before this call are settled if it leaves nothing in the socket.
        let earlier = self.unsettled.len();
        let received = match self.inbox.receive(&self.socket) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                if self.last_error.is_due() {
                    error!("cannot receive datagrams: {error}; trying again with the next one");
                }
                0
            }
        };
        self.batches = self.batches.saturating_add(1);
        let mut next = 0;
        while next < received {
            let flow = flow_of(&self.inbox, next);
            let end = (next + 1..received)
                .find(|&other| flow_of(&self.inbox, other) != flow)
                .unwrap_or(received);
            if let Some(flow) = flow {
                self.arrive(flow, next..end);
            }
            next = end;
        }
        if received < BATCH {
            self.settle(earlier);
            self.pending = !self.unsettled.is_empty();
            return;
        }
        if self.batches >= PATIENCE {
            self.settle(self.unsettled.len());
        }
        self.count_overflow();
    }

    /// Counts what the socket has not taken since the last look. There is one whenever it was read
    /// too late to find it empty.
    fn count_overflow(&mut self) {
        let Ok(overflow) = overflow(&self.socket) else {
            return;
        };
        let more = overflow.wrapping_sub(self.overflow);
        self.overflow = overflow;
        self.counters.dropped.add(more.into());
    }

    /// Passes on datagrams of one flow.
    fn arrive(&mut self, flow: Flow, range: Range<usize>) {
        if let Some(opened) = self.sessions.arrive(flow, &self.inbox, range) {
            if self.unsettled.is_empty() {
                self.batches = 0;
            }
            self.unsettled.push(opened);
        }
    }

    /// Lets the first `number` of the sessions that wait for it read their reply sockets.
    fn settle(&mut self, number: usize) {
        for opened in self.unsettled.drain(..number) {
            self.sessions.settle(opened);
        }
        if !self.unsettled.is_empty() {
            self.batches = 0;
        }
    }
}

fn flow_of(inbox: &Inbox, index: usize) -> Option<Flow> {
    Some(Flow {
        client: inbox.sender(index)?,
        destination: inbox.destination(index)?,
    })
}
