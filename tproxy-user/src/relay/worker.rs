//! A worker: one thread with one listener, one poll, the flows that it accepted, and its datagrams.

mod opening;
mod spreading;

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::error;
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Waker};
use slab::Slab;

use super::balance::Balance;
use super::capacity::Places;
use super::control::{Command, Control};
use super::flow::{Flow, Outcome, Readiness, Resources};
use super::handshakes::Handshakes;
use super::intake::Intake;
use super::occasional::Occasional;
use super::pipe::PipePool;
use super::preemption::Preemption;
use super::rest::Rest;
use super::side::Side;
use super::sources::Sources;
use super::stats::Counters;
use super::token::Origin;
use super::udp::Datagrams;
use super::wheel::Wheel;
use super::{End, Listener, Load, Policy, Settings};

/// How many events one call of the poll returns at most.
const EVENTS: usize = 512;
/// How many batches are accepted when the listener is about to be closed.
const LAST_BATCHES: usize = 64;
/// A table with places for no more flows than these is kept when it is empty.
const FEW_FLOWS: usize = 1024;
/// The scratch buffer for exchanges too small to be worth a pipe, in bytes.
const COPY_BUFFER: usize = 16 * 1024;
/// How often the bytes of running flows are reported.
pub(super) const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// What all workers of a relay share.
pub(super) struct Shared {
    /// By which a worker's attention is called, to the control or to its inbox.
    pub(super) wakers: Box<[Waker]>,
    pub(super) balance: Balance,
    /// From when on the relay counts the time.
    pub(super) epoch: Instant,
    pub(super) settings: Settings,
    pub(super) policy: Arc<dyn Policy>,
    pub(super) control: Control,
    /// The places for flows and sessions.
    pub(super) places: Places,
    /// How many of them sessions may have.
    pub(super) session_places: Places,
    /// The flows of each address, if there is a limit for them.
    pub(super) sources: Option<Sources>,
    /// The most sessions that one address may have at one worker.
    pub(super) sessions_per_source: usize,
    /// The most pipes that one worker may have.
    pub(super) pipes_per_worker: usize,
    /// The ports of all listeners.
    pub(super) own_ports: HashSet<u16>,
    /// The ports that datagrams come to.
    pub(super) own_udp_ports: HashSet<u16>,
}

impl Shared {
    /// Gives all workers a command.
    pub(super) fn tell(&self, command: Command) {
        self.control.set(command);
        (0..self.wakers.len()).for_each(|worker| self.wake(worker));
    }

    fn wake(&self, worker: usize) {
        if let Err(error) = self.wakers[worker].wake() {
            error!("cannot wake a relay worker: {error}");
        }
    }
}

pub(super) struct Worker {
    number: usize,
    poll: Poll,
    intake: Intake,
    /// A flow that is over leaves `None` in its place until all events of this round are handled,
    /// so that none of them is taken for one of a new flow.
    flows: Slab<Option<Flow>>,
    datagrams: Datagrams,
    /// The places of flows that left in this round.
    vacated: Vec<usize>,
    /// Flows that are over. They are closed last in a round: nobody waits for that, and others wait
    /// for the rest.
    over: Vec<(Flow, End)>,
    resources: Resources,
    /// Flows whose turn ended before their work did.
    ready: VecDeque<usize>,
    /// Flows whose connections to upstream stand since this round. They have their first turn after
    /// what others wait for: by then more of their clients have sent something.
    connected: Vec<usize>,
    handshakes: Handshakes,
    /// Flows with bytes that the policy has not been told of.
    unreported: Vec<usize>,
    timers: Wheel<Timer>,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    /// The time since the relay's epoch, as of this round.
    now: Duration,
    rest: Rest,
    next_serial: u32,
    command: Command,
    warned_of_fallback: Occasional,
    warned_of_limit: Occasional,
    /// What the policy was last told that it serves.
    told_load: Load,
}

#[derive(Debug, Clone, Copy)]
enum Timer {
    /// Watch the client of a flow that is still connecting.
    WatchClient { key: usize, serial: u32 },
    /// Give up a flow that is still connecting.
    ConnectTimeout { key: usize, serial: u32 },
    /// Report the bytes of the flows in `unreported`.
    Report,
    /// Try to accept again.
    Resume,
    /// The time for draining is over.
    DrainDeadline,
}

