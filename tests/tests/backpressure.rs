//! A receiver that stops reading stops its sender, and nobody else.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use tproxy_tests::{
    Agent, Family, Lab, pattern,
    peer::Server,
    wait::{self, uninterrupted},
};

const MB: u64 = 1_000_000;
/// What the sender has for the receiver, far more than all buffers on the way hold.
const TOTAL: u64 = 200 * MB;
/// What the agent may hold of a flow in its memory and in pipes.
const MOST_HELD: u64 = MB;
/// What the kernel may hold of it in the agent's sockets, by the sizes that the test lets these grow to.
const MOST_QUEUED: u64 = 12 << 20;

/// The client sends, and the server does not read.
#[test]
fn a_server_that_does_not_read_bounds_what_is_held() {
    let lab = Lab::new();
    let (go_on, wait_to_read) = mpsc::channel::<()>();
    let wait_to_read = Mutex::new(wait_to_read);
    let server = Server::start(&lab.server, 80, move |mut stream: TcpStream| {
        let waiting = wait_to_read.lock().expect("one connection only");
        waiting.recv().expect("the test says when to read");
        pattern::read_to_end(&mut stream)
    });
    let others = Others::start(&lab);
    let mut agent = lab.agent("--iface cl0 --dport 80-82 --workers 1");
    let mut others = others.begin(&lab);
    let before = Reading::of(&agent, &mut others);

    let mut stream = lab.client.connect((Family::V4.near(), 80).into()).unwrap();
    let mut sending = stream.try_clone().unwrap();
    let sender = thread::spawn(move || {
        sending.set_write_timeout(Some(Duration::from_mins(1)))?;
        pattern::write(&mut sending, TOTAL)?;
        sending.shutdown(Shutdown::Write)
    });
    assert_bounded(&lab, &agent, &mut others, &before);

    go_on.send(()).unwrap();
    assert_eq!(server.outcome().unwrap(), TOTAL);
    sender.join().unwrap().unwrap();
    assert_eq!(uninterrupted(|| stream.read(&mut [0])).unwrap(), 0);
    drop(others);
    agent.stop();
}

/// The server sends, and the client does not read.
#[test]
fn a_client_that_does_not_read_bounds_what_is_held() {
    let lab = Lab::new();
    let server = Server::start(&lab.server, 80, |mut stream: TcpStream| {
        stream.set_write_timeout(Some(Duration::from_mins(1)))?;
        pattern::write(&mut stream, TOTAL)?;
        stream.shutdown(Shutdown::Write)
    });
    let others = Others::start(&lab);
    let mut agent = lab.agent("--iface cl0 --dport 80-82 --workers 1");
    let mut others = others.begin(&lab);
    let before = Reading::of(&agent, &mut others);

    let mut stream = lab.client.connect((Family::V6.near(), 80).into()).unwrap();
    assert_bounded(&lab, &agent, &mut others, &before);

    assert_eq!(pattern::read_to_end(&mut stream).unwrap(), TOTAL);
    server.outcome().unwrap();
    drop((stream, others));
    agent.stop();
}

/// Waits until the one flow stands still, and checks what is held of it and how the others fare meanwhile.
#[track_caller]
fn assert_bounded(lab: &Lab, agent: &Agent, others: &mut OtherFlows, before: &Reading) {
    const WINDOW: Duration = Duration::from_millis(500);
    let queued = queued_when_stalled(lab);
    assert!(
        queued < MOST_QUEUED,
        "{queued} bytes in the agent's sockets"
    );
    agent.assert_at_rest(WINDOW);

    let stalled = Reading::of(agent, others);
    println!("before {before:?}\nstalled {stalled:?}, {queued} bytes in sockets");
    assert!(stalled.in_pipes > 0, "the flow has bytes in its pipe");
    let held = stalled.memory.saturating_sub(before.memory) + stalled.in_pipes;
    assert!(held <= MOST_HELD, "{held} bytes are held");
    // A flow that took the worker's time would show in these at once, and other tests do as well, somewhat.
    let bound = |before: Duration| wait::scaled(before * 4 + Duration::from_millis(5));
    assert!(
        stalled.round_trip < bound(before.round_trip),
        "a round trip takes {:?}, and took {:?}",
        stalled.round_trip,
        before.round_trip
    );
    assert!(
        stalled.transfer < bound(before.transfer),
        "a transfer takes {:?}, and took {:?}",
        stalled.transfer,
        before.transfer
    );
}

