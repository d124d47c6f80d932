//! One direction of a flow: bytes from a source socket to a sink socket, then the end of the
//! stream.
//!
//! The state machine is generic over the system calls it makes ([`Link`]), so that the tests run it
//! against a model of two sockets in every order of events. Sockets are watched edge-triggered: a
//! direction remembers which of them may be ready, and believes so until a call says otherwise.

use std::io;

/// How many bytes make a transfer long: it pays to look at its path and at who serves it.
pub(super) const LONG: u64 = 1024 * 1024;

/// The system calls of one direction, none of which may block.
pub(super) trait Link {
    /// A pipe that [`take_pipe`](Self::take_pipe) gives out.
    type Pipe;

    /// Reads from the source into memory. 0 is the end of the stream.
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize>;
    /// Writes memory to the sink. `last` says that the end of the stream follows at once, so that
    /// the sink may keep the bytes back for a segment that carries both.
    fn send(&mut self, bytes: &[u8], last: bool) -> io::Result<usize>;
    /// Moves bytes of the source into an empty pipe. 0 is the end of the stream.
    fn fill(&mut self, pipe: &Self::Pipe) -> io::Result<usize>;
    /// Moves at most `length` bytes of the pipe to the sink.
    fn drain(&mut self, pipe: &Self::Pipe, length: usize) -> io::Result<usize>;
    /// An empty pipe, or `None` when none can be had now.
    fn take_pipe(&mut self) -> Option<Self::Pipe>;
    /// Takes back an empty pipe.
    fn give_back_pipe(&mut self, pipe: Self::Pipe);
    /// The sink is about to be written to for the second time. Called once.
    fn goes_on(&mut self);
    /// The direction is a long transfer. Called once.
    fn proved_long(&mut self);
}

/// The state of one direction.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact about a socket, true independently of the others"
)]
pub(super) struct Direction<P> {
    held: Held<P>,
    /// Bytes handed to the sink so far.
    moved: u64,
    /// How many of them the policy has been told of.
    reported: u64,
    /// The source may have bytes, or its end, to read.
    readable: bool,
    /// The sink may take bytes.
    writable: bool,
    /// The source's FIN has arrived, perhaps behind bytes that are still to be read.
    hung_up: bool,
    /// The source has sent urgent data. A read stops short of it though more bytes follow, and
    /// splice(2) never gets past it, so such a direction copies until a read finds nothing.
    urgent: bool,
    /// The last read got at least as much as the copy buffer takes: splicing is worth its pipe.
    bulk: bool,
    /// The link has been told that it is written to more than once.
    goes_on: bool,
    /// The link has been told that this is a long transfer.
    proved_long: bool,
    /// All of the source has been read.
    source_ended: bool,
}

/// Bytes that have left the source and not yet reached the sink: at most one pipe or one copy
/// buffer.
#[derive(Debug)]
enum Held<P> {
    Nothing,
    Pipe { pipe: P, length: usize },
    Memory(Box<[u8]>),
}

/// How far [`Direction::pump`] came.
#[derive(Debug)]
pub(super) enum Progress {
    /// There is nothing to do before the next event.
    Blocked,
    /// The allowance of steps is used up and there may be more to do.
    More,
    /// All bytes have reached the sink; the end of the stream is to be passed on.
    Finished,
    /// Reading the source failed.
    SourceFailed(io::Error),
    /// Writing the sink failed.
    SinkFailed(io::Error),
}

/// Why a step was the last one for now.
enum Pause {
    Blocked,
    Finished,
    SourceFailed(io::Error),
    SinkFailed(io::Error),
}

impl<P> Direction<P> {
    /// A direction of a flow that has just been connected.
    pub(super) fn new() -> Self {
        Self {
            held: Held::Nothing,
            moved: 0,
            reported: 0,
            readable: false,
            writable: false,
            hung_up: false,
            urgent: false,
            bulk: false,
            goes_on: false,
            proved_long: false,
            source_ended: false,
        }
    }

    /// The source may have something to read.
    pub(super) fn source_ready(&mut self) {
        self.readable = true;
    }

    /// The source's FIN is in its receive queue.
    pub(super) fn source_hung_up(&mut self) {
        self.readable = true;
        self.hung_up = true;
    }

    /// The source has been reset: no end of the stream will follow its last bytes, which are not
    /// kept back for one.
    pub(super) fn source_reset(&mut self) {
        self.readable = true;
        self.hung_up = false;
    }

    /// The source has sent urgent data.
    pub(super) fn source_urgent(&mut self) {
        self.readable = true;
        self.urgent = true;
    }

    /// The sink may take bytes.
    pub(super) fn sink_ready(&mut self) {
        self.writable = true;
    }

    /// Whether nothing moves before the sink takes more.
    pub(super) fn waits_for_sink(&self) -> bool {
        !self.writable
    }

    /// Whether every byte and the end of the source have been taken care of.
    pub(super) fn is_finished(&self) -> bool {
        self.source_ended && matches!(self.held, Held::Nothing)
    }

    /// Bytes handed to the sink so far.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// Whether [`take_unreported`](Self::take_unreported) has anything to return.
    pub(super) fn has_unreported(&self) -> bool {
        self.moved > self.reported
    }

    /// Bytes handed to the sink since the last call of this function.
    pub(super) fn take_unreported(&mut self) -> u64 {
        let unreported = self.moved - self.reported;
        self.reported = self.moved;
        unreported
    }

