//! `tproxy unload`.

use std::{fs::File, io};

use anyhow::Context as _;
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
    let state = instance.state().ok();
    let agent = AgentLock::holder(instance);
    let reached = match &state {
        Some(state) => state.namespace.enter(agent.map(|agent| agent.pid))?,
        None => true,
    };
    if let Some(agent) = agent {
        stop(instance, agent.pid)?;
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
    let path = instance.run_directory().join("agent.lock");
    let lock = match File::open(&path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let pid = Pid::from_raw(
        pid.try_into()
            .context("the agent's process number is damaged")?,
    );
    match kill(pid, Signal::SIGTERM) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot stop the agent (process {pid})"));
        }
    }
    lock.lock_shared().context("cannot wait for the agent")?;
    Ok(())
}
