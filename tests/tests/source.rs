//! Rules with `source = client`: servers see the client's own address.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
};

use serde_json::json;
use tproxy_tests::{
    Agent, Exchange, Family, Lab, Namespace, Snapshot,
    address::FAMILIES,
    agent::{ATTACH_MODES, unique_instance},
    exchange::assert_goes_on,
    pattern,
    peer::{Server, Witness},
    wait::{self, uninterrupted},
};

const MB: u64 = 1_000_000;

/// The server sees the client's address, without the rule the gateway's; flows that begin on the server's side are left
/// alone, and nothing is left in the end.
#[test]
fn the_server_sees_the_client() {
    for mode in ATTACH_MODES {
        let lab = Lab::new();
        let _at_the_server = [80, 81, 82].map(|port| Witness::start(&lab.server, port));
        let _at_the_client = Witness::start(&lab.client, 80);
        let instance = unique_instance();
        let before = Snapshot::of(&lab.gateway, &instance);
        let arguments = format!("--iface cl0 --name client --dport 80 --source client {mode}");
        let mut agent = Agent::start_under(&lab.gateway, &instance, "", &arguments);
        agent.run("rule add --name agent --dport 81");
        assert_eq!(agent.status()["interfaces"], json!(["cl0"]));
        assert_eq!(agent.status()["answers_only"], json!(["sv0"]));
        let shown = agent.output("status");
        assert!(shown.contains("cl0, sv0 (answers only)"), "{shown}");
        for forwarding in [1, 0] {
            for family in FAMILIES {
                assert_client_is_seen(&agent, &lab.ask(family.near(), 80));
                lab.ask(family.near(), 81).assert_relayed(&agent);
            }
            if forwarding == 1 {
                lab.ask(Family::V4.near(), 82).assert_direct(&agent);
                for family in FAMILIES {
                    let from_the_server = Exchange::of(&lab.server, (family.client(), 80).into());
                    from_the_server.assert_direct(&agent);
                }
                assert!(agent.counter("answers_only") >= 2);
                lab.gateway.sysctl("net.ipv4.ip_forward", 0);
                lab.gateway.sysctl("net.ipv6.conf.all.forwarding", 0);
            }
        }
        assert_eq!(agent.status()["fallbacks"], json!(0));
        lab.gateway.sysctl("net.ipv4.ip_forward", 1);
        lab.gateway.sysctl("net.ipv6.conf.all.forwarding", 1);
        agent.stop();
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    }
}

#[track_caller]
fn assert_client_is_seen(agent: &Agent, exchange: &Exchange) {
    assert_eq!(
        exchange.seen_client.ip(),
        exchange.client.ip(),
        "{exchange:?}"
    );
    assert_eq!(exchange.seen_target, exchange.target);
    let flow = agent.flow_between(exchange.client, exchange.target);
    assert_eq!(flow.upstream, "direct");
}

/// Where reverse paths are checked, answers arrive all the same.
#[test]
fn answers_pass_a_strict_check_of_reverse_paths() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    for (rp_filter, src_valid_mark) in [(1, 0), (1, 1), (2, 1)] {
        for interface in ["all", "cl0", "sv0"] {
            let key = format!("net.ipv4.conf.{interface}.rp_filter");
            lab.gateway.sysctl(&key, rp_filter);
        }
        lab.gateway
            .sysctl("net.ipv4.conf.all.src_valid_mark", src_valid_mark);
        let mut agent = lab.agent("--iface cl0 --dport 80 --source client");
        assert_client_is_seen(&agent, &lab.ask(Family::V4.near(), 80));
        agent.stop();
    }
}

