//! Rules: which one takes a flow, and changing them while traffic flows.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::json;
use tproxy_tests::{
    Agent, Exchange, Family, Lab, Namespace,
    address::FAMILIES,
    pattern,
    peer::{Server, Witness},
    wait::{self, uninterrupted},
};

/// Of two rules that match, the first decides, in whichever order they came.
#[test]
fn the_first_rule_that_matches_decides() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --dport 80 --name web");
    let [v4, v6] = FAMILIES.map(Family::near_prefix);
    agent.run(&format!(
        "rule add --name near --dst {v4},{v6} --action pass"
    ));
    for family in FAMILIES {
        // `web` comes first and takes everything.
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    agent.run("rule del near");
    agent.run(&format!(
        "rule add --before web --name near --dst {v4},{v6} --action pass"
    ));
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_direct(&agent);
        lab.ask(family.far(), 80).assert_relayed(&agent);
    }
    assert_eq!(agent.stop().len(), 4);
}

/// The flow line and the counters name the rule that took the flow.
#[test]
fn each_flow_is_counted_at_its_rule() {
    let lab = Lab::new();
    let _witnesses = [80, 443].map(|port| Witness::start(&lab.server, port));
    let mut agent = lab.agent("--iface cl0 --dport 80 --name plain");
    agent.run("rule add --dport 443 --name encrypted");
    for (port, rule, flows) in [(80, "plain", 1), (443, "encrypted", 3)] {
        for _ in 0..flows {
            let exchange = lab.ask(Family::V4.near(), port);
            exchange.assert_relayed(&agent);
            assert_eq!(
                agent.flow_between(exchange.client, exchange.target).rule,
                rule
            );
        }
        wait::until("the flows are counted", || {
            let rules = agent.rules();
            let counted = rules.iter().find(|listed| listed["name"] == rule)?;
            (counted["flows"] == flows).then_some(())
        });
    }
    for rule in agent.rules() {
        assert!(rule["packets"].is_u64() && rule["bytes"].is_u64(), "{rule}");
    }
    assert_eq!(agent.stop().len(), 4);
}

/// Without a rule flag the agent starts with no rules and takes nothing; the first rule takes effect at once.
#[test]
fn an_agent_without_rules_takes_nothing() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0");
    // `--iface` names the interfaces to attach; it is no rule flag.
    assert!(
        agent.ready_line().contains(" 0 rules"),
        "{}",
        agent.ready_line()
    );
    assert_eq!(agent.rules(), Vec::<serde_json::Value>::new());
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_direct(&agent);
    }
    agent.run("rule add --dport 80");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    agent.run("rule flush");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_direct(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}

/// `rule list --json` holds what was asked for, under the keys of the file, in order; `rule show` one of them.
#[test]
fn rules_are_listed_as_they_were_given() {
    let lab = Lab::new();
    let agent =
        lab.agent("--iface cl0 --dport 80,8000-8999 --dst 192.0.2.0/24,2001:db8:1::/48 --name web");
    agent.run("rule add --name blocked --src 10.77.1.66 --action drop");
    agent.run("rule add --dport 25");
    let rules = agent.rules();
    assert_eq!(rules.len(), 3);
    assert_eq!(rules[0]["name"], "web");
    assert_eq!(rules[0]["dport"], json!(["80", "8000-8999"]));
    assert_eq!(rules[0]["dst"], json!(["192.0.2.0/24", "2001:db8:1::/48"]));
    assert_eq!(rules[1]["action"], "drop");
    assert_eq!(rules[1]["src"], json!(["10.77.1.66"]));
    for rule in &rules {
        for key in ["flows", "packets", "bytes"] {
            assert_eq!(rule[key], 0, "{key} of {rule}");
        }
    }
    let made_up = rules[2]["name"]
        .as_str()
        .expect("a rule without a name is given one");
    assert!(made_up.starts_with("rule-"), "{made_up}");
    let shown = agent.output("rule show web");
    assert!(
        shown.contains("8000-8999") && shown.contains("2001:db8:1::/48"),
        "{shown}"
    );
    let listed = agent.output("rule list");
    for word in ["web", "blocked", "drop", made_up] {
        assert!(listed.contains(word), "{word} in\n{listed}");
    }
}

/// New rules go where they are told to.
#[test]
fn rules_are_added_at_the_place_asked_for() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80 --name b");
    agent.run("rule add --name d --dport 81");
    agent.run("rule add --name a --dport 82 --before b");
    agent.run("rule add --name c --dport 83 --after b");
    assert_eq!(agent.rule_names(), ["a", "b", "c", "d"]);
    agent.run("rule del a c");
    assert_eq!(agent.rule_names(), ["b", "d"]);
    agent.run("rule flush");
    assert_eq!(agent.rule_names(), Vec::<String>::new());
}

