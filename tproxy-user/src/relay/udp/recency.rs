//! Entries of a slab in the order of their last use, linked through the entries themselves.

use slab::Slab;

const NONE: usize = usize::MAX;

/// The neighbours of an entry in one list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Links {
    older: usize,
    newer: usize,
}

/// A list whose links are those that `links` finds in an entry. An entry is in it at most once.
#[derive(Debug)]
pub(super) struct Recency<T> {
    oldest: usize,
    newest: usize,
    links: fn(&mut T) -> &mut Links,
}

impl Links {
    /// Those of an entry that is in no list.
    pub(super) fn none() -> Self {
        Self {
            older: NONE,
            newer: NONE,
        }
    }
}

impl<T> Recency<T> {
    pub(super) fn new(links: fn(&mut T) -> &mut Links) -> Self {
        Self {
            oldest: NONE,
            newest: NONE,
            links,
        }
    }

    /// The entry whose last use is the longest ago.
    pub(super) fn oldest(&self) -> Option<usize> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// Puts an entry in that is not in the list, as the one used last.
    pub(super) fn add(&mut self, entries: &mut Slab<T>, key: usize) {
        let older = self.newest;
        *(self.links)(&mut entries[key]) = Links { older, newer: NONE };
        match older {
            NONE => self.oldest = key,
            older => (self.links)(&mut entries[older]).newer = key,
        }
        self.newest = key;
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, entries: &mut Slab<T>, key: usize) {
        let Links { older, newer } = *(self.links)(&mut entries[key]);
        match older {
            NONE => self.oldest = newer,
            older => (self.links)(&mut entries[older]).newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => (self.links)(&mut entries[newer]).older = older,
        }
    }

    /// Makes an entry the one used last.
    pub(super) fn renew(&mut self, entries: &mut Slab<T>, key: usize) {
        if self.newest != key {
            self.remove(entries, key);
            self.add(entries, key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_in_the_order_of_use(uses in proptest::collection::vec((0usize..8, any::<bool>()), 1..60)) {
            let mut entries: Slab<Links> = Slab::new();
            for _ in 0..8 {
                entries.insert(Links::none());
            }
            let mut list = Recency::new(|links: &mut Links| links);
            let mut model: Vec<usize> = Vec::new();
            for (key, remove) in uses {
                let there = model.contains(&key);
                model.retain(|&other| other != key);
                match (there, remove) {
                    (true, true) => list.remove(&mut entries, key),
                    (true, false) => list.renew(&mut entries, key),
                    (false, _) => list.add(&mut entries, key),
                }
                if !(there && remove) {
                    model.push(key);
                }
                prop_assert_eq!(list.oldest(), model.first().copied());
            }
            while let Some(key) = list.oldest() {
                prop_assert_eq!(key, model.remove(0));
                list.remove(&mut entries, key);
            }
            prop_assert!(model.is_empty());
        }
    }
}
