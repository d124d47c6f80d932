//! One TCP flow: the client's socket, the upstream socket, and the state of both directions.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mio::Interest;
use nix::fcntl::{SpliceFFlags, splice};
use nix::libc;
use socket2::Socket;

use super::direction::{Direction, LONG, Link, Progress};
use super::pipe::{Pipe, PipePool};
use super::side::Side;
use super::{End, FlowRecord, RuleTag, connect, send_queue};

/// How many reads and writes one direction of a flow gets before other flows have their turn.
const STEPS_PER_TURN: u32 = 8;

/// A flow between two sockets. About 200 bytes; bytes in flight live in the kernel.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "membership of the worker's lists, one byte each in a compact entry"
)]
pub(super) struct Flow {
    client: Socket,
    upstream: Socket,
    client_address: SocketAddr,
    destination: SocketAddr,
    rule: RuleTag,
    /// When it was accepted, since the relay's epoch.
    opened: Duration,
    /// Tells this flow from others that had or will have its place in the table.
    serial: u32,
    /// The connection to upstream stands.
    connected: bool,
    /// What the poll reports of the client's socket, if that is registered.
    client_interest: Option<Interest>,
    /// The same of the upstream socket.
    upstream_interest: Option<Interest>,
    /// The flow is in the worker's list of flows with work left.
    pub(super) queued: bool,
    /// The flow is in the worker's list of flows with bytes to report.
    pub(super) unreported: bool,
    /// The flow is counted among the worker's long ones.
    pub(super) counted_long: bool,
    /// A socket failed while the other direction may still be worth pumping.
    broken: Option<Broken>,
    to_upstream: Direction<Pipe>,
    to_client: Direction<Pipe>,
}

/// A socket that reported an error, and which.
#[derive(Debug, Clone, Copy)]
struct Broken {
    side: Side,
    errno: i32,
}

/// The readiness that an event reports.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of one event")]
pub(super) struct Readiness {
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The other end's FIN has arrived.
    pub(super) hung_up: bool,
    pub(super) urgent: bool,
    /// The socket holds an error: a RST, or a failure to connect.
    pub(super) failed: bool,
}

/// What the worker shares among its flows.
#[derive(Debug)]
pub(super) struct Resources {
    pub(super) pipes: PipePool,
    pub(super) buffer: Box<[u8]>,
}

/// What the worker is to do with a flow after its turn.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Wait for the next event.
    Wait,
    /// Give it another turn without one.
    Again,
    /// It is over.
    Over(End),
}

impl Flow {
    pub(super) fn new(
        client: Socket,
        upstream: Socket,
        (client_address, destination): (SocketAddr, SocketAddr),
        rule: RuleTag,
        opened: Duration,
        serial: u32,
    ) -> Self {
        Self {
            client,
            upstream,
            client_address,
            destination,
            rule,
            opened,
            serial,
            connected: false,
            client_interest: None,
            upstream_interest: None,
            queued: false,
            unreported: false,
            counted_long: false,
            broken: None,
            to_upstream: Direction::new(),
            to_client: Direction::new(),
        }
    }

    pub(super) fn serial(&self) -> u32 {
        self.serial
    }

    pub(super) fn client(&self) -> SocketAddr {
        self.client_address
    }

    /// When it was accepted, since the relay's epoch.
    pub(super) fn opened(&self) -> Duration {
        self.opened
    }

