//! Counters of hooks and rules.

use std::{path::Path, sync::atomic::Ordering};

use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use aya::{Pod, util::nr_cpus};
use aya_obj::generated::BPF_F_MMAPABLE;
use tproxy_common::{
    counters::{IntakeCounter, ListenerCounter, RelayCounter, RuleCounter, WorkerCounter},
    limits::{COUNTER_SLOTS, WORKERS},
    outcome::Outcome,
};

use super::{Error, Maps, maps::failed};
use crate::sys::SharedArray;

const OUTCOMES: &str = "OUTCOME_COUNTERS";
const RULES: &str = "RULE_COUNTERS";
const RELAY: &str = "RELAY_COUNTERS";
const INTAKE: &str = "INTAKE_COUNTERS";
const WORKER: &str = "WORKER_COUNTERS";
const LISTENER: &str = "LISTENER_COUNTERS";

/// What happened to packets, summed over all CPUs.
pub struct Counters {
    maps: Maps,
}

/// What happened to the flows of one rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleTotals {
    /// What the kernel counted.
    pub kernel: RuleCounter,
    /// What the relay counted.
    pub relay: RelayCounter,
}

impl Counters {
    /// The counters of the instance with these maps.
    #[must_use]
    pub fn new(maps: &Maps) -> Self {
        Self { maps: maps.clone() }
    }

    /// Each outcome's name and how often it occurred, in the order of [`Outcome::ALL`].
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn outcomes(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        let map: PerCpuArray<MapData, u64> = self.maps.open(OUTCOMES, TryInto::try_into)?;
        Outcome::ALL
            .iter()
            .map(|(outcome, name)| {
                let values = map.get(&(*outcome as u32), 0).map_err(failed(OUTCOMES))?;
                Ok((*name, values.iter().sum()))
            })
            .collect()
    }

    /// The totals of these slots.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn rules(&self, slots: impl Iterator<Item = u32>) -> Result<Vec<RuleTotals>, Error> {
        let map: PerCpuArray<MapData, RuleCounter> = self.maps.open(RULES, TryInto::try_into)?;
        let relay = RelayCounters::open(&self.maps)?;
        slots
            .map(|slot| {
                let values = map.get(&slot, 0).map_err(failed(RULES))?;
                let kernel =
                    values
                        .iter()
                        .fold(RuleCounter::default(), |sum, counter| RuleCounter {
                            flows: sum.flows + counter.flows,
                            packets: sum.packets + counter.packets,
                            bytes: sum.bytes + counter.bytes,
                        });
                Ok(RuleTotals {
                    kernel,
                    relay: relay.get(slot),
                })
            })
            .collect()
    }

    /// Sets a slot to zero, before a new rule gets it.
    ///
    /// # Errors
    ///
    /// When a map cannot be written.
    pub fn reset(&self, slot: u32) -> Result<(), Error> {
        let mut map: PerCpuArray<MapData, RuleCounter> =
            self.maps.open(RULES, TryInto::try_into)?;
        let cpus = nr_cpus().map_err(|(_, error)| Error::Memory(error))?;
        let zeroes =
            PerCpuValues::try_from(vec![RuleCounter::default(); cpus]).map_err(Error::Memory)?;
        map.set(slot, zeroes, 0).map_err(failed(RULES))?;
        RelayCounters::open(&self.maps)?.reset(slot);
        ListenerCounters::open(&self.maps)?.set(slot, ListenerCounter::default());
        Ok(())
    }
}

/// The counters that the relay's workers write, one set for each counter slot.
pub struct RelayCounters {
    memory: SharedArray<RelayCounter>,
}

/// Words of a [`RelayCounter`], and of each other counter with three numbers.
const TO_UPSTREAM: usize = 0;
const TO_CLIENT: usize = 1;
const LIVE: usize = 2;
const WORDS: usize = 3;

