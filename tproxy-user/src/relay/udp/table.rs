//! The sessions of a worker: found by their flow, and by how long nothing has passed in them.

use std::collections::HashMap;
use std::collections::hash_map;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use slab::Slab;

use super::recency::{Links, Recency};

/// How exactly the last use of a session is known.
const GRANULE: Duration = Duration::from_millis(100);
/// A session is given up for another one of its source only if nothing has passed in it for this
/// long. Else a source with as many live sessions as it may have would lose one with each that it
/// opens.
const EVICTABLE_AFTER: Duration = Duration::from_secs(1);

/// The two ends of a session as its client sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) client: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// What decides how long a session is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Its destination is port 53: a query and its answer.
    Dns,
    /// Anything else.
    Other,
}

/// Whether a source may have one more session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// It may.
    Free,
    /// If this one is given up.
    InPlaceOf(usize),
    /// It has all that it may have, and all are in use.
    None,
}

/// Sessions of type `S`.
#[derive(Debug)]
pub(super) struct Table<S> {
    entries: Slab<Entry<S>>,
    by_flow: HashMap<Flow, usize>,
    by_source: HashMap<IpAddr, Source<S>>,
    dns: Recency<Entry<S>>,
    other: Recency<Entry<S>>,
    most_per_source: usize,
}

#[derive(Debug)]
struct Entry<S> {
    session: S,
    flow: Flow,
    /// As of the last use that was at least a granule after the one before.
    last_used: Duration,
    in_class: Links,
    in_source: Links,
}

/// The sessions of one address.
#[derive(Debug)]
struct Source<S> {
    number: usize,
    sessions: Recency<Entry<S>>,
}

impl Class {
    pub(super) fn of(flow: &Flow) -> Self {
        const DOMAIN: u16 = 53;
        if flow.destination.port() == DOMAIN {
            Self::Dns
        } else {
            Self::Other
        }
    }
}

