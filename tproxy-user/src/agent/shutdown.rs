//! The signals that end the agent, and the one that does not.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// A signal to stop.
#[derive(Clone, Copy, Debug)]
pub(super) enum Told {
    /// SIGINT, which a terminal sends to every process in the foreground.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

/// SIGHUP. It asks for the file to be read again, and does not end an agent that was left in the
/// background of a terminal that is closed.
pub(super) struct Hangup(Signal);

impl Signals {
    /// From now on these signals are awaited rather than fatal.
    pub(super) fn install() -> anyhow::Result<(Self, Hangup)> {
        let install = |kind| signal(kind).context("cannot install a signal handler");
        let signals = Self {
            interrupt: install(SignalKind::interrupt())?,
            terminate: install(SignalKind::terminate())?,
        };
        Ok((signals, Hangup(install(SignalKind::hangup())?)))
    }

    /// Resolves at the next signal to stop.
    pub(super) async fn next(&mut self) {
        self.which().await;
    }

    /// The same, and says which it was.
    pub(super) async fn which(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::Interrupt,
            _ = self.terminate.recv() => Told::Terminate,
        }
    }
}

impl Hangup {
    /// Resolves at the next SIGHUP.
    pub(super) async fn next(&mut self) {
        self.0.recv().await;
    }
}
