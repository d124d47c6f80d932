//! `cargo xtask bench rules`: what rules cost a packet, to load, and those who connect meanwhile.

pub(crate) mod live;
mod measured;
mod prefixes;
mod tables;

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    bench::{accounting, report},
    build, command,
    privilege::Privilege,
};

use self::measured::Measured;

/// The program that measures. It is part of the crate whose programs it loads.
const EXAMPLE: &str = "rules_cost";

/// Builds as this user, measures as root, and reports.
///
/// # Errors
///
/// When the build fails, root is out of reach, or a measurement fails.
pub(crate) fn build_and_measure(quick: bool) -> Result<()> {
    let privilege = Privilege::required_for("the bench (network namespaces, eBPF)")?;
    build::build()?;
    command::run(command::cargo().args([
        "build",
        "--release",
        "--package",
        "tproxy-user",
        "--example",
        EXAMPLE,
    ]))?;
    command::run(command::cargo().args(["build", "--release", "--package", "xtask"]))?;
    fs::create_dir_all(report::directory()).context("cannot make target/bench")?;
    let real = prefixes::real();
    let load_before = accounting::load_average()?;
    let release = command::target_directory().join("release");
    let mut measure = privilege.reenter(release.join("examples").join(EXAMPLE));
    measure.args(["--rounds", if quick { "3" } else { "9" }]);
    if let Some(prefixes) = real {
        measure.arg("--prefixes").arg(prefixes);
    }
    let costs = output_of(&mut measure)?;
    let mut measure = privilege.reenter(release.join("xtask"));
    measure.args(["measure-sets", "--seconds", if quick { "10" } else { "60" }]);
    let measured = Measured::new(load_before, &costs, live::ask(measure)?)?;
    tables::print(&measured);
    report::write(
        if quick {
            "rules-quick.json"
        } else {
            "rules.json"
        },
        &measured,
    )
}

/// What the command prints. What it says of its progress goes to the terminal.
fn output_of(measure: &mut Command) -> Result<String> {
    command::show(measure);
    let output = measure
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {EXAMPLE}"))?;
    ensure!(
        output.status.success(),
        "{EXAMPLE} failed: {}",
        output.status
    );
    String::from_utf8(output.stdout).context("no text")
}
