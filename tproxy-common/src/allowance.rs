//! How many errors may be sent: so many a second, and some at once (RFC 4443, 2.4 demands a bound).

/// Errors a second, on each CPU: as many as Linux allows itself (`net.ipv4.icmp_msgs_per_sec`).
pub const A_SECOND: u64 = 1000;

/// Errors at once after a pause (`net.ipv4.icmp_msgs_burst`).
pub const AT_ONCE: u64 = 50;

const NANOSECONDS_EACH: u64 = 1_000_000_000 / A_SECOND;

/// What one CPU may still send: a bucket of tokens, counted in the nanoseconds that they take to
/// come back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    last: u64,
    credit: u64,
}

const _: () = assert!(size_of::<Allowance>() == 16);

impl Allowance {
    /// Whether one more may be sent at `now`, in nanoseconds of a clock that does not go back.
    #[must_use]
    #[inline(always)]
    pub const fn take(&mut self, now: u64) -> bool {
        const FULL: u64 = AT_ONCE * NANOSECONDS_EACH;
        let since = now.saturating_sub(self.last);
        self.last = now;
        let credit = self.credit.saturating_add(since);
        self.credit = if credit > FULL { FULL } else { credit };
        if self.credit < NANOSECONDS_EACH {
            return false;
        }
        self.credit -= NANOSECONDS_EACH;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: u64 = 3600 * 1_000_000_000;

    fn sent(allowance: &mut Allowance, times: impl Iterator<Item = u64>) -> u64 {
        times.filter(|now| allowance.take(*now)).count() as u64
    }

    #[test]
    fn a_burst_is_sent_and_no_more_until_time_passes() {
        let mut allowance = Allowance::default();
        assert_eq!(
            sent(&mut allowance, std::iter::repeat_n(BOOT, 1000)),
            AT_ONCE
        );
        let later = BOOT + 3 * NANOSECONDS_EACH;
        assert_eq!(sent(&mut allowance, std::iter::repeat_n(later, 1000)), 3);
        let much_later = 2 * BOOT;
        assert_eq!(
            sent(&mut allowance, std::iter::repeat_n(much_later, 1000)),
            AT_ONCE
        );
    }

    #[test]
    fn a_flood_is_answered_at_the_rate() {
        let mut allowance = Allowance::default();
        let seconds = 5;
        let every_microsecond = (0..seconds * 1_000_000).map(|at| BOOT + at * 1000);
        let sent = sent(&mut allowance, every_microsecond);
        let expected = seconds * A_SECOND + AT_ONCE;
        assert!(sent.abs_diff(expected) <= 1, "{sent}");
    }

    #[test]
    fn a_clock_that_seems_to_go_back_gives_nothing() {
        let mut allowance = Allowance::default();
        assert_eq!(
            sent(&mut allowance, std::iter::repeat_n(BOOT, 100)),
            AT_ONCE
        );
        assert!(!allowance.take(BOOT - 1));
    }
}
