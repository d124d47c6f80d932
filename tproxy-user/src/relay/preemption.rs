//! Whether a worker that wakes up takes the CPU from who runs there.
//!
//! By the usual scheduling policy it does, and on a machine that the ends of its flows share that is
//! often the very client or server whose bytes have woken it, and who would send more if it could go
//! on. By `SCHED_BATCH` (sched(7)) a worker that wakes up waits until they sleep. But it waits as
//! well for those that compute and do not sleep, as long as the scheduler lets them. So a worker gives
//! way only while it is busy, and only as long as it need not wait long.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use nix::libc;

use super::sys;

/// How often a worker looks at how long it has waited for a CPU.
const INTERVAL: Duration = Duration::from_millis(10);

/// A worker with fewer events in a second gains nothing by giving way.
const BUSY: u32 = 2000;

/// For how long a worker that gives way may wait for a CPU, divided by the events that it gets then.
const LONG_WAIT: Duration = Duration::from_micros(200);

/// How long a worker that had to wait longer does not give way, at first. It doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// The scheduling of the thread that made it. Times are since the relay's epoch.
#[derive(Debug)]
pub(super) struct Preemption {
    /// What the kernel says of this thread (`/proc/thread-self/schedstat`). `None` if it says nothing,
    /// or if the thread's policy is not the usual one, which whoever has chosen another one keeps.
    account: Option<File>,
    /// How long the thread had waited for a CPU when it was last looked at.
    waited: Duration,
    looked: Duration,
    /// Events since then.
    events: u32,
    choice: Choice,
}

impl Preemption {
    pub(super) fn of_this_thread(now: Duration) -> Self {
        let is_usual = sys::scheduling_policy().is_ok_and(|policy| policy == libc::SCHED_OTHER);
        let account = is_usual
            .then(|| File::open("/proc/thread-self/schedstat").ok())
            .flatten();
        Self {
            waited: account.as_ref().and_then(waited).unwrap_or_default(),
            account,
            looked: now,
            events: 0,
            choice: Choice::default(),
        }
    }

    /// The thread has so many more events at `now`: changes its policy if that is called for.
    pub(super) fn review(&mut self, now: Duration, events: usize) {
        self.events = self
            .events
            .saturating_add(u32::try_from(events).unwrap_or(u32::MAX));
        let elapsed = now.saturating_sub(self.looked);
        if elapsed < INTERVAL {
            return;
        }
        let Some(waited) = self.account.as_ref().and_then(waited) else {
            return;
        };
        let window = Window {
            elapsed,
            events: std::mem::take(&mut self.events),
            waited: waited.saturating_sub(self.waited),
        };
        self.waited = waited;
        self.looked = now;
        let before = self.choice.gives_way();
        self.choice.consider(now, window);
        if self.choice.gives_way() != before && self.apply().is_err() {
            // Not allowed here: it stays as it is.
            self.account = None;
        }
    }

    fn apply(&self) -> std::io::Result<()> {
        sys::set_scheduling_policy(if self.choice.gives_way() {
            libc::SCHED_BATCH
        } else {
            libc::SCHED_OTHER
        })
    }
}

/// How long a thread has waited for a CPU: the second number of its account, in nanoseconds (Linux,
/// `Documentation/scheduler/sched-stats.rst`).
fn waited(account: &File) -> Option<Duration> {
    let mut text = [0; 64];
    let length = account.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..length]).ok()?;
    let nanoseconds = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}

/// What happened between two looks.
#[derive(Debug, Clone, Copy)]
struct Window {
    elapsed: Duration,
    events: u32,
    /// How long the worker waited for a CPU.
    waited: Duration,
}

impl Window {
    fn is_busy(self) -> bool {
        f64::from(self.events) >= f64::from(BUSY) * self.elapsed.as_secs_f64()
    }

    fn waits_long(self) -> bool {
        self.waited > LONG_WAIT * self.events.max(1)
    }
}

/// Whether the worker gives way.
#[derive(Debug)]
struct Choice {
    /// Since when it does.
    since: Option<Duration>,
    /// It does not before this.
    not_before: Duration,
    next_pause: Duration,
}