    /// Whether it holds a pipe.
    pub(super) fn holds_pipe(&self) -> bool {
        matches!(self.held, Held::Pipe { .. })
    }

    /// Takes the pipe out of a direction that is given up, with the bytes in it.
    pub(super) fn abandon(&mut self) -> Option<P> {
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Pipe { pipe, .. } => Some(pipe),
            Held::Nothing | Held::Memory(_) => None,
        }
    }

    /// Moves bytes until a socket blocks, the stream ends, or `steps` steps are done, each at most
    /// one read and one write. `buffer` is scratch space that several flows share; its size is the
    /// most that is copied at once.
    pub(super) fn pump(
        &mut self,
        link: &mut impl Link<Pipe = P>,
        buffer: &mut [u8],
        steps: u32,
    ) -> Progress {
        for _ in 0..steps {
            match self.step(link, buffer) {
                Ok(()) => {}
                Err(Pause::Blocked) => return Progress::Blocked,
                Err(Pause::Finished) => return Progress::Finished,
                Err(Pause::SourceFailed(error)) => return Progress::SourceFailed(error),
                Err(Pause::SinkFailed(error)) => return Progress::SinkFailed(error),
            }
        }
        if self.is_finished() {
            Progress::Finished
        } else {
            Progress::More
        }
    }

    /// Sends what is held; when nothing is, reads more and sends it. Nothing is read that the sink
    /// would not take, so that a receiver that stops reading stops the sender.
    fn step(&mut self, link: &mut impl Link<Pipe = P>, buffer: &mut [u8]) -> Result<(), Pause> {
        if self.is_finished() {
            return Err(Pause::Finished);
        }
        if !self.writable {
            return Err(Pause::Blocked);
        }
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Pipe { pipe, length } => return self.drain(link, pipe, length),
            Held::Memory(bytes) => return self.send(link, &bytes),
            Held::Nothing => {}
        }
        if !self.readable {
            return Err(Pause::Blocked);
        }
        if self.bulk
            && !self.urgent
            && let Some(pipe) = link.take_pipe()
        {
            return self.splice(link, pipe, buffer.len());
        }
        self.copy(link, buffer)
    }

    /// Moves bytes by splice(2), without their passing through user memory.
    fn splice<L: Link<Pipe = P>>(
        &mut self,
        link: &mut L,
        pipe: P,
        worth_a_pipe: usize,
    ) -> Result<(), Pause> {
        if !self.proved_long && self.moved >= LONG {
            self.proved_long = true;
            link.proved_long();
        }
        match link.fill(&pipe) {
            Ok(0) => {
                link.give_back_pipe(pipe);
                self.source_ended = true;
                Ok(())
            }
            Ok(length) => {
                self.bulk = length >= worth_a_pipe;
                self.drain(link, pipe, length)
            }
            Err(error) => {
                link.give_back_pipe(pipe);
                self.source_error(error)
            }
        }
    }

    fn drain<L: Link<Pipe = P>>(
        &mut self,
        link: &mut L,
        pipe: P,
        length: usize,
    ) -> Result<(), Pause> {
        self.write_begins(link);
        match link.drain(&pipe, length) {
            Ok(sent) if sent == length => {
                self.moved += sent as u64;
                link.give_back_pipe(pipe);
                Ok(())
            }
            Ok(sent) => {
                self.moved += sent as u64;
                self.held = Held::Pipe {
                    pipe,
                    length: length - sent,
                };
                Ok(())
            }
            Err(error) => {
                self.held = Held::Pipe { pipe, length };
                self.sink_error(error)
            }
        }
    }

    /// Moves bytes through the shared buffer: fewer instructions than a pipe as long as they are
    /// few.
    fn copy(&mut self, link: &mut impl Link<Pipe = P>, buffer: &mut [u8]) -> Result<(), Pause> {
        match link.receive(buffer) {
            Ok(0) => {
                self.source_ended = true;
                Ok(())
            }
            Ok(length) => {
                self.bulk = length == buffer.len();
                if length < buffer.len() && !self.urgent {
                    // A short read has emptied the receive queue: what comes later raises a new
                    // event, and when the FIN is in already nothing comes any more.
                    self.readable = false;
                    self.source_ended = self.hung_up;
                }
                self.send(link, &buffer[..length])
            }
            Err(error) => self.source_error(error),
        }
    }

    fn send(&mut self, link: &mut impl Link<Pipe = P>, bytes: &[u8]) -> Result<(), Pause> {
        self.write_begins(link);
        match link.send(bytes, self.source_ended) {
            Ok(sent) => {
                self.moved += sent as u64;
                if sent < bytes.len() {
                    self.held = Held::Memory(bytes[sent..].into());
                }
                Ok(())
            }
            Err(error) => {
                self.held = Held::Memory(bytes.into());
                self.sink_error(error)
            }
        }
    }

    fn write_begins(&mut self, link: &mut impl Link<Pipe = P>) {
        if !self.goes_on && self.moved > 0 {
            self.goes_on = true;
            link.goes_on();
        }
    }

    fn source_error(&mut self, error: io::Error) -> Result<(), Pause> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock => {
                self.readable = false;
                Err(Pause::Blocked)
            }
            _ => Err(Pause::SourceFailed(error)),
        }
    }

    fn sink_error(&mut self, error: io::Error) -> Result<(), Pause> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock => {
                self.writable = false;
                Err(Pause::Blocked)
            }
            _ => Err(Pause::SinkFailed(error)),
        }
    }
}

#[cfg(test)]
mod model;
