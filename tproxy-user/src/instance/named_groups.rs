//! The control groups that rules name, and the numbers that the tables have for them.

use std::collections::BTreeMap;

use super::{Change, Error, State};
use crate::rule::{Cgroup, Rule};

/// Control groups that rules name, each with the number that the tables in force have for it: `None`
/// where it was not there when they were compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedGroups(BTreeMap<Cgroup, Option<u64>>);

impl NamedGroups {
    /// Whether no rule names one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn groups(&self) -> impl Iterator<Item = &Cgroup> {
        self.0.keys()
    }

    /// Those that have another number by now, with that, or are gone. One that cannot be read is
    /// taken for what it was.
    #[must_use]
    pub fn outdated(&self) -> Vec<(&Cgroup, Option<u64>)> {
        let now = |(group, number): (_, &Option<u64>)| {
            let found = Cgroup::id(group).ok()?;
            (found != *number).then_some((group, found))
        };
        self.0.iter().filter_map(now).collect()
    }

    /// Those that have another number here than in `before`.
    pub fn since<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = (&'a Cgroup, Option<u64>)> {
        let differs = |(group, number): &(&Cgroup, Option<u64>)| {
            before.0.get(group).is_some_and(|known| known != number)
        };
        let numbers = self.0.iter().map(|(group, number)| (group, *number));
        numbers.filter(differs)
    }
}

impl State {
    /// The control groups that rules name.
    #[must_use]
    pub fn named_groups(&self) -> NamedGroups {
        let words = self.rules.iter().flat_map(|stored| &stored.spec.cgroup);
        let groups = words.filter_map(|word| word.parse::<Cgroup>().ok());
        let numbered = groups.map(|group| {
            let number = self.cgroups.get(&group).copied();
            (group, number)
        });
        NamedGroups(numbered.collect())
    }
}

impl Change {
    /// Compiles the rules anew if control groups that they name have been made, made again or removed
    /// since they were compiled.
    ///
    /// # Errors
    ///
    /// As [`Change::commit`].
    pub fn follow_groups(self) -> Result<State, Error> {
        if self.state.named_groups().outdated().is_empty() {
            return Ok(self.state);
        }
        self.commit()
    }
}

/// The numbers of the groups of these rules that are there. A rule matches nothing of one that is
/// not, as with an interface.
pub(super) fn present(rules: &[Rule]) -> BTreeMap<Cgroup, u64> {
    let mut numbers = BTreeMap::new();
    for group in rules.iter().flat_map(|rule| &rule.cgroups) {
        if numbers.contains_key(group) {
            continue;
        }
        match group.id() {
            Ok(Some(number)) => {
                numbers.insert(group.clone(), number);
            }
            Ok(None) => {}
            Err(error) => log::warn!("control group {group}: {error}"),
        }
    }
    numbers
}
