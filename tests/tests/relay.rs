//! What the relay does with the bytes and the ends of a flow.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use socket2::SockRef;
use tproxy_tests::{
    Agent, Lab,
    address::FAMILIES,
    pattern,
    peer::{Nginx, Server, listen},
    process::Process,
    wait::{self, uninterrupted},
};

const MB: u64 = 1_000_000;

/// Closing a connection that still holds unread bytes, or with this set, sends RST instead of FIN.
fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .expect("set SO_LINGER");
    drop(stream);
}

/// Servers that tell the connections of a client apart by their order get them in it.
#[test]
fn connections_opened_at_once_reach_the_server_in_their_order() {
    const CONNECTIONS: u8 = 16;
    /// Those that come later after one another than this are not opened at once.
    const AT_ONCE: Duration = Duration::from_millis(5);
    let lab = Lab::new();
    let any = SocketAddr::from(([0_u16; 8], 80));
    let server = lab.server.enter(|| listen(any)).expect("listen");
    let mut agent = lab.agent("--iface cl0 --dport 80 --workers 2");
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 80);
        let open = |number: u8| {
            let start = Instant::now();
            let mut stream = TcpStream::connect(target).expect("a connection");
            let end = Instant::now();
            stream.write_all(&[number]).expect("a connection");
            (start, end, stream)
        };
        let clients: Vec<_> = lab.client.enter(|| (0..CONNECTIONS).map(open).collect());
        let mut order = vec![0; clients.len()];
        for place in 0..clients.len() {
            let (mut accepted, _) = server.accept().expect("a connection");
            let mut number = [0];
            accepted.read_exact(&mut number).expect("a connection");
            order[usize::from(number[0])] = place;
        }
        let mut pairs = 0;
        for (number, pair) in clients.windows(2).enumerate() {
            if pair[1].1 - pair[0].0 < AT_ONCE {
                assert!(order[number] < order[number + 1], "{number}: {order:?}");
                pairs += 1;
            }
        }
        assert!(pairs > 0, "no two were opened at once");
        // The next ones have a turn of their own.
        wait::until("a pause", || {
            (clients.last()?.1.elapsed() > 2 * AT_ONCE).then_some(())
        });
    }
    agent.stop();
}

/// The client ends its side after a short request; 100 MB come back over the half that is still open.
#[test]
fn a_client_that_has_closed_its_half_receives_everything() {
    let lab = Lab::new();
    let server = Server::start(&lab.server, 80, |mut stream| -> io::Result<u64> {
        // The whole request, up to its end: the answer starts when the client's FIN has come through.
        let request = pattern::read_to_end(&mut stream)?;
        pattern::write(&mut stream, 100 * MB)?;
        Ok(request)
    });
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        let mut stream = lab.client.connect((family.near(), 80).into()).unwrap();
        pattern::write(&mut stream, 1_000).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(pattern::read_to_end(&mut stream).unwrap(), 100 * MB);
        assert_eq!(server.outcome().unwrap(), 1_000);
        let flow = agent.flow_of(stream.local_addr().unwrap());
        assert_eq!(
            (flow.sent, flow.received, flow.end.as_str()),
            (1_000, 100 * MB, "fin")
        );
    }
    assert_eq!(agent.stop().len(), 2);
}

/// The server ends its side first; 100 MB go to it over the half that is still open.
#[test]
fn a_server_that_has_closed_its_half_receives_everything() {
    let lab = Lab::new();
    let server = Server::start(&lab.server, 80, |mut stream| -> io::Result<u64> {
        pattern::write(&mut stream, 1_000)?;
        stream.shutdown(Shutdown::Write)?;
        pattern::read_to_end(&mut stream)
    });
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        let mut stream = lab.client.connect((family.near(), 80).into()).unwrap();
        assert_eq!(pattern::read_to_end(&mut stream).unwrap(), 1_000);
        pattern::write(&mut stream, 100 * MB).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.outcome().unwrap(), 100 * MB);
        let flow = agent.flow_of(stream.local_addr().unwrap());
        assert_eq!(
            (flow.sent, flow.received, flow.end.as_str()),
            (100 * MB, 1_000, "fin")
        );
    }
    assert_eq!(agent.stop().len(), 2);
}

