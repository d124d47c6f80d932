//! What rules count: each number against what was really sent.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, UdpSocket},
};

use serde_json::Value;
use tproxy_tests::{
    Agent, DatagramClient, Exchange, Family, Lab,
    address::FAMILIES,
    peer::{DatagramWitness, Server, Witness},
    wait,
};

#[track_caller]
fn rule(agent: &Agent, name: &str) -> Value {
    let rules = agent.rules().into_iter();
    let mut named = rules.filter(|rule| rule["name"] == name);
    named.next().unwrap_or_else(|| panic!("no rule {name}"))
}

/// The numbers of a rule under these keys.
#[track_caller]
fn numbers<const KEYS: usize>(agent: &Agent, name: &str, keys: [&str; KEYS]) -> [u64; KEYS] {
    let rule = rule(agent, name);
    keys.map(|key| {
        rule[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key} of {rule}"))
    })
}

/// Sends a datagram of each size from the client.
fn send(lab: &Lab, target: SocketAddr, sizes: &[usize]) {
    let any = SocketAddr::new(
        if target.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
        .any(),
        0,
    );
    let socket = lab.client.enter(|| UdpSocket::bind(any)).expect("a socket");
    for size in sizes {
        socket
            .send_to(&vec![0; *size], target)
            .expect("a datagram is sent");
    }
}

/// IP and UDP header.
fn headers(family: Family) -> u64 {
    match family {
        Family::V4 => 20 + 8,
        Family::V6 => 40 + 8,
    }
}

const DISCARDED: [&str; 3] = ["flows", "packets", "bytes"];

/// `drop` and `reject` count flows, packets, and bytes from the IP header on.
#[test]
fn what_is_dropped_or_rejected_is_counted() {
    let sizes = [0, 1, 100, 1000];
    for action in ["drop", "reject"] {
        let lab = Lab::new();
        let _witness = Witness::start(&lab.server, 81);
        let mut agent = lab.agent(&format!(
            "--iface cl0 --proto udp --dport 80 --action {action} --name udp"
        ));
        let mut expected = [0, 0, 0];
        for family in FAMILIES {
            send(&lab, (family.near(), 80).into(), &sizes);
            // Of no rule.
            send(&lab, (family.near(), 81).into(), &sizes);
            lab.ask(family.near(), 81).assert_direct(&agent);
            for size in sizes {
                expected[0] += 1;
                expected[1] += 1;
                expected[2] += headers(family) + size as u64;
            }
            wait::until("all datagrams are counted", || {
                (numbers(&agent, "udp", DISCARDED) == expected).then_some(())
            });
        }
        let status = agent.status();
        for (key, number) in DISCARDED.into_iter().zip(expected) {
            assert_eq!(status["totals"][key], number, "{key} of {status}");
        }
        agent.stop();
    }
}

/// In scope inbound they count flows and packets. Nothing knows how long those are.
#[test]
fn what_is_dropped_or_rejected_on_the_way_to_this_host_is_counted() {
    let lab = Lab::new();
    let _service = Witness::start(&lab.gateway, 82);
    let mut agent = lab.agent("--scope inbound --proto any --dport 80 --action drop --name drop");
    agent.run("rule add --scope inbound --proto any --dport 81 --action reject --name reject");
    agent.run("rule add --scope inbound --proto any --dport 82 --action pass --name pass");
    let sizes = [0, 1, 1000];
    let mut count = 0;
    for family in FAMILIES {
        for port in [80, 81, 82] {
            send(&lab, (family.gateway(), port).into(), &sizes);
        }
        count += 3;
        for name in ["drop", "reject", "pass"] {
            wait::until("all datagrams are counted", || {
                (numbers(&agent, name, ["flows"]) == [count]).then_some(())
            });
        }
        let attempts = [80, 81].map(|port| lab.connect_at_once((family.gateway(), port).into()));
        for attempt in attempts {
            attempt.expect_err("nobody answers, or a refusal");
        }
        lab.ask(family.gateway(), 82).assert_direct(&agent);
        count += 1;
        for name in ["drop", "reject"] {
            assert_eq!(numbers(&agent, name, DISCARDED), [count, count, 0]);
        }
        assert_eq!(numbers(&agent, "pass", DISCARDED), [count, 0, 0]);
    }
    let totals = &agent.status()["totals"];
    let expected = [3 * count, 2 * count, 0];
    for (key, number) in DISCARDED.into_iter().zip(expected) {
        assert_eq!(totals[key], number, "{key} of {totals}");
    }
    agent.stop();
}

/// `pass` counts what the classifier saw: a SYN for each connection, and each datagram. Nothing is dropped.
#[test]
fn what_is_passed_is_counted() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --proto any --dport 80 --action pass --name pass");
    for (flows, family) in [(0, Family::V4), (5, Family::V6)] {
        for _ in 0..2 {
            lab.ask(family.near(), 80).assert_direct(&agent);
        }
        send(&lab, (family.near(), 80).into(), &[1, 2, 3]);
        wait::until("all flows are counted", || {
            let counted = numbers(&agent, "pass", DISCARDED);
            (counted == [flows + 5, 0, 0]).then_some(())
        });
    }
    assert_eq!(agent.stop(), []);
}