    pub(super) fn rule(&self) -> &RuleTag {
        &self.rule
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    pub(super) fn socket(&self, side: Side) -> &Socket {
        match side {
            Side::Client => &self.client,
            Side::Upstream => &self.upstream,
        }
    }

    /// What the poll is to report of the socket on `side`.
    ///
    /// Most clients are never slower than what is sent to them, so the poll reports when they take
    /// more only from when one has not: it would report every ACK of a FIN.
    pub(super) fn interest(&self, side: Side) -> Interest {
        let interest = Interest::READABLE | Interest::PRIORITY;
        if side == Side::Upstream || self.to_client.waits_for_sink() {
            interest | Interest::WRITABLE
        } else {
            interest
        }
    }

    /// What the poll reports of the socket on `side`, if that is registered.
    pub(super) fn registered(&mut self, side: Side) -> &mut Option<Interest> {
        match side {
            Side::Client => &mut self.client_interest,
            Side::Upstream => &mut self.upstream_interest,
        }
    }

    /// Whether the poll does not report when the client takes more, for which the flow waits.
    pub(super) fn waits_unseen(&self) -> bool {
        self.to_client.waits_for_sink()
            && self
                .client_interest
                .is_some_and(|interest| !interest.is_writable())
    }

    /// The connection to upstream stands: bytes may move. Both sockets are tried at once, since
    /// what the client sent meanwhile raises no further event.
    pub(super) fn set_connected(&mut self) {
        self.connected = true;
        self.to_upstream.source_ready();
        self.to_upstream.sink_ready();
        self.to_client.sink_ready();
    }

    /// Whether the server may still wait for the ACK of its part of the handshake: no bytes of the
    /// client have taken it along.
    pub(super) fn owes_ack(&self) -> bool {
        self.to_upstream.moved() == 0
    }

    /// Acknowledges the server's part of the handshake.
    pub(super) fn complete_handshake(&self) {
        // The kernel sends it itself after 200 ms at most.
        let _ = connect::complete_handshake(&self.upstream);
    }

    /// Remembers what an event says about the socket on `side`.
    pub(super) fn note(&mut self, side: Side, readiness: Readiness) {
        if readiness.failed && self.broken.is_none() {
            let error = self.socket(side).take_error();
            self.broken = Some(Broken::new(side, error.ok().flatten()));
        }
        if readiness.readable {
            self.direction_from(side).source_ready();
        }
        if readiness.hung_up {
            self.direction_from(side).source_hung_up();
        }
        if readiness.urgent {
            self.direction_from(side).source_urgent();
        }
        if readiness.writable {
            self.direction_from(side.other()).sink_ready();
        }
    }

    /// Moves what can be moved in both directions, within the bounds of one turn.
    pub(super) fn turn(&mut self, resources: &mut Resources) -> Outcome {
        if let Some(broken) = self.broken {
            return self.last_turn(broken, resources);
        }
        if !self.connected {
            return Outcome::Wait;
        }
        let mut again = false;
        for source in [Side::Client, Side::Upstream] {
            let was_finished = self.direction_from(source).is_finished();
            match self.pump(source, resources) {
                Progress::Blocked => {}
                Progress::More => again = true,
                Progress::Finished if was_finished => {}
                Progress::Finished => {
                    if self.direction_from(source.other()).is_finished() {
                        return Outcome::Over(End::Fin);
                    }
                    if let Err(error) = self
                        .socket(source.other())
                        .shutdown(std::net::Shutdown::Write)
                    {
                        return self.last_turn(Broken::new(source.other(), Some(error)), resources);
                    }
                }
                Progress::SourceFailed(error) => {
                    return Outcome::Over(End::from_error(source, error));
                }
                Progress::SinkFailed(error) => {
                    return self.last_turn(Broken::new(source.other(), Some(error)), resources);
                }
            }
        }
        if again { Outcome::Again } else { Outcome::Wait }
    }

    /// The socket on one side has failed. What it sent before is still passed on as far as the
    /// other end takes it now, as it would have arrived there without a relay in between.
    fn last_turn(&mut self, broken: Broken, resources: &mut Resources) -> Outcome {
        self.broken = Some(broken);
        self.direction_from(broken.side).source_reset();
        if self.connected && matches!(self.pump(broken.side, resources), Progress::More) {
            return Outcome::Again;
        }
        Outcome::Over(End::from_error(
            broken.side,
            io::Error::from_raw_os_error(broken.errno),
        ))
    }

    fn pump(&mut self, source_side: Side, resources: &mut Resources) -> Progress {
        let (direction, source, sink) = match source_side {
            Side::Client => (&mut self.to_upstream, &self.client, &self.upstream),
            Side::Upstream => (&mut self.to_client, &self.upstream, &self.client),
        };
        let mut link = Sockets {
            source,
            sink,
            sink_side: source_side.other(),
            pipes: &mut resources.pipes,
        };
        direction.pump(&mut link, &mut resources.buffer, STEPS_PER_TURN)
    }

    fn direction_from(&mut self, source: Side) -> &mut Direction<Pipe> {
        match source {
            Side::Client => &mut self.to_upstream,
            Side::Upstream => &mut self.to_client,
        }
    }

    /// Whether bytes have moved since the last call of [`take_unreported`](Self::take_unreported).
    pub(super) fn has_unreported(&self) -> bool {
        self.to_upstream.has_unreported() || self.to_client.has_unreported()
    }

    /// Bytes moved since the last call: to upstream, and to the client.
    pub(super) fn take_unreported(&mut self) -> (u64, u64) {
        (
            self.to_upstream.take_unreported(),
            self.to_client.take_unreported(),
        )
    }

    /// Whether it has moved so many bytes, be it in small pieces, that it is likely to go on.
    pub(super) fn is_long(&self) -> bool {
        self.to_upstream.moved() + self.to_client.moved() >= LONG
    }

    /// How many pipes it holds.
    pub(super) fn pipes(&self) -> usize {
        [&self.to_upstream, &self.to_client]
            .into_iter()
            .filter(|direction| direction.holds_pipe())
            .count()
    }

    /// Closes both sockets and gives the account of the flow.
    ///
    /// The sockets have `SO_LINGER` {1, 0} armed since they exist, so that closing them sends a
    /// RST, be it here or by the kernel when the process is killed. After a clean end it is
    /// disarmed first: then close(2) sends the FIN that is still due, and the kernel goes on
    /// delivering what is queued.
    pub(super) fn close<'a>(
        mut self,
        resources: &mut Resources,
        now: Duration,
        end: End,
        report: impl FnOnce(&FlowRecord<'_>) + 'a,
    ) {
        if matches!(end, End::Fin) {
            // Fails for a socket that has been reset meanwhile, where nothing is left to deliver.
            let _ = self.client.set_linger(None);
            let _ = self.upstream.set_linger(None);
        }
        for pipe in [self.to_upstream.abandon(), self.to_client.abandon()]
            .into_iter()
            .flatten()
        {
            resources.pipes.discard(pipe);
        }
        drop(self.client);
        drop(self.upstream);
        report(&FlowRecord {
            protocol: "tcp",
            client: self.client_address,
            destination: self.destination,
            rule: &self.rule,
            upstream: "direct",
            to_upstream: self.to_upstream.moved(),
            to_client: self.to_client.moved(),
            duration: now.saturating_sub(self.opened),
            end,
        });
    }
}

impl Broken {
    /// An event without an error behind it was a RST whose error another call has already returned.
    fn new(side: Side, error: Option<io::Error>) -> Self {
        Self {
            side,
            errno: error
                .and_then(|error| error.raw_os_error())
                .unwrap_or(libc::ECONNRESET),
        }
    }
}

/// The real system calls of one direction.
struct Sockets<'a> {
    source: &'a Socket,
    sink: &'a Socket,
    sink_side: Side,
    pipes: &'a mut PipePool,
}