/// Ports as lists and ranges: the ends belong to a range, their neighbours do not.
#[test]
fn port_ranges_include_their_ends() {
    let lab = Lab::new();
    let _witnesses = [7999, 8000, 8500, 8999, 9000].map(|port| Witness::start(&lab.server, port));
    let mut agent = lab.agent("--iface cl0 --dport 443,8000-8999");
    for family in FAMILIES {
        for inside in [8000, 8500, 8999] {
            lab.ask(family.near(), inside).assert_relayed(&agent);
        }
        for outside in [7999, 9000] {
            lab.ask(family.near(), outside).assert_direct(&agent);
        }
    }
    assert_eq!(agent.stop().len(), 6);
}

/// Source ports decide as well.
#[test]
fn source_ports_decide() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --sport 40000-40999");
    for family in FAMILIES {
        let from = |port| {
            let source = SocketAddr::new(family.client(), port);
            Exchange::from_port(&lab.client, source, (family.near(), 80).into())
        };
        from(40_000).assert_relayed(&agent);
        from(40_999).assert_relayed(&agent);
        from(39_999).assert_direct(&agent);
        from(41_000).assert_direct(&agent);
    }
    assert_eq!(agent.stop().len(), 4);
}

/// A rule for one of two attached interfaces does not hold at the other.
#[test]
fn a_rule_for_one_interface_leaves_the_other_alone() {
    let lab = Lab::new();
    let _at_the_server = Witness::start(&lab.server, 80);
    let _at_the_client = Witness::start(&lab.client, 80);
    let mut agent = lab.agent("--iface cl0,sv0");
    agent.run("rule add --iface sv0 --dport 80");
    for family in FAMILIES {
        lab.ask(family.server(), 80).assert_direct(&agent);
        let exchange = Exchange::of(&lab.server, (family.client(), 80).into());
        exchange.assert_relayed_from(&agent, family.gateway());
    }
    assert_eq!(agent.stop().len(), 2);
}

/// An excluded address is not part of the prefix around it.
#[test]
fn excluded_addresses_are_left_alone() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent =
        lab.agent("--iface cl0 --dst 192.0.2.0/24,!192.0.2.9,2001:db8:1::/48,!2001:db8:1::9");
    for (family, neighbour) in FAMILIES.into_iter().zip(["192.0.2.10", "2001:db8:1::a"]) {
        lab.ask(family.near(), 80).assert_direct(&agent);
        lab.ask(neighbour.parse().unwrap(), 80)
            .assert_relayed(&agent);
        lab.ask(family.far(), 80).assert_direct(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}

/// What a rule drops reaches nobody, and is counted; other flows pass.
#[test]
fn dropped_flows_reach_nobody() {
    let lab = Lab::new();
    let dropped = Witness::start(&lab.server, 80);
    let _other = Witness::start(&lab.server, 81);
    let mut agent = lab.agent("--iface cl0 --dport 80 --action drop --name block");
    for family in FAMILIES {
        let target = SocketAddr::new(family.server(), 80);
        let attempt = lab
            .client
            .enter(|| TcpStream::connect_timeout(&target, Duration::from_millis(300)));
        let error = attempt.expect_err("a dropped flow never connects");
        assert_eq!(
            error.kind(),
            io::ErrorKind::TimedOut,
            "discarded, not refused"
        );
        lab.ask(family.server(), 81).assert_direct(&agent);
    }
    assert_eq!(dropped.clients(), [], "the server saw nothing");
    let rule = agent.rules().remove(0);
    assert!(
        rule["packets"].as_u64().is_some_and(|packets| packets >= 2),
        "{rule}"
    );
    agent.run("rule del block");
    for family in FAMILIES {
        lab.ask(family.server(), 80).assert_direct(&agent);
    }
    assert_eq!(agent.stop(), []);
}

/// What a rule rejects is told so at once, by RST or by an ICMP error whose checksum holds whether the device, the peer or
/// the sender of the datagram has to complete that of the datagram; other ports are left alone.
#[test]
fn rejected_flows_are_told_at_once() {
    let lab = Lab::new();
    let rejected = Witness::start(&lab.server, 80);
    let _other = Witness::start(&lab.server, 81);
    let bind = |port| lab.server.enter(|| UdpSocket::bind(("::", port)));
    let (unheard, heard) = (bind(80).unwrap(), bind(81).unwrap());
    unheard.set_nonblocking(true).unwrap();
    heard.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    let mut agent = lab.agent("--iface cl0 --dport 80 --proto any --action reject --name closed");
    let checksums = |namespace: &Namespace, interface: &str, on: bool| {
        let state = if on { "on" } else { "off" };
        namespace.run(&format!("ethtool -K {interface} tx {state}"));
    };
    let mut sent = 0;
    for (by_client, by_gateway) in [(true, true), (true, false), (false, true), (false, false)] {
        checksums(&lab.client, "eth0", by_client);
        checksums(&lab.gateway, "cl0", by_gateway);
        for family in FAMILIES {
            let target = SocketAddr::new(family.server(), 80);
            let attempt = lab
                .client
                .enter(|| TcpStream::connect_timeout(&target, wait::PATIENCE));
            let error = attempt.expect_err("a rejected flow never connects");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            lab.ask(family.server(), 81).assert_direct(&agent);
            sent += 1;

            let client = lab
                .client
                .enter(|| UdpSocket::bind((family.client(), 0)))
                .unwrap();
            client.set_read_timeout(Some(wait::PATIENCE)).unwrap();
            for length in [0, 1, 511, 600, 1400] {
                client.connect(target).unwrap();
                client.send(&vec![0x5a; length]).unwrap();
                let error = uninterrupted(|| client.recv(&mut [0])).expect_err("nobody answers");
                assert_eq!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused,
                    "{length} octets, {family:?}, {by_client} {by_gateway}"
                );
                client
                    .connect(SocketAddr::new(family.server(), 81))
                    .unwrap();
                client.send(&vec![0xa5; length]).unwrap();
                assert_eq!(
                    uninterrupted(|| heard.recv(&mut [0; 2000])).unwrap(),
                    length
                );
                sent += 1;
            }
        }
    }
    assert_eq!(rejected.clients(), [], "the server saw no flow");
    let error = uninterrupted(|| unheard.recv(&mut [0])).expect_err("nor a datagram");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    let rule = agent.rules().remove(0);
    assert_eq!(
        (&rule["flows"], &rule["packets"]),
        (&json!(sent), &json!(sent))
    );
    assert_eq!(agent.counter("rejected"), sent);
    assert_eq!(agent.counter("rejected_unanswered"), 0);
    assert_eq!(agent.stop(), []);
}

