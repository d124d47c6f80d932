//! The client of the soak: short connections, so many a second whether or not earlier ones are done.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use mio::{Events, Poll, Token};
use serde::{Deserialize, Serialize};
use slab::Slab;

use super::{
    exchange::{Exchange, Progress},
    latencies::{Latencies, Summary},
    ports::Ports,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    connect: SocketAddr,
    /// New connections a second
    #[arg(long)]
    rate: u32,
    #[arg(long)]
    seconds: u64,
}

/// One second of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Second {
    /// Complete exchanges.
    pub(crate) connections: u32,
    /// Connections refused, reset, cut short or too slow.
    pub(crate) failures: u32,
    /// Connections under way at its end.
    pub(crate) open: usize,
    /// From connect to the first byte back.
    pub(crate) first_byte: Summary,
}

/// Runs the load and prints a [`Second`] as JSON each second.
pub(super) fn run(options: &Options) -> Result<()> {
    let mut pacer = Pacer::new(options)?;
    let started = Instant::now();
    for second in 1..=options.seconds {
        let second = pacer.go_on_until(started, Duration::from_secs(second))?;
        println!("{}", serde_json::to_string(&second)?);
    }
    Ok(())
}

struct Pacer {
    destination: SocketAddr,
    interval: Duration,
    ports: Ports,
    poll: Poll,
    exchanges: Slab<Exchange>,
    opened: u32,
    latencies: Latencies,
    connections: u32,
    failures: u32,
}

impl Pacer {
    fn new(options: &Options) -> Result<Self> {
        Ok(Self {
            destination: options.connect,
            interval: Duration::from_secs(1) / options.rate.max(1),
            ports: Ports::share(0, 1),
            poll: Poll::new()?,
            exchanges: Slab::new(),
            opened: 0,
            latencies: Latencies::new()?,
            connections: 0,
            failures: 0,
        })
    }

    fn go_on_until(&mut self, started: Instant, end: Duration) -> Result<Second> {
        let mut events = Events::with_capacity(1024);
        while started.elapsed() < end {
            self.open_what_is_due(started.elapsed())?;
            let next = (self.interval * self.opened).min(end);
            let patience = next.saturating_sub(started.elapsed());
            match self.poll.poll(&mut events, Some(patience)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                self.advance(event.token().0);
            }
        }
        self.give_up_on_slow_ones();
        let second = Second {
            connections: self.connections,
            failures: self.failures,
            open: self.exchanges.len(),
            first_byte: self.latencies.summary(),
        };
        self.latencies.clear();
        (self.connections, self.failures) = (0, 0);
        Ok(second)
    }

    fn open_what_is_due(&mut self, now: Duration) -> Result<()> {
        while self.interval * self.opened <= now {
            let entry = self.exchanges.vacant_entry();
            let token = Token(entry.key());
            entry.insert(Exchange::open(
                self.destination,
                &mut self.ports,
                self.poll.registry(),
                token,
            )?);
            self.opened += 1;
        }
        Ok(())
    }

    fn advance(&mut self, key: usize) {
        let Some(exchange) = self.exchanges.get_mut(key) else {
            return;
        };
        match exchange.go_on(&mut self.latencies) {
            Progress::Going => return,
            Progress::Done => self.connections += 1,
            Progress::Failed => self.failures += 1,
        }
        self.exchanges.remove(key);
    }

    fn give_up_on_slow_ones(&mut self) {
        let before = self.exchanges.len();
        self.exchanges.retain(|_, exchange| !exchange.is_too_slow());
        let given_up = before - self.exchanges.len();
        self.failures += u32::try_from(given_up).unwrap_or(u32::MAX);
    }
}
