//! Set up, build, run, test and measure tproxy.

mod agent;
mod bench;
mod build;
mod command;
#[expect(dead_code, reason = "the build script of tproxy-user uses the rest")]
mod ebpf_toolchain;
mod host;
mod interrupt;
mod lab;
mod lines;
mod lint;
mod privilege;
mod refusal;
mod setup;
mod terminal;
mod test;
mod topology;
mod vm;
mod web_server;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::refusal::Refusal;

/// Set up, build, run, test and measure tproxy
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    /// Show the small commands as well (ip, sysctl, nft, ...)
    #[arg(long, short, global = true)]
    verbose: bool,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing to build and test (takes no time when nothing is)
    Setup {
        /// What `lint` needs as well
        #[arg(long)]
        lint: bool,
    },
    /// Set up and build target/release/tproxy
    Build,
    /// Show a transparent proxy at work in three network namespaces, or run one here with `-- ARGS`
    Run {
        /// Do not stay: exit with 0 only if every fetch went through the agent
        #[arg(long, conflicts_with = "arguments")]
        once: bool,
        /// `tproxy run ARGS` on this host's own interfaces
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Run every test: units, then the integration tests as root
    Test {
        /// For the test programs: a part of a test's name, --nocapture, ...
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// rustfmt, clippy, cargo-deny and typos, warnings denied
    Lint,
    /// Measure beside HAProxy and nginx behind nft TPROXY, and plain routing
    Bench {
        #[command(flatten)]
        options: bench::Options,
        #[command(subcommand)]
        subject: Option<bench::Subject>,
    },
    /// The integration tests on another kernel of Debian's, in an emulated machine
    Vm {
        /// The series: 6.1, 6.12
        #[arg(long, default_value = "6.1")]
        kernel: String,
        /// Suites of tests/tests [default: all that do not measure time]
        suites: Vec<String>,
    },
    /// The lab of `run`, once everything is built
    #[command(hide = true)]
    Lab {
        #[arg(long)]
        once: bool,
    },
    /// The measurements of `bench`, once everything is built
    #[command(hide = true)]
    Measure(bench::Options),
    /// The measurements of `bench soak`, once everything is built
    #[command(hide = true)]
    Soak(bench::soak::Options),
    /// What sets of a million CIDRs cost, once everything is built
    #[command(hide = true)]
    MeasureSets {
        #[arg(long)]
        seconds: u64,
    },
    /// A client that only connects
    #[command(hide = true)]
    ConnectLatency {
        #[arg(long)]
        target: std::net::SocketAddr,
        #[arg(long)]
        seconds: u64,
    },
    /// The programs at both ends of a load
    #[command(hide = true, subcommand)]
    Load(bench::load::Program),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.verbose {
        command::be_verbose();
    }
    match perform(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error:#}", terminal::red("xtask:"));
            ExitCode::from(if error.is::<Refusal>() { 2 } else { 1 })
        }
    }
}

fn perform(arguments: Arguments) -> Result<()> {
    match arguments.task {
        Task::Setup { lint: false } => setup::for_tests(),
        Task::Setup { lint: true } => setup::for_lint(),
        Task::Build => build::build().map(drop),
        Task::Run {
            once,
            arguments: none,
        } if none.is_empty() => lab::build_and_show(once, arguments.verbose),
        Task::Run { arguments, .. } => host::run(&arguments),
        Task::Test { arguments } => test::test(&arguments),
        Task::Lint => lint::lint(),
        Task::Bench { options, subject } => {
            bench::build_and_measure(&options, subject.as_ref(), arguments.verbose)
        }
        Task::Vm { kernel, suites } => vm::test(&kernel, &suites),
        Task::Lab { once } => lab::show(once),
        Task::Measure(options) => bench::measure(&options),
        Task::Soak(options) => bench::soak::measure(&options),
        Task::MeasureSets { seconds } => bench::rules::live::measure(seconds),
        Task::ConnectLatency { target, seconds } => bench::rules::live::connect(target, seconds),
        Task::Load(program) => bench::load::run(&program),
    }
}
