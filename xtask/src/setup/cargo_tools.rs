//! Programs that Debian does not have and cargo compiles.

use std::process::Command;

use crate::{command, setup::debian::LLVM_PREFIX};

/// A published program, at the version that is known to build with the workspace's compiler.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CargoTool {
    /// The crate.
    pub(crate) name: &'static str,
    version: &'static str,
    /// What it puts into cargo's bin directory.
    pub(crate) program: &'static str,
    /// How long it compiles, for people who wait.
    pub(crate) takes: &'static str,
    options: &'static [&'static str],
    variables: &'static [(&'static str, &'static str)],
}

/// Linked with the LLVM that Debian's compiler has: a linker of another major cannot read its bitcode.
pub(crate) const BPF_LINKER: CargoTool = CargoTool {
    name: "bpf-linker",
    version: "0.13.0",
    program: "bpf-linker",
    takes: "80 seconds",
    options: &["--no-default-features", "--features", "llvm-22"],
    variables: &[("LLVM_PREFIX", LLVM_PREFIX)],
};

/// Licences, sources, duplicates and advisories of the dependencies.
pub(crate) const CARGO_DENY: CargoTool = CargoTool {
    name: "cargo-deny",
    version: "0.20.2",
    program: "cargo-deny",
    takes: "5 minutes",
    options: &[],
    variables: &[],
};

/// The spelling checker.
pub(crate) const TYPOS: CargoTool = CargoTool {
    name: "typos-cli",
    version: "1.52.0",
    program: "typos",
    takes: "3 minutes",
    options: &[],
    variables: &[],
};

impl CargoTool {
    /// The command that compiles and installs it for this user.
    pub(crate) fn install(&self) -> Command {
        let mut command = command::cargo();
        command
            .args(["install", "--locked", self.name, "--version", self.version])
            .args(self.options)
            .envs(self.variables.iter().copied());
        command
    }
}
