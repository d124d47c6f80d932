//! Flows that are handed to the listener of another program on the gateway.

use std::{
    io::{self, Read as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use tproxy_tests::{
    Agent, DatagramClient, Exchange, Family, Lab, Namespace, Snapshot,
    address::FAMILIES,
    agent::unique_instance,
    pattern,
    peer::{DatagramWitness, Server, Witness, listen, listen_prepared},
    process::Process,
    wait::{self, uninterrupted},
};

/// Where the listener is.
const PORT: u16 = 3129;

/// How soon a listener that is there again gets its flows.
const SOON: Duration = Duration::from_secs(1);

/// A listener that can answer for any address.
fn transparent(namespace: &Namespace, address: SocketAddr) -> TcpListener {
    let listener =
        namespace.enter(|| listen_prepared(address, |socket| socket.set_ip_transparent_v4(true)));
    listener.unwrap_or_else(|error| panic!("listen at {address}: {error}"))
}

fn both_families() -> SocketAddr {
    SocketAddr::new(Family::V6.any(), PORT)
}

/// Routed flows, and those of this host's own processes, go to a transparent listener, which sees both ends as they are.
/// Other ports go direct.
#[test]
fn flows_are_handed_to_a_transparent_listener() {
    let lab = Lab::new();
    let unseen = Witness::start(&lab.server, 80);
    let _other = Witness::start(&lab.server, 81);
    let listener = Witness::over(transparent(&lab.gateway, both_families()));
    let mut agent = lab.agent(&format!(
        "--iface cl0 --dport 80 --action redirect --to [::]:{PORT} --name forward"
    ));
    agent.run(&format!(
        "rule add --scope local --dport 80 --action redirect --to [::]:{PORT} --name local"
    ));
    for family in FAMILIES {
        for namespace in [&lab.client, &lab.gateway] {
            let exchange = Exchange::of(namespace, (family.near(), 80).into());
            exchange.assert_direct(&agent);
            assert_eq!(listener.clients(), [exchange.client]);
            Exchange::of(namespace, (family.near(), 81).into()).assert_direct(&agent);
            assert_eq!(listener.clients(), []);
        }
    }
    assert_eq!(unseen.clients(), []);
    for namespace in [&lab.client, &lab.gateway] {
        assert_eq!(namespace.counter("TcpExt", "TCPSynRetrans"), 0);
    }
    let flows = |rule: &serde_json::Value| rule["flows"].as_u64();
    assert!(agent.rules().iter().all(|rule| flows(rule) == Some(2)));
    assert_eq!(agent.stop(), [], "the agent has no part in it");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_unproxied();
    }
    assert_eq!(unseen.clients().len(), 2);
}

/// A listener at one address of IPv4, as one that is for this host only, takes flows to any. Those of IPv6 are not its.
#[test]
fn a_listener_at_one_address_of_ipv4_takes_flows_to_any() {
    takes_flows_to_any(3132, Family::V4, Family::V6);
}

/// The same of IPv6.
#[test]
fn a_listener_at_one_address_of_ipv6_takes_flows_to_any() {
    takes_flows_to_any(3133, Family::V6, Family::V4);
}

/// Checks that a listener at one address takes the flows of its own family, and that those of the other follow
/// `on_missing`. No other namespace has a listener at the port.
fn takes_flows_to_any(port: u16, own: Family, other: Family) {
    let lab = Lab::new();
    let servers = [80, 81].map(|port| Witness::start(&lab.server, port));
    for address in [own.loopback(), own.gateway()] {
        let address = SocketAddr::new(address, port);
        let listener = Witness::over(transparent(&lab.gateway, address));
        let to = format!("--action redirect --to {address}");
        let mut agent = lab.agent(&format!("--iface cl0 --dport 80 {to}"));
        agent.run(&format!("rule add --dport 81 {to} --on-missing pass"));
        agent.run(&format!("rule add --scope local --dport 80 {to}"));
        agent.run(&format!(
            "rule add --scope local --dport 81 {to} --on-missing pass"
        ));
        for (namespace, whose) in [(&lab.client, "forward"), (&lab.gateway, "local")] {
            for port in [80, 81] {
                Exchange::of(namespace, (own.near(), port).into()).assert_direct(&agent);
                assert_eq!(listener.clients().len(), 1, "{whose} {address}");
            }
            let refused = namespace.connect((other.near(), 80).into());
            let refused = refused.expect_err("a refusal").kind();
            assert_eq!(
                refused,
                io::ErrorKind::ConnectionRefused,
                "{whose} {address}"
            );
            Exchange::of(namespace, (other.near(), 81).into()).assert_direct(&agent);
            assert_eq!(listener.clients(), []);
        }
        assert_eq!(
            servers.each_ref().map(|server| server.clients().len()),
            [0, 2]
        );
        assert_eq!(agent.stop(), []);
        drop(listener);
        lab.gateway.wait_for_no_listener(port);
    }
}

/// Several processes that share a port (`SO_REUSEPORT`) share the flows, and when one of them ends, the other has them
/// all.
#[test]
fn processes_that_share_a_port_share_the_flows() {
    let lab = Lab::new();
    let mut processes = ["one", "two"].map(|name| (name, socat(&lab.gateway, name)));
    let mut agent = lab.agent(&format!(
        "--iface cl0 --dport 80 --action redirect --to [::]:{PORT}"
    ));
    let both = "both have had a flow";
    wait::until(both, || {
        let names: Vec<_> = (0..12).map(|index| hear(&lab, index).unwrap()).collect();
        let had_one = |name: &str| names.iter().any(|heard| heard == name);
        (had_one("one") && had_one("two")).then_some(())
    });
    processes[0].1.signal(nix::sys::signal::Signal::SIGKILL);
    let _ = processes[0].1.wait();
    for index in 0..24 {
        assert_eq!(hear(&lab, index).unwrap(), "two");
    }
    let _again = socat(&lab.gateway, "one");
    wait::until(both, || {
        let names: Vec<_> = (0..12).map(|index| hear(&lab, index).unwrap()).collect();
        names.iter().any(|heard| heard == "one").then_some(())
    });
    assert_eq!(agent.stop(), []);
}

/// A program that tells each client its name, and whose socket shares its port.
fn socat(namespace: &Namespace, name: &str) -> Process {
    let listen =
        format!("TCP6-LISTEN:{PORT},ipv6only=0,ip-transparent,reuseaddr,reuseport,backlog=64,fork");
    let mut command = namespace.command("socat");
    command.args([listen, format!("SYSTEM:echo {name}")]);
    let process = Process::start(&mut command);
    let listens = || {
        let inodes = namespace.output(&format!("ss -Htlnp sport = :{PORT}"));
        inodes
            .contains(&format!("pid={},", process.id()))
            .then_some(())
    };
    wait::until("the listener of socat", listens);
    process
}

/// What a client hears that connects to the foreign host.
fn hear(lab: &Lab, index: usize) -> io::Result<String> {
    let mut stream = lab
        .client
        .connect((FAMILIES[index % 2].near(), 80).into())?;
    let mut heard = String::new();
    stream.read_to_string(&mut heard)?;
    Ok(heard.trim_end().to_owned())
}

/// A listener that restarts gets its flows again within a second. In between they go direct, or are refused, as the
/// rule's `on_missing` has it, also before it was there for the first time.
#[test]
fn a_listener_that_restarts_gets_its_flows_again() {
    // Elsewhere nobody listens there: a listener of another namespace is refused.
    const PORT: u16 = 3131;
    let address = SocketAddr::new(Family::V6.any(), PORT);
    let lab = Lab::new();
    let servers = [80, 81].map(|port| Witness::start(&lab.server, port));
    let to = format!("--action redirect --to [::]:{PORT}");
    let mut agent = lab.agent(&format!("--iface cl0 --dport 80 {to} --name closed"));
    agent.run(&format!(
        "rule add --dport 81 {to} --on-missing pass --name open"
    ));
    for _ in 0..2 {
        for family in FAMILIES {
            let refused = lab.connect_at_once((family.near(), 80).into());
            assert_eq!(
                refused.unwrap_err().kind(),
                io::ErrorKind::ConnectionRefused
            );
            lab.ask(family.near(), 81).assert_direct(&agent);
        }
        assert_eq!(
            servers.each_ref().map(|server| server.clients().len()),
            [0, 2]
        );

        let listener = Witness::over(transparent(&lab.gateway, address));
        assert_new_flows_are_taken(&lab, &agent);
        assert_eq!(listener.clients().len(), 5, "it has them all");
        assert_eq!(
            servers.each_ref().map(|server| server.clients().len()),
            [0, 0]
        );
        drop(listener);
        // Its thread has a socket open until it has seen the end.
        lab.gateway.wait_for_no_listener(PORT);
    }
    assert_eq!(agent.stop(), []);
}

/// Checks that a listener that is there since now gets the flows to two ports soon: one to find out when, and four.
#[track_caller]
fn assert_new_flows_are_taken(lab: &Lab, agent: &Agent) {
    let target = SocketAddr::new(Family::V4.near(), 80);
    let found = wait::within(SOON, || Exchange::attempt(&lab.client, target).ok());
    found
        .expect("a listener that was found")
        .assert_direct(agent);
    for family in FAMILIES {
        for port in [80, 81] {
            lab.ask(family.near(), port).assert_direct(agent);
        }
    }
}

/// What `status` says of listeners is about the rule that is there now: one that comes in the place of another that is
/// gone begins anew, and nothing of the former listener is said to be lost.
#[test]
fn the_listeners_of_a_rule_are_not_those_of_the_one_before() {
    let lab = Lab::new();
    let listeners = [PORT, PORT + 10].map(|port| {
        let address = SocketAddr::new(Family::V6.any(), port);
        Witness::over(transparent(&lab.gateway, address))
    });
    let mut agent = lab.agent("--iface cl0");
    for (index, port) in [PORT, PORT + 10, PORT].into_iter().enumerate() {
        agent.run(&format!(
            "rule add --dport 80 --action redirect --to [::]:{port} --name rule-{index}"
        ));
        wait::until("the listener is followed", || {
            let status = agent.status();
            let [of_rule] = status["listeners"].as_array()?.as_slice() else {
                panic!("{status}");
            };
            (of_rule["found"] == 1 && of_rule["present"] == 1).then(|| {
                assert_eq!(of_rule["lost"], 0, "{of_rule}");
            })
        });
        lab.ask(Family::V4.near(), 80).assert_direct(&agent);
        agent.run("rule flush");
    }
    let seen = listeners.each_ref().map(|it| it.clients().len());
    assert_eq!(seen, [2, 1]);
    assert!(!agent.log().contains("is gone"), "they are all there");
    assert_eq!(agent.stop(), []);
}

/// Flows of IPv6 do not fit a listener of IPv4: they follow `on_missing`, and the others are its.
#[test]
fn flows_of_a_family_that_the_listener_has_not_got_follow_on_missing() {
    let lab = Lab::new();
    let servers = [80, 81].map(|port| Witness::start(&lab.server, port));
    let listener = Witness::over(transparent(&lab.gateway, (Family::V4.any(), PORT).into()));
    let to = format!("--action redirect --to 0.0.0.0:{PORT}");
    let mut agent = lab.agent(&format!("--iface cl0 --dport 80 {to} --name closed"));
    agent.run(&format!(
        "rule add --dport 81 {to} --on-missing pass --name open"
    ));
    agent.run(&format!(
        "rule add --scope local --dport 80 {to} --name closed-local"
    ));
    agent.run(&format!(
        "rule add --scope local --dport 81 {to} --on-missing pass --name open-local"
    ));
    for namespace in [&lab.client, &lab.gateway] {
        for port in [80, 81] {
            Exchange::of(namespace, (Family::V4.near(), port).into()).assert_direct(&agent);
            assert_eq!(listener.clients().len(), 1);
        }
        let refused = namespace.connect((Family::V6.near(), 80).into());
        assert_eq!(
            refused.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        Exchange::of(namespace, (Family::V6.near(), 81).into()).assert_direct(&agent);
        assert_eq!(listener.clients(), []);
    }
    assert_eq!(
        servers.each_ref().map(|server| server.clients().len()),
        [0, 2]
    );
    assert_eq!(agent.stop(), []);
}

/// A listener that cannot answer for foreign addresses is refused by name, with what to do, and so is one of another
/// namespace. Nothing changes.
#[test]
fn listeners_that_cannot_take_the_flows_are_refused() {
    let lab = Lab::new();
    let _web = Witness::start(&lab.server, 80);
    let _plain = lab.gateway.enter(|| listen(both_families())).unwrap();
    let elsewhere = SocketAddr::new(Family::V6.any(), PORT + 1);
    let _elsewhere = transparent(&lab.client, elsewhere);
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0");
    for (scope, action) in [("forward", "--to [::]"), ("local", "--to [::]")] {
        let rule = format!("rule add --scope {scope} --dport 80 --action redirect {action}");
        agent
            .attempt(&format!("{rule}:{PORT}"))
            .assert_refused(1, &["IP_TRANSPARENT", &PORT.to_string(), "--scope inbound"]);
        agent
            .attempt(&format!("{rule}:{}", PORT + 1))
            .assert_refused(1, &["network namespace", lab.client.name(), "--netns"]);
    }
    assert!(agent.rules().is_empty());
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_direct(&agent);
        Exchange::of(&lab.gateway, (family.near(), 80).into()).assert_direct(&agent);
    }
    agent.stop();
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    let run = format!("run --iface cl0 --dport 80 --action redirect --to [::]:{PORT}");
    agent.attempt(&run).assert_refused(1, &["IP_TRANSPARENT"]);
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// Datagrams go to a UDP socket, with who sent them, and are answered from where they were sent to. Without the socket
/// they follow `on_missing`.
#[test]
fn datagrams_are_handed_to_a_transparent_socket() {
    let lab = Lab::new();
    let servers = [53, 54].map(|port| DatagramWitness::start(&lab.server, port));
    let to = format!("--proto udp --action redirect --to [::]:{PORT}");
    let mut agent = lab.agent(&format!("--iface cl0 --dport 53 {to} --name closed"));
    agent.run(&format!(
        "rule add --dport 54 {to} --on-missing pass --name open"
    ));
    agent.run(&format!(
        "rule add --scope local --dport 53 {to} --name local"
    ));
    let client = |namespace, family: Family, port| {
        DatagramClient::connected(namespace, (family.near(), port).into())
    };
    for family in FAMILIES {
        client(&lab.client, family, 54)
            .ask(b"direct")
            .assert_direct();
        client(&lab.client, family, 53)
            .socket()
            .send(b"lost")
            .unwrap();
        let refused = DatagramClient::try_connected(&lab.gateway, (family.near(), 53).into());
        assert_eq!(
            refused.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
    }
    assert_eq!(servers[0].received(), []);
    assert_eq!(servers[1].received().len(), 2);

    let listener = lab.gateway.enter(|| transparent_datagrams(both_families()));
    listener.set_nonblocking(true).unwrap();
    let found = wait::within(SOON, || {
        client(&lab.client, Family::V4, 53)
            .socket()
            .send(b"there?")
            .unwrap();
        uninterrupted(|| listener.recv_from(&mut [0; 16])).ok()
    });
    found.expect("a socket that was found");
    listener.set_nonblocking(false).unwrap();
    while !drain(&listener) {}
    for family in FAMILIES {
        for (namespace, port) in [(&lab.client, 53), (&lab.client, 54), (&lab.gateway, 53)] {
            let client = client(namespace, family, port);
            client.socket().send(b"question").unwrap();
            let mut buffer = [0; 16];
            let (length, sender) = uninterrupted(|| listener.recv_from(&mut buffer)).unwrap();
            assert_eq!(&buffer[..length], b"question");
            assert_eq!(sender.ip().to_canonical(), client.address().ip());
            assert_eq!(sender.port(), client.address().port());
            // As a program does that answers from where it was asked.
            let answering = lab
                .gateway
                .enter(|| transparent_datagrams((family.near(), port).into()));
            answering.send_to(b"answer", client.address()).unwrap();
            let length = uninterrupted(|| client.socket().recv(&mut buffer)).unwrap();
            assert_eq!(&buffer[..length], b"answer");
        }
    }
    assert_eq!(servers[0].received(), []);
    assert_eq!(servers[1].received(), []);
    assert_eq!(agent.stop(), []);
}

/// Datagrams of the family that the socket is not of follow `on_missing`, whichever family that is.
#[test]
fn datagrams_of_a_family_that_the_socket_has_not_got_follow_on_missing() {
    let lab = Lab::new();
    let servers = [53, 54].map(|port| DatagramWitness::start(&lab.server, port));
    for [own, other] in [FAMILIES, [Family::V6, Family::V4]] {
        let address = SocketAddr::new(own.loopback(), PORT);
        let listener = lab.gateway.enter(|| transparent_datagrams(address));
        listener.set_read_timeout(Some(wait::PATIENCE)).unwrap();
        let to = format!("--proto udp --action redirect --to {address}");
        let mut agent = lab.agent(&format!("--iface cl0 --dport 53 {to}"));
        agent.run(&format!("rule add --dport 54 {to} --on-missing pass"));
        agent.run(&format!("rule add --scope local --dport 53 {to}"));
        agent.run(&format!(
            "rule add --scope local --dport 54 {to} --on-missing pass"
        ));
        for namespace in [&lab.client, &lab.gateway] {
            for port in [53, 54] {
                let target = SocketAddr::new(own.near(), port);
                let client = DatagramClient::connected(namespace, target);
                client.socket().send(b"question").unwrap();
                let (_, sender) = uninterrupted(|| listener.recv_from(&mut [0; 16])).unwrap();
                assert_eq!(sender, client.address());
            }
            let target = SocketAddr::new(other.near(), 54);
            DatagramClient::connected(namespace, target)
                .ask(b"direct")
                .assert_direct();
        }
        let target = SocketAddr::new(other.near(), 53);
        let lost = DatagramClient::connected(&lab.client, target);
        lost.socket().send(b"lost").unwrap();
        wait::until("a datagram that is dropped", || {
            (agent.counter("dropped_missing") == 1).then_some(())
        });
        let refused = DatagramClient::try_connected(&lab.gateway, target);
        assert_eq!(
            refused.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        assert_eq!(servers[0].received(), []);
        assert_eq!(servers[1].received().len(), 2);
        assert_eq!(agent.stop(), []);
    }
}

/// Flows to this host of the family that a listener is not of follow `on_missing`, too, whichever family that is.
#[test]
fn flows_to_this_host_of_a_family_that_the_listener_has_not_got_follow_on_missing() {
    let lab = Lab::new();
    let service = Witness::start(&lab.gateway, 81);
    let addresses = FAMILIES.map(|family| SocketAddr::new(family.gateway(), 81));
    let datagrams = DatagramWitness::bound(&lab.gateway, &addresses);
    for [own, other] in [FAMILIES, [Family::V6, Family::V4]] {
        let address = SocketAddr::new(own.loopback(), PORT);
        let listener = Witness::over(transparent(&lab.gateway, address));
        let taken = lab.gateway.enter(|| transparent_datagrams(address));
        taken.set_read_timeout(Some(wait::PATIENCE)).unwrap();
        let to = format!("--scope inbound --proto any --action redirect --to {address}");
        let mut agent = lab.agent(&format!("{to} --dport 80"));
        agent.run(&format!("rule add {to} --dport 81 --on-missing pass"));
        for port in [80, 81] {
            lab.ask(own.gateway(), port).assert_direct(&agent);
            assert_eq!(listener.clients().len(), 1);
            let target = SocketAddr::new(own.gateway(), port);
            let client = DatagramClient::connected(&lab.client, target);
            client.socket().send(b"question").unwrap();
            let (_, sender) = uninterrupted(|| taken.recv_from(&mut [0; 16])).unwrap();
            assert_eq!(sender, client.address());
        }
        let refused = lab.connect_at_once((other.gateway(), 80).into());
        assert_eq!(
            refused.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        let refused = DatagramClient::connected(&lab.client, (other.gateway(), 80).into())
            .try_ask(b"refused");
        assert_eq!(
            refused.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        lab.ask(other.gateway(), 81).assert_direct(&agent);
        DatagramClient::connected(&lab.client, (other.gateway(), 81).into())
            .ask(b"direct")
            .assert_direct();
        assert_eq!(service.clients().len(), 1);
        assert_eq!(datagrams.received().len(), 1);
        assert_eq!(agent.stop(), []);
        drop(listener);
        lab.gateway.wait_for_no_listener(PORT);
    }
}

/// Reads what is left of earlier tries; true when there is nothing more.
fn drain(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).unwrap();
    let is_empty = socket.recv(&mut [0; 16]).is_err();
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    is_empty
}

fn transparent_datagrams(address: SocketAddr) -> UdpSocket {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    if address.is_ipv6() {
        socket.set_ip_transparent_v6(true).unwrap();
    } else {
        socket.set_ip_transparent_v4(true).unwrap();
    }
    socket.bind(&address.into()).unwrap();
    socket.into()
}

/// A rule for both protocols has a listener of either, and the one does not hang on the other.
#[test]
fn a_rule_for_both_protocols_needs_not_both_listeners() {
    let lab = Lab::new();
    let _server = DatagramWitness::start(&lab.server, 80);
    let listener = Witness::over(transparent(&lab.gateway, both_families()));
    let mut agent = lab.agent(&format!(
        "--iface cl0 --proto any --dport 80 --action redirect --to [::]:{PORT} --on-missing pass"
    ));
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_direct(&agent);
        assert_eq!(listener.clients().len(), 1);
        DatagramClient::connected(&lab.client, (family.near(), 80).into())
            .ask(b"direct")
            .assert_direct();
    }
    assert_eq!(agent.stop(), []);
}

/// With the agent killed, the listener keeps getting flows for as long as it is there, and `unload` ends that.
#[test]
fn the_listener_keeps_its_flows_when_the_agent_is_killed() {
    let lab = Lab::new();
    let server = Witness::start(&lab.server, 80);
    let listener = Witness::over(transparent(&lab.gateway, both_families()));
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let run = format!("--iface cl0 --dport 80 --action redirect --to [::]:{PORT}");
    let mut agent = Agent::start_under(&lab.gateway, &instance, "", &run);
    agent.kill();
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_unproxied();
        assert_eq!(listener.clients().len(), 1);
    }
    assert_eq!(server.clients(), []);
    drop(listener);
    lab.gateway.wait_for_no_listener(PORT);
    for family in FAMILIES {
        let refused = lab.connect_at_once((family.near(), 80).into());
        assert_eq!(
            refused.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
    }
    agent.run("unload");
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_unproxied();
    }
}

/// The agent is killed while flows move bytes to the listener and back: they complete, also when the listener has closed
/// meanwhile and a successor of the agent has started. New flows go to the listener, follow `on_missing` without it, and
/// go to the one that the successor finds.
#[test]
fn flows_in_mid_transfer_outlive_the_agent_and_what_follows() {
    // Elsewhere nobody listens there.
    const PORT: u16 = 3132;
    let lab = Lab::new();
    let servers = [80, 81].map(|port| Witness::start(&lab.server, port));
    let address = SocketAddr::new(Family::V6.any(), PORT);
    let listener = Server::over(transparent(&lab.gateway, address), echo);
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let to = format!("--action redirect --to [::]:{PORT}");
    let run = format!("--iface cl0 --dport 80 {to} --name closed --pin");
    let mut agent = Agent::start_under(&lab.gateway, &instance, "", &run);
    agent.run(&format!(
        "rule add --dport 81 {to} --on-missing pass --name open"
    ));
    let target = |family: Family, port| SocketAddr::new(family.near(), port);

    let mut transfers = FAMILIES.map(|family| Transfer::start(&lab, target(family, 80)));
    transfers.iter_mut().for_each(Transfer::advance);
    agent.kill();
    lab.gateway.ip("route add 198.18.0.0/15 dev lo");
    transfers.iter_mut().for_each(Transfer::advance);
    for (family, port) in FAMILIES
        .into_iter()
        .flat_map(|family| [(family, 80), (family, 81)])
    {
        let mut later = Transfer::start(&lab, target(family, port));
        later.advance();
        later.finish();
        assert_eq!(listener.outcome().unwrap(), Transfer::LENGTH);
    }
    let seen = || servers.each_ref().map(|server| server.clients().len());
    assert_eq!(seen(), [0, 0]);

    drop(listener);
    lab.gateway.wait_for_no_listener(PORT);
    for family in FAMILIES {
        let refused = lab.connect_at_once(target(family, 80));
        assert_eq!(
            refused.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        lab.ask(family.near(), 81).assert_unproxied();
    }
    assert_eq!(seen(), [0, 2]);
    transfers.iter_mut().for_each(Transfer::advance);

    let mut successor = Agent::start_under(&lab.gateway, &instance, "", "");
    assert_eq!(successor.rule_names(), ["closed", "open"]);
    transfers.iter_mut().for_each(Transfer::advance);
    let listener = Witness::over(transparent(&lab.gateway, address));
    assert_new_flows_are_taken(&lab, &successor);
    assert_eq!(listener.clients().len(), 5, "it has them all");
    assert_eq!(seen(), [0, 0]);
    transfers.into_iter().for_each(Transfer::finish);
    lab.gateway.ip("route del 198.18.0.0/15 dev lo");
    assert_eq!(successor.stop(), []);
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// Bytes on their way to an [`echo`] and back, more than all sockets hold.
struct Transfer {
    stream: TcpStream,
    sender: thread::JoinHandle<io::Result<()>>,
    received: u64,
}

impl Transfer {
    const LENGTH: u64 = 64 << 20;

    #[track_caller]
    fn start(lab: &Lab, target: SocketAddr) -> Self {
        let stream = lab.client.connect(target).expect("an echo");
        let mut sending = stream.try_clone().expect("duplicate a socket");
        let sender = thread::spawn(move || {
            pattern::write(&mut sending, Self::LENGTH)?;
            sending.shutdown(Shutdown::Write)
        });
        Self {
            stream,
            sender,
            received: 0,
        }
    }

    /// Receives the next megabyte.
    #[track_caller]
    fn advance(&mut self) {
        let next = self.received + (1 << 20);
        let received = pattern::read_up_to(&mut self.stream, self.received, next);
        self.received = received.expect("the flow goes on");
        assert_eq!(self.received, next);
        assert!(!self.sender.is_finished(), "there is more to come");
    }

    /// Receives the rest.
    #[track_caller]
    fn finish(mut self) {
        let received = pattern::read_up_to(&mut self.stream, self.received, u64::MAX);
        assert_eq!(received.expect("the flow goes on"), Self::LENGTH);
        self.sender.join().expect("no panic").expect("all is sent");
    }
}

fn echo(mut stream: TcpStream) -> io::Result<u64> {
    let length = io::copy(&mut stream.try_clone()?, &mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(length)
}
