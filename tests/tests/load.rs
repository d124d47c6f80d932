//! Many flows, few descriptors, reused ports.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit};
use socket2::SockRef;
use tproxy_tests::{
    Exchange, Family, FlowLine, Lab, Namespace,
    address::FAMILIES,
    peer::{Server, Witness},
    wait::{self, uninterrupted},
};

/// Thirty-two client ports are used over and over, while the agent still has each 4-tuple in `TIME_WAIT` (the server
/// closes first): every connection is established at once, no SYN is sent twice.
#[test]
fn ports_in_time_wait_are_reused_at_once() {
    const FLOWS: u32 = 4_000;
    const AT_ONCE: u32 = 8;
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    lab.client
        .sysctl("net.ipv4.ip_local_port_range", "40000 40031");
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 80);
        let start = Instant::now();
        lab.client.enter_many(AT_ONCE, || {
            for _ in 0..FLOWS / AT_ONCE {
                fetch(target).unwrap_or_else(|error| panic!("over {family:?}: {error}"));
            }
        });
        println!(
            "{family:?}: {:.0} flows a second",
            f64::from(FLOWS) / start.elapsed().as_secs_f64()
        );
        assert!(
            sockets_in_time_wait(&lab.gateway) > 0,
            "the agent's side of the flows is in TIME_WAIT"
        );
    }
    assert_eq!(
        lab.client.counter("TcpExt", "TCPSynRetrans"),
        0,
        "SYNs sent again"
    );
    let flows = agent.stop();
    assert_eq!(flows.len(), 2 * FLOWS as usize);
    let ports: BTreeSet<_> = flows.iter().map(|flow| flow.client.port()).collect();
    assert!(ports.len() <= 32, "{} ports for all flows", ports.len());
}

/// A request to a witness and its answer, read to the end, from the namespace of the calling thread.
fn fetch(target: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, wait::PATIENCE)?;
    stream.set_read_timeout(Some(wait::PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.contains("peer ") {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, answer))
    }
}

/// State 06 of `/proc/net/tcp` is `TIME_WAIT`.
fn sockets_in_time_wait(namespace: &Namespace) -> usize {
    let sockets = namespace.proc_net("tcp") + &namespace.proc_net("tcp6");
    sockets
        .lines()
        .filter(|line| line.split_whitespace().nth(3) == Some("06"))
        .count()
}

/// With SYN cookies for every connection, handshakes complete at the listener that sent the cookie.
#[test]
fn syn_cookies_work() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    lab.gateway.sysctl("net.ipv4.tcp_syncookies", 2);
    let mut agent = lab.agent("--iface cl0 --dport 80 --workers 2");
    for index in 0..20 {
        lab.ask(FAMILIES[index % 2].near(), 80)
            .assert_relayed(&agent);
    }
    assert!(
        lab.gateway.counter("TcpExt", "SyncookiesRecv") >= 20,
        "cookies were used"
    );
    assert_eq!(agent.stop().len(), 20);
}

/// Without descriptors left the agent does not spin, and takes flows again once some are free. It says at start for
/// how many flows its limit is good.
#[test]
fn running_out_of_descriptors_costs_no_processor_time() {
    const LIMIT: usize = 512;
    const WINDOW: Duration = Duration::from_secs(1);
    let lab = Lab::new();
    let _holder = Server::start(&lab.server, 80, |mut stream: TcpStream| {
        stream.set_read_timeout(None).expect("no limit");
        io::copy(&mut stream, &mut io::sink())
    });
    let _witness = Witness::start(&lab.server, 81);
    let wrapper = format!("prlimit --nofile={LIMIT}");
    let instance = tproxy_tests::agent::unique_instance();
    let mut agent = tproxy_tests::Agent::start_under(
        &lab.gateway,
        &instance,
        &wrapper,
        "--iface cl0 --dport 80,81",
    );
    agent.wait_for_log(&LIMIT.to_string());
    lab.ask(Family::V4.near(), 81).assert_relayed(&agent);
    let target = SocketAddr::new(Family::V4.near(), 80);
    // Some are refused, some wait; which is up to the agent.
    let held: Vec<_> = lab.client.enter(|| {
        (0..2 * LIMIT)
            .map(|_| TcpStream::connect_timeout(&target, Duration::from_millis(200)))
            .collect()
    });
    assert!(held.iter().flatten().count() >= 100, "a few flows fit");
    assert!(agent.open_descriptors() <= LIMIT);
    wait::until("some flows are kept out", || {
        let status = agent.status();
        let kept_out = ["shed", "pauses"].map(|key| status[key].as_u64().expect("a number"));
        kept_out.iter().any(|number| *number > 0).then_some(())
    });

    agent.assert_at_rest(WINDOW);
    assert!(agent.is_running());

    drop(held);
    let target = SocketAddr::new(Family::V4.near(), 81);
    let exchange = wait::until("flows are taken again", || {
        Exchange::attempt(&lab.client, target).ok()
    });
    exchange.assert_relayed(&agent);
    lab.ask(Family::V6.near(), 81).assert_relayed(&agent);
    agent.stop();
}

