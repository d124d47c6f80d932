//! A listener on foreign addresses, for a program that cannot open one but inherits one.

use std::{
    net::SocketAddr,
    os::{fd::IntoRawFd as _, unix::process::CommandExt as _},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::listener::listen;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    listen: SocketAddr,
    /// The variable that tells the program the number of the descriptor
    #[arg(long)]
    variable: String,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Becomes the program. The number is followed by `;`, as nginx writes it.
pub(super) fn become_program(options: &Options) -> Result<()> {
    let socket = listen(options.listen)?;
    socket.set_ip_transparent_v4(true)?;
    socket.set_nonblocking(true)?;
    socket.set_cloexec(false)?;
    let descriptor = socket.into_raw_fd();
    let mut command = Command::new(&options.command[0]);
    command.args(&options.command[1..]);
    command.env(&options.variable, format!("{descriptor};"));
    Err(command.exec()).with_context(|| format!("cannot start {}", options.command[0]))
}
