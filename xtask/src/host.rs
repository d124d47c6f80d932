//! `cargo xtask run -- ARGS`: the agent on this host's own interfaces.

use std::{env, ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::{Context as _, Result};

use crate::{build, command, privilege::Privilege};

/// Builds, then becomes `tproxy run ARGS`, as root.
///
/// # Errors
///
/// When the build fails, root is out of reach, or the program cannot be started. Otherwise this does
/// not return.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    let binary = build::build()?;
    let privilege = Privilege::required_for("`tproxy run`")?;
    let log = env::var_os("RUST_LOG");
    let variables = log.as_deref().map(|filter| ("RUST_LOG", filter));
    let mut agent = privilege.command(&binary, variables);
    agent.arg("run").args(arguments);
    command::show(&agent);
    Err(agent.exec()).context("cannot start the agent")
}
