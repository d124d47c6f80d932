//! `cargo xtask bench soak`: new flows at a steady rate, and whether what they leave behind stays flat.

use std::time::Duration;

use anyhow::{Result, ensure};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;

use crate::{interrupt, terminal};

use super::{
    accounting,
    load::Second,
    machine::Machine,
    peer::{Capture, Peer, Source},
    report::{self, median},
    testbed::{Testbed, short_address, threads},
};

/// How much more at the end is still flat: of descriptors and of bytes, as a part and as an amount.
const SLACK: f64 = 0.05;
const SLACK_DESCRIPTORS: f64 = 20.0;
const SLACK_BYTES: f64 = 1e6;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// New flows a second
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    rate: u32,
    /// Through whom
    #[arg(long, value_enum, default_value_t = Peer::Tproxy)]
    peer: Peer,
}

impl Options {
    /// As they are typed; a quick soak takes the shortest time.
    pub(super) fn arguments(&self, quick: bool) -> Vec<String> {
        let minutes = if quick { 1 } else { self.minutes };
        vec![
            format!("--minutes={minutes}"),
            format!("--rate={}", self.rate),
            format!("--peer={}", super::typed(&self.peer)),
        ]
    }
}

#[derive(Debug, Serialize)]
struct Soak {
    #[serde(flatten)]
    machine: Machine,
    peer: Peer,
    rate: u32,
    first: Minute,
    last: Minute,
    is_flat: bool,
    moments: Vec<Moment>,
}

/// The end of a second.
#[derive(Debug, Serialize)]
struct Moment {
    #[serde(flatten)]
    second: Second,
    /// Of the proxy.
    descriptors: f64,
    /// Bytes that the proxy's processes have written.
    written: f64,
    /// Bytes of the whole kernel's own objects, sockets among them.
    slab: f64,
}

/// Medians, and sums of what is counted.
#[derive(Debug, Clone, Copy, Serialize)]
struct Minute {
    connections_a_second: f64,
    failures: f64,
    first_byte_p50: f64,
    first_byte_p99: f64,
    descriptors: f64,
    written: f64,
    slab: f64,
}

/// Measures and reports.
///
/// # Errors
///
/// When something cannot be started, or what was to stay flat did not.
pub(crate) fn measure(options: &Options) -> Result<()> {
    let setting = super::set_up(Source::Agent, false)?;
    let load_before = accounting::load_average()?;
    let testbed = Testbed::new(&setting, options.peer, Capture::Tcp)?;
    let address = short_address();
    let _server = testbed.server(&[
        "short-server",
        "--listen",
        &address,
        "--threads",
        &threads(),
    ])?;
    let seconds = options.minutes * 60;
    let client = testbed.start_client(&[
        "paced-client",
        "--connect",
        &address,
        "--rate",
        &options.rate.to_string(),
        "--seconds",
        &seconds.to_string(),
    ])?;
    let mut moments = Vec::new();
    for number in 1..=seconds {
        interrupt::check()?;
        let moment = Moment::next(&testbed, &client)?;
        if number.is_multiple_of(10) {
            moment.print(number, seconds);
        }
        moments.push(moment);
    }
    let soak = Soak::of(Machine::here(load_before), options, moments);
    soak.print();
    report::write("soak.json", &soak)?;
    ensure!(
        soak.is_flat,
        "not flat: the last minute holds more than the first, or flows failed"
    );
    Ok(())
}

impl Moment {
    fn next(testbed: &Testbed, client: &super::testbed::Client) -> Result<Self> {
        let second = client.next(Duration::from_secs(10))?;
        let footprint = testbed.footprint()?;
        Ok(Self {
            second,
            descriptors: footprint.descriptors,
            written: footprint.written,
            slab: accounting::slab()?,
        })
    }

    fn print(&self, number: u64, seconds: u64) {
        eprintln!(
            "{number:>6}/{seconds} s  {:>6} connections/s  {} failed  {:.0} descriptors  {:.1} MB",
            self.second.connections,
            self.second.failures,
            self.descriptors,
            self.written / 1e6
        );
    }
}

impl Soak {
    fn of(machine: Machine, options: &Options, moments: Vec<Moment>) -> Self {
        // A soak of one minute has two halves.
        let length = (moments.len() / 2).min(60);
        let first = Minute::of(&moments[..length]);
        let last = Minute::of(&moments[moments.len() - length..]);
        let failures: u32 = moments.iter().map(|moment| moment.second.failures).sum();
        let within = |last: f64, first: f64, slack: f64| last <= first * (1.0 + SLACK) + slack;
        let is_flat = failures == 0
            && within(last.descriptors, first.descriptors, SLACK_DESCRIPTORS)
            && within(last.written, first.written, SLACK_BYTES)
            && last.connections_a_second >= f64::from(options.rate) * (1.0 - SLACK);
        Self {
            machine,
            peer: options.peer,
            rate: options.rate,
            first,
            last,
            is_flat,
            moments,
        }
    }

    fn print(&self) {
        type Value = fn(&Minute) -> f64;
        println!(
            "\n{} at {} new flows a second for {} s",
            self.peer.name(),
            self.rate,
            self.moments.len()
        );
        self.machine.print_if_busy();
        let mut table = Table::new();
        let header = ["", "first minute", "last minute"];
        table.load_style(NOTHING).set_header(header);
        let rows: [(&str, usize, Value); 7] = [
            ("connections/s", 0, |of| of.connections_a_second),
            ("failed", 0, |of| of.failures),
            ("first byte p50 µs", 0, |of| of.first_byte_p50),
            ("first byte p99 µs", 0, |of| of.first_byte_p99),
            ("descriptors", 0, |of| of.descriptors),
            ("user memory MB", 2, |of| of.written / 1e6),
            ("the kernel's objects MB", 2, |of| of.slab / 1e6),
        ];
        for (name, digits, value) in rows {
            let [first, last] =
                [&self.first, &self.last].map(|minute| format!("{:.digits$}", value(minute)));
            table.add_row([name.to_owned(), first, last]);
        }
        for column in [1, 2] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        println!("{table}");
        println!(
            "{}\n",
            if self.is_flat {
                terminal::green("flat")
            } else {
                terminal::red("NOT flat")
            }
        );
    }
}

impl Minute {
    fn of(moments: &[Moment]) -> Self {
        let of = |value: fn(&Moment) -> f64| median(moments.iter().map(value)).unwrap_or(0.0);
        Self {
            connections_a_second: of(|moment| f64::from(moment.second.connections)),
            failures: moments
                .iter()
                .map(|moment| f64::from(moment.second.failures))
                .sum(),
            first_byte_p50: of(|moment| moment.second.first_byte.p50),
            first_byte_p99: of(|moment| moment.second.first_byte.p99),
            descriptors: of(|moment| moment.descriptors),
            written: of(|moment| moment.written),
            slab: of(|moment| moment.slab),
        }
    }
}
