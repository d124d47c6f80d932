//! Log lines about what may happen often.

use std::time::{Duration, Instant};

/// How often one is written at most.
const INTERVAL: Duration = Duration::from_secs(30);

/// When a line was last written.
#[derive(Debug, Default)]
pub(super) struct Occasional(Option<Instant>);

impl Occasional {
    /// Whether it is to be written again.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() > INTERVAL);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}
