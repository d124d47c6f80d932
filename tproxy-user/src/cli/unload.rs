//! `tproxy unload`.

use std::{
    io::{self, Write as _},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::block_on;
use crate::{
    delivery::Netlink,
    instance::{AgentLock, Error, Instance, PinsLock, remove},
    requirements,
};

/// How long an agent may take to end until it is said what is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) fn execute(instance: &Instance) -> anyhow::Result<()> {
    requirements::check()?;
    // Looked up while the agent still shows the way to its network namespace.
    let origin = instance.origin();
    let agent = AgentLock::holder(instance);
    let forgotten = instance.is_forgotten();
    if forgotten {
        PinsLock::acquire(instance)?;
    }
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
    if forgotten {
        return Err(instance.forgotten()).context("removed what was pinned, but not all is known");
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
    let waiting = || {
        let _ = writeln!(
            io::stderr(),
            "tproxy: waiting for the agent (process {pid}) to let running flows finish; if it does not answer, `kill -9 {pid}` helps"
        );
    };
    let waited = after(PATIENCE, waiting, || AgentLock::wait_for_end(instance));
    waited.context("cannot wait for the agent")
}

/// Does something that blocks, and says a word if it takes longer than this.
fn after<T>(patience: Duration, say: impl FnOnce() + Send, action: impl FnOnce() -> T) -> T {
    let (done, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                say();
            }
        });
        let result = action();
        drop(done);
        result
    })
}
