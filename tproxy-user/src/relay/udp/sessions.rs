//! The sessions of a worker: opened, served in turns, and ended.

mod opening;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use log::{debug, warn};
use mio::Registry;
use nix::libc;

use super::forward::{Passed, datagrams, pass};
use super::raw::RawSockets;
use super::session::{Closed, Session};
use super::sys::{BATCH, Inbox};
use super::table::{Class, Flow, Table};
use super::unreachable::Reason;
use crate::relay::occasional::Occasional;
use crate::relay::side::Side;
use crate::relay::stats::Counters;
use crate::relay::worker::{REPORT_INTERVAL, Shared};
use crate::relay::{End, FlowRecord};

/// How long a session may be idle while the relay drains.
const IDLE_WHILE_DRAINING: Duration = Duration::from_secs(1);
/// How many sessions are ended for being idle before others have their turn.
const EXPIRED_PER_ROUND: usize = 256;
/// Idle sessions are looked for at multiples of this, so that many cause few wakeups.
const TICK: Duration = Duration::from_millis(100);

pub(super) struct Sessions {
    table: Table<Session>,
    /// Those whose turn is due.
    ready: VecDeque<usize>,
    /// Those with bytes that the policy has not been told of, and when it will be.
    unreported: Vec<usize>,
    report_at: Duration,
    raw: RawSockets,
    registry: Registry,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    /// The time since the worker's epoch, as of this round.
    now: Duration,
    next_serial: u32,
    draining: bool,
    warnings: Warnings,
}

/// When each of these was last logged.
#[derive(Debug, Default)]
struct Warnings {
    own_port: Occasional,
    fallback: Occasional,
    limit: Occasional,
    exhaustion: Occasional,
    raw: Occasional,
}

/// A session that was opened a moment ago, and may be over by now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opened {
    key: usize,
    serial: u32,
}

/// A datagram that came to the reply socket of somebody else, before that was connected.
struct Stray {
    flow: Flow,
    index: usize,
}

impl Sessions {
    pub(super) fn new(registry: Registry, shared: Arc<Shared>, counters: Arc<Counters>) -> Self {
        Self {
            table: Table::new(shared.sessions_per_source),
            ready: VecDeque::new(),
            unreported: Vec::new(),
            report_at: Duration::ZERO,
            raw: RawSockets::new(shared.settings.mark),
            registry,
            shared,
            counters,
            now: Duration::ZERO,
            next_serial: 0,
            draining: false,
            warnings: Warnings::default(),
        }
    }

    pub(super) fn set_time(&mut self, now: Duration) {
        self.now = now;
    }

    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// How long until a session may be idle or bytes are to be reported.
    pub(super) fn wait(&self, now: Duration) -> Option<Duration> {
        let idle = self.table.next_idle(|class| self.idle(class)).map(|next| {
            let ticks = next.0.as_nanos().div_ceil(TICK.as_nanos());
            TICK * u32::try_from(ticks).unwrap_or(u32::MAX)
        });
        let report = (!self.unreported.is_empty()).then_some(self.report_at);
        let next = idle.into_iter().chain(report).min()?;
        Some(next.saturating_sub(now))
    }

    /// Something waits at a socket.
    pub(super) fn note(&mut self, key: usize, side: Side) {
        if let Some(session) = self.table.get_mut(key) {
            session.set_ready(side, true);
            self.queue(key);
        }
    }

    /// Passes on datagrams of one flow that came to the worker's socket, and names the session if they
    /// have opened it.
    pub(super) fn arrive(
        &mut self,
        flow: Flow,
        inbox: &Inbox,
        range: Range<usize>,
    ) -> Option<Opened> {
        if let Some(key) = self.table.find(&flow) {
            self.pass_to_upstream(key, inbox, range);
            return None;
        }
        let Some(key) = self.open(flow, inbox, &range) else {
            self.counters.dropped.add(range.len() as u64);
            return None;
        };
        let serial = self.table.get_mut(key)?.serial;
        self.pass_to_upstream(key, inbox, range);
        Some(Opened { key, serial })
    }

    /// What had come to the worker's socket before this session was opened has been handled.
    pub(super) fn settle(&mut self, Opened { key, serial }: Opened) {
        if let Some(session) = self.table.get_mut(key)
            && session.serial == serial
        {
            session.settled = true;
            self.queue(key);
        }
    }