impl<S> Table<S> {
    pub(super) fn new(most_per_source: usize) -> Self {
        Self {
            entries: Slab::new(),
            by_flow: HashMap::new(),
            by_source: HashMap::new(),
            dns: Recency::new(|entry| &mut entry.in_class),
            other: Recency::new(|entry| &mut entry.in_class),
            most_per_source,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The session of a flow.
    pub(super) fn find(&self, flow: &Flow) -> Option<usize> {
        self.by_flow.get(flow).copied()
    }

    pub(super) fn get_mut(&mut self, key: usize) -> Option<&mut S> {
        self.entries.get_mut(key).map(|entry| &mut entry.session)
    }

    /// How many sessions `source` has.
    pub(super) fn number_of(&self, source: IpAddr) -> usize {
        self.by_source
            .get(&source)
            .map_or(0, |source| source.number)
    }

    pub(super) fn keys(&self) -> Vec<usize> {
        self.entries.iter().map(|(key, _)| key).collect()
    }

    /// Whether `source` may have one more session, as far as its own number goes.
    pub(super) fn room(&self, source: IpAddr, now: Duration) -> Room {
        match self.by_source.get(&source) {
            Some(sessions) if sessions.number >= self.most_per_source => {
                self.oldest_idle(source, now)
            }
            _ => Room::Free,
        }
    }

    /// The session that `source` can best do without.
    pub(super) fn oldest_idle(&self, source: IpAddr, now: Duration) -> Room {
        self.by_source
            .get(&source)
            .and_then(|source| source.sessions.oldest())
            .filter(|&key| now >= self.entries[key].last_used + EVICTABLE_AFTER)
            .map_or(Room::None, Room::InPlaceOf)
    }

    /// Takes in a session of a flow that has none, and gives its key.
    pub(super) fn insert(&mut self, flow: Flow, now: Duration, session: S) -> usize {
        let key = self.entries.insert(Entry {
            session,
            flow,
            last_used: now,
            in_class: Links::none(),
            in_source: Links::none(),
        });
        self.by_flow.insert(flow, key);
        let entries = &mut self.entries;
        let source = self.by_source.entry(flow.client.ip());
        let source = source.or_insert_with(|| Source {
            number: 0,
            sessions: Recency::new(|entry| &mut entry.in_source),
        });
        source.number += 1;
        source.sessions.add(entries, key);
        match Class::of(&flow) {
            Class::Dns => self.dns.add(entries, key),
            Class::Other => self.other.add(entries, key),
        }
        key
    }

    /// Something has passed in a session.
    pub(super) fn renew(&mut self, key: usize, now: Duration) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if now < entry.last_used + GRANULE {
            return;
        }
        entry.last_used = now;
        let flow = entry.flow;
        match Class::of(&flow) {
            Class::Dns => self.dns.renew(&mut self.entries, key),
            Class::Other => self.other.renew(&mut self.entries, key),
        }
        if let Some(source) = self.by_source.get_mut(&flow.client.ip()) {
            source.sessions.renew(&mut self.entries, key);
        }
    }

    /// Takes a session out.
    pub(super) fn remove(&mut self, key: usize) -> Option<(Flow, S)> {
        let flow = self.entries.get(key)?.flow;
        match Class::of(&flow) {
            Class::Dns => self.dns.remove(&mut self.entries, key),
            Class::Other => self.other.remove(&mut self.entries, key),
        }
        if let hash_map::Entry::Occupied(mut source) = self.by_source.entry(flow.client.ip()) {
            source.get_mut().sessions.remove(&mut self.entries, key);
            source.get_mut().number -= 1;
            if source.get().number == 0 {
                source.remove();
            }
        }
        self.by_flow.remove(&flow);
        self.give_memory_back();
        Some((flow, self.entries.remove(key).session))
    }

    /// When the next session will have been idle for as long as `idle` says for its class, and which
    /// it is. Never early, and late by a tenth of a second at most.
    pub(super) fn next_idle(&self, idle: impl Fn(Class) -> Duration) -> Option<(Duration, usize)> {
        [(&self.dns, Class::Dns), (&self.other, Class::Other)]
            .into_iter()
            .filter_map(|(list, class)| {
                let key = list.oldest()?;
                // Of a use within a granule of the last one nothing is known.
                Some((self.entries[key].last_used + idle(class) + GRANULE, key))
            })
            .min()
    }

    /// What a burst of sessions needed is given back when nothing is left of it.
    fn give_memory_back(&mut self) {
        const WORTH_IT: usize = 1024;
        if self.by_flow.is_empty() && self.by_flow.capacity() > WORTH_IT {
            self.by_flow = HashMap::new();
            self.by_source = HashMap::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(client: &str, destination: &str) -> Flow {
        Flow {
            client: client.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    fn idle(class: Class) -> Duration {
        match class {
            Class::Dns => seconds(20),
            Class::Other => seconds(120),
        }
    }

    #[test]
    fn a_session_is_found_by_both_of_its_ends() {
        let mut table = Table::new(10);
        let web = flow("10.0.0.1:5000", "192.0.2.9:443");
        let key = table.insert(web, seconds(0), 'w');
        assert_eq!(table.find(&web), Some(key));
        assert_eq!(table.find(&flow("10.0.0.1:5001", "192.0.2.9:443")), None);
        assert_eq!(table.find(&flow("10.0.0.1:5000", "192.0.2.8:443")), None);
        assert_eq!(table.remove(key), Some((web, 'w')));
        assert_eq!(table.find(&web), None);
        assert_eq!(table.remove(key), None);
        assert!(table.is_empty());
    }

    #[test]
    fn sessions_become_idle_in_the_order_of_their_classes_and_uses() {
        let mut table = Table::new(10);
        let first = table.insert(flow("10.0.0.1:1", "192.0.2.9:443"), seconds(0), ());
        let second = table.insert(flow("10.0.0.1:2", "192.0.2.9:443"), seconds(1), ());
        let query = table.insert(flow("10.0.0.1:3", "192.0.2.9:53"), seconds(2), ());
        assert_eq!(table.next_idle(idle), Some((seconds(22) + GRANULE, query)));
        table.remove(query);
        assert_eq!(table.next_idle(idle), Some((seconds(120) + GRANULE, first)));
        table.renew(first, seconds(5));
        assert_eq!(
            table.next_idle(idle),
            Some((seconds(121) + GRANULE, second))
        );
        table.remove(second);
        assert_eq!(table.next_idle(idle), Some((seconds(125) + GRANULE, first)));
        table.remove(first);
        assert_eq!(table.next_idle(idle), None);
    }

    #[test]
    fn a_source_gives_up_its_own_oldest_session_unless_that_is_in_use() {
        let mut table = Table::new(2);
        let source = "10.0.0.1".parse().unwrap();
        let other = table.insert(flow("10.0.0.2:1", "192.0.2.9:443"), seconds(0), ());
        assert_eq!(table.room(source, seconds(0)), Room::Free);
        let first = table.insert(flow("10.0.0.1:1", "192.0.2.9:443"), seconds(1), ());
        assert_eq!(table.room(source, seconds(1)), Room::Free);
        let second = table.insert(flow("10.0.0.1:2", "192.0.2.9:443"), seconds(1), ());
        assert_eq!(table.room(source, seconds(1)), Room::None);
        assert_eq!(table.room(source, seconds(2)), Room::InPlaceOf(first));
        table.renew(first, seconds(2));
        assert_eq!(table.room(source, seconds(2)), Room::InPlaceOf(second));
        table.remove(second);
        assert_eq!(table.room(source, seconds(2)), Room::Free);
        let another = "10.0.0.2".parse().unwrap();
        assert_eq!(
            table.oldest_idle(another, seconds(9)),
            Room::InPlaceOf(other)
        );
        assert_eq!(
            table.oldest_idle("10.0.0.3".parse().unwrap(), seconds(9)),
            Room::None
        );
    }
}