/// 100 MB each way, at once.
#[test]
fn long_streams_are_exact() {
    let lab = Lab::new();
    let server = Server::start(&lab.server, 80, |mut stream| {
        let peer = stream.peer_addr()?.ip().to_canonical();
        let mut sending = stream.try_clone()?;
        let sender = std::thread::spawn(move || {
            pattern::write(&mut sending, 100 * MB)?;
            sending.shutdown(std::net::Shutdown::Write)
        });
        let received = pattern::read_to_end(&mut stream)?;
        sender.join().expect("no panic")?;
        std::io::Result::Ok((peer, received))
    });
    let mut agent = lab.agent("--iface cl0 --dport 80 --source client");
    for family in FAMILIES {
        let mut stream = lab.client.connect((family.near(), 80).into()).unwrap();
        let mut sending = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            pattern::write(&mut sending, 100 * MB)?;
            sending.shutdown(std::net::Shutdown::Write)
        });
        assert_eq!(pattern::read_to_end(&mut stream).unwrap(), 100 * MB);
        sender.join().unwrap().unwrap();
        assert_eq!(server.outcome().unwrap(), (family.client(), 100 * MB));
    }
    agent.stop();
}

/// Datagrams go out from the client's address as well, long ones in fragments, and their answers come back.
#[test]
fn datagrams_come_from_the_client() {
    for mode in ATTACH_MODES {
        let lab = Lab::new();
        let arguments = format!("--iface cl0 --proto udp --dport 53,54 --source client {mode}");
        let mut agent = lab.agent(&arguments);
        for family in FAMILIES {
            let target: SocketAddr = (family.near(), 54).into();
            let server = bound(&lab.server, target);
            let client = bound(&lab.client, (family.client(), 0).into());
            client.connect(target).unwrap();
            let mut buffer = [0; 9000];
            for length in [1, 1400, 4000, 0, 8000] {
                client.send(&vec![7; length]).unwrap();
                let (received, from) = uninterrupted(|| server.recv_from(&mut buffer)).unwrap();
                assert_eq!((received, from.ip()), (length, family.client()));
                server.send_to(&buffer[..received], from).unwrap();
                assert_eq!(uninterrupted(|| client.recv(&mut buffer)).unwrap(), length);
            }
        }
        assert_eq!(agent.status()["fallbacks"], json!(0));
        let taken = agent.counter("established_udp");
        assert!(taken >= 10, "{taken} answers were found");
        agent.stop();
    }
}

fn bound(namespace: &Namespace, address: SocketAddr) -> UdpSocket {
    let socket = namespace.enter(|| UdpSocket::bind(address));
    let socket = socket.unwrap_or_else(|error| panic!("bind {address}: {error}"));
    socket.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    socket
}

