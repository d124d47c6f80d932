//! Whether a worker is fully used.

use std::time::Duration;

/// A worker that waited this long for an event had nothing to do.
const REST: Duration = Duration::from_micros(20);

/// A worker that has always had something to do for this long is fully used.
const RESTLESS: Duration = Duration::from_millis(5);

/// When a worker last had nothing to do. Times are since the relay's epoch.
#[derive(Debug, Default)]
pub(super) struct Rest {
    last: Duration,
}

impl Rest {
    /// The worker was ready to wait for events at `since`, and got some at `now`.
    pub(super) fn waited(&mut self, since: Duration, now: Duration) {
        if now.saturating_sub(since) >= REST {
            self.last = now;
        }
    }

    /// Whether the worker is fully used.
    pub(super) fn is_overdue(&self, now: Duration) -> bool {
        now.saturating_sub(self.last) >= RESTLESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_wait_is_a_rest() {
        let (last, now) = (Duration::from_secs(1), Duration::from_secs(2));
        let mut rest = Rest { last };
        assert!(!rest.is_overdue(last + RESTLESS / 2));
        assert!(rest.is_overdue(now));
        let got = now + REST / 2;
        rest.waited(now, got);
        assert!(rest.is_overdue(got), "events were there already");
        let got = now + REST;
        rest.waited(now, got);
        assert!(!rest.is_overdue(got));
        assert!(rest.is_overdue(got + RESTLESS));
    }
}
