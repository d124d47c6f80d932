//! Lets datagrams gather, so that more of them share a system call and a wakeup.

use std::thread;
use std::time::{Duration, Instant};

/// Others may run for so long without anybody asking what it was good for.
const SHORT: Duration = Duration::from_millis(1);
/// What each datagram may take to come; when they come more slowly than this, somebody computes who
/// has nothing to do with them. Handled one at a time they cost about 3 µs each, together 1.2 µs.
const WORTH: Duration = Duration::from_micros(20);
/// For how many times as long the worker keeps its processor to itself then.
const PAUSE: u32 = 16;

/// Lets other threads run after datagrams were handled and before the next look at the sockets.
///
/// Those who send datagrams and those who answer them often wait for the very processor that the
/// worker is on. If it goes on at once it finds few, sleeps, and is woken for each of the next.
/// Where nobody waits, this costs one system call.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// How many datagrams had been received when others last had their turn.
    received: u64,
    /// How long that was.
    took: Duration,
    paused_until: Option<Instant>,
}

impl Gathering {
    /// Lets others run if datagrams were received since the last call; `received` is how many in all.
    pub(super) fn let_others_run(&mut self, received: u64) {
        let gathered = received - self.received;
        if gathered == 0 {
            return;
        }
        self.received = received;
        let now = Instant::now();
        if !is_worth_it(self.took, gathered) {
            self.paused_until = Some(now + self.took * PAUSE);
        }
        self.took = Duration::ZERO;
        if self.paused_until.is_none_or(|until| now >= until) {
            thread::yield_now();
            self.took = now.elapsed();
        }
    }
}

/// Whether it was good to let others run for so long, given what came of it.
fn is_worth_it(took: Duration, gathered: u64) -> bool {
    took <= SHORT
        || u64::try_from(took.as_nanos() / WORTH.as_nanos()).is_ok_and(|most| most <= gathered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_wait_has_to_bring_datagrams() {
        assert!(is_worth_it(Duration::from_micros(100), 1));
        assert!(is_worth_it(Duration::from_millis(2), 128));
        assert!(
            !is_worth_it(Duration::from_millis(4), 128),
            "somebody computes"
        );
        assert!(is_worth_it(Duration::from_millis(4), 1000));
    }
}
