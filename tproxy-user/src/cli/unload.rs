//! `tproxy unload`.

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::block_on;
use crate::{
    delivery::Netlink,
    instance::{AgentLock, Error, Instance, remove},
    requirements,
};

pub(super) fn execute(instance: &Instance) -> anyhow::Result<()> {
    requirements::check()?;
    // Looked up while the agent still shows the way to its network namespace.
    let origin = instance.origin();
    let agent = AgentLock::holder(instance);
    let reached = match origin {
        Some(origin) => origin
            .namespace
            .enter(agent.and_then(|agent| agent.process()))?,
        None => true,
    };
    if let Some(agent) = agent {
        let Some(process) = agent.process() else {
            bail!(
                "the agent of instance {} runs in another PID namespace: run this command there, or stop it first",
                instance.name()
            );
        };
        stop(instance, process)?;
    }
    // A namespace that is nowhere to be found took its rules and routes along.
    let found = block_on(async {
        let netlink = if reached {
            Some(Netlink::open()?)
        } else {
            None
        };
        Ok(remove(instance, netlink.as_ref()).await?)
    })?;
    if !found && agent.is_none() {
        return Err(Error::NotThere(instance.name().to_owned()).into());
    }
    Ok(())
}

/// Asks the agent to stop and waits until it has.
fn stop(instance: &Instance, pid: u32) -> anyhow::Result<()> {
    let process = pid
        .try_into()
        .context("the agent's process number is damaged")?;
    match kill(Pid::from_raw(process), Signal::SIGTERM) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot stop the agent (process {pid})"));
        }
    }
    AgentLock::wait_for_end(instance).context("cannot wait for the agent")
}