/// A running flow outlives the rule that took it, also when an unrelated route is added (which drops the route cached in
/// its socket). A new flow goes direct.
#[test]
fn a_running_flow_outlives_its_rule() {
    const HALF: u64 = 5_000_000;
    let lab = Lab::new();
    let server = Server::start(&lab.server, 80, half_then_half);
    let _witness = Witness::start(&lab.server, 81);
    let mut agent = lab.agent("--iface cl0 --dport 80,81 --name web");
    for family in FAMILIES {
        let mut stream = lab.client.connect((family.near(), 80).into()).unwrap();
        pattern::write(&mut stream, HALF).unwrap();
        assert_eq!(pattern::read_up_to(&mut stream, 0, HALF).unwrap(), HALF);

        agent.run("rule del web");
        lab.gateway
            .ip("route add 203.0.113.0/24 via 10.77.2.2\nroute add 2001:db8:3::/48 via fd77:2::2");
        lab.ask(family.near(), 81).assert_direct(&agent);

        pattern::write_from(&mut stream, HALF, 2 * HALF).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(
            pattern::read_up_to(&mut stream, HALF, 2 * HALF).unwrap(),
            2 * HALF
        );
        assert_eq!(
            uninterrupted(|| stream.read(&mut [0])).unwrap(),
            0,
            "a clean end"
        );
        assert_eq!(server.outcome().unwrap(), 2 * HALF);
        let flow = agent.flow_of(stream.local_addr().unwrap());
        assert_eq!((flow.sent, flow.received), (2 * HALF, 2 * HALF));
        assert_eq!(flow.rule, "web", "the rule that took it, though it is gone");

        agent.run("rule add --dport 80,81 --name web");
        lab.gateway
            .ip("route del 203.0.113.0/24\nroute del 2001:db8:3::/48");
        lab.ask(family.near(), 81).assert_relayed(&agent);
    }
    assert_eq!(agent.stop().len(), 4);
}

/// The ports of a relayed flow, still in TIME_WAIT in the gateway, are used again by a flow that no rule takes: it goes
/// direct, all of it.
#[test]
fn a_flow_goes_direct_although_its_ports_were_a_relayed_ones() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --dport 80 --name web");
    for family in FAMILIES {
        let source = SocketAddr::new(family.client(), 40_000);
        let again = || Exchange::from_port(&lab.client, source, (family.near(), 80).into());
        again().assert_relayed(&agent);
        let waiting = || lab.gateway.output("ss -Htan state time-wait sport = :80");
        wait::until("the gateway's TIME_WAIT", || {
            waiting().contains(":40000").then_some(())
        });
        agent.run("rule flush");
        assert_eq!(again().seen_client, source, "the server sees the client");
        assert!(waiting().contains(":40000"), "it was still there");
        agent.run("rule add --dport 80 --name web");
    }
    assert_eq!(agent.stop().len(), 2);
}

