//! How often what is removed may be restored.

use std::time::Duration;

use tokio::time::Instant;

/// How many repairs may follow each other at once. After that there is one for each
/// [`REPAIR_INTERVAL`], so that another program which removes our objects time and again costs us,
/// and it, little.
const REPAIR_BURST: u32 = 10;

/// How long it takes until one more repair is allowed, and until a failed one is tried again.
pub(super) const REPAIR_INTERVAL: Duration = Duration::from_secs(1);

/// How many repairs are still allowed at once: a bucket of [`REPAIR_BURST`] that fills by one each
/// [`REPAIR_INTERVAL`].
pub(super) struct Repairs {
    next_allowed: Instant,
    /// When the bucket will be full.
    full_at: Instant,
}

impl Repairs {
    /// A full bucket.
    pub(super) fn allowed_at(now: Instant) -> Self {
        Self {
            next_allowed: now,
            full_at: now,
        }
    }

    /// Takes one repair, made now, out of the bucket.
    pub(super) fn count(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + REPAIR_INTERVAL;
        let until_full = self.full_at - now;
        let wait = until_full.saturating_sub(REPAIR_INTERVAL * (REPAIR_BURST - 1));
        self.next_allowed = now + wait;
    }

    /// The time from which the bucket holds at least one repair.
    pub(super) fn next_allowed(&self) -> Instant {
        self.next_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_repairs_is_allowed_at_once_and_then_one_each_interval() {
        let mut now = Instant::now();
        let mut repairs = Repairs::allowed_at(now);
        for _ in 0..REPAIR_BURST {
            assert!(repairs.next_allowed() <= now);
            repairs.count(now);
        }
        for _ in 0..3 {
            assert_eq!(repairs.next_allowed(), now + REPAIR_INTERVAL);
            now += REPAIR_INTERVAL;
            repairs.count(now);
        }
        now += REPAIR_INTERVAL * REPAIR_BURST;
        for _ in 0..REPAIR_BURST {
            assert!(repairs.next_allowed() <= now);
            repairs.count(now);
        }
        assert!(repairs.next_allowed() > now);
    }
}
