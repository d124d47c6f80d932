//! A coarse timer wheel: many deadlines, cheap to set, never cancelled.
//!
//! Who sets a deadline checks when it comes whether it still matters.

use std::time::Duration;

/// How exact deadlines are: one comes up to this much late.
const TICK: Duration = Duration::from_millis(100);
const SLOTS: usize = 64;

/// Deadlines for values of `T`. Times are counted from an epoch of the caller's choice.
#[derive(Debug)]
pub(super) struct Wheel<T> {
    slots: [Vec<(u64, T)>; SLOTS],
    /// The last tick whose deadlines have come.
    current: u64,
    length: usize,
}

impl<T> Wheel<T> {
    pub(super) fn new() -> Self {
        Self {
            slots: std::array::from_fn(|_| Vec::new()),
            current: 0,
            length: 0,
        }
    }

    /// Lets `value` come at `deadline`, or with the next tick if that is past.
    pub(super) fn set(&mut self, deadline: Duration, value: T) {
        let tick = tick_after(deadline).max(self.current + 1);
        self.slots[slot(tick)].push((tick, value));
        self.length += 1;
    }

    /// Takes out everything whose deadline has come by `now`.
    pub(super) fn advance(&mut self, now: Duration, due: &mut Vec<T>) {
        let now = ticks(now);
        // A slot holds deadlines of several rounds; one round visits every slot.
        let visits = (now - self.current.min(now)).min(SLOTS as u64);
        for tick in now - visits..now {
            let slot = &mut self.slots[slot(tick + 1)];
            let before = slot.len();
            due.extend(
                slot.extract_if(.., |(deadline, _)| *deadline <= now)
                    .map(|(_, value)| value),
            );
            self.length -= before - slot.len();
            if slot.is_empty() && slot.capacity() > 1024 {
                // What a burst of connections needed is given back.
                *slot = Vec::new();
            }
        }
        self.current = self.current.max(now);
    }

    /// How long to wait for the next tick; `None` when no deadline is set.
    pub(super) fn wait(&self, now: Duration) -> Option<Duration> {
        (self.length > 0).then(|| {
            let next = TICK * u32::try_from(self.current + 1).unwrap_or(u32::MAX);
            next.saturating_sub(now)
        })
    }
}

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() / TICK.as_nanos()).unwrap_or(u64::MAX)
}

/// The first tick that is not before `deadline`.
fn tick_after(deadline: Duration) -> u64 {
    u64::try_from(deadline.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX)
}

fn slot(tick: u64) -> usize {
    usize::try_from(tick % SLOTS as u64).expect("less than the number of slots")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_wheel_asks_for_no_wakeup() {
        let wheel = Wheel::<()>::new();
        assert_eq!(wheel.wait(Duration::from_secs(5)), None);
    }

    proptest! {
        #[test]
        fn every_deadline_comes_once_never_early_and_at_most_a_tick_late(
            deadlines in proptest::collection::vec(0u64..30_000, 1..50),
            steps in proptest::collection::vec(1u64..9_000, 1..50),
        ) {
            let mut wheel = Wheel::new();
            for &deadline in &deadlines {
                wheel.set(Duration::from_millis(deadline), deadline);
            }
            let mut pending = deadlines;
            let mut now = 0;
            for step in steps {
                now += step;
                let mut due = Vec::new();
                wheel.advance(Duration::from_millis(now), &mut due);
                for deadline in due {
                    prop_assert!(deadline <= now);
                    let place = pending.iter().position(|&other| other == deadline);
                    prop_assert!(place.is_some(), "{} came twice", deadline);
                    pending.swap_remove(place.unwrap());
                }
                prop_assert!(pending.iter().all(|&deadline| deadline + 100 > now));
                prop_assert_eq!(wheel.wait(Duration::from_millis(now)).is_some(), !pending.is_empty());
            }
        }
    }
}
