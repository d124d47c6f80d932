//! The relay: worker threads that accept caught flows and move their bytes.
//!
//! Each worker has a listener, an edge-triggered poll and the flows that it accepted; nothing is
//! shared between workers but counters. An accepted socket has the flow's original destination as
//! its own address. The relay asks the [`Policy`] where to connect, connects, and then moves bytes
//! with splice(2), or by copying while they are few. It takes no byte of a client before upstream
//! is connected, and none that the other end would not take. Datagrams have sessions instead of
//! flows (`udp`).

mod balance;
mod capacity;
mod connect;
mod control;
mod direction;
mod flow;
mod handshakes;
mod intake;
mod listener;
mod occasional;
mod pipe;
mod policy;
mod preemption;
mod record;
mod rest;
mod send_queue;
mod settings;
mod side;
mod source;
mod sources;
mod stats;
mod sys;
mod token;
mod udp;
mod wheel;
mod worker;

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::error;
use mio::{Poll, Waker};

pub use capacity::Capacity;
pub use listener::{ListenError, Listener, bind};
pub use policy::{Admission, Load, Policy, RuleTag};
pub use record::{End, FlowRecord};
pub use settings::Settings;
pub use stats::WorkerStats;

use balance::Balance;
use capacity::{Places, raise_descriptor_limit};
use control::{Command, Control};
use sources::Sources;
use stats::Counters;
use token::Origin;
use worker::{Shared, Worker};

/// Running workers. They run until [`drain`](Self::drain) or [`stop`](Self::stop); dropping this
/// stops them and waits for them.
pub struct Relay {
    shared: Arc<Shared>,
    counters: Vec<Arc<Counters>>,
    threads: Mutex<Vec<JoinHandle<io::Result<()>>>>,
    capacity: Capacity,
}

/// Why a relay did not start, or ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// There is nothing to serve.
    #[error("the relay was given no listener")]
    NoListener,
    /// The limit of open files is too low.
    #[error(
        "{descriptors} open files are too few to relay anything; raise the hard limit (LimitNOFILE=, ulimit -Hn)"
    )]
    TooFewDescriptors {
        /// The limit in force, `RLIMIT_NOFILE`.
        descriptors: usize,
    },
    /// A call that every worker needs failed.
    #[error("cannot start a relay worker: {call}: {source}")]
    Start {
        /// The call that failed.
        call: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A worker's poll failed; all workers have stopped.
    #[error("a relay worker stopped: {0}")]
    Worker(io::Error),
    /// A worker's thread panicked; all workers have stopped.
    #[error("a relay worker panicked; its message is on standard error")]
    Panic,
}

/// Checks that the limit of open files suffices for so many workers, and raises the soft limit to
/// the hard one.
///
/// # Errors
///
/// [`RelayError::TooFewDescriptors`], or when the limit cannot be read.
pub fn check_limits(settings: &Settings, workers: usize) -> Result<Capacity, RelayError> {
    let failed = |source| RelayError::Start {
        call: "setrlimit RLIMIT_NOFILE",
        source,
    };
    let descriptors = raise_descriptor_limit().map_err(failed)?;
    let mut capacity = Capacity::plan(descriptors, workers, settings.pipe_capacity)
        .ok_or(RelayError::TooFewDescriptors { descriptors })?;
    capacity.flows = capacity.flows.min(settings.max_flows.unwrap_or(usize::MAX));
    capacity.sessions = settings
        .udp_sessions
        .unwrap_or(capacity.sessions)
        .min(capacity.flows);
    capacity.pipes = capacity.pipes.min(settings.max_pipes.unwrap_or(usize::MAX));
    Ok(capacity)
}

