//! SYNs by the thousand of clients that never answer.

use std::{
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tproxy_tests::{
    Agent, Family, Lab,
    address::FAMILIES,
    crafted::{ethernet, syn},
    pattern,
    peer::{Server, Witness},
    wait::{self, uninterrupted},
    wire::{Wire, hardware_address},
};

/// How many SYNs are sent at once, and how often: 20,000 a second.
const BURST: usize = 40;
const TICK: Duration = Duration::from_millis(2);
/// How many sources of each family the SYNs have.
const SOURCES: u32 = 30_000;

/// Established flows keep their throughput and their bytes, flows that no rule takes go their way, new flows of real
/// clients are served, by SYN cookies, and nothing is left when it is over.
#[test]
fn flows_go_on_through_a_flood_of_syns() {
    const ROUNDS: u32 = 4;
    let lab = Lab::new();
    // Answers to nobody get lost at the client, as they would somewhere.
    lab.gateway
        .ip("route add 10.128.0.0/9 via 10.77.1.2\nroute add fd99::/16 via fd77:1::2");
    // Few handshakes are waited for, without cookies, and not for long.
    lab.gateway.sysctl("net.core.somaxconn", 256);
    lab.gateway.sysctl("net.ipv4.tcp_synack_retries", 1);
    let _witnesses = [81, 82].map(|port| Witness::start(&lab.server, port));
    let arrived = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&arrived);
    let server = Server::start(&lab.server, 80, move |stream| {
        let counter = Arc::clone(&counter);
        pattern::read_to_end(&mut Counted { stream, counter })
    });
    let mut agent = lab.agent("--iface cl0 --dport 80,81");
    lab.ask(Family::V4.near(), 81).assert_relayed(&agent);
    let (descriptors, memory) = (agent.open_descriptors(), agent.memory_kib("VmRSS"));
    let over = AtomicBool::new(false);

    let moved = thread::scope(|scope| {
        let streams = FAMILIES.map(|family| {
            let stream = lab.client.connect((family.near(), 80).into()).unwrap();
            let over = &over;
            scope.spawn(move || send_until(stream, over).unwrap())
        });
        // Ends the threads when an assertion fails, too.
        let end = SetOnDrop(&over);
        wait::until("the flows are at full speed", || {
            (arrived.load(Ordering::Relaxed) > 50_000_000).then_some(())
        });
        let flood = Flood::new(&lab, 81);
        let counters = ["SyncookiesSent", "SyncookiesRecv"];
        let cookies = || counters.map(|name| lab.gateway.counter("TcpExt", name));
        assert_eq!(cookies(), [0, 0]);
        // Taken in turns, so that what else this machine does is in both alike.
        let (mut calm, mut flooded, mut sent) = (0.0, 0.0, 0);
        for _ in 0..ROUNDS {
            calm += rate(&lab, &agent, &arrived);
            flood.run_during(&mut sent, || flooded += rate(&lab, &agent, &arrived));
        }
        println!(
            "{:.0} MB/s, {:.0} in a flood of {sent} SYNs; cookies {:?}",
            calm / 1e6 / f64::from(ROUNDS),
            flooded / 1e6 / f64::from(ROUNDS),
            cookies()
        );
        assert!(
            flooded > 0.4 * calm,
            "the flows fall from {calm} to {flooded} bytes a second, summed over {ROUNDS} rounds"
        );
        let taken = agent.counter("taken");
        assert!(taken >= sent / 2, "{taken} of {sent} SYNs are taken");
        assert!(
            cookies().iter().all(|&number| number > 0),
            "cookies are sent, and come back"
        );
        drop(end);
        streams.map(|stream| stream.join().unwrap())
    });

    let mut received = moved.map(|_| server.outcome().unwrap());
    let mut sent = moved;
    received.sort_unstable();
    sent.sort_unstable();
    assert_eq!(received, sent);
    wait::until("no live flow", || {
        (agent.status()["flows"] == 0).then_some(())
    });
    wait::until("no half of a handshake", || {
        (half_open(&lab) == 0).then_some(())
    });
    agent.wait_for_descriptors(descriptors);
    let grown = agent.memory_kib("VmRSS").saturating_sub(memory);
    assert!(grown < 4 * 1024, "{grown} KiB more than before");
    for family in FAMILIES {
        lab.ask(family.near(), 81).assert_relayed(&agent);
    }
    agent.stop();
}

