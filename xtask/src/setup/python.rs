//! A virtual environment with what `PyPI` has and Debian does not.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::command;

/// All that goes in, at the versions that the tests are written for.
const REQUIREMENTS: &str = include_str!("requirements.txt");

/// What it is for, for people who wait.
pub(crate) const CONTENT: &str = "Envoy and a QUIC library (150 MB)";

/// Where the tests look for it, wherever cargo builds.
pub(crate) fn environment() -> PathBuf {
    command::workspace().join("target/python")
}

/// Whether everything is there, at these versions.
pub(crate) fn is_complete() -> bool {
    // The interpreter is a link to that of the system, which may have gone.
    environment().join("bin/python3").exists()
        && fs::read_to_string(record()).is_ok_and(|installed| installed == REQUIREMENTS)
}

/// Whether there is a Python that can make an environment: Debian has that in a package of its own.
pub(crate) fn can_be_made() -> bool {
    Command::new(interpreter())
        .args(["-c", "import ensurepip, venv"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Makes it anew, as the user who builds.
pub(crate) fn install() -> Result<()> {
    make().with_context(|| format!("cannot make {}", environment().display()))
}

fn make() -> Result<()> {
    let environment = environment();
    let mut venv = Command::new(interpreter());
    venv.args(["-m", "venv", "--clear"]).arg(&environment);
    command::run(venv.stdin(Stdio::null()))?;
    let requirements = command::workspace().join("xtask/src/setup/requirements.txt");
    let mut pip = Command::new(environment.join("bin/python3"));
    pip.args(["-m", "pip", "--disable-pip-version-check"])
        // Nothing is to be compiled, and no program of a package to run.
        .args(["install", "--quiet", "--no-input", "--only-binary=:all:"])
        .arg("--requirement")
        .arg(requirements);
    command::run(pip.stdin(Stdio::null()))?;
    // Last: it says that everything before it has been done.
    fs::write(record(), REQUIREMENTS)
        .with_context(|| format!("cannot write {}", record().display()))
}

fn record() -> PathBuf {
    environment().join("installed.txt")
}

/// Debian's, whose package of `venv` is the one to install, before any other.
fn interpreter() -> PathBuf {
    let debian = PathBuf::from("/usr/bin/python3");
    if debian.exists() {
        return debian;
    }
    command::find_program("python3").unwrap_or(debian)
}
