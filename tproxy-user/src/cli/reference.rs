//! `tproxy completions` and `tproxy man`: the command line as shells and man(1) want to have it.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::{Args, Command};
use clap_complete::{Shell, generate};

#[derive(Args)]
#[command(after_help = "Example:
  tproxy completions bash > /etc/bash_completion.d/tproxy")]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

#[derive(Args)]
#[command(after_help = "Example:
  tproxy man /usr/local/share/man/man1")]
pub(super) struct Man {
    /// Where to put them
    directory: PathBuf,
}

pub(super) fn completions(arguments: &Completions, command: &mut Command) -> anyhow::Result<()> {
    // By way of memory, because the library panics when it cannot write.
    let mut script = Vec::new();
    generate(arguments.shell, command, "tproxy", &mut script);
    io::stdout().write_all(&script)?;
    Ok(())
}

pub(super) fn man(arguments: &Man, command: Command) -> anyhow::Result<()> {
    let directory = &arguments.directory;
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(command, directory))
        .with_context(|| format!("cannot write manual pages to {}", directory.display()))
}