impl RelayCounters {
    /// Creates the map and pins it in `directory`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(super) fn create(directory: &Path) -> Result<(), Error> {
        let slots = u32::try_from(COUNTER_SLOTS).unwrap_or(u32::MAX);
        create::<RelayCounter>(RELAY, slots, directory)
    }

    /// Opens the pinned map.
    ///
    /// # Errors
    ///
    /// When it cannot be mapped.
    pub fn open(maps: &Maps) -> Result<Self, Error> {
        let memory = maps.share(RELAY, COUNTER_SLOTS)?;
        Ok(Self { memory })
    }

    /// A flow of this slot began.
    pub fn opened(&self, slot: u32) {
        self.add(slot, LIVE, 1);
    }

    /// Bytes of this slot were relayed.
    pub fn moved(&self, slot: u32, to_upstream: u64, to_client: u64) {
        self.add(slot, TO_UPSTREAM, to_upstream);
        self.add(slot, TO_CLIENT, to_client);
    }

    /// A flow of this slot ended.
    pub fn ended(&self, slot: u32) {
        let live = &self.memory.words()[slot as usize * WORDS + LIVE];
        // Not below zero, whatever was forgotten or reset meanwhile.
        let _ = live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |flows| {
            flows.checked_sub(1)
        });
    }

    /// Flows being relayed now, over all slots.
    #[must_use]
    pub fn live(&self) -> u64 {
        let words = self.memory.words();
        words[LIVE..]
            .iter()
            .step_by(WORDS)
            .map(|word| word.load(Ordering::Relaxed))
            .sum()
    }

    /// The relay's counters of this slot.
    #[must_use]
    pub fn get(&self, slot: u32) -> RelayCounter {
        let word =
            |word: usize| self.memory.words()[slot as usize * WORDS + word].load(Ordering::Relaxed);
        RelayCounter {
            to_upstream: word(TO_UPSTREAM),
            to_client: word(TO_CLIENT),
            live: word(LIVE),
        }
    }

    /// Forgets flows that were live when the last agent was killed.
    pub fn forget_live(&self) {
        let words = self.memory.words();
        for word in words[LIVE..].iter().step_by(WORDS) {
            word.store(0, Ordering::Relaxed);
        }
    }

    fn reset(&self, slot: u32) {
        for word in &self.memory.words()[slot as usize * WORDS..][..WORDS] {
            word.store(0, Ordering::Relaxed);
        }
    }

    fn add(&self, slot: u32, word: usize, amount: u64) {
        self.memory.words()[slot as usize * WORDS + word].fetch_add(amount, Ordering::Relaxed);
    }
}

/// The counters that the relay's workers write of flows that they could not take at once, or
/// not as they were told to.
pub struct IntakeCounters {
    memory: SharedArray<IntakeCounter>,
}

/// Words of an [`IntakeCounter`].
const SHED: usize = 0;
const PAUSES: usize = 1;
const FALLBACKS: usize = 2;
const OVER_LIMIT: usize = 3;

