//! Medians, ratios and goals: what tables and charts are made of, and what is kept.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::command;

use super::{
    experiment::{Experiment, Values},
    goal::{Goal, Verdict},
    machine::Machine,
    peer::{Peer, Source},
    quantity::Quantity,
};

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) machine: Machine,
    pub(crate) quick: bool,
    pub(crate) source: Source,
    /// How long it took.
    pub(crate) seconds: f64,
    pub(crate) rows: Vec<Row>,
    samples: Vec<Sample>,
}

/// One experiment with one peer in one round.
#[derive(Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) round: usize,
    pub(crate) experiment: Experiment,
    pub(crate) peer: Peer,
    pub(crate) values: Values,
}

/// One quantity of one experiment.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) experiment: Experiment,
    pub(crate) quantity: Quantity,
    unit: &'static str,
    rounds: usize,
    pub(crate) cells: BTreeMap<Peer, Cell>,
    baseline: Peer,
    pub(crate) goal: Option<String>,
    pub(crate) verdict: Option<Verdict>,
}

/// Of one peer.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Cell {
    /// The median, or the sum of what should not happen at all.
    pub(crate) value: f64,
    /// The median of the rounds' ratios to the baseline: what the machine did meanwhile is alike for both.
    pub(crate) to_baseline: Option<f64>,
    pub(crate) to_direct: Option<f64>,
}

/// Where reports are kept.
pub(crate) fn directory() -> PathBuf {
    command::target_directory().join("bench")
}

impl Report {
    pub(crate) fn of(
        samples: Vec<Sample>,
        load_before: f64,
        quick: bool,
        source: Source,
        took: Duration,
    ) -> Self {
        let mut keys: Vec<_> = samples
            .iter()
            .flat_map(|sample| {
                let quantities = sample.values.keys();
                quantities.map(|quantity| (sample.experiment, *quantity))
            })
            .collect();
        keys.sort_unstable();
        keys.dedup();
        let rows = keys
            .into_iter()
            .map(|(experiment, quantity)| Row::of(&samples, experiment, quantity))
            .collect();
        Self {
            machine: Machine::here(load_before),
            quick,
            source,
            seconds: took.as_secs_f64(),
            rows,
            samples,
        }
    }
}

/// Keeps a report under this name.
///
/// # Errors
///
/// When the file cannot be written.
pub(crate) fn write(name: &str, report: &impl Serialize) -> Result<()> {
    write_text(name, &serde_json::to_string_pretty(report)?)
}

/// Keeps a file under this name.
///
/// # Errors
///
/// When it cannot be written.
pub(crate) fn write_text(name: &str, text: &str) -> Result<()> {
    let path = directory().join(name);
    fs::create_dir_all(directory()).context("cannot make target/bench")?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("Written: {}", path.display());
    Ok(())
}

impl Row {
    fn of(samples: &[Sample], experiment: Experiment, quantity: Quantity) -> Self {
        let baseline = experiment.baseline();
        let mut of_peers: BTreeMap<Peer, BTreeMap<usize, f64>> = BTreeMap::new();
        for sample in samples {
            if sample.experiment == experiment
                && let Some(value) = sample.values.get(&quantity)
            {
                let rounds = of_peers.entry(sample.peer).or_default();
                rounds.insert(sample.round, *value);
            }
        }
        let ratio_to = |other: Peer, own: &BTreeMap<usize, f64>| {
            let other = of_peers.get(&other)?;
            let ratios = own.iter().filter_map(|(round, value)| {
                let other = *other.get(round)?;
                (other > 0.0).then(|| value / other)
            });
            median(ratios)
        };
        let cells: BTreeMap<_, _> = of_peers
            .iter()
            .filter_map(|(peer, rounds)| {
                let values = rounds.values().copied();
                let value = if quantity.is_summed() {
                    values.sum()
                } else {
                    median(values)?
                };
                let cell = Cell {
                    value,
                    to_baseline: ratio_to(baseline, rounds),
                    to_direct: ratio_to(Peer::Direct, rounds),
                };
                Some((*peer, cell))
            })
            .collect();
        let goal = Goal::of(experiment, quantity);
        let own = cells.get(&Peer::Tproxy);
        let verdict = goal
            .zip(own)
            .and_then(|(goal, own)| goal.verdict(own.value, own.to_baseline, own.to_direct));
        Self {
            experiment,
            quantity,
            unit: quantity.unit(),
            rounds: of_peers.values().map(BTreeMap::len).max().unwrap_or(0),
            cells,
            baseline,
            goal: goal.map(|goal| goal.text(quantity, baseline.head())),
            verdict,
        }
    }
}

pub(super) fn median(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::{Experiment, Peer, Quantity, Row, Sample, Values, Verdict, median};

    #[test]
    fn median_of_odd_even_and_none() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }

    #[test]
    fn ratios_are_those_of_the_same_round() {
        let sample = |round, peer, value| Sample {
            round,
            experiment: Experiment::Bulk1,
            peer,
            values: Values::from([(Quantity::Throughput, value)]),
        };
        let samples = [
            sample(0, Peer::Haproxy, 10.0),
            sample(0, Peer::Tproxy, 12.0),
            sample(1, Peer::Haproxy, 5.0),
            sample(1, Peer::Tproxy, 6.0),
        ];
        let row = Row::of(&samples, Experiment::Bulk1, Quantity::Throughput);
        let own = row.cells[&Peer::Tproxy];
        assert!((own.value - 9.0).abs() < 1e-9, "{own:?}");
        assert_eq!(own.to_baseline, Some(1.2));
        assert_eq!(own.to_direct, None);
        assert_eq!(row.verdict, Some(Verdict::Met));
    }
}
