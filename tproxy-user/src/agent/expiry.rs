//! The end of rules that have one: a timer that wakes the agent when the next is due.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::Context as _;
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{instance::State, sys::watch_descriptor};

/// A timer on the clock of deadlines, which goes on while the host sleeps as those of tokio do not.
pub(super) struct Expiry {
    timer: TimerFd,
    /// The same timer, to be waited for.
    ready: AsyncFd<OwnedFd>,
}

impl Expiry {
    pub(super) fn open() -> anyhow::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags).context("cannot make a timer")?;
        let ready = timer.as_fd().try_clone_to_owned();
        let ready = ready.and_then(|timer| watch_descriptor(timer, Interest::READABLE));
        Ok(Self {
            timer,
            ready: ready.context("cannot wait for a timer")?,
        })
    }

    /// Waits from now on for the next rule of this state that will be gone.
    pub(super) fn follow(&self, state: &State) -> anyhow::Result<()> {
        let set = match state.next_deadline() {
            Some(deadline) => {
                let at = Expiration::OneShot(TimeSpec::from(deadline.since_boot()));
                self.timer.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            }
            None => self.timer.unset(),
        };
        set.context("cannot set a timer")
    }

    /// Resolves when a rule is due.
    pub(super) async fn due(&self) -> anyhow::Result<()> {
        let ready = self.ready.readable().await;
        let mut ready = ready.context("cannot wait for a timer")?;
        // Once read, it is silent until it is set again. Set anew since, there is nothing to read.
        let _ = self.timer.wait();
        ready.clear_ready();
        Ok(())
    }
}
