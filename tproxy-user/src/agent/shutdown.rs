//! The signals that end the agent.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM. SIGHUP is ignored, so that closing a terminal does not end an agent that was
/// left in the background.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    _hangup: Signal,
}

impl Signals {
    /// From now on these signals are awaited rather than fatal.
    pub(super) fn install() -> anyhow::Result<Self> {
        let install = |kind| signal(kind).context("cannot install a signal handler");
        Ok(Self {
            interrupt: install(SignalKind::interrupt())?,
            terminate: install(SignalKind::terminate())?,
            _hangup: install(SignalKind::hangup())?,
        })
    }

    /// Resolves at the next signal to stop.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