impl Default for Choice {
    fn default() -> Self {
        Self {
            since: None,
            not_before: Duration::ZERO,
            next_pause: FIRST_PAUSE,
        }
    }
}

impl Choice {
    fn gives_way(&self) -> bool {
        self.since.is_some()
    }

    fn consider(&mut self, now: Duration, window: Window) {
        match self.since {
            Some(since) if window.waits_long() => {
                if now.saturating_sub(since) > self.next_pause {
                    self.next_pause = FIRST_PAUSE;
                }
                self.since = None;
                self.not_before = now + self.next_pause;
                self.next_pause = (2 * self.next_pause).min(LONGEST_PAUSE);
            }
            Some(_) if window.is_busy() => {}
            None if window.is_busy() && now >= self.not_before => self.since = Some(now),
            _ => self.since = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY_WINDOW: Window = Window {
        elapsed: INTERVAL,
        events: 200,
        waited: Duration::from_millis(8),
    };
    const LONG_WINDOW: Window = Window {
        events: 5,
        ..BUSY_WINDOW
    };
    const QUIET_WINDOW: Window = Window {
        events: 5,
        waited: Duration::from_micros(50),
        ..BUSY_WINDOW
    };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_busy_worker_gives_way_until_it_is_quiet() {
        let mut choice = Choice::default();
        choice.consider(seconds(1), QUIET_WINDOW);
        assert!(!choice.gives_way());
        choice.consider(seconds(2), BUSY_WINDOW);
        assert!(choice.gives_way());
        choice.consider(seconds(3), BUSY_WINDOW);
        assert!(choice.gives_way());
        choice.consider(seconds(4), QUIET_WINDOW);
        assert!(!choice.gives_way());
        choice.consider(seconds(4), BUSY_WINDOW);
        assert!(choice.gives_way());
    }

    #[test]
    fn a_worker_that_waits_long_tries_again_ever_more_seldom() {
        let mut choice = Choice::default();
        let mut now = seconds(1);
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            choice.consider(now, BUSY_WINDOW);
            assert!(choice.gives_way(), "{now:?}");
            choice.consider(now, LONG_WINDOW);
            assert!(!choice.gives_way());
            now += seconds(pause);
            choice.consider(now.saturating_sub(INTERVAL), BUSY_WINDOW);
            assert!(!choice.gives_way(), "{now:?}");
        }
        // Once it has gone well for longer than that, it begins anew.
        choice.consider(now, BUSY_WINDOW);
        now += seconds(61);
        choice.consider(now, LONG_WINDOW);
        now += FIRST_PAUSE;
        choice.consider(now, BUSY_WINDOW);
        assert!(choice.gives_way());
    }

    #[test]
    fn a_long_window_needs_more_events() {
        let window = Window {
            elapsed: 100 * INTERVAL,
            ..BUSY_WINDOW
        };
        assert!(!window.is_busy());
        assert!(BUSY_WINDOW.is_busy());
    }

    /// The real thread: its policy follows, and its waits are read.
    #[test]
    fn the_policy_of_the_thread_follows() {
        let policy = || sys::scheduling_policy().unwrap();
        let mut preemption = Preemption::of_this_thread(Duration::ZERO);
        preemption.review(INTERVAL / 2, 200);
        assert_eq!(policy(), libc::SCHED_OTHER);
        preemption.review(INTERVAL, 0);
        assert_eq!(policy(), libc::SCHED_BATCH);
        preemption.review(3 * INTERVAL, 0);
        assert_eq!(policy(), libc::SCHED_OTHER);
    }

    #[test]
    fn a_policy_of_somebody_elses_choice_stays() {
        sys::set_scheduling_policy(libc::SCHED_IDLE).unwrap();
        let mut preemption = Preemption::of_this_thread(Duration::ZERO);
        preemption.review(INTERVAL, 200);
        assert_eq!(sys::scheduling_policy().unwrap(), libc::SCHED_IDLE);
    }
}
