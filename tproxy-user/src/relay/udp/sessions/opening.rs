//! How a session is opened, and when it is not.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use mio::Interest;
use mio::unix::SourceFd;
use socket2::Socket;
use tproxy_common::flow::Protocol;

use super::{Sessions, last_length};
use crate::relay::intake::is_exhaustion;
use crate::relay::side::Side;
use crate::relay::source::{is_unusable, warn_of_fallback};
use crate::relay::token::Origin;
use crate::relay::udp::session::Session;
use crate::relay::udp::socket;
use crate::relay::udp::sys::Inbox;
use crate::relay::udp::table::{Class, Flow, Room};
use crate::relay::udp::unreachable::Reason;
use crate::relay::{Admission, End, FlowRecord};

impl Sessions {
    /// Opens the session of a flow, unless it is refused or there is no room for it.
    pub(super) fn open(
        &mut self,
        flow: Flow,
        inbox: &Inbox,
        range: &Range<usize>,
    ) -> Option<usize> {
        if self.draining {
            return None;
        }
        let Flow {
            client,
            destination,
        } = flow;
        let policy = Arc::clone(&self.shared.policy);
        let Some(admission) = policy.admit(Protocol::Udp, client, destination) else {
            self.counters.refused.add(1);
            return None;
        };
        if self.leads_back_here(admission.upstream) {
            self.counters.own_port.add(1);
            if self.warnings.own_port.is_due() {
                warn!(
                    "udp {client} -> {destination} is refused: {} is a port of this relay itself",
                    admission.upstream
                );
            }
            return None;
        }
        if !self.make_room(client) {
            return None;
        }
        policy.opened(&admission.rule);
        let sockets = self.open_sockets(&flow, &admission);
        let Admission { rule, client, .. } = admission;
        match sockets {
            Ok(sockets) => {
                let serial = self.next_serial;
                self.next_serial = serial.wrapping_add(1);
                let ends = (destination, client);
                let session = Session::new(ends, sockets, rule, self.now, serial);
                self.insert(flow, session)
            }
            Err((side, error)) => {
                self.not_opened(side, &error);
                self.give_place_back();
                if let (Side::Upstream, Some(reason)) = (side, Reason::of(&error)) {
                    let length = last_length(inbox, range.end - 1);
                    self.tell_client(client, destination, length, reason);
                }
                policy.ended(&FlowRecord {
                    protocol: "udp",
                    client: flow.client,
                    destination,
                    rule: &rule,
                    upstream: "direct",
                    to_upstream: 0,
                    to_client: 0,
                    duration: Duration::ZERO,
                    end: End::from_error(side, error),
                });
                None
            }
        }
    }

    /// Whether sending to `upstream` would reach a socket of this relay.
    fn leads_back_here(&self, upstream: SocketAddr) -> bool {
        self.shared.own_udp_ports.contains(&upstream.port())
            && self.shared.policy.is_own(upstream.ip())
    }

    /// Takes a place for a session of `client`. Where a limit is reached, it is the one of a session of
    /// the same source: a source that opens many can harm nobody but itself.
    fn make_room(&mut self, client: SocketAddr) -> bool {
        let source = client.ip();
        let room = match self.table.room(source, self.now) {
            Room::Free if self.take_place() => return true,
            Room::Free => self.table.oldest_idle(source, self.now),
            room => room,
        };
        if self.warnings.limit.is_due() {
            warn!(
                "a limit of UDP sessions is reached: {source} has {} of {} at this worker; its idle ones make room for new ones, or these are dropped",
                self.table.number_of(source),
                self.table.len()
            );
        }
        let Room::InPlaceOf(key) = room else {
            return false;
        };
        self.counters.evicted.add(1);
        self.end(key, End::Evicted);
        self.take_place()
    }

    fn take_place(&self) -> bool {
        if !self.shared.session_places.take() {
            return false;
        }
        if !self.shared.places.take() {
            self.shared.session_places.give_back();
            return false;
        }
        true
    }

    pub(super) fn give_place_back(&self) {
        self.shared.places.give_back();
        self.shared.session_places.give_back();
    }

    fn insert(&mut self, flow: Flow, session: Session) -> Option<usize> {
        let key = self.table.insert(flow, self.now, session);
        self.counters.sessions_opened.add(1);
        self.counters.sessions.set(self.table.len() as u64);
        for side in [Side::Upstream, Side::Client] {
            let session = self.table.get_mut(key)?;
            let Some(socket) = session.socket(side) else {
                continue;
            };
            let registered = self.registry.register(
                &mut SourceFd(&socket.as_raw_fd()),
                Origin::Session { key, side }.into(),
                Interest::READABLE,
            );
            if let Err(error) = registered {
                self.not_opened(side, &error);
                self.end(key, End::Error(error));
                return None;
            }
        }
        Some(key)
    }

    /// The sockets of a session. An error comes with the side that it is of.
    fn open_sockets(
        &mut self,
        flow: &Flow,
        admission: &Admission,
    ) -> Result<(Option<Socket>, Socket), (Side, io::Error)> {
        let upstream = self
            .upstream_socket(flow, admission)
            .map_err(|error| (Side::Upstream, error))?;
        // A resolver of this host that binds its port to the wildcard, and does not share it, could
        // not start while a socket has the port, at whatever address. A question has one answer, for
        // which a socket would hardly be worth its making.
        if Class::of(flow) == Class::Dns {
            return Ok((None, upstream));
        }
        let mark = self.shared.settings.mark;
        let reply = socket::reply(flow.destination, admission.client, mark)
            .map_err(|error| (Side::Client, error))?;
        Ok((reply, upstream))
    }

    /// The socket to upstream, from this host's address where it cannot be had from the client's.
    fn upstream_socket(&mut self, flow: &Flow, admission: &Admission) -> io::Result<Socket> {
        let mark = self.shared.settings.mark;
        let upstream = admission.upstream;
        if admission.source.is_none() {
            return socket::upstream(upstream, None, mark);
        }
        match socket::upstream(upstream, admission.source, mark) {
            Err(error) if is_unusable(&error) => {
                let socket = socket::upstream(upstream, None, mark)?;
                self.counters.fallbacks.add(1);
                self.shared.policy.fell_back();
                if self.warnings.fallback.is_due() {
                    warn_of_fallback("udp", flow.client, upstream, &error);
                }
                Ok(socket)
            }
            opened => {
                let socket = opened?;
                if let Some(own) = socket.local_addr()?.as_socket() {
                    let policy = &self.shared.policy;
                    policy.awaits_answers(Protocol::Udp, own, upstream);
                }
                Ok(socket)
            }
        }
    }

    fn not_opened(&mut self, side: Side, error: &io::Error) {
        if is_exhaustion(error) {
            self.counters.shed.add(1);
            self.shared.policy.shed();
            if self.warnings.exhaustion.is_due() {
                warn!(
                    "datagrams are dropped: {error}; raise the limit of open files (LimitNOFILE=, ulimit -n) to serve more"
                );
            }
        } else if side == Side::Upstream {
            self.counters.connect_failed.add(1);
        }
    }
}