    pub(super) fn give_turns(&mut self, inbox: &mut Inbox) {
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else {
                return;
            };
            if let Some(session) = self.table.get_mut(key) {
                session.queued = false;
                self.turn(key, inbox);
            }
        }
    }

    /// Ends sessions that are idle, and reports bytes if it is time to.
    pub(super) fn expire(&mut self, inbox: &mut Inbox) {
        if self.now >= self.report_at {
            self.report_all();
        }
        for _ in 0..EXPIRED_PER_ROUND {
            let next = self.table.next_idle(|class| self.idle(class));
            let Some((deadline, key)) = next.filter(|(deadline, _)| *deadline <= self.now) else {
                return;
            };
            // A datagram that has come in this very moment keeps it.
            if let Some(session) = self.table.get_mut(key) {
                session.settled = true;
                session.set_ready(Side::Client, true);
                session.set_ready(Side::Upstream, true);
            }
            self.turn(key, inbox);
            if self.table.next_idle(|class| self.idle(class)) == Some((deadline, key)) {
                let end = if self.draining {
                    End::Drained
                } else {
                    End::Idle
                };
                self.end(key, end);
            }
        }
    }

    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    pub(super) fn end_all(&mut self) {
        for key in self.table.keys() {
            self.end(key, End::Drained);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.draining && self.table.is_empty()
    }

    /// How long a session may be idle.
    fn idle(&self, class: Class) -> Duration {
        let settings = &self.shared.settings;
        let idle = match class {
            Class::Dns => settings.udp_idle_dns,
            Class::Other => settings.udp_idle,
        };
        if self.draining {
            idle.min(IDLE_WHILE_DRAINING)
        } else {
            idle
        }
    }

    fn queue(&mut self, key: usize) {
        if let Some(session) = self.table.get_mut(key)
            && !session.queued
            && (session.is_ready(Side::Client) || session.is_ready(Side::Upstream))
        {
            session.queued = true;
            self.ready.push_back(key);
        }
    }

    /// Reads one batch of each socket of a session.
    fn turn(&mut self, key: usize, inbox: &mut Inbox) {
        for side in [Side::Client, Side::Upstream] {
            let Some(session) = self.table.get_mut(key) else {
                return;
            };
            if !session.is_ready(side) {
                continue;
            }
            let Some(socket) = session.socket(side) else {
                continue;
            };
            match inbox.receive(socket) {
                Ok(received) => {
                    // A batch that is not full has emptied the socket.
                    session.set_ready(side, received == BATCH);
                    match side {
                        Side::Client => self.take_from_client(key, inbox, received),
                        Side::Upstream => self.pass_to_client(key, inbox, 0..received),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    session.set_ready(side, false);
                    if side == Side::Client {
                        session.fresh = false;
                    }
                }
                Err(error) => self.failed(key, side, error),
            }
        }
        self.queue(key);
    }

    /// Passes on what came to the reply socket of a session.
    fn take_from_client(&mut self, key: usize, inbox: &Inbox, received: usize) {
        let Some(session) = self.table.get_mut(key) else {
            return;
        };
        if !session.fresh {
            return self.pass_to_upstream(key, inbox, 0..received);
        }
        session.fresh = received == BATCH;
        let (client, destination) = (session.reply_to, session.destination);
        let mut strays = Vec::new();
        for index in 0..received {
            match inbox.sender(index) {
                Some(sender) if sender != client => strays.push(Stray {
                    flow: Flow {
                        client: sender,
                        destination,
                    },
                    index,
                }),
                _ => self.pass_to_upstream(key, inbox, index..index + 1),
            }
        }
        for Stray { flow, index } in strays {
            if let Some(opened) = self.arrive(flow, inbox, index..index + 1) {
                self.settle(opened);
            }
        }
    }

    fn pass_to_upstream(&mut self, key: usize, inbox: &Inbox, range: Range<usize>) {
        let Some(session) = self.table.get_mut(key) else {
            return;
        };
        let Some(last) = range.clone().next_back() else {
            return;
        };
        session.last_length = last_length(inbox, last);
        let passed = pass(
            inbox,
            range,
            &session.upstream,
            &mut session.upstream_segmentation,
        );
        session.to_upstream.moved += passed.bytes;
        self.account(key, Side::Upstream, passed);
    }

    fn pass_to_client(&mut self, key: usize, inbox: &Inbox, range: Range<usize>) {
        let Some(session) = self.table.get_mut(key) else {
            return;
        };
        let passed = match &session.reply {
            Some(socket) => pass(inbox, range, socket, &mut session.reply_segmentation),
            None => reply_by_raw_socket(&mut self.raw, session, inbox, range),
        };
        session.to_client.moved += passed.bytes;
        if session.reply.is_none()
            && let Some(error) = &passed.error
            && self.warnings.raw.is_due()
        {
            warn!(
                "cannot reply from {}: {error}; replies to port {} need CAP_NET_RAW as long as a program on this host has it",
                session.destination,
                session.destination.port()
            );
        }
        self.account(key, Side::Client, passed);
    }

    /// Takes note of what was sent to the socket on `side`.
    fn account(&mut self, key: usize, side: Side, passed: Passed) {
        self.table.renew(key, self.now);
        if passed.dropped > 0 {
            self.counters.dropped.add(passed.dropped);
        }
        if passed.bytes > 0
            && let Some(session) = self.table.get_mut(key)
            && !session.unreported
        {
            session.unreported = true;
            if self.unreported.is_empty() {
                self.report_at = self.now + REPORT_INTERVAL;
            }
            self.unreported.push(key);
        }
        if let Some(error) = passed.error {
            self.failed(key, side, error);
        }
    }

    /// A socket has reported an error. Some say that the other end is not there; the others are about
    /// one datagram.
    fn failed(&mut self, key: usize, side: Side, error: io::Error) {
        let Some(session) = self.table.get_mut(key) else {
            return;
        };
        let Some(reason) = Reason::of(&error) else {
            debug!("udp {}: {side:?}: {error}", session.destination);
            return;
        };
        match side {
            // Somebody else may have answered for the client, or a filter of this host forbids it.
            Side::Client if reason == Reason::Prohibited || session.reply.is_none() => {}
            Side::Client if reason == Reason::Port => self.end(key, End::ClientReset),
            Side::Client => self.end(key, End::Unreachable),
            Side::Upstream => {
                let (client, destination) = (session.reply_to, session.destination);
                let length = session.last_length;
                // What the client sends when it knows would be lost in the reply socket.
                self.end(key, End::from_error(side, error));
                self.tell_client(client, destination, length, reason);
            }
        }
    }

    fn tell_client(
        &mut self,
        client: SocketAddr,
        destination: SocketAddr,
        length: u16,
        reason: Reason,
    ) {
        let told = self.raw.unreachable(client, destination, length, reason);
        if let Err(error) = told
            && self.warnings.raw.is_due()
        {
            warn!("cannot tell {client} that {destination} is not reached: {error}");
        }
    }

    fn report_all(&mut self) {
        for key in std::mem::take(&mut self.unreported) {
            if let Some(session) = self.table.get_mut(key) {
                session.unreported = false;
                report(session, &self.shared, &self.counters);
            }
        }
    }

    fn end(&mut self, key: usize, end: End) {
        let Some((flow, mut session)) = self.table.remove(key) else {
            return;
        };
        report(&mut session, &self.shared, &self.counters);
        // Whoever learns that the session is over finds its descriptors and addresses free.
        let Closed {
            rule,
            to_upstream,
            to_client,
            opened,
        } = session.close();
        self.give_place_back();
        self.counters.sessions.set(self.table.len() as u64);
        self.shared.policy.ended(&FlowRecord {
            protocol: "udp",
            client: flow.client,
            destination: flow.destination,
            rule: &rule,
            upstream: "direct",
            to_upstream,
            to_client,
            duration: self.now.saturating_sub(opened),
            end,
        });
    }
}

/// The length of the last datagram of a received message.
fn last_length(inbox: &Inbox, index: usize) -> u16 {
    let last = datagrams(inbox.payload(index), inbox.segment(index)).last();
    u16::try_from(last.map_or(0, <[u8]>::len)).unwrap_or(u16::MAX)
}

fn reply_by_raw_socket(
    raw: &mut RawSockets,
    session: &Session,
    inbox: &Inbox,
    range: Range<usize>,
) -> Passed {
    let mut passed = Passed::default();
    for index in range {
        for datagram in datagrams(inbox.payload(index), inbox.segment(index)) {
            match raw.reply(session.destination, session.reply_to, datagram) {
                Ok(()) => passed.bytes += datagram.len() as u64,
                Err(error) => {
                    passed.dropped += 1;
                    // A full send buffer is no failure.
                    if error.raw_os_error() != Some(libc::EAGAIN) {
                        passed.error = Some(error);
                    }
                }
            }
        }
    }
    passed
}

fn report(session: &mut Session, shared: &Shared, counters: &Counters) {
    counters.dropped.add(session.take_overflow());
    let to_upstream = session.to_upstream.take_unreported();
    let to_client = session.to_client.take_unreported();
    if to_upstream > 0 || to_client > 0 {
        counters.to_upstream.add(to_upstream);
        counters.to_client.add(to_client);
        shared.policy.moved(&session.rule, to_upstream, to_client);
    }
}
