//! How long a rule is there: `expires`.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Longest life of a rule that has an end.
const LONGEST: Duration = Duration::from_hours(10 * 366 * 24);

/// Reads a duration: `30s`, `2h`, `1h 30m`.
///
/// # Errors
///
/// What is wrong with the word, quoting it.
pub(super) fn parse(word: &str) -> Result<Duration, String> {
    if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "\"{word}\" has no unit: write \"{word}s\" for seconds"
        ));
    }
    match humantime::parse_duration(word) {
        Ok(life) if life.as_millis() > 0 && life <= LONGEST => Ok(life),
        Ok(_) => Err(format!("\"{word}\" is not from 1ms to 10 years")),
        Err(_) => Err(format!("\"{word}\" is not a duration such as 30s or 2h")),
    }
}

/// A moment on the clock that counts from boot and goes on while the host sleeps. The time of day
/// may be set meanwhile without a rule living longer, and the state is gone with a reboot as the
/// clock's origin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Deadline {
    since_boot_ms: u64,
}

impl Deadline {
    /// The moment that is `life` from now.
    ///
    /// # Errors
    ///
    /// When the clock cannot be read, which no kernel of these times does.
    pub fn after(life: Duration) -> nix::Result<Self> {
        Ok(Self {
            since_boot_ms: milliseconds(since_boot()?.saturating_add(life)),
        })
    }

    /// What is left until then; zero when it is over.
    ///
    /// # Errors
    ///
    /// When the clock cannot be read.
    pub fn left(self) -> nix::Result<Duration> {
        Ok(self.since_boot().saturating_sub(since_boot()?))
    }

    /// The moment, counted from boot.
    #[must_use]
    pub const fn since_boot(self) -> Duration {
        Duration::from_millis(self.since_boot_ms)
    }
}

fn since_boot() -> nix::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_BOOTTIME)?.into())
}

/// Rounded up: nothing ends early.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_durations_with_units() {
        for (word, seconds) in [("30s", 30), ("2h", 7200), ("1h 30m", 5400), ("1day", 86400)] {
            assert_eq!(parse(word), Ok(Duration::from_secs(seconds)), "{word}");
        }
    }

    #[test]
    fn refuses_what_is_none_and_names_it() {
        for (word, reason) in [
            ("30", "has no unit: write \"30s\""),
            ("0s", "is not from 1ms"),
            ("1us", "is not from 1ms"),
            ("20years", "10 years"),
            ("99999999999999999999s", "is not a duration"),
            ("", "is not a duration"),
            ("-1s", "is not a duration"),
            ("soon", "is not a duration"),
            ("2h!", "is not a duration"),
        ] {
            let error = parse(word).unwrap_err();
            assert!(
                error.contains(&format!("\"{word}\"")) && error.contains(reason),
                "{error}"
            );
        }
    }

    #[test]
    fn a_deadline_comes_nearer_and_stays_over() {
        let deadline = Deadline::after(Duration::from_mins(1)).unwrap();
        let left = deadline.left().unwrap();
        assert!(left > Duration::from_secs(50) && left <= Duration::from_millis(60_001));
        let over = Deadline { since_boot_ms: 0 };
        assert_eq!(over.left(), Ok(Duration::ZERO));
        assert!(over < deadline);
    }
}
