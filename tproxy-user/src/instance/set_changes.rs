//! Changes of sets. They show in [`Change::state`] when they are committed.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ipnet::IpNet;

use super::{Change, Error, StoredSet};
use crate::{
    compiler::SetEdit,
    rule::Rule,
    set::{self, CidrList, Set, SetName, Sets},
};

/// A list that differs from the one before in more CIDRs than this has its rules compiled anew.
const MOST_EDITS: usize = 1024;

/// A set whose overlay has more CIDRs than this gets a new list: the overlay is written again with
/// each change.
const LARGEST_OVERLAY: usize = 1024;

/// What a change does to sets.
#[derive(Default)]
pub(super) struct SetChanges {
    /// Sets that were looked at, as they are to be.
    open: Sets,
    /// Those of them that have a new list.
    rewritten: BTreeSet<SetName>,
    /// What differs, as long as that is little.
    edits: Vec<SetEdit>,
    /// Whether more differs than is in `edits`.
    differs_widely: bool,
}

/// What became of CIDRs that were to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    /// How many were not there before.
    pub new: usize,
    /// How many there are now.
    pub cidrs: usize,
}

impl Change {
    /// Makes a set hold a list and nothing else. It is made when it is not there.
    pub fn set_contents(&mut self, name: &SetName, list: CidrList) {
        self.put_set(name, Set::new(list));
    }

    /// As [`Change::set_contents`].
    pub(super) fn put_set(&mut self, name: &SetName, new: Set) {
        if self.has_set(name) {
            // One that is damaged is mended by this.
            match self.open_set(name) {
                Ok(old) => {
                    let differing = set::differences(old, &new);
                    let differing: Vec<IpNet> = differing.take(MOST_EDITS + 1).collect();
                    self.sets.edit(name, differing);
                }
                Err(_) => self.sets.differs_widely = true,
            }
        }
        self.sets.rewritten.insert(name.clone());
        self.sets.open.insert(name.clone(), new);
    }

    /// Adds CIDRs to a set. It is made when it is not there.
    ///
    /// # Errors
    ///
    /// When what it holds cannot be read.
    pub fn add_to_set(&mut self, name: &SetName, nets: &[IpNet]) -> Result<Added, Error> {
        if !self.has_set(name) {
            self.set_contents(name, CidrList::default());
        }
        let set = self.open_set(name)?;
        let new: Vec<IpNet> = nets.iter().copied().filter(|net| set.insert(net)).collect();
        let added = Added {
            new: new.len(),
            cidrs: set.len(),
        };
        self.sets.edit(name, new);
        Ok(added)
    }

    /// Takes CIDRs out of a set, all or none.
    ///
    /// # Errors
    ///
    /// When the set is not there, or one of the CIDRs is not in it.
    pub fn delete_from_set(&mut self, name: &SetName, nets: &[IpNet]) -> Result<(), Error> {
        let set = self.open_set(name)?;
        if let Some(net) = nets.iter().find(|net| !set.contains(net)) {
            return Err(Error::NotInSet {
                set: name.clone(),
                net: *net,
                holder: set.find_holder(net),
            });
        }
        let gone: Vec<IpNet> = nets.iter().copied().filter(|net| set.remove(net)).collect();
        self.sets.edit(name, gone);
        Ok(())
    }

