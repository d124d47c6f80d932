//! Ten thousand flows that do next to nothing. Their ends are descriptors of the process of this test, which has it to
//! itself.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use tproxy_tests::{
    Agent, Exchange, Family, Lab,
    agent::unique_instance,
    peer::{Server, Witness},
    wait::{self, uninterrupted},
};

/// Open files of the agent.
const DESCRIPTORS: u64 = 20_000;
/// What it serves with these, by the README, with two workers.
const CAPACITY: usize = 9_680;
/// Flows that one client may have.
const LIMIT: usize = 5_000;

/// Ports of the server, by what its flows do.
const IDLE: u16 = 80;
const SLOW: u16 = 81;
const SILENT: u16 = 82;
const WITNESS: u16 = 83;

/// The client that has as many flows as it may have.
const FULL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 1, 2));
const NEIGHBOUR_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 1, 3));
const NEIGHBOUR_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 2));

/// How many flows of each kind a client has.
#[derive(Clone, Copy)]
struct Kinds {
    /// They say a byte now and then.
    slow: u32,
    /// Their server answers no SYN.
    half_open: u32,
    /// They say nothing.
    idle: u32,
}

/// The flows of one client.
struct Held {
    /// With their other ends.
    slow: Vec<(TcpStream, TcpStream)>,
    half_open: Vec<TcpStream>,
    idle: Vec<TcpStream>,
}

/// One client has all that it may have, and can have no more; others are not concerned. What is beyond the agent's
/// capacity waits, and is served when there is room. When all are gone, so is what they cost.
#[test]
fn ten_thousand_flows_are_served_or_wait() {
    const MOST_MEMORY_KIB: u64 = 8 * 1024;
    raise_descriptor_limit();
    let lab = Lab::new();
    lab.client.ip("addr add 10.77.1.3/24 dev eth0");
    lab.server.nft(&format!(
        "table inet silent {{\n chain input {{\n type filter hook input priority 0; policy accept;\n \
         tcp dport {SILENT} drop\n }}\n}}"
    ));
    let servers = Servers::start(&lab);
    let arguments = format!(
        "--iface cl0 --dport {IDLE}-{WITNESS} --flows-per-source {LIMIT} --connect-timeout 300 --workers 2"
    );
    let wrapper = format!("prlimit --nofile={DESCRIPTORS}");
    let mut agent = Agent::start_under(&lab.gateway, &unique_instance(), &wrapper, &arguments);
    let capacity = format!("serving at most {CAPACITY} flows at once");
    agent.wait_for_log(&capacity);
    for source in [FULL, NEIGHBOUR_V4, NEIGHBOUR_V6] {
        ask(&lab, source).assert_relayed(&agent);
    }

    let before = Footprint::of(&lab, &agent);
    let at_most = fill_and_empty(&lab, &agent, &servers);
    let once = Footprint::await_back(&lab, &agent, &before);
    fill_and_empty(&lab, &agent, &servers);
    let twice = Footprint::await_back(&lab, &agent, &before);
    println!("before {before:?}\n{CAPACITY} flows {at_most:?}\nonce {once:?}\ntwice {twice:?}");
    assert!(at_most.memory_kib < before.memory_kib + MOST_MEMORY_KIB);
    // What the allocator keeps for the next flows is used by them.
    assert!(twice.memory_kib < once.memory_kib + MOST_MEMORY_KIB / 8);
    ask(&lab, FULL).assert_relayed(&agent);
    agent.stop();
}

/// Opens all flows, checks how they fare, ends them all, and says what they cost.
#[track_caller]
fn fill_and_empty(lab: &Lab, agent: &Agent, servers: &Servers) -> Footprint {
    let before = agent.status();
    let kinds = Kinds {
        slow: 2_000,
        half_open: 1_000,
        idle: 2_000,
    };
    let mut of_full = hold(lab, FULL, kinds, servers);
    await_flows(agent, LIMIT);
    for _ in 0..3 {
        let error = connect(lab, FULL, WITNESS)
            .and_then(|mut stream| uninterrupted(|| stream.read(&mut [0])))
            .expect_err("the client has its share");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    for source in [NEIGHBOUR_V4, NEIGHBOUR_V6] {
        ask(lab, source).assert_relayed(agent);
    }
    let kinds = Kinds {
        slow: 500,
        half_open: 500,
        idle: 1_500,
    };
    let mut of_neighbours =
        [NEIGHBOUR_V4, NEIGHBOUR_V6].map(|source| hold(lab, source, kinds, servers));
    await_flows(agent, CAPACITY);
    let since = |status: &Value, key: &str| {
        let [now, then] = [status, &before].map(|status| status[key].as_u64().expect("a number"));
        now - then
    };
    let status = wait::until("a worker that takes no more", || {
        Some(agent.status()).filter(|status| since(status, "pauses") > 0)
    });
    let kept_out = ["over_limit", "shed"].map(|key| since(&status, key));
    assert_eq!(kept_out, [3, 0]);
    let at_most = Footprint::of(lab, agent);
    for held in of_neighbours.iter_mut().chain([&mut of_full]) {
        held.assert_none_has_ended();
        held.speak();
        held.speak();
    }

    // Those that have waited take the places of those that end.
    of_full.end();
    await_flows(agent, 5_000);
    let idle_ends: Vec<TcpStream> = (0..5_000).map(|_| servers.idle.outcome()).collect();
    for held in &of_neighbours {
        held.assert_none_has_ended();
    }
    ask(lab, FULL).assert_relayed(agent);
    of_neighbours.into_iter().for_each(Held::end);
    drop(idle_ends);
    await_flows(agent, 0);
    at_most
}

struct Servers {
    idle: Server<TcpStream>,
    slow: Server<(u32, TcpStream)>,
    _witness: Witness,
}

impl Servers {
    fn start(lab: &Lab) -> Self {
        Self {
            idle: Server::start(&lab.server, IDLE, |stream| stream),
            slow: Server::start(&lab.server, SLOW, |mut stream: TcpStream| {
                let mut number = [0; 4];
                stream.read_exact(&mut number).expect("the flow's number");
                (u32::from_be_bytes(number), stream)
            }),
            _witness: Witness::start(&lab.server, WITNESS),
        }
    }
}

/// Lets the client at `source` ask the witness.
#[track_caller]
fn ask(lab: &Lab, source: IpAddr) -> Exchange {
    let target = SocketAddr::new(family_of(source).near(), WITNESS);
    Exchange::from(&lab.client, source, target)
}

fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    }
}

