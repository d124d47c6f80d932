//! `cargo xtask setup`: what a fresh machine lacks, installed or named.
//!
//! When everything is there this reads a few dozen directory entries and asks one compiler for its
//! version: no package manager is called.

mod cargo_tools;
mod debian;
mod python;

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
    let mut wanted = Missing::packages(debian::PROGRAMS);
    if !python::is_complete() {
        wanted.python = true;
        if !python::can_be_made() {
            wanted.packages.push(&debian::VIRTUAL_ENVIRONMENTS);
        }
    }
    if let Err(reason) = &toolchain {
        eprintln!("setup: {reason}");
        if !ebpf_toolchain::has_compiler() {
            wanted.packages.extend(debian::COMPILER);
        }
        if !ebpf_toolchain::has_bpf_linker() {
            wanted.packages.extend(missing(debian::LLVM));
            wanted.tools.push(cargo_tools::BPF_LINKER);
        }
    }
    wanted.install()?;
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
    let mut wanted = if distribution {
        Missing::packages(debian::LINTERS)
    } else {
        Missing::default()
    };
    wanted.tools = [cargo_tools::CARGO_DENY, cargo_tools::TYPOS]
        .into_iter()
        .filter(|tool| command::find_program(tool.program).is_none())
        .collect();
    wanted.install()
}

/// What `cargo xtask vm` needs beside that.
///
/// # Errors
///
/// As [`for_tests`].
pub(crate) fn for_vm() -> Result<()> {
    for_tests()?;
    Missing::packages(debian::EMULATOR).install()
}

/// What is not there and has to be installed.
#[derive(Debug, Default)]
struct Missing {
    packages: Vec<&'static Package>,
    tools: Vec<CargoTool>,
    /// The environment of [`python`].
    python: bool,
}

impl Missing {
    fn packages(needed: &'static [Package]) -> Self {
        Self {
            packages: missing(needed),
            ..Self::default()
        }
    }

    /// Says what is missing, then installs it, or says how to.
    fn install(&self) -> Result<()> {
        self.announce();
        if !self.packages.is_empty() {
            if command::find_program("apt-get").is_none() {
                return Err(Refusal(self.without_apt()).into());
            }
            let privilege = Privilege::without_asking();
            let privilege = privilege.ok_or_else(|| Refusal(self.instructions()))?;
            debian::install(privilege, &self.packages)?;
        }
        for tool in &self.tools {
            command::run(&mut tool.install())?;
            if command::find_program(tool.program).is_none() && !ebpf_toolchain::has_bpf_linker() {
                bail!(
                    "cargo installed {} where PATH does not lead: add ~/.cargo/bin to it",
                    tool.name
                );
            }
        }
        if self.python {
            python::install()?;
        }
        Ok(())
    }

    fn announce(&self) {
        if !self.packages.is_empty() {
            let names = self.names();
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
        for tool in &self.tools {
            eprintln!(
                "setup: missing {}, to be compiled by cargo (about {} on two cores)",
                tool.name, tool.takes
            );
        }
        if self.python {
            eprintln!(
                "setup: missing {}, to be installed into {} by pip",
                python::CONTENT,
                python::environment().display()
            );
        }
    }

    fn without_apt(&self) -> String {
        let missing: Vec<_> = self.packages.iter().map(|package| package.proof).collect();
        format!(
            "this host has no apt-get. Install what provides {}. In place of Debian's compiler a nightly does:\n\n    \
             rustup toolchain install nightly --component rust-src\n    \
             cargo install bpf-linker\n\nthen run this command again",
            missing.join(", ")
        )
    }

    fn instructions(&self) -> String {
        let mut commands = vec![
            "sudo apt-get update".to_owned(),
            format!(
                "sudo apt-get install -y --no-install-recommends {}",
                self.names().join(" ")
            ),
        ];
        commands.extend(self.tools.iter().map(|tool| command::line(&tool.install())));
        format!(
            "packages are missing and there is neither root nor sudo without a password. Type:\n\n    {}\n\n\
             then run this command again",
            commands.join("\n    ")
        )
    }

    fn names(&self) -> Vec<&'static str> {
        self.packages.iter().map(|package| package.name).collect()
    }
}