/// Both sides send 50 MB at once, in writes and reads of odd sizes.
#[test]
fn both_directions_at_once_are_byte_exact() {
    let lab = Lab::new();
    let server = Server::start(&lab.server, 80, both_ways);
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        let stream = lab.client.connect((family.near(), 80).into()).unwrap();
        let client = stream.local_addr().unwrap();
        assert_eq!(both_ways(stream).unwrap(), 50 * MB);
        assert_eq!(server.outcome().unwrap(), 50 * MB);
        let flow = agent.flow_of(client);
        assert_eq!((flow.sent, flow.received), (50 * MB, 50 * MB));
    }
    assert_eq!(agent.stop().len(), 2);
}

fn both_ways(mut stream: TcpStream) -> io::Result<u64> {
    let mut sending = stream.try_clone()?;
    let sender = std::thread::spawn(move || {
        pattern::write(&mut sending, 50 * MB)?;
        sending.shutdown(Shutdown::Write)
    });
    let received = pattern::read_to_end(&mut stream)?;
    sender.join().expect("the sender does not panic")?;
    Ok(received)
}

/// A conversation of single bytes: nothing is held back, nothing is lost.
#[test]
fn single_bytes_go_back_and_forth() {
    let lab = Lab::new();
    let _echo = Server::start(&lab.server, 80, echo);
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        let mut stream = lab.client.connect((family.near(), 80).into()).unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in 0..=255 {
            stream.write_all(&[byte]).unwrap();
            let mut answer = [0];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, [byte]);
        }
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(uninterrupted(|| stream.read(&mut [0])).unwrap(), 0);
        let flow = agent.flow_of(stream.local_addr().unwrap());
        assert_eq!((flow.sent, flow.received), (256, 256));
    }
    assert_eq!(agent.stop().len(), 2);
}

fn echo(mut stream: TcpStream) -> io::Result<u64> {
    let mut sink = stream.try_clone()?;
    io::copy(&mut stream, &mut sink)
}

/// A reset of the client reaches the server as a reset, never as an end.
#[test]
fn a_reset_of_the_client_reaches_the_server() {
    let lab = Lab::new();
    let server = Server::start(&lab.server, 80, |mut stream: TcpStream| {
        stream.write_all(b"hello")?;
        io::copy(&mut stream, &mut io::sink())
    });
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        let mut stream = lab.client.connect((family.near(), 80).into()).unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        stream.write_all(b"half of a").unwrap();
        let client = stream.local_addr().unwrap();
        reset(stream);
        let error = server
            .outcome()
            .expect_err("the server sees no end of data");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(agent.flow_of(client).end, "client-reset");
    }
    assert_eq!(agent.stop().len(), 2);
}

/// A reset of the server reaches the client as a reset, never as an end.
#[test]
fn a_reset_of_the_server_reaches_the_client() {
    let lab = Lab::new();
    let _server = Server::start(&lab.server, 80, |mut stream: TcpStream| {
        stream
            .read_exact(&mut [0; 5])
            .expect("the client's greeting");
        reset(stream);
    });
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        let mut stream = lab.client.connect((family.near(), 80).into()).unwrap();
        stream.write_all(b"hello").unwrap();
        let error = uninterrupted(|| stream.read(&mut [0; 16]))
            .expect_err("the client sees no end of data");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(
            agent.flow_of(stream.local_addr().unwrap()).end,
            "upstream-reset"
        );
    }
    assert_eq!(agent.stop().len(), 2);
}

