//! A direction between two sockets that exist in memory only, through every order of events.
//!
//! The model gives an event when, and only when, an edge-triggered epoll would: when bytes or a FIN
//! arrive, and when a sink that has refused bytes takes some again. A direction that forgets what
//! it was told hangs here.

use std::collections::VecDeque;
use std::io;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Direction, Held, LONG, Link, Progress};

const BUFFER: usize = 16;
const PIPE: usize = 40;

/// Something that happens to the two sockets, or to the direction.
#[derive(Debug, Clone)]
enum Step {
    Produce(usize),
    Urgent,
    Fin,
    ResetSource,
    Consume(usize),
    ResetSink,
    /// The worker gets the pending events.
    Deliver,
    /// The direction has a turn of this many steps.
    Pump(u32),
    /// The worker's pipes are all taken, or not.
    Pipes(bool),
    /// The next system call is interrupted.
    Interrupt,
}

#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the independent facts of two sockets"
)]
struct World {
    source: VecDeque<u8>,
    /// How many bytes have been produced.
    produced: usize,
    /// The offset in `source` of a byte that urgent data points at.
    urgent: Option<usize>,
    fin: bool,
    source_reset: bool,
    source_event: bool,
    sink: Vec<u8>,
    room: usize,
    /// The sink has refused bytes since it last had room.
    refused: bool,
    sink_reset: bool,
    sink_event: bool,
    pipe: VecDeque<u8>,
    pipes_given: usize,
    no_pipes: bool,
    /// How often the direction has said that it writes more than once.
    goes_on: usize,
    /// How often the direction has said that it is long.
    proved_long: usize,
    interrupted: bool,
    /// How many slots of a pipe the next bytes take: a pipe may be full before its capacity is
    /// reached.
    splice_limit: usize,
}

fn byte(offset: usize) -> u8 {
    u8::try_from(offset % 251).expect("less than 251")
}

impl World {
    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Produce(_) | Step::Urgent | Step::Fin | Step::ResetSource
                if self.fin || self.source_reset => {}
            Step::Produce(length) => self.produce(length),
            Step::Urgent => {
                self.produce(1);
                self.urgent = Some(self.source.len() - 1);
            }
            Step::Fin => {
                self.fin = true;
                self.source_event = true;
            }
            Step::ResetSource => {
                self.source_reset = true;
                self.source_event = true;
            }
            Step::Consume(length) => {
                self.room += length;
                self.sink_event |= std::mem::take(&mut self.refused);
            }
            Step::ResetSink => {
                self.sink_reset = true;
                self.sink_event = true;
            }
            Step::Pipes(available) => self.no_pipes = !available,
            Step::Interrupt => self.interrupted = true,
            Step::Deliver | Step::Pump(_) => {}
        }
    }

    fn produce(&mut self, length: usize) {
        self.source
            .extend((self.produced..self.produced + length).map(byte));
        self.produced += length;
        self.source_event = true;
    }

    fn deliver(&mut self, direction: &mut Direction<()>) {
        if std::mem::take(&mut self.source_event) {
            direction.source_ready();
            if self.source_reset {
                direction.source_reset();
            } else if self.fin {
                direction.source_hung_up();
            }
            if self.urgent.is_some() {
                direction.source_urgent();
            }
        }
        if std::mem::take(&mut self.sink_event) {
            direction.sink_ready();
        }
    }

    /// How many bytes a call may take from the source, or what it returns instead.
    fn available(&mut self, most: usize) -> io::Result<usize> {
        self.interruption()?;
        if !self.source.is_empty() {
            return Ok(most.min(self.source.len()));
        }
        match (self.source_reset, self.fin) {
            (true, _) => Err(io::ErrorKind::ConnectionReset.into()),
            (false, true) => Ok(0),
            (false, false) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn take_source(&mut self, length: usize) -> Vec<u8> {
        self.urgent = self.urgent.and_then(|offset| offset.checked_sub(length));
        self.source.drain(..length).collect()
    }

    /// How many bytes the sink takes now.
    fn acceptable(&mut self, most: usize) -> io::Result<usize> {
        let announced = usize::from(!self.sink.is_empty());
        assert_eq!(self.goes_on, announced, "the second write is told of once");
        self.interruption()?;
        if self.sink_reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let length = most.min(self.room);
        self.refused |= length < most;
        self.room -= length;
        if length == 0 {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(length)
        }
    }

    fn interruption(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.interrupted) {
            Err(io::ErrorKind::Interrupted.into())
        } else {
            Ok(())
        }
    }
}

