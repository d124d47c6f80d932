//! `cargo xtask bench`: tproxy beside what does the same job, on this machine, interleaved.

mod accounting;
pub(crate) mod load_client;
pub(crate) mod load_server;
mod machine;
mod measurement;
mod nft_steering;
mod peer;
mod report;
pub(crate) mod rules;

use std::{fs, io::Write as _, time::Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{build, command, interrupt, privilege::Privilege, topology::Lock};

use self::{
    measurement::{Durations, Load, Sample},
    peer::Peer,
};

/// What can be measured.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Subject {
    /// Relayed flows, beside HAProxy, nft TPROXY and plain routing
    #[default]
    Relay,
    /// What rules cost a packet, and to load, beside nft
    Rules,
}

/// Builds as this user, then measures as root with an optimised load client and server.
///
/// # Errors
///
/// When the build fails, root is out of reach, or a measurement fails.
pub(crate) fn build_and_measure(quick: bool, verbose: bool) -> Result<()> {
    let privilege = Privilege::required_for("the bench (network namespaces, eBPF)")?;
    build::build()?;
    command::run(command::cargo().args(["build", "--release", "--package", "xtask"]))?;
    fs::create_dir_all(report::directory()).context("cannot make target/bench")?;
    let mut measure = privilege.reenter(command::target_directory().join("release").join("xtask"));
    measure
        .arg("measure")
        .args(quick.then_some("--quick"))
        .args(verbose.then_some("--verbose"));
    command::run(&mut measure)
}

/// Measures and reports.
///
/// # Errors
///
/// When a measurement fails.
pub(crate) fn measure(quick: bool) -> Result<()> {
    interrupt::catch()?;
    let lock = Lock::take("tproxy-bench")?;
    let (rounds, durations) = if quick {
        (3, Durations { bulk: 2, short: 3 })
    } else {
        (9, Durations { bulk: 5, short: 5 })
    };
    let binary = command::target_directory().join("release").join("tproxy");
    let load_before = accounting::load_average()?;
    let started = Instant::now();
    let mut samples = Vec::new();
    for round in 0..rounds {
        for (peer, load) in order(round) {
            interrupt::check()?;
            let sample = measurement::measure(&lock, &binary, peer, load, durations, round)?;
            print_progress(round, rounds, &sample);
            samples.push(sample);
        }
    }
    let report = report::Report::of(samples, load_before, rounds, started.elapsed());
    report.print();
    report::write(if quick { "quick.json" } else { "full.json" }, &report)
}

/// A B C, then C B A, then A B C: what drifts on the machine hits all alike.
fn order(round: usize) -> Vec<(Peer, Load)> {
    let mut runs: Vec<_> = Load::ALL
        .into_iter()
        .flat_map(|load| Peer::ALL.map(|peer| (peer, load)))
        // Steering makes no difference to established connections.
        .filter(|(peer, load)| *load == Load::Short32 || !peer.is_about_steering_alone())
        .collect();
    if round % 2 == 1 {
        runs.reverse();
    }
    runs
}

fn print_progress(round: usize, rounds: usize, sample: &Sample) {
    let _ = writeln!(
        std::io::stderr(),
        "round {}/{rounds}  {:<30} {:<33} {:>10.1} {}",
        round + 1,
        sample.load.name(),
        sample.peer.name(),
        sample.rate,
        report::unit(sample.load),
    );
}
