//! A client that keeps a fixed number of datagrams under way: each echo is answered by the next one.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::{
    datagrams::Datagrams,
    latencies::{Latencies, Summary},
};

/// What is under way for longer is lost.
const LOST: Duration = Duration::from_millis(100);
/// How often the first datagram of a flow is sent, at that distance.
const ATTEMPTS: u32 = 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    connect: SocketAddr,
    #[arg(long)]
    seconds: f64,
    /// Bytes of a datagram's payload
    #[arg(long)]
    size: usize,
    /// Sockets
    #[arg(long)]
    flows: usize,
    /// Datagrams under way in each flow
    #[arg(long)]
    window: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Echoes that came back.
    pub(crate) echoes: u64,
    pub(crate) lost: u64,
    pub(crate) seconds: f64,
    pub(crate) echo: Summary,
}

/// Runs the load and prints the [`Outcome`] as JSON.
pub(super) fn run(options: &Options) -> Result<()> {
    let mut flows: Vec<_> = (0..options.flows)
        .map(|_| Flow::open(options))
        .collect::<Result<_>>()?;
    let mut datagrams = Datagrams::new(options.window);
    let mut echo = Latencies::new()?;
    let started = Instant::now();
    for flow in &mut flows {
        flow.fill(options, &mut datagrams, started)?;
    }
    while started.elapsed().as_secs_f64() < options.seconds {
        let mut waiting: Vec<_> = flows
            .iter()
            .map(|flow| PollFd::new(flow.socket.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut waiting, PollTimeout::from(10_u8)).context("cannot wait")?;
        let ready: Vec<_> = waiting
            .iter()
            .map(|entry| entry.any().unwrap_or(false))
            .collect();
        for (flow, ready) in flows.iter_mut().zip(ready) {
            if ready {
                flow.receive(&mut datagrams, &mut echo, started)?;
            }
            flow.give_up_on_lost_ones();
            flow.fill(options, &mut datagrams, started)?;
        }
    }
    let outcome = Outcome {
        echoes: echo.count(),
        lost: flows.iter().map(|flow| flow.lost).sum(),
        seconds: started.elapsed().as_secs_f64(),
        echo: echo.summary(),
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

struct Flow {
    socket: UdpSocket,
    under_way: usize,
    lost: u64,
    last_echo: Instant,
}

impl Flow {
    /// Opens it, with one echo: what answers then knows the flow, however it keeps flows.
    fn open(options: &Options) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot bind")?;
        socket.connect(options.connect).context("cannot connect")?;
        socket.set_read_timeout(Some(LOST))?;
        let first = vec![0; options.size];
        for _ in 0..ATTEMPTS {
            socket.send(&first).context("cannot send")?;
            if socket.recv(&mut [0; 1500]).is_ok() {
                socket.set_nonblocking(true)?;
                return Ok(Self {
                    socket,
                    under_way: 0,
                    lost: 0,
                    last_echo: Instant::now(),
                });
            }
        }
        bail!("{} sends no datagram back", options.connect)
    }

    fn receive(
        &mut self,
        datagrams: &mut Datagrams,
        echo: &mut Latencies,
        started: Instant,
    ) -> Result<()> {
        match datagrams.receive(&self.socket) {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(());
            }
            result => result.context("cannot receive")?,
        }
        self.last_echo = Instant::now();
        let now = started.elapsed();
        for content in datagrams.received() {
            let Some(sent) = content.first_chunk() else {
                continue;
            };
            let sent = Duration::from_nanos(u64::from_be_bytes(*sent));
            echo.record(now.saturating_sub(sent));
            self.under_way = self.under_way.saturating_sub(1);
        }
        Ok(())
    }

    fn give_up_on_lost_ones(&mut self) {
        if self.under_way > 0 && self.last_echo.elapsed() > LOST {
            self.lost += u64::try_from(self.under_way).unwrap_or(u64::MAX);
            self.under_way = 0;
            self.last_echo = Instant::now();
        }
    }

    fn fill(
        &mut self,
        options: &Options,
        datagrams: &mut Datagrams,
        started: Instant,
    ) -> Result<()> {
        let wanted = options.window - self.under_way;
        if wanted == 0 {
            return Ok(());
        }
        let now = u64::try_from(started.elapsed().as_nanos())?.to_be_bytes();
        let sent = datagrams.send_alike(&self.socket, wanted, options.size, now);
        self.under_way += sent.context("cannot send")?;
        Ok(())
    }
}
