//! Changes of an instance: one at a time, each whole or not at all.

use std::{collections::HashSet, mem, time::Duration};

use tproxy_common::limits::UNATTRIBUTED_SLOT;

use super::{ChangeLock, Error, Instance, Origin, State, StoredRule, set_changes::SetChanges};
use crate::{
    kernel::{Maps, RelayCounters},
    rule::{Deadline, RuleSpec},
};

/// No rule of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no rule {0}: `tproxy rule list` shows them")]
pub struct RuleNotFound(pub String);

/// The right to change an instance, held until dropped. Edits show in [`Change::state`] and take
/// effect with [`Change::commit`].
pub struct Change {
    pub(super) instance: Instance,
    pub(super) maps: Maps,
    /// The state in force, if there is one.
    pub(super) before: Option<State>,
    pub(super) state: State,
    pub(super) sets: SetChanges,
    /// Rules of the state in force whose time is over.
    pub(super) expired: Vec<String>,
    _lock: ChangeLock,
}

impl Change {
    /// Waits for its turn.
    ///
    /// # Errors
    ///
    /// When the instance is not there.
    pub fn begin(instance: &Instance) -> Result<Self, Error> {
        let maps = instance.maps()?;
        let lock = ChangeLock::wait(instance)?;
        // Only now: whoever had the lock may have changed or removed everything.
        let state = instance.state()?;
        let mut change = Self {
            instance: instance.clone(),
            maps,
            before: Some(state.clone()),
            state,
            sets: SetChanges::default(),
            expired: Vec::new(),
            _lock: lock,
        };
        change.remove_stray_links()?;
        change.remove_expired()?;
        Ok(change)
    }

    /// The first change of an instance whose programs are loaded and pinned. Nothing is in force
    /// before it is committed.
    pub(crate) fn establish(instance: &Instance, state: State) -> Result<Self, Error> {
        let lock = ChangeLock::wait(instance)?;
        Origin::from(&state).write(instance.run_directory())?;
        Ok(Self {
            instance: instance.clone(),
            maps: instance.maps()?,
            before: None,
            state,
            sets: SetChanges::default(),
            expired: Vec::new(),
            _lock: lock,
        })
    }

    /// The state as edited so far.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The maps of the instance.
    #[must_use]
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Adds a rule at a place from 0, and says its name.
    ///
    /// # Errors
    ///
    /// When the rule makes no sense, its name is taken or names an interface that is not attached.
    pub fn add_rule(&mut self, mut spec: RuleSpec, place: usize) -> Result<String, Error> {
        let name = match spec.name.take() {
            Some(name) if self.place_of(&name).is_ok() => return Err(Error::RuleExists(name)),
            Some(name) => name,
            None => {
                let taken: HashSet<String> = self.names().map(str::to_owned).collect();
                self.made_up_name(|name| !taken.contains(name))
            }
        };
        spec.name = Some(name.clone());
        let rule = spec.validate()?;
        if let Some(missing) = self.first_unattached(&rule.interfaces) {
            return Err(missing);
        }
        self.load_sets_of(&rule, &HashSet::new())?;
        let taken = self.state.rules.iter().map(|rule| rule.slot).collect();
        let stored = StoredRule {
            slot: self.new_slot(&taken)?,
            deadline: rule.life.map(Deadline::after).transpose()?,
            spec,
        };
        self.state
            .rules
            .insert(place.min(self.state.rules.len()), stored);
        Ok(name)
    }

    /// Adds rules behind all others.
    ///
    /// # Errors
    ///
    /// As [`Change::add_rule`]; the rules before the one that is refused are added.
    pub fn append_rules(&mut self, rules: &[RuleSpec]) -> Result<(), Error> {
        for spec in rules {
            let place = self.state.rules.len();
            self.add_rule(spec.clone(), place)?;
        }
        Ok(())
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.state.rules.iter().map(StoredRule::name)
    }

    /// Where the rule of this name stands.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn place_of(&self, name: &str) -> Result<usize, RuleNotFound> {
        self.state
            .rules
            .iter()
            .position(|rule| rule.name() == name)
            .ok_or_else(|| RuleNotFound(name.to_owned()))
    }

    /// Deletes rules by name.
    ///
    /// # Errors
    ///
    /// When one is not there; none is deleted then.
    pub fn delete_rules(&mut self, names: &[String]) -> Result<(), RuleNotFound> {
        for name in names {
            if !self.expired.contains(name) {
                self.place_of(name)?;
            }
        }
        self.state
            .rules
            .retain(|rule| !names.iter().any(|name| name == rule.name()));
        Ok(())
    }

    /// Deletes all rules, and says how many.
    pub fn flush_rules(&mut self) -> usize {
        mem::take(&mut self.state.rules).len() + self.expired.len()
    }

    /// Whether rules are gone since the last change because their time is over. Committing this
    /// change takes them out of the kernel.
    #[must_use]
    pub fn has_expired_rules(&self) -> bool {
        !self.expired.is_empty()
    }

    fn remove_expired(&mut self) -> Result<(), Error> {
        for stored in mem::take(&mut self.state.rules) {
            if stored.left()? == Some(Duration::ZERO) {
                self.expired.push(stored.name().to_owned());
            } else {
                self.state.rules.push(stored);
            }
        }
        Ok(())
    }

    /// Says whether the instance stays when its agent ends.
    pub(crate) fn set_pinned(&mut self, pinned: bool) {
        self.state.pinned = pinned;
    }

    pub(super) fn first_unattached(&self, names: &[String]) -> Option<Error> {
        let attached = self.state.interface_names();
        let missing = names.iter().find(|name| !attached.contains(name))?;
        Some(Error::NotAttached {
            interface: missing.clone(),
            instance: self.instance.name().to_owned(),
            attached,
        })
    }

    /// The next name that is free.
    pub(super) fn made_up_name(&mut self, is_free: impl Fn(&str) -> bool) -> String {
        loop {
            self.state.next_rule += 1;
            let name = format!("rule-{}", self.state.next_rule);
            if is_free(&name) {
                return name;
            }
        }
    }

    /// A slot that no rule has, nor a flow of a rule that is gone. There are twice as many as rules.
    pub(super) fn free_slot(&self, taken: &HashSet<u32>) -> Result<u32, Error> {
        let relay = RelayCounters::open(&self.maps)?;
        let free = |slot: &u32| !taken.contains(slot) && relay.get(*slot).live == 0;
        Ok((0..UNATTRIBUTED_SLOT)
            .find(free)
            .unwrap_or(UNATTRIBUTED_SLOT))
    }
}
