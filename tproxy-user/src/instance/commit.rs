//! The end of a change: everything is written beside what is in force, and takes effect with one
//! write.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    time::Instant,
};

use super::{Built, Change, Error, Interface, State, named_groups, stored_set};
use crate::{
    background,
    compiler::{Compiled, Source, check_limits, cidrs, compile, edit},
    kernel::Generation,
    rule::{Cgroup, Rule},
    set::SetName,
};

/// Room for blocks of changes within tables: this many, and one for each eight that there are.
const LEAST_ROOM: usize = 4096;

impl Change {
    /// Puts the edits in force with one write.
    ///
    /// # Errors
    ///
    /// When the rules do not fit or the kernel refuses; the old state stays in force.
    pub fn commit(mut self) -> Result<State, Error> {
        self.put_in_force()?;
        Ok(self.state)
    }

    /// As [`Change::commit`], for changes that go on with something else.
    pub(super) fn put_in_force(&mut self) -> Result<(), Error> {
        let rules: Vec<Rule> = self
            .state
            .rules
            .iter()
            .map(|stored| stored.spec.validate())
            .collect::<Result<_, _>>()?;
        self.forget_unnamed_files(&rules);
        let slots: Vec<u32> = self.state.rules.iter().map(|stored| stored.slot).collect();
        let interfaces = self.state.interfaces.clone();
        let numbers = named_groups::present(&rules);
        self.state.cgroups.clone_from(&numbers);
        let sources: Vec<Source<'_>> = rules
            .iter()
            .zip(slots)
            .map(|(rule, slot)| Source {
                rule,
                slot,
                interfaces: indexes(&interfaces, &rule.interfaces),
                cgroups: groups_of(rule, &numbers),
            })
            .collect();
        let own: usize = rules.iter().map(cidrs).sum();
        let (sets, shared) = self.sizes();
        check_limits(rules.len(), sets, own + shared)?;
        self.prepare(&rules)?;
        self.state.generation += 1;
        self.state.built.cidrs = own + shared;
        if !self.change_within_tables(&sources)? {
            self.replace_tables(&sources)?;
        }
        self.tidy(&rules);
        let directory = self.instance.run_directory();
        self.state.remove_others(directory);
        stored_set::remove_unnamed(&self.state, directory);
        for name in mem::take(&mut self.expired) {
            log::info!("rule {name} is gone: its time is over");
        }
        Ok(())
    }

    /// Adds to the tables in force what a few CIDRs change in them. Says whether that could be done.
    fn change_within_tables(&mut self, sources: &[Source<'_>]) -> Result<bool, Error> {
        let Some(before) = &self.before else {
            return Ok(false);
        };
        if before.rules != self.state.rules
            || before.interfaces != self.state.interfaces
            || before.cgroups != self.state.cgroups
        {
            return Ok(false);
        }
        let Some(edits) = self.set_edits().map(<[_]>::to_vec) else {
            return Ok(false);
        };
        let in_force = Generation::in_force(&self.maps)?;
        let Some(tables) = in_force.filter(|tables| tables.number() == before.generation) else {
            return Ok(false);
        };
        let edited: BTreeSet<&SetName> = edits.iter().map(|edit| &edit.set).collect();
        let concerned: BTreeSet<&SetName> = sources
            .iter()
            .filter(|source| source.rule.sets().any(|name| edited.contains(name)))
            .flat_map(|source| source.rule.sets())
            .collect();
        let (generation, room) = (self.state.generation, tables.room());
        let sets = self.open_sets(concerned)?;
        let Some(edited) = edit(&tables, sources, sets, &edits, generation, room) else {
            return Ok(false);
        };
        self.store_sets()?;
        self.state.write(self.instance.run_directory())?;
        log::debug!(
            "changed {} CIDRs within the tables, in {} blocks",
            edits.len(),
            edited.blocks.len()
        );
        tables.extend(&edited.blocks)?;
        Ok(true)
    }

    /// Compiles all rules and puts the tables in the place of those in force.
    fn replace_tables(&mut self, sources: &[Source<'_>]) -> Result<(), Error> {
        let begun = Instant::now();
        self.store_sets()?;
        let names: Vec<SetName> = self.state.sets.iter().map(|set| set.name.clone()).collect();
        let generation = self.state.generation;
        let sets = self.open_sets(&names)?;
        let compiled = background::run(|| compile(sources, sets, generation));
        let Compiled { blocks, classes } = compiled?;
        let took = begun.elapsed();
        log::debug!(
            "compiled {} rules and {} CIDRs to {classes} classes in {} blocks ({} bytes), in {} ms",
            sources.len(),
            self.state.built.cidrs,
            blocks.len(),
            size_of_val(blocks.as_slice()),
            took.as_millis()
        );
        self.state.built = Built {
            classes,
            milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            ..self.state.built
        };
        let room = if names.is_empty() {
            0
        } else {
            blocks.len() / 8 + LEAST_ROOM
        };
        let directory = self.instance.run_directory();
        self.state.write(directory)?;
        background::run(|| Generation::install_with_room(&self.maps, &blocks, room))
            .inspect_err(|_| self.state.withdraw(directory))?;
        Ok(())
    }
}

fn indexes(interfaces: &[Interface], names: &[String]) -> Vec<u32> {
    interfaces
        .iter()
        .filter(|interface| names.contains(&interface.name))
        .filter_map(|interface| interface.attached)
        .collect()
}

/// The numbers of the control groups of a rule that are there.
fn groups_of(rule: &Rule, numbers: &BTreeMap<Cgroup, u64>) -> Vec<u64> {
    let numbers = rule.cgroups.iter().map(|group| numbers.get(group));
    numbers.flatten().copied().collect()
}