/// What the agent holds, and how fast other flows are.
#[derive(Debug)]
struct Reading {
    /// The median of many on a connection that stands.
    round_trip: Duration,
    /// The fastest of a few.
    transfer: Duration,
    /// In bytes, of what no file backs.
    memory: u64,
    in_pipes: u64,
}

impl Reading {
    fn of(agent: &Agent, others: &mut OtherFlows) -> Self {
        let mut round_trips: Vec<_> = (0..200).map(|_| others.round_trip()).collect();
        round_trips.sort_unstable();
        let transfers = (0..5).map(|_| others.transfer());
        Self {
            round_trip: round_trips[round_trips.len() / 2],
            transfer: transfers.min().expect("a few"),
            memory: agent.memory_kib("RssAnon") * 1024,
            in_pipes: agent.bytes_in_pipes(),
        }
    }
}

/// Servers for flows that go on.
struct Others {
    _echo: Server<io::Result<u64>>,
    sink: Server<io::Result<u64>>,
}

impl Others {
    fn start(lab: &Lab) -> Self {
        lab.gateway
            .sysctl("net.ipv4.tcp_rmem", "4096 131072 6291456");
        lab.gateway
            .sysctl("net.ipv4.tcp_wmem", "4096 16384 4194304");
        Self {
            _echo: Server::start(&lab.server, 81, |mut stream: TcpStream| {
                let mut sink = stream.try_clone()?;
                stream.set_nodelay(true)?;
                io::copy(&mut stream, &mut sink)
            }),
            sink: Server::start(&lab.server, 82, |mut stream: TcpStream| {
                pattern::read_to_end(&mut stream)
            }),
        }
    }

    fn begin(self, lab: &Lab) -> OtherFlows<'_> {
        let echo = lab.client.connect((Family::V4.near(), 81).into()).unwrap();
        echo.set_nodelay(true).unwrap();
        OtherFlows {
            lab,
            echo,
            servers: self,
        }
    }
}

struct OtherFlows<'a> {
    lab: &'a Lab,
    echo: TcpStream,
    servers: Others,
}

impl OtherFlows<'_> {
    fn round_trip(&mut self) -> Duration {
        let start = Instant::now();
        self.echo.write_all(b"x").unwrap();
        self.echo.read_exact(&mut [0]).unwrap();
        start.elapsed()
    }

    fn transfer(&self) -> Duration {
        const LENGTH: u64 = 20 * MB;
        let target = SocketAddr::new(Family::V6.near(), 82);
        let mut stream = self.lab.client.connect(target).unwrap();
        let start = Instant::now();
        pattern::write(&mut stream, LENGTH).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(self.servers.sink.outcome().unwrap(), LENGTH);
        start.elapsed()
    }
}

/// The bytes queued in the gateway's TCP sockets, once they have stopped growing.
fn queued_when_stalled(lab: &Lab) -> u64 {
    let mut last = (0, Instant::now());
    wait::until("the sender is stopped by a full buffer", || {
        let queued = queued_bytes(lab);
        if queued != last.0 {
            last = (queued, Instant::now());
        }
        (queued > 0 && last.1.elapsed() > Duration::from_millis(700)).then_some(queued)
    })
}

fn queued_bytes(lab: &Lab) -> u64 {
    let sockets = lab.gateway.proc_net("tcp") + &lab.gateway.proc_net("tcp6");
    sockets
        .lines()
        .filter_map(|line| line.split_whitespace().nth(4)?.split_once(':'))
        .filter_map(|(sent, received)| {
            Some(u64::from_str_radix(sent, 16).ok()? + u64::from_str_radix(received, 16).ok()?)
        })
        .sum()
}
