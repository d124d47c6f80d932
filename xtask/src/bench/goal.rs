//! What tproxy is to reach, and whether it does.

use serde::Serialize;

use super::{experiment::Experiment, quantity::Quantity};

/// Differences below this are noise on a machine where client, proxy and server share the cores.
pub(crate) const NOISE: f64 = 0.15;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Goal {
    bound: f64,
    is_least: bool,
    of: Reference,
}

/// What the bound is a multiple of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reference {
    /// The quantity's unit.
    Unit,
    /// The baseline's: HAProxy's, or of what the experiment has in its place.
    Baseline,
    Direct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Met,
    /// Missed by less than [`NOISE`].
    WithinNoise,
    Missed,
}

impl Goal {
    /// Rates and costs against the best way that there was before; what a flow holds, in absolute
    /// numbers, from what splicing with pooled pipes can reach. What is only told has no goal.
    pub(crate) fn of(experiment: Experiment, quantity: Quantity) -> Option<Self> {
        use Experiment as E;
        use Quantity as Q;
        use Reference::{Baseline, Direct, Unit};
        let goal = match (experiment, quantity) {
            (E::Bulk1 | E::Bulk4 | E::Idle, Q::Throughput) => at_least(1.0, Baseline),
            (E::Short1 | E::Short32, Q::Connections) => at_least(1.15, Baseline),
            (E::Udp64, Q::Datagrams) => at_least(1.5, Baseline),
            (E::Udp1400, Q::Throughput) => at_least(0.6, Direct),
            (_, Q::MachineCpuPerGigabyte) => at_most(0.95, Baseline),
            (_, Q::ProxyCpuPerConnection) => at_most(0.75, Baseline),
            (_, Q::FirstByteP50 | Q::FirstByteP99) => at_most(0.8, Baseline),
            (_, Q::ConnectP50) => at_most(1.05, Direct),
            (_, Q::SynRetransmits | Q::Failures) => at_most(0.0, Unit),
            (_, Q::DescriptorsPerFlow) => at_most(2.0, Unit),
            (_, Q::UserMemoryHeld | Q::PipeMemoryHeld) => at_most(1.0, Unit),
            // Bytes, and milliseconds.
            (_, Q::MemoryPerFlow | Q::ReadyAfter) => at_most(300.0, Unit),
            (_, Q::HooksPerConnect) => at_most(5000.0, Unit),
            _ => return None,
        };
        Some(goal)
    }

    /// `None` where what it refers to was not measured.
    pub(crate) fn verdict(
        self,
        value: f64,
        to_baseline: Option<f64>,
        to_direct: Option<f64>,
    ) -> Option<Verdict> {
        let value = match self.of {
            Reference::Unit => value,
            Reference::Baseline => to_baseline?,
            Reference::Direct => to_direct?,
        };
        let reaches = |bound| {
            if self.is_least {
                value >= bound
            } else {
                value <= bound
            }
        };
        let slack = if self.is_least {
            1.0 - NOISE
        } else {
            1.0 + NOISE
        };
        Some(if reaches(self.bound) {
            Verdict::Met
        } else if reaches(self.bound * slack) {
            Verdict::WithinNoise
        } else {
            Verdict::Missed
        })
    }

    pub(crate) fn text(self, quantity: Quantity, baseline: &str) -> String {
        let relation = if self.is_least { ">=" } else { "<=" };
        let bound = self.bound;
        match self.of {
            Reference::Unit => format!("{relation} {}", quantity.text(bound)),
            Reference::Baseline => format!("{relation} {bound:.2} x {baseline}"),
            Reference::Direct => format!("{relation} {bound:.2} x direct"),
        }
    }
}

fn at_least(bound: f64, of: Reference) -> Goal {
    Goal {
        bound,
        is_least: true,
        of,
    }
}

fn at_most(bound: f64, of: Reference) -> Goal {
    Goal {
        bound,
        is_least: false,
        of,
    }
}

impl Verdict {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Met => "yes",
            Self::WithinNoise => "in noise",
            Self::Missed => "NO",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Goal, Reference, Verdict, at_least, at_most};

    #[test]
    fn a_miss_within_noise_is_told_apart() {
        let verdict = |goal: Goal, ratio| goal.verdict(1.0, Some(ratio), None);
        let least = at_least(1.0, Reference::Baseline);
        assert_eq!(verdict(least, 1.1), Some(Verdict::Met));
        assert_eq!(verdict(least, 0.9), Some(Verdict::WithinNoise));
        assert_eq!(verdict(least, 0.8), Some(Verdict::Missed));
        let most = at_most(1.0, Reference::Baseline);
        assert_eq!(verdict(most, 1.1), Some(Verdict::WithinNoise));
        assert_eq!(verdict(most, 1.2), Some(Verdict::Missed));
        assert_eq!(verdict(at_most(1.0, Reference::Direct), 1.0), None);
    }
}