impl Link for World {
    type Pipe = ();

    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut length = self.available(into.len())?;
        // Linux ends a read before an urgent byte, unless the read begins with it
        // (tcp_recvmsg_locked).
        if let Some(offset) = self.urgent
            && offset > 0
        {
            length = length.min(offset);
        }
        into[..length].copy_from_slice(&self.take_source(length));
        Ok(length)
    }

    fn send(&mut self, bytes: &[u8], last: bool) -> io::Result<usize> {
        assert!(
            !last || self.fin && self.source.is_empty(),
            "bytes are kept back though more come"
        );
        let length = self.acceptable(bytes.len())?;
        self.sink.extend(&bytes[..length]);
        Ok(length)
    }

    fn fill(&mut self, (): &()) -> io::Result<usize> {
        assert!(self.pipe.is_empty(), "a pipe is filled that is not empty");
        let mut length = self.available(PIPE.min(self.splice_limit))?;
        if length > 0
            && let Some(offset) = self.urgent
        {
            // splice(2) never passes urgent data (tcp_read_sock).
            length = length.min(offset);
            if length == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        let bytes = self.take_source(length);
        self.pipe.extend(bytes);
        Ok(length)
    }

    fn drain(&mut self, (): &(), length: usize) -> io::Result<usize> {
        assert_eq!(length, self.pipe.len(), "the pipe's content is known");
        let length = self.acceptable(length)?;
        let bytes: Vec<u8> = self.pipe.drain(..length).collect();
        self.sink.extend(bytes);
        Ok(length)
    }

    fn take_pipe(&mut self) -> Option<()> {
        assert_eq!(self.pipes_given, 0, "a direction holds one pipe at most");
        (!self.no_pipes).then(|| self.pipes_given += 1)
    }

    fn give_back_pipe(&mut self, (): ()) {
        assert!(self.pipe.is_empty(), "a pipe comes back with bytes in it");
        self.pipes_given -= 1;
    }

    fn goes_on(&mut self) {
        self.goes_on += 1;
    }

    fn proved_long(&mut self) {
        self.proved_long += 1;
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1_usize..100).prop_map(Step::Produce),
        1 => Just(Step::Urgent),
        1 => Just(Step::Fin),
        1 => Just(Step::ResetSource),
        5 => (1_usize..100).prop_map(Step::Consume),
        1 => Just(Step::ResetSink),
        5 => Just(Step::Deliver),
        5 => (1_u32..6).prop_map(Step::Pump),
        2 => any::<bool>().prop_map(Step::Pipes),
        1 => Just(Step::Interrupt),
    ];
    vec(step, 0..60)
}

/// Lets the direction run until it waits, and checks what must hold at any time.
fn pump(direction: &mut Direction<()>, world: &mut World, turn: u32) -> Progress {
    let progress = direction.pump(world, &mut [0; BUFFER], turn);
    let held = match &direction.held {
        Held::Nothing => 0,
        Held::Pipe { length, .. } => {
            assert_eq!(*length, world.pipe.len());
            *length
        }
        Held::Memory(bytes) => {
            assert!(bytes.len() <= BUFFER);
            bytes.len()
        }
    };
    assert_eq!(
        world.pipes_given,
        usize::from(matches!(direction.held, Held::Pipe { .. }))
    );
    assert_eq!(
        world.sink.len() + held + world.source.len(),
        world.produced,
        "a byte is lost"
    );
    assert_eq!(direction.moved(), world.sink.len() as u64);
    assert!(
        world
            .sink
            .iter()
            .enumerate()
            .all(|(offset, &got)| got == byte(offset)),
        "a byte is out of place"
    );
    if matches!(progress, Progress::Finished) {
        assert!(
            world.fin && world.source.is_empty() && held == 0,
            "finished too early"
        );
    }
    progress
}

/// Gives turns until the direction waits for an event or is over.
fn settle(direction: &mut Direction<()>, world: &mut World) -> Progress {
    for _ in 0..10_000 {
        match pump(direction, world, 3) {
            Progress::More => {}
            progress => return progress,
        }
    }
    panic!("it never comes to rest");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn every_order_of_events_moves_every_byte(steps in steps(), splice_limit in 1_usize..60) {
        let mut world = World { splice_limit, ..World::default() };
        let mut direction = Direction::new();
        direction.sink_ready();
        let mut failed = false;
        for step in &steps {
            world.apply(step);
            match step {
                Step::Deliver => world.deliver(&mut direction),
                Step::Pump(turn) => match pump(&mut direction, &mut world, *turn) {
                    Progress::SourceFailed(_) => { prop_assert!(world.source_reset); failed = true; }
                    Progress::SinkFailed(_) => { prop_assert!(world.sink_reset); failed = true; }
                    Progress::Blocked | Progress::More | Progress::Finished => {}
                },
                _ => {}
            }
            if failed {
                break;
            }
        }
        if !failed {
            // Room for everything: what has not arrived by itself now never would.
            world.apply(&Step::Consume(1_000_000));
            world.deliver(&mut direction);
            let progress = settle(&mut direction, &mut world);
            if world.sink_reset {
                // A direction with nothing to send does not notice; the flow learns it from the
                // event.
                prop_assert!(!matches!(progress, Progress::More));
            } else {
                prop_assert_eq!(world.sink.len(), world.produced, "bytes are stuck");
                match progress {
                    Progress::Finished => prop_assert!(world.fin),
                    Progress::SourceFailed(_) => prop_assert!(world.source_reset),
                    // A RST behind the last bytes is the flow's to learn, from the event.
                    Progress::Blocked => prop_assert!(!world.fin || world.source_reset),
                    other => prop_assert!(false, "{:?}", other),
                }
                prop_assert_eq!(world.pipes_given, 0);
            }
        }
        if direction.abandon().is_some() {
            world.pipes_given -= 1;
        }
        prop_assert_eq!(world.pipes_given, 0);
    }
}

#[test]
fn a_long_transfer_says_so_once() {
    let long = usize::try_from(LONG).unwrap();
    let mut world = World {
        splice_limit: PIPE,
        ..World::default()
    };
    let mut direction = Direction::new();
    direction.sink_ready();
    for (length, expected) in [(long - 1, 0), (100, 1), (long, 1)] {
        world.apply(&Step::Consume(length));
        world.apply(&Step::Produce(length));
        world.deliver(&mut direction);
        while matches!(
            direction.pump(&mut world, &mut [0; BUFFER], u32::MAX),
            Progress::More
        ) {}
        assert_eq!(world.proved_long, expected, "{} bytes", world.sink.len());
    }
}