/// The bytes a second that arrive while new flows come and go.
#[track_caller]
fn rate(lab: &Lab, agent: &Agent, arrived: &AtomicU64) -> f64 {
    const WINDOW: Duration = Duration::from_millis(600);
    let (start, before) = (Instant::now(), arrived.load(Ordering::Relaxed));
    let mut asked = 0;
    while start.elapsed() < WINDOW {
        let family = FAMILIES[asked % 2];
        lab.ask(family.near(), 81).assert_relayed(agent);
        lab.ask(family.near(), 82).assert_direct(agent);
        asked += 1;
    }
    let moved = arrived.load(Ordering::Relaxed) - before;
    #[expect(clippy::cast_precision_loss, reason = "far less than 2^53")]
    let moved = moved as f64;
    moved / start.elapsed().as_secs_f64()
}

/// Sends the pattern until it is told that all is over, and says how many bytes it has sent.
fn send_until(mut stream: TcpStream, over: &AtomicBool) -> io::Result<u64> {
    const STEP: u64 = 1_000_000;
    let mut offset = 0;
    while !over.load(Ordering::Relaxed) {
        pattern::write_from(&mut stream, offset, offset + STEP)?;
        offset += STEP;
    }
    stream.shutdown(Shutdown::Write)?;
    // Up to the server's end, so that the flow is over.
    let after = uninterrupted(|| stream.read(&mut [0]))?;
    assert_eq!(after, 0);
    Ok(offset)
}

/// A stream whose bytes are counted as they are read.
struct Counted {
    stream: TcpStream,
    counter: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        self.counter.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// SYNs with sources that nobody has, ready to be sent from the client's link.
struct Flood {
    wire: Wire,
    frames: Vec<Vec<u8>>,
}

impl Flood {
    fn new(lab: &Lab, port: u16) -> Self {
        let own = hardware_address(&lab.client, "eth0");
        let gateway = hardware_address(&lab.gateway, "cl0");
        let sources = (0..2 * SOURCES).map(source);
        let frames = sources.map(|source| {
            let family = if source.is_ipv4() {
                Family::V4
            } else {
                Family::V6
            };
            ethernet(own, gateway, &syn(source, family.near(), port))
        });
        Self {
            wire: Wire::sender(&lab.client, "eth0"),
            frames: frames.collect(),
        }
    }

    /// Sends at the rate while `action` runs, and adds what was sent to `sent`.
    fn run_during(&self, sent: &mut u64, action: impl FnOnce()) {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let sender = scope.spawn(|| self.send_until(&over));
            let end = SetOnDrop(&over);
            action();
            drop(end);
            *sent += sender.join().expect("sending does not panic");
        });
    }

    fn send_until(&self, over: &AtomicBool) -> u64 {
        let mut sent = 0;
        let mut next = Instant::now();
        let mut frames = self.frames.iter().cycle();
        while !over.load(Ordering::Relaxed) {
            for frame in frames.by_ref().take(BURST) {
                self.wire.send(frame);
                sent += 1;
            }
            next += TICK;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        sent
    }
}

/// One of the sources, of both families in turns.
fn source(number: u32) -> IpAddr {
    let index = number / 2;
    if number.is_multiple_of(2) {
        Ipv4Addr::from(0x0a80_0000 + index).into()
    } else {
        Ipv6Addr::from((0xfd99 << 112) + u128::from(index)).into()
    }
}

/// How many handshakes the gateway waits for. State 03 of `/proc/net/tcp` is `SYN_RECV`.
fn half_open(lab: &Lab) -> usize {
    let sockets = lab.gateway.proc_net("tcp") + &lab.gateway.proc_net("tcp6");
    let states = sockets
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3));
    states.filter(|state| *state == "03").count()
}
