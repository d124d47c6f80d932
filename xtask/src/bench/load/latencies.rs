//! Times that something took, as a histogram of three digits.

use std::time::Duration;

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest that is told apart, in nanoseconds: more than any client has patience for.
const LONGEST: u64 = 60_000_000_000;

pub(super) struct Latencies(Histogram<u64>);

/// What is kept of a histogram, in microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) count: u64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) worst: f64,
}

impl Latencies {
    pub(super) fn new() -> Result<Self> {
        let histogram = Histogram::new_with_bounds(1, LONGEST, 3);
        Ok(Self(histogram.context("cannot make a histogram")?))
    }

    pub(super) fn record(&mut self, took: Duration) {
        self.0
            .saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn add(&mut self, other: &Self) -> Result<()> {
        self.0
            .add(&other.0)
            .context("histograms of different bounds")
    }

    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    pub(super) fn clear(&mut self) {
        self.0.reset();
    }

    pub(super) fn summary(&self) -> Summary {
        let of = |quantile| microseconds(self.0.value_at_quantile(quantile));
        Summary {
            count: self.0.len(),
            p50: of(0.5),
            p99: of(0.99),
            p999: of(0.999),
            worst: microseconds(self.0.max()),
        }
    }
}

fn microseconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Latencies;

    #[test]
    fn quantiles_are_in_microseconds() {
        let mut latencies = Latencies::new().expect("bounds are valid");
        for microseconds in 1..=100 {
            latencies.record(Duration::from_micros(microseconds));
        }
        let summary = latencies.summary();
        assert_eq!(summary.count, 100);
        assert!((summary.p50 - 50.0).abs() < 0.1, "{summary:?}");
        assert!((summary.p99 - 99.0).abs() < 0.2, "{summary:?}");
    }
}