impl Relay {
    /// Starts a worker for each of `listeners`.
    ///
    /// Raises the soft limit of open files to the hard one, and serves no more flows at once than
    /// fit in it: further connections wait in the backlog. [`bind`] makes listeners for foreign
    /// addresses; any other listener does too.
    ///
    /// # Errors
    ///
    /// When there is no listener, the limit of open files is too low, or a system call fails.
    pub fn start(
        listeners: Vec<Listener>,
        settings: Settings,
        policy: Arc<dyn Policy>,
    ) -> Result<Self, RelayError> {
        if listeners.is_empty() {
            return Err(RelayError::NoListener);
        }
        let failed = |call| move |source| RelayError::Start { call, source };
        let capacity = check_limits(&settings, listeners.len())?;
        let mut own_ports = HashSet::new();
        let mut own_udp_ports = HashSet::new();
        for Listener { tcp, udp } in &listeners {
            listener::prepare(tcp).map_err(failed("setsockopt on a listener"))?;
            udp::prepare(udp).map_err(failed("setsockopt on a UDP socket"))?;
            let address = |address: io::Result<SocketAddr>| {
                address.map_err(failed("getsockname of a listener"))
            };
            own_ports.insert(address(tcp.local_addr())?.port());
            own_udp_ports.insert(address(udp.local_addr())?.port());
        }
        let mut polls = Vec::new();
        let mut wakers = Vec::new();
        for _ in &listeners {
            let poll = Poll::new().map_err(failed("epoll_create1"))?;
            let waker = Waker::new(poll.registry(), Origin::Waker.into());
            polls.push(poll);
            wakers.push(waker.map_err(failed("eventfd"))?);
        }
        let shared = Arc::new(Shared {
            wakers: wakers.into(),
            balance: Balance::new(listeners.len()),
            epoch: Instant::now(),
            sessions_per_source: settings.udp_sessions_per_source.div_ceil(listeners.len()),
            sources: settings.flows_per_source.map(Sources::new),
            settings,
            policy,
            control: Control::new(),
            places: Places::new(capacity.flows),
            session_places: Places::new(capacity.sessions),
            pipes_per_worker: capacity.pipes / listeners.len(),
            own_ports,
            own_udp_ports,
        });

        let mut workers = Vec::new();
        let mut counters = Vec::new();
        for (number, (poll, listener)) in polls.into_iter().zip(listeners).enumerate() {
            let own_counters = Arc::new(Counters::default());
            let worker = Worker::new(
                number,
                poll,
                listener,
                Arc::clone(&shared),
                Arc::clone(&own_counters),
            )
            .map_err(failed("epoll_ctl"))?;
            workers.push(worker);
            counters.push(own_counters);
        }

        let relay = Self {
            shared,
            counters,
            threads: Mutex::default(),
            capacity,
        };
        for (number, worker) in workers.into_iter().enumerate() {
            let stop_others = StopOthers {
                shared: Arc::clone(&relay.shared),
                failed: true,
            };
            let thread = std::thread::Builder::new()
                .name(format!("relay-{number}"))
                .spawn(move || stop_others.unless_ok(|| worker.run()))
                .map_err(failed("clone"))?;
            relay.threads().push(thread);
        }
        Ok(relay)
    }

    /// Takes no new flows. The workers end with their last flow, or reset what is left after
    /// `within`. UDP sessions, which have no end, are over when nothing has passed in them for a
    /// second.
    pub fn drain(&self, within: Duration) {
        self.command(Command::Drain(Instant::now() + within));
    }

    /// Resets all flows and ends the workers.
    pub fn stop(&self) {
        self.command(Command::Stop);
    }

    /// Waits until all workers have ended. Blocks: an asynchronous caller gives it a thread of its
    /// own.
    ///
    /// # Errors
    ///
    /// When a worker failed. The others have been stopped then.
    pub fn join(&self) -> Result<(), RelayError> {
        let mut result = Ok(());
        loop {
            let Some(thread) = self.threads().pop() else {
                return result;
            };
            let ended = match thread.join() {
                Ok(ended) => ended.map_err(RelayError::Worker),
                Err(_panic) => Err(RelayError::Panic),
            };
            result = result.and(ended);
        }
    }

    /// What each worker has done so far.
    #[must_use]
    pub fn stats(&self) -> Vec<WorkerStats> {
        self.counters
            .iter()
            .map(|counters| counters.read())
            .collect()
    }

    /// How many flows are served at most.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn command(&self, command: Command) {
        self.shared.tell(command);
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<io::Result<()>>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop();
        if let Err(error) = self.join() {
            error!("{error}");
        }
    }
}

/// Stops all workers when one of them fails or panics, so that its share of the flows does not go
/// unserved in silence.
struct StopOthers {
    shared: Arc<Shared>,
    failed: bool,
}

impl StopOthers {
    fn unless_ok(mut self, run: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let result = run();
        self.failed = result.is_err();
        result
    }
}

impl Drop for StopOthers {
    fn drop(&mut self) {
        if self.failed {
            self.shared.tell(Command::Stop);
        }
    }
}
