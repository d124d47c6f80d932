//! A sender that does not mind whether anybody reads.

use std::{
    io::{ErrorKind, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// When nothing could be sent for so long, everything in between is full.
const STALLED: Duration = Duration::from_millis(500);
/// A way that takes more and more is not waited for.
const ENOUGH: Duration = Duration::from_secs(6);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    connect: SocketAddr,
}

/// Printed once nothing can be sent any more.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// What was sent, and so is held somewhere: here, in between, or by the server's kernel.
    pub(crate) bytes: u64,
    /// Whether it has come to an end.
    pub(crate) stalled: bool,
}

/// Sends, says how much, and keeps the connection until it is killed.
pub(super) fn run(options: &Options) -> Result<()> {
    let mut stream = TcpStream::connect(options.connect).context("cannot connect")?;
    stream.set_write_timeout(Some(STALLED))?;
    let started = Instant::now();
    let block = vec![b'!'; 128 * 1024];
    let mut outcome = Outcome {
        bytes: 0,
        stalled: false,
    };
    while started.elapsed() < ENOUGH {
        match stream.write(&block) {
            Ok(count) => outcome.bytes += u64::try_from(count)?,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                outcome.stalled = true;
                break;
            }
            Err(error) => return Err(error).context("cannot send"),
        }
    }
    println!("{}", serde_json::to_string(&outcome)?);
    loop {
        thread::park();
    }
}