impl Worker {
    /// Makes the worker with this number. `poll` has its waker already.
    pub(super) fn new(
        number: usize,
        poll: Poll,
        listener: Listener,
        shared: Arc<Shared>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        poll.registry().register(
            &mut SourceFd(&listener.tcp.as_raw_fd()),
            Origin::Listener.into(),
            Interest::READABLE,
        )?;
        let datagrams = Datagrams::new(
            listener.udp,
            poll.registry(),
            Arc::clone(&shared),
            Arc::clone(&counters),
        )?;
        Ok(Self {
            number,
            poll,
            intake: Intake::new(listener.tcp, shared.places.clone()),
            flows: Slab::new(),
            datagrams,
            vacated: Vec::new(),
            over: Vec::new(),
            resources: Resources {
                pipes: PipePool::new(shared.pipes_per_worker, shared.settings.pipe_capacity),
                buffer: vec![0; COPY_BUFFER].into(),
            },
            ready: VecDeque::new(),
            connected: Vec::new(),
            handshakes: Handshakes::default(),
            unreported: Vec::new(),
            timers: Wheel::new(),
            shared,
            counters,
            now: Duration::ZERO,
            rest: Rest::default(),
            next_serial: 0,
            command: Command::Run,
            warned_of_fallback: Occasional::default(),
            warned_of_limit: Occasional::default(),
            told_load: Load::default(),
        })
    }

