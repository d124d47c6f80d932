//! One echo after the other on one connection that stands.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::latencies::{Latencies, Summary};

/// Bytes of one echo.
const SIZE: usize = 64;
/// Echoes before those that count, in which caches and buffers find their places.
const WARM_UP: Duration = Duration::from_millis(100);
/// One that takes longer ends the measurement.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    connect: SocketAddr,
    #[arg(long)]
    seconds: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) echo: Summary,
}

pub(super) fn run(options: &Options) -> Result<()> {
    let mut stream = TcpStream::connect(options.connect).context("cannot connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut echo = Latencies::new()?;
    go_on_for(WARM_UP, &mut stream, &mut echo)?;
    echo.clear();
    go_on_for(
        Duration::from_secs_f64(options.seconds),
        &mut stream,
        &mut echo,
    )?;
    let outcome = Outcome {
        echo: echo.summary(),
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

fn go_on_for(time: Duration, stream: &mut TcpStream, echo: &mut Latencies) -> Result<()> {
    let started = Instant::now();
    let mut answer = [0; SIZE];
    while started.elapsed() < time {
        let begin = Instant::now();
        stream.write_all(&[b'?'; SIZE]).context("cannot send")?;
        stream.read_exact(&mut answer).context("no echo")?;
        echo.record(begin.elapsed());
    }
    Ok(())
}
