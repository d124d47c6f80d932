//! Connections that have moved a few bytes and then do nothing.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// An echo that takes longer ends the measurement.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    connect: SocketAddr,
    #[arg(long)]
    flows: u32,
}

/// Printed once all stand.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Connections that are kept.
    pub(crate) flows: u32,
    /// Seconds that it took to open them, one after the other.
    pub(crate) seconds: f64,
}

/// Opens the flows, says so, and keeps them until it is killed. Each has had one echo, so that it is
/// known to reach the server and to have used what it uses.
pub(super) fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    let flows = (0..options.flows)
        .map(|number| {
            open(options.connect).with_context(|| format!("flow {number} of {}", options.flows))
        })
        .collect::<Result<Vec<_>>>()?;
    let outcome = Outcome {
        flows: u32::try_from(flows.len())?,
        seconds: started.elapsed().as_secs_f64(),
    };
    println!("{}", serde_json::to_string(&outcome)?);
    loop {
        thread::park();
    }
}

fn open(destination: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(destination).context("cannot connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"idle").context("cannot send")?;
    stream.read_exact(&mut [0; 4]).context("no echo")?;
    Ok(stream)
}
