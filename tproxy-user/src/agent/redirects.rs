//! Follows the listeners of other programs that rules hand flows to: a program that restarts gets its
//! flows again by itself.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use log::{info, warn};
use tproxy_common::{
    address::Family, counters::ListenerCounter, flow::Protocol, sockets::MEMBERS, tables::Action,
};

use crate::{
    instance::State,
    kernel::{ListenerCounters, Maps},
    listener::{Change, Event, Found, Wanted, Watcher},
};

/// How often is looked for new sockets.
const INTERVAL: Duration = Duration::from_millis(250);

/// A rule and a protocol, by which a listener is known here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    rule: String,
    slot: u32,
    protocol: Protocol,
}

/// What the thread is to do. It ends when this is dropped.
pub(super) struct Redirects {
    orders: Arc<Orders>,
}

#[derive(Default)]
struct Orders {
    current: Mutex<Order>,
    changed: Condvar,
}

#[derive(Default)]
struct Order {
    /// Taken by the thread.
    wanted: Option<Vec<Wanted<Key>>>,
    ended: bool,
}

impl Redirects {
    /// Begins to follow the listeners of no rule. The calling thread is in their network namespace.
    ///
    /// # Errors
    ///
    /// When there is no thread to be had.
    pub(super) fn start(maps: &Maps) -> anyhow::Result<Self> {
        let orders = Arc::new(Orders::default());
        let counters = ListenerCounters::open(maps)?;
        counters.forget_present();
        let follower = Follower {
            maps: maps.clone(),
            counters,
            places: HashMap::new(),
            wanted: Vec::new(),
        };
        let of_thread = Arc::clone(&orders);
        thread::Builder::new()
            .name("listeners".into())
            .spawn(move || follower.run(&of_thread))
            .context("cannot start a thread")?;
        Ok(Self { orders })
    }

    /// Follows the listeners of these rules from now on.
    pub(super) fn follow(&self, state: &State) {
        self.orders.give(|order| order.wanted = Some(wanted(state)));
    }
}

impl Drop for Redirects {
    fn drop(&mut self) {
        self.orders.give(|order| order.ended = true);
    }
}

impl Orders {
    fn give(&self, change: impl FnOnce(&mut Order)) {
        change(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }
}

fn wanted(state: &State) -> Vec<Wanted<Key>> {
    let mut wanted = Vec::new();
    for stored in &state.rules {
        let Ok(rule) = stored.spec.validate() else {
            continue;
        };
        let (Action::Redirect, Some(address)) = (rule.action, rule.listener) else {
            continue;
        };
        wanted.extend(rule.protocols.iter().map(|protocol| Wanted {
            key: Key {
                rule: rule.name.clone(),
                slot: stored.slot,
                protocol: *protocol,
            },
            protocol: *protocol,
            address,
            needs_transparent: rule.needs_transparent_listener(),
        }));
    }
    wanted
}

/// The cookies of the sockets in the places of one key.
type Places = [Option<u64>; MEMBERS as usize];

struct Follower {
    maps: Maps,
    counters: ListenerCounters,
    places: HashMap<Key, Places>,
    /// The keys that are followed now.
    wanted: Vec<Key>,
}

impl Follower {
    fn run(mut self, orders: &Orders) {
        let mut watcher = Watcher::new(Vec::new());
        let mut idle = true;
        loop {
            let mut order = orders
                .current
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            while idle && order.wanted.is_none() && !order.ended {
                order = orders
                    .changed
                    .wait(order)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if order.ended {
                return;
            }
            let wanted = order.wanted.take();
            drop(order);
            if let Some(wanted) = wanted {
                idle = wanted.is_empty();
                self.wanted = wanted.iter().map(|wanted| wanted.key.clone()).collect();
                watcher.set_wanted(wanted);
            }
            match watcher.poll() {
                Ok(changes) => changes.into_iter().for_each(|change| self.take_up(change)),
                Err(error) => warn!("listeners of other programs are not followed: {error}"),
            }
            if !idle {
                watcher.wait(INTERVAL);
            }
        }
    }

    fn take_up(&mut self, Change { key, event }: Change<Key>) {
        match event {
            Event::Found(found) => {
                info!(
                    "rule {}: {} at {} takes its flows",
                    key.rule, found.process, found.bound
                );
                self.put(&key, &found);
            }
            Event::Gone {
                cookie,
                bound,
                process,
            } => {
                info!(
                    "rule {}: the socket of {process} at {bound} is gone",
                    key.rule
                );
                let lost = self.remove(&key, cookie);
                self.count(key.slot, |counter| counter.lost += lost);
            }
            Event::Released { cookie } => _ = self.remove(&key, cookie),
            Event::Refused(error) => warn!("rule {}: {error}", key.rule),
            Event::Nobody(absence) => warn!("rule {}: {absence}; on_missing decides", key.rule),
        }
    }

    fn put(&mut self, key: &Key, found: &Found) {
        let is_first = !self.places.contains_key(key);
        let places = self.places.entry(key.clone()).or_default();
        let Some(place) = places.iter().position(Option::is_none) else {
            return;
        };
        let Key { protocol, slot, .. } = *key;
        let socket = &found.socket;
        let stored = [Family::V4, Family::V6].into_iter().try_for_each(|family| {
            let serving = found.serves(family).then_some(socket);
            if is_first {
                // What a command has put there is among what was found.
                let maps = &self.maps;
                return maps.set_redirect(protocol, family, slot, serving.into_iter());
            }
            serving.map_or(Ok(()), |socket| {
                let maps = &self.maps;
                maps.set_redirect_member(protocol, family, slot, place, socket)
            })
        });
        match stored {
            Ok(()) => {
                places[place] = Some(found.cookie);
                self.count(key.slot, |counter| {
                    counter.present += 1;
                    counter.found += 1;
                });
            }
            Err(error) => warn!("rule {}: {error}", key.rule),
        }
    }

    /// Takes a socket out of its places. Returns how many these were.
    fn remove(&mut self, key: &Key, cookie: u64) -> u64 {
        let Some(places) = self.places.get_mut(key) else {
            return 0;
        };
        // Then what is in the places of the slot is that rule's already.
        let is_another_rules = self.wanted.iter().any(|wanted| {
            (wanted.slot, wanted.protocol) == (key.slot, key.protocol) && wanted != key
        });
        let mut removed = 0;
        for (member, place) in places.iter_mut().enumerate() {
            if *place == Some(cookie) {
                *place = None;
                removed += 1;
                if is_another_rules {
                    continue;
                }
                // One that was closed is out already.
                for family in [Family::V4, Family::V6] {
                    let maps = &self.maps;
                    let _ = maps.remove_redirect_member(key.protocol, family, key.slot, member);
                }
            }
        }
        if places.iter().all(Option::is_none) {
            self.places.remove(key);
        }
        if !is_another_rules {
            self.count(key.slot, |counter| {
                counter.present = counter.present.saturating_sub(removed);
            });
        }
        removed
    }

    fn count(&self, slot: u32, change: impl FnOnce(&mut ListenerCounter)) {
        let mut counter = self.counters.get(slot);
        change(&mut counter);
        self.counters.set(slot, counter);
    }
}
