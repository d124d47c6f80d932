//! `cargo xtask setup`: what a fresh machine lacks, installed or named.
//!
//! When everything is there this reads a few dozen directory entries and asks one compiler for its
//! version: no package manager is called.

mod cargo_tools;
mod debian;

use anyhow::{Context as _, Result, bail};

use crate::{command, ebpf_toolchain, privilege::Privilege, refusal::Refusal};

use self::{
    cargo_tools::CargoTool,
    debian::{Package, missing},
};

/// What building and testing needs.
///
/// # Errors
///
/// A [`Refusal`] with the commands to type, when something is missing and there is neither root nor
/// sudo; or what failed to install.
pub(crate) fn for_tests() -> Result<()> {
    let toolchain = ebpf_toolchain::find();
    let mut packages = missing(debian::PROGRAMS);
    let mut tools = Vec::new();
    if let Err(reason) = &toolchain {
        eprintln!("setup: {reason}");
        if !ebpf_toolchain::has_compiler() {
            packages.extend(debian::COMPILER);
        }
        if !ebpf_toolchain::has_bpf_linker() {
            packages.extend(missing(debian::LLVM));
            tools.push(cargo_tools::BPF_LINKER);
        }
    }
    install(&packages, &tools)?;
    if toolchain.is_err() {
        let found = ebpf_toolchain::find().map_err(anyhow::Error::msg);
        let found =
            found.context("the eBPF toolchain is still not usable after its installation")?;
        eprintln!(
            "setup: kernel programs will be built by {}",
            found.describe()
        );
    }
    Ok(())
}

/// What `cargo xtask lint` needs beside that.
///
/// # Errors
///
/// As [`for_tests`].
pub(crate) fn for_lint() -> Result<()> {
    for_tests()?;
    let distribution = ebpf_toolchain::find().is_ok_and(|found| found.is_of_distribution());
    let packages = if distribution {
        missing(debian::LINTERS)
    } else {
        Vec::new()
    };
    let tools: Vec<_> = [cargo_tools::CARGO_DENY, cargo_tools::TYPOS]
        .into_iter()
        .filter(|tool| command::find_program(tool.program).is_none())
        .collect();
    install(&packages, &tools)
}

/// What `cargo xtask vm` needs beside that.
///
/// # Errors
///
/// As [`for_tests`].
pub(crate) fn for_vm() -> Result<()> {
    for_tests()?;
    install(&missing(debian::EMULATOR), &[])
}

/// Says what is missing, then installs it, or says how to.
fn install(packages: &[&Package], tools: &[CargoTool]) -> Result<()> {
    if packages.is_empty() && tools.is_empty() {
        return Ok(());
    }
    announce(packages, tools);
    if !packages.is_empty() {
        let instructions = || instructions(packages, tools);
        if command::find_program("apt-get").is_none() {
            return Err(Refusal(without_apt(packages)).into());
        }
        let privilege = Privilege::without_asking().ok_or_else(|| Refusal(instructions()))?;
        debian::install(privilege, packages)?;
    }
    for tool in tools {
        command::run(&mut tool.install())?;
        if command::find_program(tool.program).is_none() && !ebpf_toolchain::has_bpf_linker() {
            bail!(
                "cargo installed {} where PATH does not lead: add ~/.cargo/bin to it",
                tool.name
            );
        }
    }
    Ok(())
}

fn without_apt(packages: &[&Package]) -> String {
    let missing: Vec<_> = packages.iter().map(|package| package.proof).collect();
    format!(
        "this host has no apt-get. Install what provides {}. In place of Debian's compiler a nightly does:\n\n    \
         rustup toolchain install nightly --component rust-src\n    \
         cargo install bpf-linker\n\nthen run this command again",
        missing.join(", ")
    )
}

fn announce(packages: &[&Package], tools: &[CargoTool]) {
    if !packages.is_empty() {
        let names: Vec<_> = packages.iter().map(|package| package.name).collect();
        eprintln!(
            "setup: missing Debian packages, to be installed: {}",
            names.join(" ")
        );
        if names.contains(&"rustc-web") {
            eprintln!(
                "setup: Debian's compiler goes to /usr/bin for the kernel programs; a rustup toolchain stays what `cargo` and `rustc` mean"
            );
        }
    }
    for tool in tools {
        eprintln!(
            "setup: missing {}, to be compiled by cargo (about {} on two cores)",
            tool.name, tool.takes
        );
    }
}

fn instructions(packages: &[&Package], tools: &[CargoTool]) -> String {
    let names: Vec<_> = packages.iter().map(|package| package.name).collect();
    let mut commands = vec![
        "sudo apt-get update".to_owned(),
        format!(
            "sudo apt-get install -y --no-install-recommends {}",
            names.join(" ")
        ),
    ];
    commands.extend(tools.iter().map(|tool| command::line(&tool.install())));
    format!(
        "packages are missing and there is neither root nor sudo without a password. Type:\n\n    {}\n\n\
         then run this command again",
        commands.join("\n    ")
    )
}