/// Opens flows from `source`, the slow ones first.
fn hold(lab: &Lab, source: IpAddr, kinds: Kinds, servers: &Servers) -> Held {
    let open = |number: u32, port| -> Vec<TcpStream> {
        let connect = |_| connect_here(source, port).unwrap_or_else(|error| panic!("{error}"));
        lab.client.enter(|| (0..number).map(connect).collect())
    };
    let mut slow = open(kinds.slow, SLOW);
    for (number, stream) in (0_u32..).zip(&mut slow) {
        stream.write_all(&number.to_be_bytes()).expect("write");
    }
    let mut ends: Vec<_> = slow.iter().map(|_| servers.slow.outcome()).collect();
    ends.sort_unstable_by_key(|(number, _)| *number);
    let ends = ends.into_iter().map(|(_, stream)| stream);
    Held {
        slow: slow.into_iter().zip(ends).collect(),
        half_open: open(kinds.half_open, SILENT),
        idle: open(kinds.idle, IDLE),
    }
}

fn connect(lab: &Lab, source: IpAddr, port: u16) -> io::Result<TcpStream> {
    lab.client.enter(|| connect_here(source, port))
}

/// Connects from the namespace of the calling thread.
fn connect_here(source: IpAddr, port: u16) -> io::Result<TcpStream> {
    let target = SocketAddr::new(family_of(source).near(), port);
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&target.into(), wait::PATIENCE)?;
    socket.set_read_timeout(Some(wait::PATIENCE))?;
    Ok(socket.into())
}

impl Held {
    /// Nothing has come to the client, neither bytes nor an end nor a reset.
    #[track_caller]
    fn assert_none_has_ended(&self) {
        let slow = self.slow.iter().map(|(client, _)| client);
        for mut stream in slow.chain(&self.half_open).chain(&self.idle) {
            stream.set_nonblocking(true).expect("set O_NONBLOCK");
            let error = stream.read(&mut [0]).expect_err("nothing has come");
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            stream.set_nonblocking(false).expect("clear O_NONBLOCK");
        }
    }

    /// A byte each way in all slow flows at once.
    #[track_caller]
    fn speak(&mut self) {
        let mut received = [0];
        for (client, _) in &mut self.slow {
            client.write_all(b"q").expect("write");
        }
        for (_, server) in &mut self.slow {
            server.read_exact(&mut received).expect("a byte");
            assert_eq!(&received, b"q");
            server.write_all(b"a").expect("write");
        }
        for (client, _) in &mut self.slow {
            client.read_exact(&mut received).expect("a byte");
            assert_eq!(&received, b"a");
        }
    }

    /// Ends all: slow ones by closing both ends, others, whose servers do not close theirs, by a reset.
    fn end(self) {
        for stream in self.half_open.iter().chain(&self.idle) {
            SockRef::from(stream)
                .set_linger(Some(Duration::ZERO))
                .expect("set SO_LINGER");
        }
    }
}

#[track_caller]
fn await_flows(agent: &Agent, number: usize) {
    let what = format!("{number} live flows");
    wait::until(&what, || (agent.status()["flows"] == number).then_some(()));
}

/// What flows cost the gateway.
#[derive(Debug)]
struct Footprint {
    descriptors: usize,
    memory_kib: u64,
    /// TCP sockets of the gateway that are in use.
    sockets: u64,
}

impl Footprint {
    fn of(lab: &Lab, agent: &Agent) -> Self {
        let in_use = |file, protocol: &str| {
            let text = lab.gateway.proc_net(file);
            let line = text.lines().find_map(|line| line.strip_prefix(protocol));
            let number = line.and_then(|line| line.split_whitespace().nth(1));
            let number = number.and_then(|number| number.parse::<u64>().ok());
            number.unwrap_or_else(|| panic!("sockets in use: {text}"))
        };
        Self {
            descriptors: agent.open_descriptors(),
            memory_kib: agent.memory_kib("RssAnon"),
            sockets: in_use("sockstat", "TCP:") + in_use("sockstat6", "TCP6:"),
        }
    }

    /// Waits until descriptors and sockets are what they were before.
    #[track_caller]
    fn await_back(lab: &Lab, agent: &Agent, before: &Self) -> Self {
        agent.wait_for_descriptors(before.descriptors);
        wait::until("the gateway's sockets are gone", || {
            let now = Self::of(lab, agent);
            (now.sockets <= before.sockets).then_some(now)
        })
    }
}

/// This process has two ends of nearly each flow.
fn raise_descriptor_limit() {
    const NEEDED: u64 = 18_500;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    assert!(hard >= NEEDED, "this test needs {NEEDED} open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("setrlimit");
}