    /// Takes all CIDRs out of a set.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn flush_set(&mut self, name: &SetName) -> Result<(), Error> {
        if !self.has_set(name) {
            return Err(Error::NoSuchSet(name.clone()));
        }
        self.set_contents(name, CidrList::default());
        Ok(())
    }

    /// Removes a set.
    ///
    /// # Errors
    ///
    /// When it is not there, or a rule names it.
    pub fn remove_set(&mut self, name: &SetName) -> Result<(), Error> {
        if !self.has_set(name) {
            return Err(Error::NoSuchSet(name.clone()));
        }
        if let Some(rule) = self.rule_with_set(name)? {
            return Err(Error::SetInUse {
                set: name.clone(),
                rule,
            });
        }
        self.forget_set(name);
        Ok(())
    }

    /// Removes all sets but those that are to be kept. The rules that name them have to go as well.
    pub(crate) fn keep_sets(&mut self, keep: impl Fn(&SetName) -> bool) {
        self.sets.open.retain(|name, _| keep(name));
        self.state.sets.retain(|set| keep(&set.name));
    }

    /// Makes sure that the sets that a rule names are there. Files that it names are read, unless
    /// they are among those that were `given`.
    pub(super) fn load_sets_of(
        &mut self,
        rule: &Rule,
        given: &HashSet<SetName>,
    ) -> Result<(), Error> {
        for name in rule.sets().filter(|name| !given.contains(name)) {
            match name.file() {
                Some(path) => {
                    let reading = set::load(path, &mut |_| ())?;
                    if reading.masked.count > 0 {
                        log::warn!("{}", reading.masked.of(&path.display().to_string()));
                    }
                    self.set_contents(name, reading.list);
                }
                None if self.has_set(name) => {}
                None => return Err(Error::NoSuchSet(name.clone())),
            }
        }
        Ok(())
    }

    /// Removes the sets of files that no rule names any more.
    pub(super) fn forget_unnamed_files(&mut self, rules: &[Rule]) {
        let named: BTreeSet<&SetName> = rules.iter().flat_map(Rule::sets).collect();
        let unnamed = |name: &&SetName| name.file().is_some() && !named.contains(name);
        let of_state = self.state.sets.iter().map(|set| &set.name);
        let forgotten: Vec<SetName> = of_state
            .chain(self.sets.open.keys())
            .filter(unnamed)
            .cloned()
            .collect();
        for name in forgotten {
            self.forget_set(&name);
        }
    }

    /// Writes what has to be written of sets, and makes the state name it.
    pub(super) fn store_sets(&mut self) -> Result<(), Error> {
        let directory = self.instance.run_directory();
        let mut stored: BTreeMap<SetName, StoredSet> = self
            .state
            .sets
            .drain(..)
            .map(|set| (set.name.clone(), set))
            .collect();
        for (name, set) in &mut self.sets.open {
            let rewritten = self.sets.rewritten.contains(name);
            if rewritten || set.overlay_len() > LARGEST_OVERLAY {
                self.state.next_set += 1;
                let written = StoredSet::write(name, set, self.state.next_set, directory)?;
                stored.insert(name.clone(), written);
            } else if let Some(stored) = stored.get_mut(name) {
                stored.take_up(set);
            }
        }
        self.state.sets = stored.into_values().collect();
        Ok(())
    }

    /// How many sets there are to be, and how many CIDRs in them.
    pub(super) fn sizes(&self) -> (usize, usize) {
        let untouched = self.state.sets.iter();
        let untouched = untouched.filter(|set| !self.sets.open.contains_key(&set.name));
        let sizes = untouched.map(|set| set.cidrs);
        let sizes = sizes.chain(self.sets.open.values().map(Set::len));
        sizes.fold((0, 0), |(sets, cidrs), size| (sets + 1, cidrs + size))
    }

    /// What differs in sets from the state before; `None` when it is too much for changes within the
    /// tables.
    pub(super) fn set_edits(&self) -> Option<&[SetEdit]> {
        let few = !self.sets.differs_widely && self.sets.edits.len() <= MOST_EDITS;
        few.then_some(&self.sets.edits)
    }

    /// Opens sets: those of `names` that are there.
    pub(super) fn open_sets<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a SetName>,
    ) -> Result<&Sets, Error> {
        for name in names {
            if self.has_set(name) {
                self.open_set(name)?;
            }
        }
        Ok(&self.sets.open)
    }

    fn open_set(&mut self, name: &SetName) -> Result<&mut Set, Error> {
        if !self.sets.open.contains_key(name) {
            let stored = self.state.sets.iter().find(|set| set.name == *name);
            let stored = stored.ok_or_else(|| Error::NoSuchSet(name.clone()))?;
            let set = stored.open(self.instance.run_directory())?;
            self.sets.open.insert(name.clone(), set);
        }
        let set = self.sets.open.get_mut(name);
        set.ok_or_else(|| Error::NoSuchSet(name.clone()))
    }

    fn has_set(&self, name: &SetName) -> bool {
        self.sets.open.contains_key(name) || self.state.sets.iter().any(|set| set.name == *name)
    }

    pub(super) fn forget_set(&mut self, name: &SetName) {
        self.sets.open.remove(name);
        self.sets.rewritten.remove(name);
        self.state.sets.retain(|set| set.name != *name);
    }

    /// The name of a rule that names this set.
    fn rule_with_set(&self, name: &SetName) -> Result<Option<String>, Error> {
        for stored in &self.state.rules {
            let rule = stored.spec.validate()?;
            if rule.sets().any(|named| named == name) {
                return Ok(Some(rule.name.clone()));
            }
        }
        Ok(None)
    }
}

impl SetChanges {
    fn edit(&mut self, name: &SetName, nets: Vec<IpNet>) {
        if self.edits.len() + nets.len() > MOST_EDITS {
            self.differs_widely = true;
            return;
        }
        let edits = nets.into_iter().map(|net| SetEdit {
            set: name.clone(),
            net,
        });
        self.edits.extend(edits);
    }
}
