//! `cargo xtask build`: the release binary.

use std::path::PathBuf;

use anyhow::Result;

use crate::{command, setup};

/// Sets up, builds, and returns where the binary lies.
///
/// # Errors
///
/// When the setup refuses or the build fails.
pub(crate) fn build() -> Result<PathBuf> {
    setup::for_tests()?;
    command::run(command::cargo().args(["build", "--release", "--package", "tproxy-user"]))?;
    Ok(command::target_directory().join("release").join("tproxy"))
}
