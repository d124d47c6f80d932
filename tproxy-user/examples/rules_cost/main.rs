//! What rules cost, as one JSON object on standard output: the tc program by `BPF_PROG_TEST_RUN`, which
//! repeats one frame within the kernel; loading a million CIDRs; and segments of other people's flows on
//! their whole way through a gateway. Needs root, and a machine at rest. `cargo xtask bench rules` runs
//! it and prints tables:
//!
//! ```text
//! cargo run --release -p tproxy-user --example rules_cost -- --rounds 3
//! ```

mod forwarding;
mod loading;
mod program;
mod rule_sets;

#[path = "../../tests/kernel_programs/answer.rs"]
mod answer;
#[path = "../../tests/kernel_programs/frame.rs"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod frame;
#[path = "../../tests/kernel_programs/sandbox.rs"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod sandbox;

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use serde::Serialize;

/// Measures what rules cost
#[derive(Parser)]
struct Arguments {
    /// How often everything is measured; the fastest round counts
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// CIDRs, one a line, to be loaded beside random ones
    #[arg(long)]
    prefixes: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    program: program::Size,
    packets: Vec<program::Cost>,
    loads: Vec<loading::Load>,
    forwarding: Vec<forwarding::Cost>,
}

fn main() {
    let arguments = Arguments::parse();
    let rounds = arguments.rounds.max(1);
    let packets = sandbox::in_sandbox(move |sandbox| {
        (program::size(sandbox), program::costs(sandbox, rounds))
    });
    let loads = sandbox::in_sandbox(move |sandbox| {
        loading::loads(sandbox, arguments.prefixes.as_deref(), rounds)
    });
    let forwarding = sandbox::in_sandbox(move |sandbox| forwarding::costs(sandbox, rounds));
    let report = Report {
        program: packets.0,
        packets: packets.1,
        loads,
        forwarding,
    };
    let json = serde_json::to_string_pretty(&report).expect("a report can be written as JSON");
    println!("{json}");
}

/// Says on standard error what is being done.
fn progress(what: &str) {
    eprintln!("{what}");
}

#[expect(
    clippy::cast_precision_loss,
    reason = "far fewer nanoseconds than an f64 can count"
)]
fn nanoseconds(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
