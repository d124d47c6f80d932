//! All rules and sets at once, as a file has them.

use std::{collections::HashSet, mem};

use super::{Change, Error, StoredRule};
use crate::{
    config::Config,
    kernel::Counters,
    rule::{Deadline, RuleSpec},
    set::{SetName, Sets},
};

impl Change {
    /// Makes the instance have the rules and sets of a file and no others, see [`Change::replace`].
    ///
    /// # Errors
    ///
    /// When rules name interfaces that are not attached: all of them, by line. Else as
    /// [`Change::replace`].
    pub fn replace_by_file(&mut self, config: Config) -> Result<(), Error> {
        let attached = self.state.interface_names();
        if let Some(problems) = config.unattached(self.instance.name(), &attached) {
            return Err(Error::Unattached(problems));
        }
        let (rules, sets) = config.into_parts();
        self.replace(rules, sets)
    }

    /// Makes the instance have these rules and sets and no others. A rule whose name was there
    /// already goes on counting where it counted; a rule without a name is the one that says the
    /// same, if there is one. A rule that is to live as long as before keeps its end. Files that rules
    /// name are read, unless they are among `sets`.
    ///
    /// # Errors
    ///
    /// When a rule makes no sense, has the name of another one, or names an interface that is not
    /// attached or a set that is not there. The change cannot be committed then.
    pub fn replace(&mut self, rules: Vec<RuleSpec>, sets: Sets) -> Result<(), Error> {
        let given: HashSet<SetName> = sets.keys().cloned().collect();
        for (name, set) in sets {
            self.put_set(&name, set);
        }
        // A file that no rule names is forgotten in the end.
        self.keep_sets(|name| name.file().is_some() || given.contains(name));
        let old = mem::take(&mut self.state.rules);
        let rules = self.with_names(rules, &old)?;
        // Until these rules are in force, flows are counted in the slots of the old ones.
        let mut taken: HashSet<u32> = old.iter().map(|rule| rule.slot).collect();
        for spec in rules {
            let rule = spec.validate()?;
            if let Some(missing) = self.first_unattached(&rule.interfaces) {
                return Err(missing);
            }
            self.load_sets_of(&rule, &given)?;
            let before = old.iter().find(|old| old.name() == rule.name);
            let slot = match before {
                Some(before) => before.slot,
                None => self.new_slot(&taken)?,
            };
            taken.insert(slot);
            let as_before = before.filter(|before| before.spec.expires == spec.expires);
            let deadline = match as_before.and_then(|before| before.deadline) {
                Some(deadline) => Some(deadline),
                None => rule.life.map(Deadline::after).transpose()?,
            };
            self.state.rules.push(StoredRule {
                slot,
                deadline,
                spec,
            });
        }
        Ok(())
    }

    /// Gives a name to each rule that has none.
    fn with_names(
        &mut self,
        mut rules: Vec<RuleSpec>,
        old: &[StoredRule],
    ) -> Result<Vec<RuleSpec>, Error> {
        let mut taken = HashSet::new();
        for name in rules.iter().filter_map(|rule| rule.name.as_ref()) {
            if !taken.insert(name.clone()) {
                return Err(Error::RuleExists(name.clone()));
            }
        }
        for rule in rules.iter_mut().filter(|rule| rule.name.is_none()) {
            let mut free = old.iter().filter(|old| !taken.contains(old.name()));
            let name = match free.find(|old| old.says(rule)) {
                Some(same) => same.name().to_owned(),
                None => self.made_up_name(|name| {
                    !taken.contains(name) && old.iter().all(|old| old.name() != name)
                }),
            };
            taken.insert(name.clone());
            rule.name = Some(name);
        }
        Ok(rules)
    }

    /// A counter slot of which nothing is counted any more, from zero.
    pub(super) fn new_slot(&self, taken: &HashSet<u32>) -> Result<u32, Error> {
        let slot = self.free_slot(taken)?;
        Counters::new(&self.maps).reset(slot)?;
        Ok(slot)
    }
}
