//! `tproxy exec`.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;

use super::{Usage, accept, block_on};
use crate::{
    agent::{self, Errand, Options},
    delivery::Netlink,
    instance::{AgentLock, Instance, remove},
    requirements,
    rule::RuleSpec,
};

/// How the instances of commands are called, before the number of their process.
const PREFIX: &str = "exec-";

#[derive(Args)]
#[command(after_help = "Examples:
  tproxy exec -- curl https://example.com
  tproxy exec --proto any --dport 53,80,443 -- firefox
  tproxy exec --dport 80 --action redirect --to 127.0.0.1:3129 -- git clone http://example.com/a.git
  tproxy exec --dst 192.0.2.0/24 --action reject -- ./build.sh")]
pub(super) struct Arguments {
    #[command(flatten)]
    rule: RuleSpec,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// The instance of a command, unless one was named.
pub(super) fn own_instance() -> anyhow::Result<Instance> {
    Ok(Instance::new(&format!("{PREFIX}{}", std::process::id()))?)
}

/// Runs the command, and says what it exited with.
pub(super) fn execute(
    instance: &Instance,
    arguments: Arguments,
    namespace: Option<PathBuf>,
) -> anyhow::Result<u8> {
    let Arguments { mut rule, command } = arguments;
    for (key, given) in [
        ("scope", rule.scope.is_some()),
        ("cgroup", !rule.cgroup.is_empty()),
    ] {
        if given {
            let text =
                format!("--{key}: the rule is about the command and nothing else: leave it out");
            return Err(Usage(text).into());
        }
    }
    rule.scope = Some("local".into());
    accept(&mut rule)?;
    requirements::check()?;
    remove_leftovers();
    let errand = Errand::new(command)?;
    rule.cgroup = vec![errand.group().to_string()];
    let options = Options {
        rules: vec![rule],
        namespace,
        ..Options::default()
    };
    agent::run_with(instance, &options, errand)
}

/// Removes what earlier commands left whose agent was killed.
fn remove_leftovers() {
    let left = |instance: &Instance| {
        instance.name().starts_with(PREFIX) && AgentLock::holder(instance).is_none()
    };
    for instance in Instance::all().into_iter().filter(left) {
        let removed = block_on(async {
            let here = crate::instance::NamespaceId::current()?;
            let origin = instance.origin();
            // Elsewhere, its rules and routes are for `unload` to find.
            if origin.is_none_or(|origin| origin.namespace == here) {
                let netlink = Netlink::open()?;
                remove(&instance, Some(&netlink)).await?;
            }
            Ok(())
        });
        if let Err(error) = removed {
            log::warn!("what instance {} left stays: {error:#}", instance.name());
        }
    }
}
