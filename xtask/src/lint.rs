//! `cargo xtask lint`: form, lints, dependencies and spelling.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{command, ebpf_toolchain, setup, terminal};

type Check = fn() -> Result<()>;

/// Runs all checks, also after one has failed, and names those that failed.
///
/// # Errors
///
/// When a check fails, or its program cannot be installed.
pub(crate) fn lint() -> Result<()> {
    setup::for_lint()?;
    let checks: [(&str, Check); 6] = [
        ("rustfmt", format),
        ("clippy", clippy),
        ("clippy of the kernel programs", clippy_of_kernel_programs),
        ("cargo-deny", deny),
        ("advisories", advisories),
        ("typos", typos),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        if let Err(error) = check() {
            eprintln!("{} {name}: {error:#}", terminal::red("lint:"));
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    println!("{}", terminal::green("lint: all checks passed"));
    Ok(())
}

fn format() -> Result<()> {
    command::run(command::cargo().args(["fmt", "--all", "--check"]))?;
    let kernel_programs = command::workspace().join("tproxy-ebpf");
    command::run(
        command::cargo()
            .current_dir(kernel_programs)
            .args(["fmt", "--all", "--check"]),
    )
}

fn clippy() -> Result<()> {
    command::run(command::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

/// For the target that they are made for, by the compiler that builds them.
fn clippy_of_kernel_programs() -> Result<()> {
    let directory = command::workspace().join("tproxy-ebpf");
    let target = command::target_directory().join("lint-ebpf");
    let toolchain = ebpf_toolchain::find().map_err(anyhow::Error::msg)?;
    let Some(mut clippy) = toolchain.cargo_clippy(&directory, &target) else {
        bail!("{} has no clippy beside it", toolchain.describe());
    };
    command::run(clippy.args(["--", "-D", "warnings"]))
}

fn deny() -> Result<()> {
    for manifest in ["Cargo.toml", "tproxy-ebpf/Cargo.toml"] {
        let arguments = [
            "deny",
            "--manifest-path",
            manifest,
            "check",
            "bans",
            "licenses",
            "sources",
        ];
        command::run(command::cargo().args(arguments))?;
    }
    Ok(())
}

/// The advisory database comes from the network, and is the one thing here that a machine may well not
/// reach: without it this says so and passes.
fn advisories() -> Result<()> {
    if let Err(error) = command::quietly(command::cargo().args(["deny", "fetch", "db"])) {
        let reason = format!("{error:#}");
        // The last line is what git itself said.
        let reason = reason.trim().lines().next_back().unwrap_or_default();
        eprintln!(
            "{} the advisory database cannot be fetched: advisories were NOT checked ({reason})",
            terminal::red("lint:")
        );
        return Ok(());
    }
    command::run(command::cargo().args(["deny", "check", "advisories"]))
}

fn typos() -> Result<()> {
    command::run(Command::new("typos").current_dir(command::workspace()))
}
