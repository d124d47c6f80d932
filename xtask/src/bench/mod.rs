//! `cargo xtask bench`: tproxy beside what does the same job, on this machine, interleaved.

mod accounting;
mod chart;
mod experiment;
mod footprint;
mod goal;
mod grouped;
pub(crate) mod load;
mod machine;
mod peer;
mod quantity;
mod report;
pub(crate) mod rules;
mod setting;
pub(crate) mod soak;
mod table;
mod testbed;

use std::{fs, io::Write as _, time::Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{build, command, interrupt, privilege::Privilege, topology::Lock};

use self::{
    experiment::Experiment,
    peer::{Peer, Source},
    report::{Report, Sample},
    setting::Setting,
};

/// Open files that each program may have: what the configurations of the peers are made for.
const DESCRIPTORS: u64 = 20_000;

/// What else can be measured.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum Subject {
    /// What rules cost a packet, and to load, beside nft
    Rules,
    /// New flows at a steady rate: do descriptors, memory and errors stay flat?
    Soak(soak::Options),
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Fewer and shorter rounds, under two minutes
    #[arg(long, global = true)]
    quick: bool,
    /// Whose address the server sees; what cannot keep the client's is left out
    #[arg(long, value_enum, default_value_t)]
    source: Source,
    /// These experiments only
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Experiment>,
}

/// Builds as this user, then measures as root with an optimised load client and server.
///
/// # Errors
///
/// When the build fails, root is out of reach, or a measurement fails.
pub(crate) fn build_and_measure(
    options: &Options,
    subject: Option<&Subject>,
    verbose: bool,
) -> Result<()> {
    if let Some(Subject::Rules) = subject {
        return rules::build_and_measure(options.quick);
    }
    let privilege = Privilege::required_for("the bench (network namespaces, eBPF)")?;
    build::build()?;
    command::run(command::cargo().args(["build", "--release", "--package", "xtask"]))?;
    fs::create_dir_all(report::directory()).context("cannot make target/bench")?;
    let mut measure = privilege.reenter(command::target_directory().join("release").join("xtask"));
    measure.args(verbose.then_some("--verbose"));
    match subject {
        Some(Subject::Soak(soak)) => measure.arg("soak").args(soak.arguments(options.quick)),
        _ => measure.arg("measure").args(options.arguments()),
    };
    command::run(&mut measure)
}

impl Options {
    /// As they are typed.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        arguments.extend(self.quick.then(|| "--quick".to_owned()));
        arguments.push(format!("--source={}", typed(&self.source)));
        let only = self.only.iter();
        arguments.extend(only.map(|experiment| format!("--only={}", typed(experiment))));
        arguments
    }

    /// What tells the files of this run from those of the whole one, which it must not overwrite.
    fn name(&self) -> String {
        let quick = self.quick.then(|| "quick".to_owned());
        let source = (self.source != Source::default()).then(|| typed(&self.source));
        let only = self.only.iter().map(typed);
        let nothing = [String::new()].into_iter();
        let parts = nothing.chain(quick).chain(source).chain(only);
        parts.collect::<Vec<_>>().join("-")
    }

    fn experiments(&self, setting: &Setting) -> Vec<Experiment> {
        let all = Experiment::value_variants().iter().copied();
        let wanted =
            all.filter(|experiment| self.only.is_empty() || self.only.contains(experiment));
        wanted
            .filter(|experiment| experiment.can_be_measured(setting))
            .collect()
    }
}

fn typed(value: &impl clap::ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

/// Measures and reports.
///
/// # Errors
///
/// When a measurement fails.
pub(crate) fn measure(options: &Options) -> Result<()> {
    let setting = set_up(options.source, options.quick)?;
    let load_before = accounting::load_average()?;
    let started = Instant::now();
    let experiments = options.experiments(&setting);
    let rounds = experiments
        .iter()
        .map(|experiment| experiment.rounds(options.quick));
    let Some(rounds) = rounds.max() else {
        bail!(
            "nothing of this can be measured with --source {}",
            typed(&options.source)
        );
    };
    let mut samples = Vec::new();
    for round in 0..rounds {
        for (experiment, peer) in order(round, &experiments, &setting) {
            interrupt::check()?;
            let values = experiment
                .run(&setting, peer)
                .with_context(|| format!("{}: {}", experiment.title(), peer.name()))?;
            let sample = Sample {
                round,
                experiment,
                peer,
                values,
            };
            print_progress(rounds, &sample);
            samples.push(sample);
        }
    }
    let took = started.elapsed();
    let report = Report::of(samples, load_before, options.quick, options.source, took);
    table::print(&report);
    let run = options.name();
    report::write(&format!("report{run}.json"), &report)?;
    report::write_text(&format!("chart{run}.svg"), &chart::of(&report))
}

/// What every measurement needs before the first.
fn set_up(source: Source, quick: bool) -> Result<Setting> {
    interrupt::catch()?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, hard.max(DESCRIPTORS))
        .context("cannot allow programs to open 20,000 files")?;
    Ok(Setting {
        lock: Lock::take("tproxy-bench")?,
        binary: command::target_directory().join("release").join("tproxy"),
        source,
        quick,
    })
}

/// A B C, then C B A, then A B C: what drifts on the machine hits all alike.
fn order(round: usize, experiments: &[Experiment], setting: &Setting) -> Vec<(Experiment, Peer)> {
    let mut runs: Vec<_> = experiments
        .iter()
        .filter(|experiment| round < experiment.rounds(setting.quick))
        .flat_map(|experiment| {
            let peers = experiment.peers(setting);
            peers.into_iter().map(|peer| (*experiment, peer))
        })
        .collect();
    if round % 2 == 1 {
        runs.reverse();
    }
    runs
}

fn print_progress(rounds: usize, sample: &Sample) {
    let quantity = sample.experiment.headline();
    let value = sample.values.get(&quantity);
    let value = value.map_or_else(String::new, |value| {
        format!("{} {}", quantity.text(*value), quantity.unit())
    });
    let _ = writeln!(
        std::io::stderr(),
        "round {}/{rounds}  {:<48} {:<11} {value}",
        sample.round + 1,
        sample.experiment.title(),
        sample.peer.head(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(arguments: &[&str]) -> String {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let line = ["bench"].iter().chain(arguments);
        let line: Line = clap::Parser::parse_from(line);
        line.options.name()
    }

    #[test]
    fn only_a_whole_run_has_no_name() {
        assert_eq!(named(&[]), "");
        assert_eq!(named(&["--source", "agent"]), "");
        assert_eq!(named(&["--quick"]), "-quick");
        assert_eq!(
            named(&["--source=client", "--only", "bulk1,short32"]),
            "-client-bulk1-short32"
        );
    }
}