impl IntakeCounters {
    /// Creates the map and pins it in `directory`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(super) fn create(directory: &Path) -> Result<(), Error> {
        create::<IntakeCounter>(INTAKE, 1, directory)
    }

    /// Opens the pinned map.
    ///
    /// # Errors
    ///
    /// When it cannot be mapped.
    pub fn open(maps: &Maps) -> Result<Self, Error> {
        let memory = maps.share(INTAKE, 1)?;
        Ok(Self { memory })
    }

    /// A connection was accepted and reset.
    pub fn shed(&self) {
        self.memory.words()[SHED].fetch_add(1, Ordering::Relaxed);
    }

    /// A worker stopped accepting.
    pub fn paused(&self) {
        self.memory.words()[PAUSES].fetch_add(1, Ordering::Relaxed);
    }

    /// A flow that was to come from the client's address came from this host's.
    pub fn fell_back(&self) {
        self.memory.words()[FALLBACKS].fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was accepted and reset, because its client had as many flows as it may have.
    pub fn over_limit(&self) {
        self.memory.words()[OVER_LIMIT].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted since the instance was loaded.
    #[must_use]
    pub fn get(&self) -> IntakeCounter {
        let word = |word: usize| self.memory.words()[word].load(Ordering::Relaxed);
        IntakeCounter {
            shed: word(SHED),
            pauses: word(PAUSES),
            fallbacks: word(FALLBACKS),
            over_limit: word(OVER_LIMIT),
        }
    }
}

/// What each worker serves, as it says itself.
pub struct WorkerCounters {
    memory: SharedArray<WorkerCounter>,
}

impl WorkerCounters {
    /// Creates the map and pins it in `directory`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(super) fn create(directory: &Path) -> Result<(), Error> {
        create::<WorkerCounter>(WORKER, WORKERS, directory)
    }

    /// Opens the pinned map.
    ///
    /// # Errors
    ///
    /// When it cannot be mapped.
    pub fn open(maps: &Maps) -> Result<Self, Error> {
        let memory = maps.share(WORKER, WORKERS as usize)?;
        Ok(Self { memory })
    }

    /// What a worker serves now.
    pub fn set(&self, worker: usize, counter: WorkerCounter) {
        let WorkerCounter {
            flows,
            sessions,
            dropped,
        } = counter;
        store(&self.memory, worker, [flows, sessions, dropped]);
    }

    /// What the first so many workers serve.
    #[must_use]
    pub fn get(&self, workers: u32) -> Vec<WorkerCounter> {
        let workers = 0..workers.min(WORKERS) as usize;
        let of_worker = |worker| {
            let [flows, sessions, dropped] = load(&self.memory, worker);
            WorkerCounter {
                flows,
                sessions,
                dropped,
            }
        };
        workers.map(of_worker).collect()
    }
}

/// What became of listeners of other programs, one set for each counter slot.
pub struct ListenerCounters {
    memory: SharedArray<ListenerCounter>,
}

impl ListenerCounters {
    /// Creates the map and pins it in `directory`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(super) fn create(directory: &Path) -> Result<(), Error> {
        let slots = u32::try_from(COUNTER_SLOTS).unwrap_or(u32::MAX);
        create::<ListenerCounter>(LISTENER, slots, directory)
    }

    /// Opens the pinned map.
    ///
    /// # Errors
    ///
    /// When it cannot be mapped.
    pub fn open(maps: &Maps) -> Result<Self, Error> {
        let memory = maps.share(LISTENER, COUNTER_SLOTS)?;
        Ok(Self { memory })
    }

    /// The counters of a slot.
    #[must_use]
    pub fn get(&self, slot: u32) -> ListenerCounter {
        let [present, found, lost] = load(&self.memory, slot as usize);
        ListenerCounter {
            present,
            found,
            lost,
        }
    }

    /// Forgets the sockets that were there when the last agent ended.
    pub fn forget_present(&self) {
        for word in self.memory.words().iter().step_by(WORDS) {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Sets the counters of a slot. Only one thread does.
    pub fn set(&self, slot: u32, counter: ListenerCounter) {
        let ListenerCounter {
            present,
            found,
            lost,
        } = counter;
        store(&self.memory, slot as usize, [present, found, lost]);
    }
}

fn load<T: Pod>(memory: &SharedArray<T>, element: usize) -> [u64; WORDS] {
    let words = &memory.words()[element * WORDS..][..WORDS];
    std::array::from_fn(|word| words[word].load(Ordering::Relaxed))
}

fn store<T: Pod>(memory: &SharedArray<T>, element: usize, values: [u64; WORDS]) {
    let words = &memory.words()[element * WORDS..][..WORDS];
    for (word, value) in words.iter().zip(values) {
        word.store(value, Ordering::Relaxed);
    }
}

fn create<T: Pod>(name: &'static str, elements: u32, directory: &Path) -> Result<(), Error> {
    let map: Array<MapData, T> = Array::create(elements, BPF_F_MMAPABLE).map_err(failed(name))?;
    let path = directory.join(name);
    map.pin(&path).map_err(|cause| Error::Pin { path, cause })
}