/// A reset after the other side has closed its half: the half that is still open ends with the reset.
#[test]
fn a_reset_after_half_close_is_passed_on() {
    let lab = Lab::new();
    let _resetting = Server::start(&lab.server, 80, |mut stream: TcpStream| {
        pattern::read_to_end(&mut stream).expect("the client's half");
        reset(stream);
    });
    let closing = Server::start(&lab.server, 81, |mut stream: TcpStream| {
        stream.shutdown(Shutdown::Write)?;
        io::copy(&mut stream, &mut io::sink())
    });
    let mut agent = lab.agent("--iface cl0 --dport 80,81");
    for family in FAMILIES {
        let mut stream = lab.client.connect((family.near(), 80).into()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let error = uninterrupted(|| stream.read(&mut [0; 16]))
            .expect_err("the client sees no end of data");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let client = stream.local_addr().unwrap();
        assert_eq!(agent.flow_of(client).end, "upstream-reset");

        let mut stream = lab.client.connect((family.near(), 81).into()).unwrap();
        assert_eq!(uninterrupted(|| stream.read(&mut [0; 16])).unwrap(), 0);
        let client = stream.local_addr().unwrap();
        reset(stream);
        let error = closing
            .outcome()
            .expect_err("the server sees no end of data");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(agent.flow_of(client).end, "client-reset");
    }
    assert_eq!(agent.stop().len(), 4);
}

/// A server that refuses: the client is told with a reset, at once.
#[test]
fn a_refused_upstream_is_told_to_the_client() {
    let lab = Lab::new();
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        assert_told_within(&lab, (family.server(), 80).into(), Duration::from_secs(2));
    }
    assert_eq!(
        agent.stop().len(),
        2,
        "a flow that failed is reported as well"
    );
}

/// No route to the server, or one that is prohibited or leads nowhere: the client is told with a reset, at once, and
/// the flow line says so.
#[test]
fn an_unreachable_upstream_is_told_to_the_client() {
    let lab = Lab::new();
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for kind in ["unreachable", "prohibit", "blackhole"] {
        // The agent's own route, not that of forwarded packets: with iif the kernel would refuse before steering.
        lab.gateway.ip(&format!(
            "route replace {kind} 198.51.100.0/24\nroute replace {kind} 2001:db8:2::/48"
        ));
        for family in FAMILIES {
            assert_told_within(&lab, (family.far(), 80).into(), Duration::from_secs(2));
        }
    }
    let flows = agent.stop();
    assert_eq!(flows.len(), 6, "a flow that failed is reported as well");
    for flow in flows {
        assert_eq!(flow.end, "unreachable", "{flow:?}");
    }
}

/// A server that does not answer at all: the client is told when the bound of connecting has passed.
#[test]
fn a_silent_upstream_is_told_to_the_client_within_the_bound() {
    let lab = Lab::new();
    lab.server.nft(
        "table inet silent {\n chain input {\n type filter hook input priority 0; policy accept;\n tcp dport 80 drop\n }\n}",
    );
    let mut agent = lab.agent("--iface cl0 --dport 80 --connect-timeout 1");
    std::thread::scope(|scope| {
        for family in FAMILIES {
            let lab = &lab;
            scope.spawn(move || {
                let took =
                    assert_told_within(lab, (family.server(), 80).into(), Duration::from_secs(4));
                assert!(
                    took >= Duration::from_millis(900),
                    "the server has its time to answer, not {took:?}"
                );
            });
        }
    });
    assert_eq!(
        agent.stop().len(),
        2,
        "a flow that failed is reported as well"
    );
}

/// Connects and reads: it fails with a reset or a refusal (never with a clean end) within `bound`. Returns the time.
#[track_caller]
fn assert_told_within(lab: &Lab, target: SocketAddr, bound: Duration) -> Duration {
    let start = Instant::now();
    let answer = lab
        .client
        .connect(target)
        .and_then(|mut stream| uninterrupted(|| stream.read(&mut [0; 16])));
    let took = start.elapsed();
    let error = answer.expect_err("the client is told that there is no server");
    assert!(
        [
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::ConnectionRefused
        ]
        .contains(&error.kind()),
        "{target}: {error}"
    );
    let bound = wait::scaled(bound);
    assert!(took < bound, "{target}: told after {took:?}");
    took
}

