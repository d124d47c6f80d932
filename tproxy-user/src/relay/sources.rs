//! How many flows each source has, over all workers.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Into how many parts the sources are divided, so that workers seldom wait for one another.
const SHARDS: usize = 64;

/// The flows of each source that has any. A source is an address, as it is for UDP sessions: an IPv6
/// host that has a prefix is as many sources as it uses addresses of it.
#[derive(Debug)]
pub(super) struct Sources {
    most: usize,
    shards: [Mutex<Flows>; SHARDS],
    hasher: RandomState,
}

type Flows = HashMap<IpAddr, usize>;

impl Sources {
    /// Lets each source have `most` flows.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
        }
    }

    /// The most flows of a source.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Counts one more flow of `source`, if it may have one more.
    pub(super) fn take(&self, source: IpAddr) -> bool {
        let mut flows = self.shard(source);
        let number = flows.get(&source).copied().unwrap_or(0);
        let free = number < self.most;
        if free {
            flows.insert(source, number + 1);
        }
        free
    }

    /// A flow of `source` that was counted is over.
    pub(super) fn give_back(&self, source: IpAddr) {
        let mut flows = self.shard(source);
        match flows.get_mut(&source) {
            Some(number) if *number > 1 => *number -= 1,
            _ => {
                flows.remove(&source);
                give_memory_back(&mut flows);
            }
        }
    }

    fn shard(&self, source: IpAddr) -> MutexGuard<'_, Flows> {
        let hash = self.hasher.hash_one(source);
        let shard = usize::try_from(hash % SHARDS as u64).unwrap_or(0);
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What many sources at once needed is given back when nothing is left of them.
fn give_memory_back(flows: &mut Flows) {
    const WORTH_IT: usize = 64;
    if flows.is_empty() && flows.capacity() > WORTH_IT {
        *flows = Flows::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_has_as_many_flows_as_it_may_have() {
        let sources = Sources::new(2);
        let full = address("10.0.0.1");
        assert!(sources.take(full) && sources.take(full));
        assert!(!sources.take(full));
        for other in ["10.0.0.2", "2001:db8::1", "2001:db8::2"] {
            assert!(sources.take(address(other)), "{other}");
        }
        sources.give_back(full);
        assert!(sources.take(full));
        assert!(!sources.take(full));
    }

    #[test]
    fn nothing_is_kept_of_sources_without_flows() {
        let sources = Sources::new(1);
        let many = || (0..100_000_u32).map(|number| IpAddr::V4(number.into()));
        assert!(many().all(|source| sources.take(source)));
        many().for_each(|source| sources.give_back(source));
        for shard in &sources.shards {
            let flows = shard.lock().unwrap();
            assert_eq!((flows.len(), flows.capacity()), (0, 0));
        }
    }

    #[test]
    fn workers_count_the_same_sources() {
        const MOST: usize = 100;
        let sources = Sources::new(MOST);
        let source = address("10.0.0.1");
        let taken = || {
            let tries = (0..MOST).filter(|_| sources.take(source));
            tries.count()
        };
        let total: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(taken)).collect();
            let taken = workers.into_iter().map(|worker| worker.join().unwrap());
            taken.sum()
        });
        assert_eq!(total, MOST);
        (0..MOST).for_each(|_| sources.give_back(source));
        assert!(sources.take(source));
    }
}
