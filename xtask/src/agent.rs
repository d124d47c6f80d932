//! A `tproxy run` of ours in a gateway: started, listened to, stopped.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{command, interrupt, lines, topology::Namespace};

/// How long the agent may take to say that it is ready.
const START: Duration = Duration::from_secs(10);
/// How long it may take to end after SIGTERM: more than the drain that it is started with.
const STOP: Duration = Duration::from_secs(5);

/// A running agent. Dropped, it is asked to end, and ended.
#[derive(Debug)]
pub(crate) struct Agent {
    process: Child,
    binary: PathBuf,
    instance: String,
    lines: Receiver<String>,
    /// What it printed when it was ready to take flows.
    pub(crate) ready_line: String,
    /// From the start of the process to that line.
    pub(crate) ready_after: Duration,
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Settings<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) instance: &'a str,
    /// Flags of `tproxy run`.
    pub(crate) flags: &'a [&'a str],
    /// The filter of the log: `info` for a line a flow.
    pub(crate) log: &'a str,
}

impl Settings<'_> {
    /// The command line, as one would type it on a gateway.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = &OsStr> {
        let before = ["--instance", self.instance, "run"];
        let words = before.into_iter().chain(self.flags.iter().copied());
        words.chain(["--drain", "1"]).map(OsStr::new)
    }
}

impl Agent {
    /// Starts it in `gateway` and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it ends or does not get ready, with what it said.
    pub(crate) fn start(gateway: &Namespace, settings: &Settings) -> Result<Self> {
        unload_leftovers(gateway, settings);
        let mut command = gateway.command(settings.binary);
        command
            .args(settings.arguments())
            .env("RUST_LOG", settings.log)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Ctrl-C on the terminal is for us alone: we stop the agent when we are done with it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let started = Instant::now();
        let mut process = command.spawn().context("cannot start the agent")?;
        let stdout = process
            .stdout
            .take()
            .context("the agent has no standard output")?;
        let stderr = process
            .stderr
            .take()
            .context("the agent has no standard error")?;
        let mut agent = Self {
            process,
            binary: settings.binary.to_owned(),
            instance: settings.instance.to_owned(),
            lines: lines::follow(stderr),
            ready_line: String::new(),
            ready_after: Duration::ZERO,
        };
        match lines::follow(stdout).recv_timeout(START) {
            Ok(line) => agent.ready_line = line,
            Err(reason) => bail!("{}: {}", failure(reason), agent.last_words()),
        }
        agent.ready_after = started.elapsed();
        Ok(agent)
    }

    /// The next line of its log, or `None` when there is none within `patience`.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub(crate) fn next_line(&self, patience: Duration) -> Result<Option<String>> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the agent has ended by itself"),
        }
    }

    /// Runs another `tproxy` command on the same instance.
    ///
    /// # Errors
    ///
    /// When it fails, with what it said.
    pub(crate) fn ask(&self, gateway: &Namespace, arguments: &[&str]) -> Result<String> {
        let mut command = gateway.command(&self.binary);
        command::quietly(command.args(["--instance", &self.instance]).args(arguments))
    }

    fn last_words(&mut self) -> String {
        self.stop();
        let lines: Vec<String> = self.lines.iter().collect();
        if lines.is_empty() {
            "it said nothing".into()
        } else {
            lines.join("\n    ")
        }
    }

    fn stop(&mut self) {
        let Ok(process) = i32::try_from(self.process.id()).map(Pid::from_raw) else {
            return;
        };
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = kill(process, Signal::SIGTERM);
        }
        let deadline = Instant::now() + STOP;
        while matches!(self.process.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.process.kill();
                let _ = self.process.wait();
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An agent of this instance that was killed together with its lab has left its pins.
fn unload_leftovers(gateway: &Namespace, settings: &Settings) {
    let left = ["/sys/fs/bpf/tproxy", "/run/tproxy"]
        .iter()
        .any(|state| Path::new(state).join(settings.instance).exists());
    if left {
        let mut unload = gateway.command(settings.binary);
        // When this fails the agent itself says why it cannot start.
        let _ = command::quietly(unload.args(["--instance", settings.instance, "unload"]));
    }
}

fn failure(reason: RecvTimeoutError) -> &'static str {
    match reason {
        _ if interrupt::arrived() => "interrupted",
        RecvTimeoutError::Timeout => "the agent did not get ready in time",
        RecvTimeoutError::Disconnected => "the agent did not start",
    }
}