impl Link for Sockets<'_> {
    type Pipe = Pipe;

    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut source = self.source;
        io::Read::read(&mut source, into)
    }

    fn send(&mut self, bytes: &[u8], last: bool) -> io::Result<usize> {
        let more = if last { libc::MSG_MORE } else { 0 };
        self.sink.send_with_flags(bytes, libc::MSG_NOSIGNAL | more)
    }

    fn fill(&mut self, pipe: &Pipe) -> io::Result<usize> {
        Ok(splice(
            self.source,
            None,
            &pipe.write,
            None,
            self.pipes.capacity(),
            flags(),
        )?)
    }

    fn drain(&mut self, pipe: &Pipe, length: usize) -> io::Result<usize> {
        Ok(splice(&pipe.read, None, self.sink, None, length, flags())?)
    }

    fn take_pipe(&mut self) -> Option<Pipe> {
        self.pipes.take()
    }

    fn give_back_pipe(&mut self, pipe: Pipe) {
        self.pipes.give_back(pipe);
    }

    fn goes_on(&mut self) {
        // A client's socket has that from its listener.
        if self.sink_side == Side::Upstream {
            connect::send_at_once(self.sink);
        }
    }

    fn proved_long(&mut self) {
        send_queue::fit_to_path(self.sink);
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client's socket has comes from its listener.
    #[test]
    fn an_upstream_socket_sends_at_once_from_its_second_write_on() {
        let socket = || connect::socket(([127, 0, 0, 1], 1).into()).unwrap();
        let mut pipes = PipePool::new(0, 0);
        for (sink_side, expected) in [(Side::Upstream, true), (Side::Client, false)] {
            let (source, sink) = (socket(), socket());
            assert!(!sink.tcp_nodelay().unwrap());
            let mut link = Sockets {
                source: &source,
                sink: &sink,
                sink_side,
                pipes: &mut pipes,
            };
            link.goes_on();
            assert_eq!(sink.tcp_nodelay().unwrap(), expected);
        }
    }
}
