//! Real prefixes: the networks of all countries, from the `PyPI` package geoip2fast.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{bench::report, command};

/// The release whose database layout is known.
const RELEASE: &str = "1.2.2";

const READ_DATABASE: &str = include_str!("country_prefixes.py");

/// The file of prefixes, which is made when it is missing. `None`, after saying why, when it cannot be.
pub(crate) fn real() -> Option<PathBuf> {
    let path = report::directory().join(format!("country-prefixes-{RELEASE}.txt"));
    if path.exists() {
        return Some(path);
    }
    match make(&path) {
        Ok(()) => Some(path),
        Err(error) => {
            eprintln!("xtask: without real prefixes: {error:#}");
            None
        }
    }
}

fn make(path: &Path) -> Result<()> {
    let directory = report::directory().join("geoip2fast");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    command::quietly(
        Command::new("pip")
            .args(["download", "--quiet", "--no-deps", "--dest"])
            .arg(&directory)
            .arg(format!("geoip2fast=={RELEASE}")),
    )
    .context("cannot download geoip2fast from the Python package index")?;
    let archive = directory.join(format!("geoip2fast-{RELEASE}.tar.gz"));
    let prefixes = command::quietly(
        Command::new("python3")
            .args(["-c", READ_DATABASE])
            .arg(&archive),
    )
    .context("cannot read the database of geoip2fast")?;
    ensure!(
        !prefixes.is_empty(),
        "{} has no networks",
        archive.display()
    );
    // In one step, so that what is there is whole.
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, prefixes)
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