    /// Serves flows until told to stop.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut due = Vec::new();
        let mut preemption = Preemption::of_this_thread(self.shared.epoch.elapsed());
        loop {
            self.wait(&mut events)?;
            preemption.review(self.now, events.iter().count());
            for event in &events {
                self.handle(event);
            }
            self.accept();
            self.begin_connected();
            self.give_turns();
            self.complete_handshakes(events.is_empty());
            self.datagrams.work(self.now);
            self.timers.advance(self.now, &mut due);
            for timer in due.drain(..) {
                self.expire(timer);
            }
            self.sweep();
            if self.is_over() && self.shared.balance.close(self.number) {
                return Ok(());
            }
        }
    }

    /// Whether nothing is left to do, now or later.
    fn is_over(&self) -> bool {
        !self.intake.is_open() && self.flows.is_empty() && self.datagrams.is_over()
    }

    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        self.datagrams.let_gather();
        let has_work =
            self.intake.is_ready() || !self.ready.is_empty() || !self.handshakes.is_empty();
        let (since, timeout) = if has_work {
            (None, Some(Duration::ZERO))
        } else {
            let now = self.shared.epoch.elapsed();
            let waits = [self.timers.wait(now), self.datagrams.wait(now)];
            (Some(now), waits.into_iter().flatten().min())
        };
        let result = self.poll.poll(events, timeout);
        self.now = self.shared.epoch.elapsed();
        if let Some(since) = since {
            self.rest.waited(since, self.now);
        }
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            result => result,
        }
    }

    fn handle(&mut self, event: &Event) {
        match Origin::from(event.token()) {
            Origin::Listener => self.intake.set_pending(),
            Origin::Datagrams => self.datagrams.set_pending(),
            Origin::Session { key, side } => self.datagrams.note(key, side),
            Origin::Waker => {
                self.obey();
                self.take_given();
            }
            Origin::Flow { key, side } => {
                let Some(Some(flow)) = self.flows.get_mut(key) else {
                    return;
                };
                let readiness = Readiness::from(event);
                flow.note(side, readiness);
                if side == Side::Upstream
                    && !flow.is_connected()
                    && readiness.writable
                    && !readiness.failed
                {
                    self.connected.push(key);
                } else {
                    self.turn(key);
                }
            }
        }
    }

    /// Registers a socket of a flow with the poll for what the flow waits for from it, or registers
    /// it anew. Ends the flow if that fails.
    fn watch(&mut self, key: usize, side: Side) -> bool {
        let Some(Some(flow)) = self.flows.get_mut(key) else {
            return false;
        };
        let interest = flow.interest(side);
        let descriptor = flow.socket(side).as_raw_fd();
        let source = &mut SourceFd(&descriptor);
        let token = Origin::Flow { key, side }.into();
        let registry = self.poll.registry();
        let before = flow.registered(side).replace(interest);
        let registered = match before {
            Some(_) => registry.reregister(source, token, interest),
            None => registry.register(source, token, interest),
        };
        if let Err(error) = registered {
            self.end(key, End::from_error(side, error));
            return false;
        }
        true
    }

    fn give_turns(&mut self) {
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else {
                return;
            };
            if let Some(Some(flow)) = self.flows.get_mut(key) {
                flow.queued = false;
                self.turn(key);
            }
        }
    }

    fn turn(&mut self, key: usize) {
        let Some(Some(flow)) = self.flows.get_mut(key) else {
            return;
        };
        let outcome = flow.turn(&mut self.resources);
        match outcome {
            Outcome::Wait => {}
            Outcome::Again if flow.queued => {}
            Outcome::Again => {
                flow.queued = true;
                self.ready.push_back(key);
            }
            Outcome::Over(end) => return self.end(key, end),
        }
        let has_become_long = flow.is_long() && !flow.counted_long;
        let waits_unseen = flow.waits_unseen();
        if !flow.unreported && flow.has_unreported() {
            flow.unreported = true;
            if self.unreported.is_empty() {
                self.timers.set(self.now + REPORT_INTERVAL, Timer::Report);
            }
            self.unreported.push(key);
        }
        if waits_unseen && !self.watch(key, Side::Client) {
            return;
        }
        if has_become_long {
            self.spread(key);
        }
    }

    fn expire(&mut self, timer: Timer) {
        match timer {
            Timer::WatchClient { key, serial } => {
                let Some(flow) = self.connecting(key, serial) else {
                    return;
                };
                let deadline = flow.opened() + self.shared.settings.connect_timeout;
                self.timers
                    .set(deadline, Timer::ConnectTimeout { key, serial });
                self.watch(key, Side::Client);
            }
            Timer::ConnectTimeout { key, serial } => {
                if self.connecting(key, serial).is_some() {
                    self.end(key, End::Timeout);
                }
            }
            Timer::Report => self.report_all(),
            Timer::Resume => self.intake.resume(),
            Timer::DrainDeadline => self.end_drain(),
        }
    }

    fn connecting(&self, key: usize, serial: u32) -> Option<&Flow> {
        let flow = self.flows.get(key)?.as_ref()?;
        (flow.serial() == serial && !flow.is_connected()).then_some(flow)
    }

    fn report_all(&mut self) {
        for key in std::mem::take(&mut self.unreported) {
            if let Some(Some(flow)) = self.flows.get_mut(key) {
                flow.unreported = false;
                report(flow, &*self.shared.policy, &self.counters);
            }
        }
    }

    fn end(&mut self, key: usize, end: End) {
        if let Some(flow) = self.flows.get_mut(key).and_then(Option::take) {
            self.vacated.push(key);
            self.over.push((flow, end));
        }
    }

    fn close(&mut self, mut flow: Flow, end: End) {
        if !flow.is_connected() && !matches!(end, End::ClientReset | End::Drained) {
            self.counters.connect_failed.add(1);
        }
        report(&mut flow, &*self.shared.policy, &self.counters);
        if flow.counted_long {
            self.shared.balance.remove_long(self.number);
        }
        let source = flow.client().ip();
        flow.close(&mut self.resources, self.now, end, |record| {
            self.shared.policy.ended(record);
        });
        self.release(source);
    }

    fn end_all(&mut self) {
        let keys: Vec<usize> = self.flows.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.end(key, End::Drained);
        }
    }

    fn end_drain(&mut self) {
        if self.must_end() {
            self.end_all();
            self.datagrams.stop();
        }
    }

    /// Whether flows are to be ended by now.
    fn must_end(&self) -> bool {
        match self.command {
            Command::Run => false,
            Command::Drain(deadline) => self.shared.epoch + self.now >= deadline,
            Command::Stop => true,
        }
    }

    /// Closes the flows that ended in this round and frees the places of those that left.
    fn sweep(&mut self) {
        let mut over = std::mem::take(&mut self.over);
        for (flow, end) in over.drain(..) {
            self.close(flow, end);
        }
        self.over = over;
        if !self.vacated.is_empty() {
            for key in self.vacated.drain(..) {
                self.flows.remove(key);
            }
            self.count_flows();
            if self.flows.is_empty() && self.flows.capacity() > FEW_FLOWS {
                // What thousands of them needed is given back.
                self.flows = Slab::new();
            }
        }
        self.counters.pipes.set(self.resources.pipes.held() as u64);
        let load = self.counters.load();
        if load != self.told_load {
            self.told_load = load;
            self.shared.policy.serving(self.number, load);
        }
    }

    fn count_flows(&self) {
        self.counters.flows.set(self.flows.len() as u64);
        self.shared.balance.set_flows(self.number, self.flows.len());
    }

    /// Does what the control says.
    fn obey(&mut self) {
        let command = self.shared.control.command();
        if command == self.command {
            return;
        }
        self.command = command;
        match command {
            Command::Run => {}
            Command::Drain(deadline) => {
                // Connections that are complete are flows already in the eyes of their clients.
                self.intake.set_pending();
                for _ in 0..LAST_BATCHES {
                    self.accept();
                }
                self.intake.close();
                self.datagrams.drain();
                let deadline = deadline.saturating_duration_since(self.shared.epoch);
                self.timers.set(deadline, Timer::DrainDeadline);
            }
            Command::Stop => {
                self.intake.close();
                self.end_all();
                self.datagrams.stop();
            }
        }
    }
}

fn report(flow: &mut Flow, policy: &dyn Policy, counters: &Counters) {
    let (to_upstream, to_client) = flow.take_unreported();
    if to_upstream > 0 || to_client > 0 {
        counters.to_upstream.add(to_upstream);
        counters.to_client.add(to_client);
        policy.moved(flow.rule(), to_upstream, to_client);
    }
}

impl From<&Event> for Readiness {
    fn from(event: &Event) -> Self {
        Self {
            readable: event.is_readable(),
            writable: event.is_writable(),
            hung_up: event.is_read_closed(),
            urgent: event.is_priority(),
            failed: event.is_error(),
        }
    }
}
