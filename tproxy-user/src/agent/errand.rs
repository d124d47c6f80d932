//! A command that an agent is there for: it runs in a control group of its own while its flows are
//! taken, and the agent ends with it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    os::fd::AsFd as _,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

use super::sys::run_in_group;
use crate::rule::Cgroup;

/// How the control groups of commands are called, before the number of the agent's process.
const PREFIX: &str = "tproxy-exec-";

/// How long the last process of a command may take to end, when that has ended itself.
const LAST_PROCESS: Duration = Duration::from_millis(100);

/// A command, and the control group that it will run in. The group goes with this.
#[derive(Debug)]
pub struct Errand {
    command: Vec<OsString>,
    group: Cgroup,
    directory: PathBuf,
}

impl Errand {
    /// Makes the control group, below that of this process.
    ///
    /// # Errors
    ///
    /// When no unified hierarchy is there, or the group cannot be made.
    pub fn new(command: Vec<OsString>) -> anyhow::Result<Self> {
        let root = Cgroup::root().context("a command needs a control group of its own")?;
        let name = format!("{PREFIX}{}", std::process::id());
        let (parent, path) = match Cgroup::of_this_process() {
            Some(own) => (root.join(own.to_string()), format!("{own}/{name}")),
            None => (root.clone(), name),
        };
        remove_abandoned(&parent);
        let directory = root.join(&path);
        fs::create_dir(&directory)
            .with_context(|| format!("cannot make the control group {}", directory.display()))?;
        Ok(Self {
            command,
            group: path.parse().map_err(anyhow::Error::msg)?,
            directory,
        })
    }

    /// The control group.
    #[must_use]
    pub fn group(&self) -> &Cgroup {
        &self.group
    }

    /// Starts the command.
    pub(super) fn start(&self) -> anyhow::Result<Running> {
        let (program, arguments) = self.command.split_first().context("there is no command")?;
        let processes = self.directory.join("cgroup.procs");
        let processes = File::options()
            .write(true)
            .open(&processes)
            .with_context(|| format!("cannot use {}", processes.display()))?;
        let mut command = Command::new(program);
        command.args(arguments);
        run_in_group(&mut command, processes);
        let child = command.spawn().map_err(|cause| CannotRun {
            program: program.clone(),
            cause,
        })?;
        Ok(Running(child))
    }

    /// Whether processes that the command started are there still.
    pub(super) fn is_in_use(&self) -> bool {
        self.events()
            .and_then(|mut events| is_populated(&mut events))
            .unwrap_or(false)
    }

    /// Waits until no process is in the control group. False when one is there still at the end.
    fn wait_until_empty(&self, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        let mut events = self.events()?;
        while is_populated(&mut events)? {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            // The kernel tells that the file says something else than when it was last read (cgroups(7)).
            let mut changed = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            match poll(&mut changed, timeout) {
                Ok(0) => return Ok(!is_populated(&mut events)?),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn events(&self) -> io::Result<File> {
        File::open(self.directory.join("cgroup.events"))
    }
}

/// Whether a process is in the control group of these events, or in one below it.
fn is_populated(events: &mut File) -> io::Result<bool> {
    let mut text = String::new();
    events.rewind()?;
    events.read_to_string(&mut text)?;
    Ok(text.lines().any(|line| line == "populated 1"))
}

impl Drop for Errand {
    fn drop(&mut self) {
        // The last process of the command may be about to end. What the command left running stays in
        // the group.
        let removed = self
            .wait_until_empty(LAST_PROCESS)
            .and_then(|_| fs::remove_dir(&self.directory));
        if let Err(error) = removed {
            log::warn!(
                "the control group {} stays: {error}",
                self.directory.display()
            );
        }
    }
}

/// Removes the control groups of agents that were killed. One whose command runs on stays.
fn remove_abandoned(parent: &Path) {
    for group in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = group.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = fs::remove_dir(group.path());
        }
    }
}

/// The command cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot run {}: {cause}", program.display())]
pub struct CannotRun {
    program: OsString,
    cause: io::Error,
}

impl CannotRun {
    /// The exit code by which shells tell of it (bash(1), "EXIT STATUS").
    #[must_use]
    pub fn code(&self) -> u8 {
        const NOT_FOUND: u8 = 127;
        const NOT_EXECUTABLE: u8 = 126;
        match self.cause.kind() {
            io::ErrorKind::NotFound => NOT_FOUND,
            _ => NOT_EXECUTABLE,
        }
    }
}

/// A command that runs.
pub(super) struct Running(Child);

impl Running {
    /// Waits for its end. Cancelling loses nothing.
    pub(super) async fn ended(&mut self) -> anyhow::Result<u8> {
        let status = self.0.wait().await;
        Ok(exit_code(status.context("cannot wait for the command")?))
    }

    /// Passes on that the agent was told to stop.
    pub(super) fn terminate(&self) {
        let process = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(process) = process {
            // One that has just ended needs no signal.
            let _ = kill(Pid::from_raw(process), Signal::SIGTERM);
        }
    }
}

/// As shells tell it: 128 and the number of the signal that ended a command.
fn exit_code(status: ExitStatus) -> u8 {
    let by_signal = || status.signal().map(|signal| 128 + signal);
    let code = status.code().or_else(by_signal).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_last_process_is_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let errand = Errand::new(["sleep", "60"].map(OsString::from).into()).unwrap();
        assert!(errand.wait_until_empty(Duration::ZERO).unwrap());
        let command = {
            let _inside = runtime.enter();
            errand.start().unwrap()
        };
        assert!(errand.is_in_use());
        let briefly = Duration::from_millis(20);
        assert!(!errand.wait_until_empty(briefly).unwrap());
        // Told by the kernel, long before the limit.
        let begun = Instant::now();
        command.terminate();
        assert!(errand.wait_until_empty(Duration::from_mins(1)).unwrap());
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(!errand.is_in_use());
        let directory = errand.directory.clone();
        drop(errand);
        assert!(!directory.exists());
    }
}
