//! How a worker opens flows: from an accepted connection to one with upstream that stands.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tproxy_common::flow::Protocol;

use super::{Timer, Worker};
use crate::relay::connect::{self, Attempt};
use crate::relay::flow::Flow;
use crate::relay::intake::{Accepted, Arrival, is_exhaustion};
use crate::relay::side::Side;
use crate::relay::{Admission, End, FlowRecord, source};

/// How many connections are accepted before flows have their turn.
const ACCEPT_BATCH: usize = 32;
/// A connection to upstream that takes longer than this has its client watched, to notice when it
/// gives up.
const CLIENT_WATCH_DELAY: Duration = Duration::from_secs(1);
/// How long to wait for a descriptor or a place to become free elsewhere.
const RESUME_INTERVAL: Duration = Duration::from_millis(100);

impl Worker {
    /// Accepts what waits, within the bounds of one round.
    pub(super) fn accept(&mut self) {
        for accepted in 0..ACCEPT_BATCH {
            if !self.intake.is_ready() {
                return;
            }
            match self.intake.accept() {
                Accepted::Arrival(arrival) => self.open(arrival),
                Accepted::Gone => {}
                Accepted::Nothing => {
                    if accepted > 1 && self.is_best_placed() {
                        self.shared.policy.wants_more(self.number);
                    }
                    return;
                }
                Accepted::Paused => {
                    self.counters.pauses.add(1);
                    self.shared.policy.paused();
                    self.timers.set(self.now + RESUME_INTERVAL, Timer::Resume);
                }
            }
        }
    }

    /// Whether this worker, which is awake, had better have the next connections than another, which
    /// might have to be woken for them.
    fn is_best_placed(&self) -> bool {
        !self.rest.is_overdue(self.now) && !self.shared.balance.another_has_less(self.number)
    }

    /// Starts the flow of an accepted connection. Every early return drops the client's socket,
    /// which resets it.
    fn open(&mut self, arrival: Arrival) {
        self.counters.accepted.add(1);
        let Arrival {
            socket: client,
            client: client_address,
            destination,
        } = arrival;
        let Some(admission) = self
            .shared
            .policy
            .admit(Protocol::Tcp, client_address, destination)
        else {
            self.counters.refused.add(1);
            self.intake.release();
            return;
        };
        if self.leads_back_here(admission.upstream) {
            self.counters.own_port.add(1);
            log::warn!(
                "tcp {client_address} -> {destination} is refused: {} is a port of this relay itself",
                admission.upstream
            );
            self.intake.release();
            return;
        }
        if !self.within_limit(client_address, destination) {
            self.intake.release();
            return;
        }
        self.shared.policy.opened(&admission.rule);
        let attempt = match self.attempt(client_address, &admission) {
            Ok(attempt) => attempt,
            Err(error) => {
                if is_exhaustion(&error) {
                    self.counters.shed.add(1);
                    self.shared.policy.shed();
                } else {
                    self.counters.connect_failed.add(1);
                }
                drop(client);
                self.release(client_address.ip());
                self.shared.policy.ended(&FlowRecord {
                    protocol: "tcp",
                    client: client_address,
                    destination,
                    rule: &admission.rule,
                    upstream: "direct",
                    to_upstream: 0,
                    to_client: 0,
                    duration: Duration::ZERO,
                    end: End::from_error(Side::Upstream, error),
                });
                return;
            }
        };
        let serial = self.next_serial;
        self.next_serial = serial.wrapping_add(1);
        let addresses = (client_address, destination);
        let flow = Flow::new(
            client,
            attempt.socket,
            addresses,
            admission.rule,
            self.now,
            serial,
        );
        let key = self.flows.insert(Some(flow));
        self.count_flows();
        if !self.watch(key, Side::Upstream) {
            return;
        }
        if attempt.connected {
            self.connected.push(key);
        } else {
            let delay = CLIENT_WATCH_DELAY.min(self.shared.settings.connect_timeout);
            self.timers
                .set(self.now + delay, Timer::WatchClient { key, serial });
        }
    }

    /// Gives the flows whose connections to upstream stand since this round their first turn.
    pub(super) fn begin_connected(&mut self) {
        let mut connected = std::mem::take(&mut self.connected);
        for key in connected.drain(..) {
            self.begin(key);
        }
        self.connected = connected;
    }

    fn begin(&mut self, key: usize) {
        let Some(Some(flow)) = self.flows.get_mut(key) else {
            return;
        };
        flow.set_connected();
        self.turn(key);
        if let Some(Some(flow)) = self.flows.get_mut(key) {
            if flow.owes_ack() {
                self.handshakes.defer(key, flow.serial(), self.now);
            }
            if flow.registered(Side::Client).is_none() {
                self.watch(key, Side::Client);
            }
        }
    }

    /// Sends the ACKs that have waited for the client's first bytes long enough, or as long as the
    /// worker had something else to do.
    pub(super) fn complete_handshakes(&mut self, idle: bool) {
        while let Some((key, serial)) = self.handshakes.next_due(self.now, idle) {
            if let Some(Some(flow)) = self.flows.get(key)
                && flow.serial() == serial
                && flow.owes_ack()
            {
                flow.complete_handshake();
            }
        }
    }

    /// Counts a flow of `client` with its source, unless that has as many as it may have.
    fn within_limit(&mut self, client: SocketAddr, destination: SocketAddr) -> bool {
        let Some(sources) = &self.shared.sources else {
            return true;
        };
        if sources.take(client.ip()) {
            return true;
        }
        self.counters.over_limit.add(1);
        self.shared.policy.over_limit();
        if self.warned_of_limit.is_due() {
            log::warn!(
                "tcp {client} -> {destination} is reset: {} has {} flows, which --flows-per-source lets a client have at once",
                client.ip(),
                sources.most()
            );
        }
        false
    }

    /// Gives back what the flow of an arrival from `source` has taken.
    pub(super) fn release(&mut self, source: IpAddr) {
        self.intake.release();
        if let Some(sources) = &self.shared.sources {
            sources.give_back(source);
        }
    }

    /// Starts to connect to upstream.
    fn attempt(
        &mut self,
        client_address: SocketAddr,
        admission: &Admission,
    ) -> io::Result<Attempt> {
        let mark = self.shared.settings.mark;
        let upstream = admission.upstream;
        let mut start = |source| {
            self.intake
                .upstream_socket(upstream)
                .and_then(|socket| connect::start(socket, upstream, source, mark))
        };
        match start(admission.source) {
            Err(error) if admission.source.is_some() && source::is_unusable(&error) => {
                let attempt = start(None);
                if attempt.is_ok() {
                    self.fell_back(client_address, upstream, &error);
                }
                attempt
            }
            attempt => attempt,
        }
    }

    fn fell_back(&mut self, client: SocketAddr, server: SocketAddr, error: &io::Error) {
        self.counters.fallbacks.add(1);
        self.shared.policy.fell_back();
        if self.warned_of_fallback.is_due() {
            source::warn_of_fallback("tcp", client, server, error);
        }
    }

    /// Whether connecting to `upstream` would reach a listener of this relay.
    fn leads_back_here(&self, upstream: SocketAddr) -> bool {
        self.shared.own_ports.contains(&upstream.port()) && self.shared.policy.is_own(upstream.ip())
    }
}
