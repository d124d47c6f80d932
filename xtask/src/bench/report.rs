//! Medians, ratios, a table for people and a file for programs.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;

use crate::{
    bench::{
        machine::Machine,
        measurement::{Load, Sample},
        peer::Peer,
    },
    command, terminal,
};

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    machine: Machine,
    rounds: usize,
    seconds: f64,
    medians: Vec<Median>,
    samples: Vec<Sample>,
}

/// One peer under one load.
#[derive(Debug, Serialize)]
struct Median {
    load: Load,
    peer: Peer,
    rate: f64,
    /// The median of the rounds' ratios.
    ratio_to_haproxy: f64,
    ratio_to_direct: f64,
    proxy_cpu: Option<f64>,
    machine_cpu: f64,
    /// Microseconds.
    p50: Option<f64>,
    p99: Option<f64>,
    /// The sum over all rounds.
    syn_retransmits: Option<u64>,
    failures: Option<u64>,
    /// Milliseconds.
    ready_after: Option<f64>,
    /// Megabytes.
    memory_at_rest: Option<f64>,
}

/// Where reports are kept.
pub(crate) fn directory() -> PathBuf {
    command::target_directory().join("bench")
}

/// The unit of [`Sample::rate`].
pub(crate) fn unit(load: Load) -> &'static str {
    match load {
        Load::Bulk1 | Load::Bulk4 => "Gbit/s",
        Load::Short32 => "conn/s",
    }
}

impl Report {
    pub(crate) fn of(
        samples: Vec<Sample>,
        load_before: f64,
        rounds: usize,
        took: Duration,
    ) -> Self {
        let medians = Load::ALL
            .into_iter()
            .flat_map(|load| Peer::ALL.map(|peer| (load, peer)))
            .filter_map(|(load, peer)| Median::of(&samples, load, peer))
            .collect();
        Self {
            machine: Machine::here(load_before),
            rounds,
            seconds: took.as_secs_f64(),
            medians,
            samples,
        }
    }

    pub(crate) fn print(&self) {
        let Self {
            machine,
            rounds,
            seconds,
            ..
        } = self;
        let Machine { kernel, cores, .. } = machine;
        println!(
            "\nLinux {kernel}, {cores} cores shared by client, proxy and server; medians of {rounds} rounds, {seconds:.0} s"
        );
        println!("{}", terminal::dim("Differences under 15 % are noise."));
        machine.print_if_busy();
        for load in Load::ALL {
            println!("\n{}", terminal::bold(load.name()));
            println!("{}", self.table(load));
        }
        self.print_start();
    }

    fn table(&self, load: Load) -> Table {
        let short = load == Load::Short32;
        let mut header = vec!["", unit(load), "x HAProxy", "x direct"];
        header.extend(if short {
            ["proxy µs/conn", "machine µs/conn"]
        } else {
            ["proxy CPU s/GB", "machine CPU s/GB"]
        });
        if short {
            header.extend(["p50 µs", "p99 µs", "SYN retransmits", "failed"]);
        }
        let columns = header.len();
        let mut table = Table::new();
        table.load_style(NOTHING).set_header(header);
        for median in self.medians.iter().filter(|median| median.load == load) {
            table.add_row(median.row(short));
        }
        for column in 1..columns {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }

    fn print_start(&self) {
        println!("\n{}", terminal::bold("at rest"));
        let of_short = |median: &&Median| median.load == Load::Short32;
        for median in self.medians.iter().filter(of_short) {
            let Some(memory) = median.memory_at_rest else {
                continue;
            };
            let ready = median.ready_after.map_or_else(String::new, |ready| {
                format!(", ready {ready:.0} ms after its start")
            });
            println!(" {}: {:.1} MB resident{ready}", median.peer.name(), memory);
        }
    }
}

/// Keeps a report under this name.
///
/// # Errors
///
/// When the file cannot be written.
pub(crate) fn write(name: &str, report: &impl Serialize) -> Result<()> {
    let path = directory().join(name);
    fs::create_dir_all(directory()).context("cannot make target/bench")?;
    fs::write(&path, serde_json::to_vec_pretty(report)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("\nAll samples: {}", path.display());
    Ok(())
}

impl Median {
    fn of(samples: &[Sample], load: Load, peer: Peer) -> Option<Self> {
        let of_peer = |wanted: Peer| {
            samples
                .iter()
                .filter(move |sample| sample.load == load && sample.peer == wanted)
        };
        let own = || of_peer(peer);
        // Of each round by itself: what the machine did meanwhile is alike for both.
        let ratio_to = |other: Peer| {
            median(own().filter_map(|sample| {
                let same_round = |candidate: &&Sample| candidate.round == sample.round;
                Some(sample.rate / of_peer(other).find(same_round)?.rate)
            }))
        };
        let shorts = || own().filter_map(|sample| sample.short.as_ref());
        let sum = |numbers: Vec<u64>| (!numbers.is_empty()).then(|| numbers.iter().sum());
        Some(Self {
            load,
            peer,
            rate: median(own().map(|sample| sample.rate))?,
            ratio_to_haproxy: ratio_to(Peer::NftHaproxy)?,
            ratio_to_direct: ratio_to(Peer::Direct)?,
            proxy_cpu: median(own().filter_map(|sample| sample.proxy_cpu)),
            machine_cpu: median(own().map(|sample| sample.machine_cpu))?,
            p50: median(shorts().map(|short| f64::from(short.p50))),
            p99: median(shorts().map(|short| f64::from(short.p99))),
            syn_retransmits: sum(shorts().map(|short| short.syn_retransmits).collect()),
            failures: sum(shorts().map(|short| short.failures).collect()),
            ready_after: median(own().filter_map(|sample| sample.ready_after)),
            memory_at_rest: median(own().filter_map(|sample| sample.memory_at_rest)),
        })
    }

    fn row(&self, short: bool) -> Vec<String> {
        let digits = if short { 0 } else { 2 };
        let optional = |number: Option<f64>, digits: usize| {
            number.map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
        };
        let mut row = vec![
            self.peer.name().to_owned(),
            format!("{:.*}", usize::from(!short), self.rate),
            format!("{:.2}", self.ratio_to_haproxy),
            format!("{:.2}", self.ratio_to_direct),
            optional(self.proxy_cpu, digits),
            format!("{:.digits$}", self.machine_cpu),
        ];
        if short {
            let count = |number: Option<u64>| number.map_or_else(String::new, |n| n.to_string());
            row.extend([optional(self.p50, 0), optional(self.p99, 0)]);
            row.extend([count(self.syn_retransmits), count(self.failures)]);
        }
        row
    }
}

fn median(numbers: impl Iterator<Item = f64>) -> Option<f64> {
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
    use super::median;

    #[test]
    fn median_of_odd_even_and_none() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }
}
