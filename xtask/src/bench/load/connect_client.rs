//! A client that only connects, one connection after the other.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};

use super::latencies::Latencies;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    connect: SocketAddr,
    #[arg(long)]
    connections: u32,
}

/// Prints the [`super::Summary`] of how long connect(2) took.
pub(super) fn run(options: &Options) -> Result<()> {
    let mut latencies = Latencies::new()?;
    for _ in 0..options.connections {
        let socket = Socket::new(Domain::for_address(options.connect), Type::STREAM, None)?;
        // A RST at the end leaves no TIME_WAIT, so that the ports last.
        socket.set_linger(Some(Duration::ZERO))?;
        let begin = Instant::now();
        socket
            .connect(&options.connect.into())
            .context("cannot connect")?;
        latencies.record(begin.elapsed());
    }
    println!("{}", serde_json::to_string(&latencies.summary())?);
    Ok(())
}
