//! The client of short connections: a fixed number at once.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use mio::{Events, Poll, Token};
use serde::{Deserialize, Serialize};

use super::{
    exchange::{Exchange, Progress},
    kernel_counters::KernelCounters,
    latencies::{Latencies, Summary},
    ports::Ports,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    connect: SocketAddr,
    /// Connections at any time, over all threads
    #[arg(long)]
    concurrency: u16,
    #[arg(long)]
    seconds: f64,
    #[arg(long, default_value_t = 1)]
    threads: u16,
}

/// What the client saw.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Complete exchanges.
    pub(crate) connections: u64,
    /// Connections refused, reset, cut short or too slow.
    pub(crate) failures: u64,
    pub(crate) seconds: f64,
    /// From connect to the first byte back.
    pub(crate) first_byte: Summary,
    /// Of the client's namespace.
    pub(crate) syn_retransmits: u64,
    pub(crate) retransmits: u64,
}

/// Runs the load and prints the [`Outcome`] as JSON.
pub(super) fn run(options: &Options) -> Result<()> {
    let before = KernelCounters::read()?;
    let started = Instant::now();
    let deadline = started + Duration::from_secs_f64(options.seconds);
    // A thread without a connection would have nothing to do.
    let threads = options.threads.min(options.concurrency);
    let slots = usize::from(options.concurrency / threads);
    let workers: Vec<_> = (0..threads)
        .map(|index| {
            let (destination, ports) = (options.connect, Ports::share(index, threads));
            thread::spawn(move || Worker::new(destination, ports, slots)?.run(deadline))
        })
        .collect();
    let mut first_byte = Latencies::new()?;
    let (mut connections, mut failures) = (0, 0);
    for worker in workers {
        let worker = worker.join().expect("a worker does not panic")?;
        first_byte.add(&worker.latencies)?;
        connections += worker.connections;
        failures += worker.failures;
    }
    let seconds = started.elapsed().as_secs_f64();
    let after = KernelCounters::read()?;
    let outcome = Outcome {
        connections,
        failures,
        seconds,
        first_byte: first_byte.summary(),
        syn_retransmits: after.syn_retransmits - before.syn_retransmits,
        retransmits: after.retransmits - before.retransmits,
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

struct Worker {
    destination: SocketAddr,
    ports: Ports,
    poll: Poll,
    slots: Vec<Exchange>,
    latencies: Latencies,
    connections: u64,
    failures: u64,
}

impl Worker {
    fn new(destination: SocketAddr, ports: Ports, slots: usize) -> Result<Self> {
        let mut worker = Self {
            destination,
            ports,
            poll: Poll::new()?,
            slots: Vec::with_capacity(slots),
            latencies: Latencies::new()?,
            connections: 0,
            failures: 0,
        };
        for slot in 0..slots {
            let exchange = worker.open(slot)?;
            worker.slots.push(exchange);
        }
        Ok(worker)
    }

    fn run(mut self, deadline: Instant) -> Result<Self> {
        let mut events = Events::with_capacity(256);
        while Instant::now() < deadline {
            let patience = Some(Duration::from_millis(100));
            match self.poll.poll(&mut events, patience) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                let slot = event.token().0;
                match self.slots[slot].go_on(&mut self.latencies) {
                    Progress::Going => continue,
                    Progress::Done => self.connections += 1,
                    Progress::Failed => self.failures += 1,
                }
                self.slots[slot] = self.open(slot)?;
            }
            if events.is_empty() {
                self.give_up_on_slow_ones()?;
            }
        }
        Ok(self)
    }

    fn give_up_on_slow_ones(&mut self) -> Result<()> {
        for slot in 0..self.slots.len() {
            if self.slots[slot].is_too_slow() {
                self.failures += 1;
                self.slots[slot] = self.open(slot)?;
            }
        }
        Ok(())
    }

    fn open(&mut self, slot: usize) -> Result<Exchange> {
        let registry = self.poll.registry();
        Exchange::open(self.destination, &mut self.ports, registry, Token(slot))
    }
}