/// Sends the first 5 MB of the pattern when it has received as much, and the second when it has the second.
fn half_then_half(mut stream: TcpStream) -> io::Result<u64> {
    const HALF: u64 = 5_000_000;
    pattern::read_up_to(&mut stream, 0, HALF)?;
    pattern::write(&mut stream, HALF)?;
    let received = pattern::read_up_to(&mut stream, HALF, 2 * HALF)?;
    pattern::write_from(&mut stream, HALF, 2 * HALF)?;
    Ok(received)
}

/// Fifty commands at once add a rule each: none is lost, none is there twice, and the generation counts them.
#[test]
fn fifty_writers_at_once_lose_nothing() {
    const WRITERS: usize = 50;
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 8049);
    let mut agent = lab.agent("--iface cl0");
    let generation = agent.status()["generation"].as_u64().expect("a number");
    let mut writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            agent.start_under(
                "",
                &format!("rule add --name writer-{number} --dport {}", 8000 + number),
            )
        })
        .collect();
    for writer in &mut writers {
        let status = writer.wait();
        assert!(status.success(), "{status}: {}", writer.stderr.text());
    }
    let names = agent.rule_names();
    let expected: BTreeSet<_> = (0..WRITERS)
        .map(|number| format!("writer-{number}"))
        .collect();
    assert_eq!(names.len(), WRITERS);
    assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), expected);
    let status = agent.status();
    assert_eq!(status["rules"], WRITERS);
    assert_eq!(
        status["generation"].as_u64(),
        Some(generation + WRITERS as u64)
    );
    lab.ask(Family::V4.near(), 8049).assert_relayed(&agent);
    assert_eq!(agent.stop().len(), 1);
}

/// While rules are added and deleted, flows that a standing rule takes are relayed, every one.
#[test]
fn changing_rules_disturbs_no_flow() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --dport 80 --name web");
    let (stop, stopped) = mpsc::channel::<()>();
    let changes = thread::scope(|scope| {
        let agent: &Agent = &agent;
        let changer = scope.spawn(move || {
            let mut changes = 0;
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                agent.run("rule add --name other --before web --dst 198.51.100.0/24 --action pass");
                agent.run("rule del other");
                changes += 2;
            }
            changes
        });
        for index in 0..200 {
            lab.ask(FAMILIES[index % 2].near(), 80)
                .assert_relayed(agent);
        }
        stop.send(()).expect("the changer waits for this");
        changer.join().expect("each change succeeds")
    });
    assert!(changes >= 10, "{changes} changes during 200 flows");
    assert_eq!(agent.stop().len(), 200);
}

/// Without a client's port `explain` takes one that a client could have, and says so where a rule asks for it.
#[test]
fn explain_says_what_it_assumes_about_the_clients_port() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80 --sport 1024-65535 --name web");
    agent.run("rule add --name all --dport 81");
    let explain = |flow: &str| agent.json(&format!("explain tcp {flow}"));
    let reason = |answer: &serde_json::Value| answer["reason"].as_str().unwrap().to_owned();
    for (client, name, assumed) in [
        ("10.1.0.2", Some("web"), true),
        ("10.1.0.2:1023", None, false),
        ("10.1.0.2:1024", Some("web"), false),
    ] {
        let answer = explain(&format!("{client} 192.0.2.9:80"));
        assert_eq!(answer["rule"].as_str(), name, "{answer}");
        let says_so = reason(&answer).contains("assuming client port 49152");
        assert_eq!(says_so, assumed, "{answer}");
    }
}

/// A rule about forwarded flows takes nothing where no interface is attached, and is said to.
#[test]
fn a_rule_that_has_no_interface_is_warned_of() {
    let lab = Lab::new();
    let mut agent = lab.agent("--name first --dport 80");
    agent.wait_for_log("no interface is attached");
    let warned = |arguments: &str| {
        let added = agent.attempt(arguments);
        assert_eq!(added.code, Some(0));
        added
            .stderr
            .iter()
            .any(|line| line.contains("no interface is attached"))
    };
    assert!(warned("rule add --name second --dport 81"));
    assert!(!warned("rule add --scope inbound --dport 82"));
    agent.run("attach cl0");
    assert!(!warned("rule add --dport 83"));
    assert_eq!(agent.stop(), []);
}
