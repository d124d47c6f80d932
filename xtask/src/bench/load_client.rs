//! The client of short connections: a fixed number at once, each from the next of a small set of
//! ports, so that every connection but the first few reuses a 4-tuple that the proxy still has in
//! TIME_WAIT.

use std::{
    collections::HashMap,
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use mio::{Events, Interest, Poll, Token, net::TcpStream};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use super::load_server::{REQUEST, RESPONSE};

/// The ports of all threads together. At 10,000 connections a second each comes round in 0.4 s.
const PORTS: Range<u16> = 20_000..24_096;
/// A connection that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    connect: SocketAddr,
    /// Connections at any time, over all threads
    #[arg(long, default_value_t = 32)]
    concurrency: u16,
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    #[arg(long, default_value_t = 1)]
    threads: u16,
}

/// What the client saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Complete exchanges.
    pub(crate) connections: u32,
    /// Connections refused, reset, cut short or too slow.
    pub(crate) failures: u64,
    pub(crate) seconds: f64,
    /// From connect to the first byte back, in microseconds.
    pub(crate) p50: u32,
    pub(crate) p99: u32,
    /// `TCPSynRetrans` of the client's namespace.
    pub(crate) syn_retransmits: u64,
    /// `RetransSegs` of the client's namespace.
    pub(crate) retransmits: u64,
}

/// Runs the load and prints the [`Outcome`] as JSON.
///
/// # Errors
///
/// When sockets cannot be made or the kernel's counters not be read.
pub(crate) fn run(options: &Options) -> Result<()> {
    let before = Counters::read()?;
    let started = Instant::now();
    let deadline = started + Duration::from_secs(options.seconds);
    let workers: Vec<_> = (0..options.threads)
        .map(|index| {
            let share = u16::try_from(PORTS.len()).unwrap_or(u16::MAX) / options.threads;
            let first = PORTS.start + index * share;
            let slots = usize::from((options.concurrency / options.threads).max(1));
            let destination = options.connect;
            thread::spawn(move || {
                Worker::new(destination, first..first + share, slots)?.run(deadline)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    let mut failures = 0;
    for worker in workers {
        let worker = worker.join().expect("a worker does not panic")?;
        latencies.extend(worker.latencies);
        failures += worker.failures;
    }
    let after = Counters::read()?;
    latencies.sort_unstable();
    let percentile = |percent: usize| latencies.get(latencies.len() * percent / 100).copied();
    let outcome = Outcome {
        connections: u32::try_from(latencies.len())?,
        failures,
        seconds: started.elapsed().as_secs_f64(),
        p50: percentile(50).unwrap_or(0),
        p99: percentile(99).unwrap_or(0),
        syn_retransmits: after.syn_retransmits - before.syn_retransmits,
        retransmits: after.retransmits - before.retransmits,
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

struct Worker {
    destination: SocketAddr,
    ports: Range<u16>,
    next_port: u16,
    poll: Poll,
    slots: Vec<Exchange>,
    latencies: Vec<u32>,
    failures: u64,
}

struct Exchange {
    stream: TcpStream,
    started: Instant,
    sent: bool,
    received: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Going,
    Done,
    Failed,
}

impl Worker {
    fn new(destination: SocketAddr, ports: Range<u16>, slots: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let next_port = ports.start;
        let mut worker = Self {
            destination,
            ports,
            next_port,
            poll,
            slots: Vec::with_capacity(slots),
            latencies: Vec::with_capacity(1 << 18),
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
            match self
                .poll
                .poll(&mut events, Some(Duration::from_millis(100)))
            {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                let slot = event.token().0;
                match self.slots[slot].go_on(&mut self.latencies) {
                    Progress::Going => continue,
                    Progress::Done => {}
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
            if self.slots[slot].started.elapsed() > PATIENCE {
                self.failures += 1;
                self.slots[slot] = self.open(slot)?;
            }
        }
        Ok(())
    }

    /// Starts a connection from the next port that is free: the port of a connection whose last
    /// acknowledgement is still under way is not.
    fn open(&mut self, slot: usize) -> Result<Exchange> {
        let started = Instant::now();
        for _ in 0..self.ports.len() {
            let port = self.next_port;
            self.next_port = if port + 1 == self.ports.end {
                self.ports.start
            } else {
                port + 1
            };
            let socket = match self.connect_from(port) {
                Ok(socket) => socket,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(error).context("cannot open a connection"),
            };
            let mut stream = TcpStream::from_std(socket.into());
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll
                .registry()
                .register(&mut stream, Token(slot), interest)?;
            return Ok(Exchange {
                stream,
                started,
                sent: false,
                received: 0,
            });
        }
        anyhow::bail!("all client ports are in use")
    }

    fn connect_from(&self, port: u16) -> io::Result<Socket> {
        let domain = Domain::for_address(self.destination);
        let any: SockAddr = match self.destination {
            SocketAddr::V4(_) => SocketAddr::from(([0; 4], port)).into(),
            SocketAddr::V6(_) => SocketAddr::from(([0; 16], port)).into(),
        };
        let socket = Socket::new(domain, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        socket.bind(&any)?;
        match socket.connect(&self.destination.into()) {
            Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => Err(error),
            _ => Ok(socket),
        }
    }
}

impl Exchange {
    fn go_on(&mut self, latencies: &mut Vec<u32>) -> Progress {
        if !self.sent {
            match self.stream.write(&[b'?'; REQUEST]) {
                Ok(REQUEST) => self.sent = true,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::NotConnected
                    ) =>
                {
                    return Progress::Going;
                }
                _ => return Progress::Failed,
            }
        }
        let mut buffer = [0; 256];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) if self.received == RESPONSE => return Progress::Done,
                Ok(0) => return Progress::Failed,
                Ok(count) => {
                    if self.received == 0 {
                        let latency = self.started.elapsed().as_micros();
                        latencies.push(u32::try_from(latency).unwrap_or(u32::MAX));
                    }
                    self.received += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Going,
                Err(_) => return Progress::Failed,
            }
        }
    }
}

/// The kernel's counters of this network namespace.
struct Counters {
    syn_retransmits: u64,
    retransmits: u64,
}

impl Counters {
    fn read() -> Result<Self> {
        let extended = pairs("/proc/self/net/netstat", "TcpExt:")?;
        let basic = pairs("/proc/self/net/snmp", "Tcp:")?;
        let of = |pairs: &HashMap<String, u64>, name: &str| {
            pairs
                .get(name)
                .copied()
                .with_context(|| format!("the kernel does not count {name}"))
        };
        Ok(Self {
            syn_retransmits: of(&extended, "TCPSynRetrans")?,
            retransmits: of(&basic, "RetransSegs")?,
        })
    }
}

/// Both files have a line of names and a line of numbers for each protocol.
fn pairs(path: &str, protocol: &str) -> Result<HashMap<String, u64>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol));
    let (Some(names), Some(numbers)) = (lines.next(), lines.next()) else {
        anyhow::bail!("{path} has no {protocol}")
    };
    let numbers = numbers
        .split_whitespace()
        .map(|number| number.parse().unwrap_or(0));
    Ok(names
        .split_whitespace()
        .map(str::to_owned)
        .zip(numbers)
        .collect())
}