/// What refuses a flow is addressed to the client, and told to it by the agent: a RST, and ICMP errors.
#[test]
fn refusals_reach_the_client() {
    let lab = Lab::new();
    lab.server.nft(
        "table inet t {\nchain c {\ntype filter hook input priority 0\ntcp dport 81 reject with icmpx host-unreachable\n}\n}",
    );
    let mut agent = lab.agent("--iface cl0 --proto any --dport 79-81 --source client");
    for family in FAMILIES {
        for (port, end) in [(80, "refused"), (81, "unreachable")] {
            let stream = lab.client.connect((family.near(), port).into());
            if let Ok(mut stream) = stream {
                let error = uninterrupted(|| stream.read(&mut [0])).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                let flow = agent.flow_of(stream.local_addr().unwrap());
                assert_eq!(flow.end, end);
                assert!(flow.seconds < 3.0, "{flow:?}");
            }
        }
        let client = bound(&lab.client, (family.client(), 0).into());
        client
            .connect(SocketAddr::from((family.near(), 79)))
            .unwrap();
        client.send(b"nobody is there").unwrap();
        let error = uninterrupted(|| client.recv(&mut [0])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    }
    assert!(agent.counter("icmp_error") >= 4);
    agent.stop();
}

/// More flows to one server than there are ports: the rest comes from the gateway's address, and is counted.
#[test]
fn without_a_free_port_the_gateway_is_seen() {
    const PORTS: usize = 8;
    const FLOWS: usize = 12;
    let lab = Lab::new();
    let server = Server::start(&lab.server, 80, |mut stream| -> std::io::Result<()> {
        let peer = stream.peer_addr()?.ip().to_canonical();
        stream.write_all(format!("{peer}\n").as_bytes())?;
        // Holds its port until the client has gone.
        uninterrupted(|| stream.read(&mut [0])).map(drop)
    });
    let mut agent = lab.agent("--iface cl0 --proto any --dport 80,53 --source client");
    lab.gateway
        .sysctl("net.ipv4.ip_local_port_range", "40000 40007");
    for (round, family) in (1..).zip(FAMILIES) {
        let streams: Vec<TcpStream> = (0..FLOWS)
            .map(|_| lab.client.connect((family.near(), 80).into()).unwrap())
            .collect();
        let seen: Vec<_> = streams.iter().map(line).collect();
        let of = |address: std::net::IpAddr| {
            seen.iter()
                .filter(|seen| **seen == address.to_string())
                .count()
        };
        assert_eq!(of(family.client()), PORTS, "{seen:?}");
        assert_eq!(of(family.gateway_upstream()), FLOWS - PORTS, "{seen:?}");
        let counted = round * (FLOWS - PORTS);
        assert_eq!(agent.status()["fallbacks"], json!(counted));
        drop(streams);
        for _ in 0..FLOWS {
            server.outcome().unwrap();
        }
    }
    agent.wait_for_log("the server sees this host's address instead of the client's");

    for family in FAMILIES {
        let before = agent.status()["fallbacks"].as_u64().unwrap();
        let target: SocketAddr = (family.near(), 53).into();
        let server = bound(&lab.server, target);
        let mut seen = Vec::new();
        let clients: Vec<UdpSocket> = (0..FLOWS)
            .map(|_| {
                let client = bound(&lab.client, (family.client(), 0).into());
                client.send_to(b"who", target).unwrap();
                let (_, from) = uninterrupted(|| server.recv_from(&mut [0; 8])).unwrap();
                server.send_to(b"you", from).unwrap();
                assert_eq!(uninterrupted(|| client.recv(&mut [0; 8])).unwrap(), 3);
                seen.push(from.ip());
                client
            })
            .collect();
        let of = |address| seen.iter().filter(|seen| **seen == address).count();
        assert_eq!(of(family.client()), PORTS, "{seen:?}");
        assert_eq!(of(family.gateway_upstream()), FLOWS - PORTS, "{seen:?}");
        let fallbacks = agent.status()["fallbacks"].as_u64().unwrap() - before;
        assert_eq!(fallbacks, (FLOWS - PORTS) as u64);
        drop(clients);
    }
    agent.stop();
}

fn line(mut stream: &TcpStream) -> String {
    let mut text = String::new();
    let mut octet = [0];
    while uninterrupted(|| stream.read(&mut octet)).unwrap() == 1 && octet != *b"\n" {
        text.push(octet[0].into());
    }
    text
}

/// An interface that comes later, with a route to servers, is looked at as well; when it goes it is forgotten.
#[test]
fn an_interface_that_comes_later_brings_answers() {
    for mode in ATTACH_MODES {
        let lab = Lab::new();
        let _witness = Witness::start(&lab.server, 80);
        let mut agent = lab.agent(&format!("--iface cl0 --dport 80 --source client {mode}"));
        let before = Snapshot::of(&lab.gateway, agent.instance()).without_files();
        lab.gateway.ip(&format!(
            "link add ex0 type veth peer name ex1 netns {}",
            lab.server.name()
        ));
        // The server sends its answers back by the new link.
        lab.server.ip("link set ex1 up\n\
             addr add 10.77.9.2/24 dev ex1\n\
             addr add fd77:9::2/64 dev ex1 nodad\n\
             route add 10.77.1.0/24 via 10.77.9.1\n\
             route add fd77:1::/64 via fd77:9::1");
        lab.gateway.ip("link set ex0 up\n\
             addr add 10.77.9.1/24 dev ex0\n\
             addr add fd77:9::1/64 dev ex0 nodad");
        await_answers_only(&agent, &["sv0", "ex0"]);
        for target in ["10.77.9.2:80", "[fd77:9::2]:80"] {
            let exchange = Exchange::of(&lab.client, target.parse().unwrap());
            assert_client_is_seen(&agent, &exchange);
        }
        lab.gateway.run("ip link set ex0 down");
        lab.gateway.run("ip link set ex0 name ex2");
        await_answers_only(&agent, &["sv0", "ex2"]);
        lab.gateway.run("ip link del ex2");
        await_answers_only(&agent, &["sv0"]);
        wait::until("nothing of the interface is left", || {
            (Snapshot::of(&lab.gateway, agent.instance()).without_files() == before).then_some(())
        });
        agent.stop();
    }
}

#[track_caller]
fn await_answers_only(agent: &Agent, names: &[&str]) {
    wait::until(&format!("answers only on {names:?}"), || {
        (agent.status()["answers_only"] == json!(names)).then_some(())
    });
}

/// A user may attach such an interface for good, and detach it again; flows go on through all of it, and after their
/// rule is gone.
#[test]
fn an_interface_for_answers_is_attached_and_detached() {
    for mode in ATTACH_MODES {
        let lab = Lab::new();
        let _echo = Server::start(&lab.server, 80, |mut stream| {
            let mut answering = stream.try_clone()?;
            std::io::copy(&mut stream, &mut answering)
        });
        let _at_the_client = Witness::start(&lab.client, 81);
        let from_the_server = || Exchange::of(&lab.server, (Family::V4.client(), 81).into());
        let mut agent = lab.agent(&format!("--iface cl0 {mode}"));
        assert_eq!(agent.status()["answers_only"], json!([]));
        agent.run("rule add --name web --dport 80,81 --source client");
        assert_eq!(agent.status()["answers_only"], json!(["sv0"]));
        agent
            .attempt("detach sv0")
            .assert_refused(1, &["sv0", "not attached"]);
        let mut streams = FAMILIES.map(|family| {
            let stream = lab.client.connect((family.near(), 80).into());
            stream.unwrap()
        });
        let mut go_on = || streams.iter_mut().for_each(assert_goes_on);
        go_on();
        from_the_server().assert_direct(&agent);

        agent.run("attach sv0");
        assert_eq!(agent.status()["interfaces"], json!(["cl0", "sv0"]));
        assert_eq!(agent.status()["answers_only"], json!([]));
        go_on();
        assert_client_is_seen(&agent, &from_the_server());

        agent.run("detach sv0");
        assert_eq!(agent.status()["interfaces"], json!(["cl0"]));
        assert_eq!(agent.status()["answers_only"], json!(["sv0"]));
        go_on();
        from_the_server().assert_direct(&agent);

        agent.run("rule del web");
        assert_eq!(agent.status()["answers_only"], json!(["sv0"]));
        // Without the program on sv0 a change of routes would be the end of them.
        lab.gateway.ip("route add 203.0.113.0/24 dev lo");
        go_on();
        drop(streams);
        agent.stop();
    }
}

/// What an agent leaves that was killed is removed.
#[test]
fn nothing_is_left_of_a_killed_agent() {
    for mode in ATTACH_MODES {
        let lab = Lab::new();
        let _witness = Witness::start(&lab.server, 80);
        let instance = unique_instance();
        let before = Snapshot::of(&lab.gateway, &instance);
        let arguments = format!("--iface cl0 --dport 80 --source client {mode}");
        let mut agent = Agent::start_under(&lab.gateway, &instance, "", &arguments);
        assert_client_is_seen(&agent, &lab.ask(Family::V4.near(), 80));
        agent.kill();
        // The next agent goes on with it, or makes it anew.
        let mut next = Agent::start_under(&lab.gateway, &instance, "", &arguments);
        assert_eq!(next.status()["answers_only"], json!(["sv0"]));
        assert_client_is_seen(&next, &lab.ask(Family::V6.near(), 80));
        next.kill();
        next.run("unload");
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    }
}

/// Only forwarded flows have a client whose address means something to a server elsewhere.
#[test]
fn other_scopes_have_no_source() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80");
    for (scope, reason) in [("local", "this host"), ("inbound", "past the relay")] {
        let attempt = agent.attempt(&format!("rule add --scope {scope} --source client"));
        attempt.assert_refused(2, &["source", scope, reason]);
    }
    agent
        .attempt("rule add --action pass --source client")
        .assert_refused(2, &["source", "pass"]);
}