/// The limit of open files is lowered under an agent, so that no connection can be accepted at all: those that come wait,
/// at no cost, and are served when it is raised again.
#[test]
fn connections_wait_while_no_descriptor_is_to_be_had() {
    // Fewer than the agent has open.
    const NONE_LEFT: u64 = 10;
    const WINDOW: Duration = Duration::from_secs(1);
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --dport 80");
    lab.ask(Family::V4.near(), 80).assert_relayed(&agent);
    let limit_to = |soft: u64| {
        let process = agent.id();
        lab.gateway
            .run(&format!("prlimit --pid {process} --nofile={soft}:"));
    };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    limit_to(NONE_LEFT);
    let targets = FAMILIES.map(|family| SocketAddr::new(family.near(), 80));
    let waiting = targets.map(|target| lab.client.connect(target).expect("the kernel accepts"));
    wait::until("a pause", || (agent.status()["pauses"] != 0).then_some(()));
    agent.wait_for_log("new flows wait");
    agent.assert_at_rest(WINDOW);
    assert_eq!(agent.flows().len(), 1);
    limit_to(hard);
    for (stream, target) in waiting.into_iter().zip(targets) {
        let exchange = Exchange::over(stream, target).expect("it is served");
        exchange.assert_relayed(&agent);
    }
    assert_eq!(agent.status()["shed"], 0);
    agent.stop();
}

/// A hundred thousand connections that either end resets, at once or after their first bytes: no descriptor and no thread
/// is left over, and no memory to speak of.
#[test]
fn connections_that_are_reset_leave_nothing_over() {
    const FLOWS: usize = 100_000;
    const AT_ONCE: u32 = 4;
    let lab = Lab::new();
    let _patient = Server::start(&lab.server, 80, |mut stream: TcpStream| {
        io::copy(&mut stream, &mut io::sink())
    });
    let _resetting = Server::start(&lab.server, 82, |mut stream: TcpStream| {
        let _ = uninterrupted(|| stream.read(&mut [0]));
        reset(stream);
    });
    let _witness = Witness::start(&lab.server, 81);
    let mut agent = lab.agent("--iface cl0 --dport 80-82 --name web");
    lab.ask(Family::V4.near(), 81).assert_relayed(&agent);
    agent.wait_for_descriptors(agent.open_descriptors());
    let (descriptors, threads) = (agent.open_descriptors(), agent.threads());
    let memory = agent.memory_kib("VmRSS");
    lab.client.enter_many(AT_ONCE, || {
        for index in 0..FLOWS / AT_ONCE as usize {
            let family = FAMILIES[index / 4 % 2];
            let connect = |port| {
                let target = SocketAddr::new(family.near(), port);
                TcpStream::connect_timeout(&target, wait::PATIENCE).expect("connect")
            };
            match index % 4 {
                0 => {
                    let mut stream = connect(80);
                    stream.write_all(b"half of a request").expect("write");
                    reset(stream);
                }
                1 => {
                    let mut stream = connect(82);
                    stream.write_all(b"half of a request").expect("write");
                    let error =
                        uninterrupted(|| stream.read(&mut [0])).expect_err("the server's reset");
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                }
                _ => reset(connect(80)),
            }
        }
    });
    agent.wait_for_descriptors(descriptors);
    wait::until("no live flow", || {
        (agent.status()["flows"] == 0).then_some(())
    });
    // The agent has a thread more now and then, for something that has to wait.
    assert!(
        agent.threads() <= threads + 2,
        "{} threads",
        agent.threads()
    );
    let grown = agent.memory_kib("VmRSS").saturating_sub(memory);
    assert!(grown < 8 * 1024, "{grown} KiB more than before");
    let rule = agent.json("rule show web");
    let taken = rule["flows"].as_u64().expect("a number");
    assert!(taken > FLOWS as u64, "{taken} flows are taken");
    for family in FAMILIES {
        lab.ask(family.near(), 81).assert_relayed(&agent);
    }
    let ended = |flows: &[FlowLine], end: &str| flows.iter().filter(|flow| flow.end == end).count();
    let flows = agent.stop();
    for end in ["client-reset", "upstream-reset"] {
        assert!(ended(&flows, end) > FLOWS / 10, "few flows end as {end}");
    }
}

/// Closes a connection by a RST.
fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .expect("set SO_LINGER");
    drop(stream);
}

/// A thousand idle flows are held with little memory each, and given back when they end.
#[test]
fn idle_flows_cost_little_and_are_given_back() {
    const FLOWS: usize = 1_000;
    let lab = Lab::new();
    let _holder = Server::start(&lab.server, 80, |mut stream: TcpStream| {
        stream.set_read_timeout(None).expect("no limit");
        io::copy(&mut stream, &mut io::sink())
    });
    let agent = lab.agent("--iface cl0 --dport 80");
    let (descriptors, memory) = (agent.open_descriptors(), agent.memory_kib("VmRSS"));
    let target = SocketAddr::new(Family::V6.near(), 80);
    let held: Vec<_> = lab.client.enter(|| {
        (0..FLOWS)
            .map(|_| TcpStream::connect_timeout(&target, wait::PATIENCE).expect("connect"))
            .collect()
    });
    wait::until("all flows are live", || {
        (agent.status()["flows"] == FLOWS).then_some(())
    });
    let used = agent.open_descriptors() - descriptors;
    assert!(
        used <= 3 * FLOWS,
        "{used} descriptors for {FLOWS} idle flows"
    );
    let grown = agent.memory_kib("VmRSS").saturating_sub(memory);
    assert!(
        grown <= 4 * FLOWS as u64,
        "{grown} KiB for {FLOWS} idle flows"
    );
    drop(held);
    agent.wait_for_descriptors(descriptors);
    wait::until("no live flow", || {
        (agent.status()["flows"] == 0).then_some(())
    });
}
