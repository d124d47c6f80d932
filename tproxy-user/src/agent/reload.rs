//! SIGHUP: the file that the agent was started with is read again.

use log::{error, info, warn};

use super::{start::Parts, upkeep::change};
use crate::{
    config::{AgentSection, Config, Problems, Source},
    delivery::Netlink,
    instance::{Change, Error, shadows, want_of_interfaces},
    set,
};

/// A file that can be read again.
pub(super) struct Reload {
    source: Source,
    /// The section that takes effect at start only.
    agent: AgentSection,
}

impl Reload {
    pub(super) fn new(source: Source, config: &Config) -> Self {
        Self {
            source,
            agent: config.agent.clone(),
        }
    }

    /// Puts the rules and sets of the file in force. If anything is wrong with them, those in force
    /// stay.
    pub(super) async fn run(&self, running: &Parts) {
        let source = self.source.clone();
        let read = tokio::task::spawn_blocking(move || read(&source));
        let config = match read.await {
            Ok(Ok(config)) => config,
            Ok(Err(problems)) => return self.refuse(&problems),
            Err(died) => return error!("{} was not read: {died}", self.source.name()),
        };
        if config.agent != self.agent {
            warn!(
                "{}: [agent] is not what it was: that takes effect with the next start",
                self.source.name()
            );
        }
        let summary = config.summary();
        let edit = async move |mut change: Change, _: &Netlink| {
            change.replace_by_file(config)?;
            change.commit()
        };
        match change(running, edit).await {
            Ok(_) => {
                info!("loaded {summary}");
                warn_of_idle_rules(running);
            }
            Err(failed) => match failed.downcast_ref() {
                Some(Error::Unattached(problems)) => self.refuse(problems),
                _ => error!("{}: {failed}; the rules in force stay", self.source.name()),
            },
        }
    }

    fn refuse(&self, problems: &Problems) {
        for problem in problems.iter() {
            error!("{problem}");
        }
        error!(
            "{} was not loaded: the rules in force stay",
            self.source.name()
        );
    }
}

fn read(source: &Source) -> Result<Config, Problems> {
    let config = Config::read(source, &mut |path| set::load(path, &mut |_| ()))?;
    for warning in &config.warnings {
        warn!("{warning}");
    }
    Ok(config)
}

/// Says which rules in force take nothing.
pub(super) fn warn_of_idle_rules(running: &Parts) {
    match running.instance.in_force() {
        Ok((state, tables)) => {
            let lines = shadows(&state, &tables, None);
            for line in want_of_interfaces(&state, None).into_iter().chain(lines) {
                warn!("{line}");
            }
        }
        Err(error) => warn!("{error}"),
    }
}