/// In the other scopes it is what their hooks see: `connect()` and what no connected socket has.
#[test]
fn flows_of_this_host_are_counted_as_often_as_they_are_decided_about() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let _datagrams = DatagramWitness::start(&lab.server, 80);
    let _service = Witness::start(&lab.gateway, 80);
    let mut agent = lab.agent("--scope local --proto any --dport 80 --action pass --name local");
    agent.run("rule add --scope inbound --proto any --dport 80 --action pass --name inbound");
    let flows = |agent: &Agent| ["local", "inbound"].map(|name| numbers(agent, name, ["flows"])[0]);
    let mut expected = [0, 0];
    for family in FAMILIES {
        Exchange::of(&lab.gateway, (family.near(), 80).into()).assert_direct(&agent);
        lab.ask(family.gateway(), 80).assert_direct(&agent);
        expected = expected.map(|flows| flows + 1);
        assert_eq!(flows(&agent), expected, "TCP");
        let client = DatagramClient::connected(&lab.gateway, (family.near(), 80).into());
        for _ in 0..3 {
            client.socket().send(b"connected").unwrap();
        }
        expected[0] += 1;
        let unconnected = DatagramClient::bound(&lab.gateway, family.any());
        for _ in 0..3 {
            let target = SocketAddr::new(family.near(), 80);
            unconnected
                .socket()
                .send_to(b"unconnected", target)
                .unwrap();
        }
        expected[0] += 3;
        send(&lab, (family.gateway(), 80).into(), &[1, 1, 1]);
        expected[1] += 3;
        wait::until("what was sent to be counted", || {
            (flows(&agent) == expected).then_some(())
        });
    }
    assert_eq!(agent.stop(), []);
}

/// `relay` counts flows, bytes each way, and flows that are live; in `rule show` and `status` as well.
#[test]
fn what_is_relayed_is_counted() {
    const SENT: usize = 100_000;
    const RECEIVED: usize = 30_000;
    let lab = Lab::new();
    let _server = Server::start(&lab.server, 80, |mut stream| {
        let mut sent = vec![0; SENT];
        stream.read_exact(&mut sent)?;
        stream.write_all(&vec![0; RECEIVED])?;
        stream.read_to_end(&mut sent)
    });
    let mut agent = lab.agent("--iface cl0 --dport 80 --name web");
    let keys = [
        "flows",
        "live",
        "bytes_to_upstream",
        "bytes_to_client",
        "bytes",
        "packets",
    ];
    for (number, family) in (1..).zip(FAMILIES) {
        let mut stream = lab.client.connect((family.near(), 80).into()).unwrap();
        wait::until("the flow is live", || {
            (numbers(&agent, "web", ["flows", "live"]) == [number, 1]).then_some(())
        });
        stream.write_all(&vec![0; SENT]).unwrap();
        stream.read_exact(&mut vec![0; RECEIVED]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
        let (sent, received) = (number * SENT as u64, number * RECEIVED as u64);
        wait::until("the flow is counted", || {
            let expected = [number, 0, sent, received, sent + received, 0];
            (numbers(&agent, "web", keys) == expected).then_some(())
        });
    }
    // Generations come and go.
    agent.run("rule add --name other --dport 81 --at 1");
    agent.run("set add some 198.51.100.0/24");
    agent.run("rule del other");
    let (sent, received) = (2 * SENT as u64, 2 * RECEIVED as u64);
    let expected = [2, 0, sent, received, sent + received, 0];
    assert_eq!(numbers(&agent, "web", keys), expected);
    let shown = agent.json("rule show web");
    assert_eq!(shown["bytes_to_upstream"], sent);
    let status = agent.status();
    assert_eq!(status["totals"]["flows"], 2);
    assert_eq!(status["totals"]["bytes_to_client"], received);
    let text = agent.output("status");
    assert!(
        text.contains("2 new flows; 200000 bytes to servers, 60000 to clients"),
        "{text}"
    );
    // A rule of the same name is another one once the first is deleted.
    agent.run("rule del web");
    agent.run("rule add --name web --dport 80");
    assert_eq!(numbers(&agent, "web", keys), [0; 6]);
    assert_eq!(agent.stop().len(), 2);
}

/// What a killed agent counted as live is not.
#[test]
fn flows_of_a_killed_agent_are_not_live() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --dport 80 --name web");
    let stream = lab.client.connect((Family::V4.near(), 80).into()).unwrap();
    wait::until("the flow is live", || {
        (numbers(&agent, "web", ["live"]) == [1]).then_some(())
    });
    agent.kill();
    assert_eq!(numbers(&agent, "web", ["flows", "live"]), [1, 0]);
    drop(stream);
}
