//! `tproxy rule load` and `tproxy rule check`.

use super::{output::print_line, progress::Progress};
use crate::{
    config::{Config, Problems, Source},
    instance::{Change, Error, Instance, shadows, want_of_interfaces},
    requirements, set,
};

/// Puts the rules and sets of a file in force, in the place of all others.
pub(super) fn load(instance: &Instance, source: &Source, quiet: bool) -> anyhow::Result<()> {
    // Before the instance is asked for anything: a mistake is a mistake wherever it is made.
    let config = read_file(source, quiet)?;
    requirements::check()?;
    let mut change = Change::begin(instance)?;
    let summary = config.summary();
    change.replace_by_file(config)?;
    change.commit()?;
    warn_of_idle_rules(instance, None)?;
    print_line(&format!("loaded {summary}"))
}

/// Says whether a file would load. An instance that can be looked at is asked for its interfaces;
/// without one, or without the privileges, everything else is checked.
pub(super) fn check(instance: &Instance, source: &Source, quiet: bool) -> anyhow::Result<()> {
    let config = read_file(source, quiet)?;
    if let Ok(state) = instance.state()
        && let Some(problems) = config.unattached(instance.name(), &state.interface_names())
    {
        return Err(Error::Unattached(problems).into());
    }
    for warning in config.fit()? {
        log::warn!("{warning}");
    }
    print_line(&format!("would load {}", config.summary()))
}

/// Reads a file and says what may not be meant in it.
pub(super) fn read_file(source: &Source, quiet: bool) -> Result<Config, Problems> {
    let progress = Progress::start(&format!("reading {}", source.name()), quiet);
    let config = Config::read(source, &mut |path| {
        set::load(path, &mut |bytes| progress.bytes(bytes))
    })?;
    drop(progress);
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    Ok(config)
}

/// Says which rules in force take nothing: all of them, or those that the rule of this name
/// hides or that is it.
pub(super) fn warn_of_idle_rules(
    instance: &Instance,
    concerning: Option<&str>,
) -> anyhow::Result<()> {
    let (state, tables) = instance.in_force()?;
    let place = match concerning {
        None => None,
        Some(name) => match state.rules.iter().position(|rule| rule.name() == name) {
            // Somebody else took it away meanwhile.
            None => return Ok(()),
            place => place,
        },
    };
    let lines = shadows(&state, &tables, place);
    for line in want_of_interfaces(&state, place).into_iter().chain(lines) {
        log::warn!("{line}");
    }
    Ok(())
}