/// When the agent is killed between two parts, both ends see a reset: a clean end would pass for the end of the data.
/// Of streams that move bytes at that moment, see `leftovers`.
#[test]
fn a_killed_agent_resets_idle_flows() {
    let lab = Lab::new();
    let server = Server::start(&lab.server, 80, |mut stream: TcpStream| {
        stream.write_all(b"first part")?;
        io::copy(&mut stream, &mut io::sink())
    });
    let mut agent = lab.agent("--iface cl0 --dport 80");
    let mut streams =
        FAMILIES.map(|family| lab.client.connect((family.near(), 80).into()).unwrap());
    for stream in &mut streams {
        stream.read_exact(&mut [0; 10]).unwrap();
        stream.write_all(b"first part").unwrap();
    }
    agent.kill();
    for stream in &mut streams {
        let error = uninterrupted(|| stream.read(&mut [0; 16]))
            .expect_err("the client sees no end of data");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    for _ in FAMILIES {
        let error = server
            .outcome()
            .expect_err("the server sees no end of data");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

/// curl fetches a file from nginx, over both families and with both closing orders that HTTP has.
#[test]
fn curl_fetches_files_from_nginx() {
    let lab = Lab::new();
    let nginx = Nginx::start(&lab.server, 80);
    let mut content = Vec::new();
    pattern::write(&mut content, 30 * MB).unwrap();
    std::fs::write(nginx.root().join("large"), &content).unwrap();
    let mut agent = lab.agent("--iface cl0 --dport 80");
    let directory = tempfile::tempdir().unwrap();
    for (host, seen) in [("192.0.2.9", "10.77.2.1"), ("[2001:db8:1::9]", "fd77:2::1")] {
        let who = lab.client.output(&format!("curl -sS http://{host}/who"));
        assert_eq!(who.split(' ').next(), Some(seen), "nginx sees the gateway");
        let file = directory.path().join("large");
        lab.client.run(&format!(
            "curl -sS -m 20 -o {} http://{host}/large",
            file.display()
        ));
        assert!(
            std::fs::read(&file).unwrap() == content,
            "the file is the same"
        );
        // HTTP/1.0 without a length: the server's end is the end of the data.
        let answer = lab
            .client
            .output(&format!("curl -sS -0 -m 20 http://{host}/who"));
        assert_eq!(answer.split(' ').next(), Some(seen));
    }
    assert_eq!(agent.stop().len(), 6);
}

/// ncat and socat talk to each other: what one sends before it ends its half comes back.
#[test]
fn ncat_and_socat_converse() {
    let lab = Lab::new();
    let _socat = Process::start(
        &mut lab
            .server
            .command_line("socat TCP6-LISTEN:80,fork,reuseaddr PIPE"),
    );
    lab.server.wait_for_listener(80);
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for address in ["192.0.2.9", "2001:db8:1::9"] {
        let mut command = lab.client.command("sh");
        command.args([
            "-c",
            &format!("seq 1 20000 | ncat {address} 80 | sha256sum"),
        ]);
        let answer = output(&mut command);
        assert_eq!(
            answer,
            output(Command::new("sh").args(["-c", "seq 1 20000 | sha256sum"]))
        );
    }
    assert_eq!(agent.stop().len(), 2);
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("run a shell");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// iperf3 with four streams, its control connection beside them, in both directions.
#[test]
fn iperf3_measures_through_the_agent() {
    // The sender stops when it has handed over all, and the receiver does not wait for what is in buffers then: up to
    // 20 MB of each stream.
    const SENT: u64 = 200 * MB;
    const RECEIVED: u64 = 50 * MB;
    let lab = Lab::new();
    let _server = Process::start(&mut lab.server.command_line("iperf3 -s -p 5201"));
    lab.server.wait_for_listener(5201);
    let mut agent = lab.agent("--iface cl0 --dport 5201");
    for (address, direction) in [("192.0.2.9", ""), ("2001:db8:1::9", "-R")] {
        let report = lab.client.output(&format!(
            "iperf3 -J -c {address} -P 4 -n {SENT} {direction}"
        ));
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let received = report["end"]["sum_received"]["bytes"]
            .as_u64()
            .unwrap_or_else(|| panic!("{report}"));
        assert!(received >= RECEIVED, "{received} bytes received");
        wait_until_no_flow_is_live(&agent);
    }
    let flows = agent.stop();
    assert_eq!(
        flows.len(),
        10,
        "four streams and one control connection each time"
    );
}

fn wait_until_no_flow_is_live(agent: &Agent) {
    wait::until("no live flow", || {
        (agent.status()["flows"] == 0).then_some(())
    });
}
