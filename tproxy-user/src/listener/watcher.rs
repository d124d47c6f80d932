//! Keeps an eye on the listeners of a set of rules.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tproxy_common::flow::Protocol;

use super::{
    Absence, Error, Found, Process,
    holder::{Holders, Search},
    listing::{self, Listed},
    watched::Watched,
};

/// An address whose listeners are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted<K> {
    /// The caller's name for it, one for each.
    pub key: K,
    /// The protocol.
    pub protocol: Protocol,
    /// The address, as [`find`](super::find) takes it.
    pub address: SocketAddr,
    /// Whether they get flows to addresses that are not of this host, as those of the scopes forward
    /// and local are.
    pub needs_transparent: bool,
}

/// What has changed at an address.
#[derive(Debug)]
pub struct Change<K> {
    /// Which address.
    pub key: K,
    /// What.
    pub event: Event,
}

/// A change at an address.
#[derive(Debug)]
pub enum Event {
    /// A socket is there. The duplicate is to be dropped soon: it keeps the port bound.
    Found(Found),
    /// A socket that was found is closed, or is no longer the one that is reached.
    Gone {
        /// The socket's.
        cookie: u64,
        /// What it was bound to.
        bound: SocketAddr,
        /// The process that it was from.
        process: Process,
    },
    /// A socket that was found is asked for no longer, whether it is there or not.
    Released {
        /// The socket's.
        cookie: u64,
    },
    /// A socket is there that cannot be used. Told once for each socket and reason.
    Refused(Error),
    /// Nobody is there. Told once until somebody has been.
    Nobody(Absence),
}

/// Tells what changes at addresses. All of it blocks, and belongs into the network namespace of the
/// listeners: the calling thread's.
///
/// Between polls it has no duplicate of any socket. It has descriptors for the processes, which
/// keep nothing alive, so that the end of one is noticed at once. The kernel would tell of every
/// socket's end as well (`SKNLGRP_INET_TCP_DESTROY`), but of those of all flows too, at a message
/// for each.
pub struct Watcher<K> {
    addresses: Vec<(Wanted<K>, Watched)>,
    holders: Holders,
    /// Of addresses that are no longer wanted.
    farewells: Vec<Change<K>>,
}

impl<K: Clone + PartialEq> Watcher<K> {
    /// Watches these addresses, beginning with the next poll.
    #[must_use]
    pub fn new(wanted: Vec<Wanted<K>>) -> Self {
        let mut watcher = Self {
            addresses: Vec::new(),
            holders: Holders::default(),
            farewells: Vec::new(),
        };
        watcher.set_wanted(wanted);
        watcher
    }

    /// Watches these addresses from now on. What is known of those that stay is kept; the sockets of
    /// those that go, or mean something else now, are released with the next poll.
    pub fn set_wanted(&mut self, wanted: Vec<Wanted<K>>) {
        let mut before = std::mem::take(&mut self.addresses);
        for wanted in wanted {
            let known = before.iter().position(|(known, _)| *known == wanted);
            let address = known.map(|place| before.remove(place));
            let address = address.unwrap_or_else(|| {
                let watched =
                    Watched::new(wanted.protocol, wanted.address, wanted.needs_transparent);
                (wanted, watched)
            });
            self.addresses.push(address);
        }
        for (wanted, watched) in before {
            self.farewells.extend(changes(&wanted.key, watched.end()));
        }
    }

    /// What has changed since the last call. Costs two short lists of the kernel's for each protocol
    /// while nothing has.
    ///
    /// # Errors
    ///
    /// When the kernel does not list the sockets or /proc cannot be read. Nothing is lost by calling
    /// again.
    pub fn poll(&mut self) -> Result<Vec<Change<K>>, Error> {
        self.forget_ended();
        let mut listed = self.list()?;
        // A list that is longer than one answer of the kernel's may leave a socket out when another
        // one goes meanwhile.
        let mut addresses = self.addresses.iter();
        if addresses.any(|(wanted, watched)| watched.misses(listed.of(wanted.protocol))) {
            listed.unite(self.list()?);
        }

        let mut all = std::mem::take(&mut self.farewells);
        let mut inodes = BTreeSet::new();
        for (wanted, watched) in &mut self.addresses {
            let listed = listed.of(wanted.protocol);
            all.extend(changes(&wanted.key, watched.forget_gone(listed)));
            inodes.extend(watched.open_inodes(listed));
        }
        let search = if inodes.is_empty() {
            Search::default()
        } else {
            match self.holders.locate(&inodes) {
                Ok(search) => search,
                Err(error) => {
                    self.farewells = all;
                    return Err(error);
                }
            }
        };
        for (wanted, watched) in &mut self.addresses {
            let events = watched.admit(listed.of(wanted.protocol), &search);
            all.extend(changes(&wanted.key, events));
        }
        Ok(all)
    }

    /// Waits for the end of a process that has one of the sockets, for as long as the timeout. True
    /// when one has ended: then a poll tells what has become of its sockets.
    pub fn wait(&self, timeout: Duration) -> bool {
        let mut processes: Vec<PollFd> = self.processes().map(readable).collect();
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        poll(&mut processes, timeout).is_ok_and(|ended| ended > 0)
    }

    /// Descriptors that are readable once a process that has one of the sockets has ended, for a
    /// caller that waits for more than that. They are others after each poll.
    pub fn processes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let addresses = self.addresses.iter();
        addresses.flat_map(|(_, watched)| watched.processes())
    }

    fn forget_ended(&mut self) {
        for (_, watched) in &mut self.addresses {
            watched.forget_ended(|process| {
                let mut process = [readable(process.as_fd())];
                poll(&mut process, PollTimeout::ZERO).is_ok_and(|ended| ended > 0)
            });
        }
    }

    fn list(&self) -> Result<Lists, Error> {
        let list = |protocol| {
            let wanted = self.addresses.iter().map(|(wanted, _)| wanted);
            let wanted = wanted.filter(|wanted| wanted.protocol == protocol);
            let ports: BTreeSet<u16> = wanted.map(|wanted| wanted.address.port()).collect();
            if ports.is_empty() {
                return Ok(Vec::new());
            }
            listing::list(protocol, &ports)
        };
        Ok(Lists {
            tcp: list(Protocol::Tcp)?,
            udp: list(Protocol::Udp)?,
        })
    }
}

/// The sockets at all wanted ports.
struct Lists {
    tcp: Vec<Listed>,
    udp: Vec<Listed>,
}

impl Lists {
    fn of(&self, protocol: Protocol) -> &[Listed] {
        match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        }
    }

    fn unite(&mut self, other: Self) {
        for (these, others) in [(&mut self.tcp, other.tcp), (&mut self.udp, other.udp)] {
            these.extend(others);
            these.sort_by_key(|socket| socket.cookie);
            these.dedup_by_key(|socket| socket.cookie);
        }
    }
}

fn changes<K: Clone>(
    key: &K,
    events: impl IntoIterator<Item = Event>,
) -> impl Iterator<Item = Change<K>> {
    events.into_iter().map(|event| Change {
        key: key.clone(),
        event,
    })
}

fn readable(descriptor: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(descriptor, PollFlags::POLLIN)
}
