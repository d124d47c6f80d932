//! Datagrams that are routed through the gateway: which go through the agent, how, and for how long.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
};

use tproxy_tests::{
    DatagramClient, Family, Lab,
    address::FAMILIES,
    crafted::{ethernet, udp_fragments},
    datagrams::{Answer, allow_many_errors},
    peer::{DatagramWitness, Witness},
    wait,
    wire::{Wire, hardware_address},
};

/// Datagrams to a port that a rule names are relayed, from sockets that are connected and from those that are not, with
/// the original destination reported and the bytes of both directions counted. Another port stays direct, and so does
/// TCP.
#[test]
fn datagrams_to_a_named_port_go_through_the_agent() {
    let lab = Lab::new();
    let _witnesses = [53, 54, 443].map(|port| DatagramWitness::start(&lab.server, port));
    let _web = Witness::start(&lab.server, 443);
    let mut agent = lab.agent("--iface cl0 --proto udp --dport 53,443 --name datagrams");
    let mut relayed = Vec::new();
    for family in FAMILIES {
        for port in [53, 443] {
            let target = SocketAddr::new(family.near(), port);
            relayed.extend([
                DatagramClient::connected(&lab.client, target).ask(b"connected"),
                DatagramClient::bound(&lab.client, family.any()).ask_at(target, b"free, too"),
            ]);
        }
        let other = SocketAddr::new(family.near(), 54);
        DatagramClient::connected(&lab.client, other)
            .ask(b"other")
            .assert_direct();
        lab.ask(family.near(), 443).assert_direct(&agent);
    }
    for answer in &relayed {
        answer.assert_relayed_from(upstream(answer));
    }
    let flows = agent.stop();
    assert_eq!(flows.len(), relayed.len(), "{flows:?}");
    for answer in relayed {
        let flow = answer.line(&flows).expect("a line of the flow");
        assert_eq!(
            (flow.rule.as_str(), flow.upstream.as_str()),
            ("datagrams", "direct")
        );
        assert_eq!(flow.sent, 9);
        assert!(flow.received > 9, "{flow:?}");
        assert_eq!(flow.client.ip(), family_of(&answer).client());
    }
}

/// Datagrams to a prefix that a rule names are relayed whatever their port; another address stays direct, also for the
/// same socket.
#[test]
fn datagrams_to_a_named_prefix_go_through_the_agent() {
    let lab = Lab::new();
    let _witnesses = [53, 9999].map(|port| DatagramWitness::start(&lab.server, port));
    let [v4, v6] = FAMILIES.map(Family::near_prefix);
    let mut agent = lab.agent(&format!("--iface cl0 --proto any --dst {v4},{v6}"));
    for family in FAMILIES {
        let client = DatagramClient::bound(&lab.client, family.any());
        for _ in 0..3 {
            for port in [53, 9999] {
                client
                    .ask_at((family.near(), port).into(), b"near")
                    .assert_relayed_from(family.gateway_upstream());
                client
                    .ask_at((family.far(), port).into(), b"far")
                    .assert_direct();
            }
        }
    }
    assert_eq!(agent.stop().len(), 4, "a session for each destination");
}

/// A session outlives the rule that opened it, also when an unrelated route is added. A new one goes direct.
#[test]
fn a_session_outlives_its_rule() {
    let lab = Lab::new();
    let _witness = DatagramWitness::start(&lab.server, 443);
    let mut agent = lab.agent("--iface cl0 --proto udp --dport 443 --name quic");
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 443);
        let running = DatagramClient::connected(&lab.client, target);
        let before = running.ask(b"before");
        before.assert_relayed_from(family.gateway_upstream());

        agent.run("rule del quic");
        lab.gateway
            .ip("route add 203.0.113.0/24 via 10.77.2.2\nroute add 2001:db8:3::/48 via fd77:2::2");
        for _ in 0..3 {
            assert_eq!(running.ask(b"after"), before, "the same session");
        }
        DatagramClient::connected(&lab.client, target)
            .ask(b"new")
            .assert_direct();
        assert_eq!(running.ask(b"at last"), before, "the same session");

        agent.run("rule add --proto udp --dport 443 --name quic");
        lab.gateway
            .ip("route del 203.0.113.0/24\nroute del 2001:db8:3::/48");
    }
    assert_eq!(agent.stop().len(), 2);
}

/// A datagram of 4,000 bytes in fragments, in order and in the opposite order, is relayed as one, and so is its answer.
/// Where no rule takes it, its bytes reach the server unchanged from the client itself.
#[test]
fn datagrams_in_fragments_are_relayed_whole() {
    let lab = Lab::new();
    let witnesses = [53, 54].map(|port| DatagramWitness::start(&lab.server, port));
    let [v4, v6] = FAMILIES.map(Family::near_prefix);
    let mut agent = lab.agent(&format!(
        "--iface cl0 --proto udp --dport 53 --dst {v4},{v6}"
    ));
    for family in FAMILIES {
        let relayed_from = family.gateway_upstream();
        for order in [Order::AsSent, Order::Reversed] {
            let taken = (family.near(), 53).into();
            send_in_fragments(&lab, &witnesses[0], taken, order, |answer| {
                answer.assert_relayed_from(relayed_from);
            });
            let elsewhere = (family.far(), 53).into();
            send_in_fragments(&lab, &witnesses[0], elsewhere, order, |answer| {
                answer.assert_direct();
            });
        }
        let other_port = (family.near(), 54).into();
        send_in_fragments(&lab, &witnesses[1], other_port, Order::AsSent, |answer| {
            answer.assert_direct();
        });
        // What overtakes the fragment with the ports is kept where a rule takes some of the address's flows.
        send_in_fragments(&lab, &witnesses[1], other_port, Order::Reversed, |answer| {
            answer.assert_truthful();
        });
        // As the client's own kernel makes them.
        for (port, is_relayed) in [(53, true), (54, false)] {
            let client = DatagramClient::connected(&lab.client, (family.near(), port).into());
            let answer = client.ask(&octets(4000, 9));
            assert_eq!(answer.seen_client.ip() == relayed_from, is_relayed);
        }
        let _ = witnesses.each_ref().map(DatagramWitness::received);
    }
    agent.stop();
}

#[derive(Clone, Copy, PartialEq)]
enum Order {
    AsSent,
    Reversed,
}

/// Sends datagrams of 4,000 bytes, each in three fragments made by hand, and lets `check` see their answers.
#[track_caller]
fn send_in_fragments(
    lab: &Lab,
    witness: &DatagramWitness,
    target: SocketAddr,
    order: Order,
    check: impl Fn(Answer),
) {
    static IDENTIFICATION: AtomicU16 = AtomicU16::new(0x5000);
    let wire = Wire::open(&lab.client, "eth0");
    let from = hardware_address(&lab.client, "eth0");
    let to = hardware_address(&lab.gateway, "cl0");
    // Its socket gets the answers.
    let client = DatagramClient::connected(&lab.client, target);
    for round in 0..3 {
        let identification = IDENTIFICATION.fetch_add(1, Ordering::Relaxed);
        let payload = octets(4000, round);
        let mut packets = udp_fragments(client.address(), target, &payload, (identification, 1400));
        assert_eq!(packets.len(), 3);
        if order == Order::Reversed {
            packets.reverse();
        }
        for packet in &packets {
            wire.send(&ethernet(from, to, packet));
        }
        let answer = client.answer(target, &payload);
        check(answer.unwrap_or_else(|error| panic!("no answer of {target}: {error}")));
        assert!(
            witness.next().payload == payload,
            "the server got the same bytes"
        );
    }
}

/// Datagrams that are as long as the client's link allows, and that the client wants in one piece, arrive over an
/// upstream link that takes only shorter ones, and so do answers of any length.
#[test]
fn datagrams_longer_than_the_upstream_link_allows_arrive() {
    let lab = Lab::new();
    let _witness = DatagramWitness::start(&lab.server, 443);
    lab.gateway.ip("link set sv0 mtu 1280");
    lab.server.ip("link set eth0 mtu 1280");
    let mut agent = lab.agent("--iface cl0,sv0 --proto udp --dport 443");
    for family in FAMILIES {
        let client = DatagramClient::connected(&lab.client, (family.near(), 443).into());
        for length in [0, 1, 1200, 1452, 4000, 60_000] {
            client
                .ask(&octets(length, 1))
                .assert_relayed_from(family.gateway_upstream());
        }
    }
    assert_eq!(agent.stop().len(), 2);
}

/// A session ends when nothing has passed for as long as was asked for, which may be another time for port 53, and its
/// client's next datagram opens another. One in which datagrams pass is kept.
#[test]
fn idle_sessions_end_and_others_are_kept() {
    let lab = Lab::new();
    let _witnesses = [53, 443].map(|port| DatagramWitness::start(&lab.server, port));
    let mut agent =
        lab.agent("--iface cl0 --proto udp --dport 53,443 --udp-idle 3 --dns-idle 1 --name any");
    let clients = FAMILIES.map(|family| {
        let [dns, other] = [53, 443]
            .map(|port| DatagramClient::connected(&lab.client, (family.near(), port).into()));
        let asked = (dns.ask(b"dns"), other.ask(b"other"));
        (dns, other, asked)
    });
    for (dns, other, (first_dns, first_other)) in &clients {
        let flow = wait::until("the end of a session of port 53", || {
            first_dns.line(&agent.flows()).cloned()
        });
        assert_eq!(flow.end, "idle");
        assert!((1.0..2.5).contains(&flow.seconds), "{flow:?}");
        // It has been idle for as long, and stays.
        assert_eq!(&other.ask(b"still there"), first_other);
        assert_ne!(
            dns.ask(b"again").seen_client,
            first_dns.seen_client,
            "another session"
        );
    }
    for (_, other, (_, first_other)) in &clients {
        let flow = wait::until("the end of the other session", || {
            first_other.line(&agent.flows()).cloned()
        });
        assert_eq!(flow.end, "idle");
        assert!((4.0..9.0).contains(&flow.seconds), "{flow:?}");
        let again = other.ask(b"again");
        again.assert_relayed_from(upstream(&again));
        assert_ne!(again.seen_client, first_other.seen_client);
    }
    assert_eq!(agent.stop().len(), 8);
}

/// A client whose datagram reaches a host on which nobody has the port learns so at once, whether its socket is
/// connected or asks to be told (`IP_RECVERR`, ip(7)), and again each time.
#[test]
fn the_client_learns_that_a_port_is_unreachable() {
    let lab = Lab::new();
    allow_many_errors(&lab.server);
    let mut agent = lab.agent("--iface cl0 --proto udp --dport 53,443");
    for family in FAMILIES {
        for port in [53, 443] {
            let target = SocketAddr::new(family.near(), port);
            let connected = DatagramClient::connected(&lab.client, target);
            let free = DatagramClient::bound(&lab.client, family.any());
            free.request_errors();
            for _ in 0..20 {
                for error in [
                    connected.try_ask(b"anybody?"),
                    free.try_ask_at(target, b"anybody?"),
                ] {
                    let error = error.expect_err("nobody answers");
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
                }
            }
        }
    }
    let _witness = DatagramWitness::start(&lab.server, 53);
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 53);
        DatagramClient::connected(&lab.client, target)
            .ask(b"now?")
            .assert_relayed_from(family.gateway_upstream());
    }
    let flows = agent.stop();
    let refused = flows.iter().filter(|flow| flow.end == "refused");
    assert!(refused.count() >= 8, "{flows:?}");
}

/// A service of the gateway at the very port that a rule takes, bound to the wildcard and not willing to share: what is
/// sent to the gateway is the service's, what is sent to others is the agent's, and a service that starts later can
/// have its port although there are sessions.
#[test]
fn a_service_of_the_gateway_at_the_same_port_is_neither_robbed_nor_in_the_way() {
    let lab = Lab::new();
    let _witness = DatagramWitness::start(&lab.server, 53);
    let mut agent = lab.agent("--iface cl0 --proto udp --dport 53");
    let own = |address: std::net::IpAddr| {
        let socket = lab.gateway.enter(|| UdpSocket::bind((address, 53)));
        let socket = socket.unwrap_or_else(|error| panic!("a service at {address}: {error}"));
        DatagramWitness::over(vec![socket])
    };
    // Sessions from before the service, and from while it is there.
    let earlier = FAMILIES.map(|family| {
        let client = DatagramClient::connected(&lab.client, (family.near(), 53).into());
        let answer = client.ask(b"earlier");
        answer.assert_relayed_from(family.gateway_upstream());
        (client, answer)
    });
    let service = own(Ipv4Addr::UNSPECIFIED.into());
    let service_v6 = own(Family::V6.gateway());
    for (family, service) in FAMILIES.into_iter().zip([&service, &service_v6]) {
        for _ in 0..3 {
            let client = DatagramClient::connected(&lab.client, (family.near(), 53).into());
            for _ in 0..3 {
                client
                    .ask(b"beside it")
                    .assert_relayed_from(family.gateway_upstream());
            }
        }
        assert_eq!(service.received(), [], "the service got nothing of it");
        let direct = DatagramClient::connected(&lab.client, (family.gateway(), 53).into());
        direct.socket().send(b"for the service").unwrap();
        let received = service.next();
        assert_eq!(received.peer, direct.address());
    }
    for (client, answer) in earlier {
        assert_eq!(client.ask(b"still"), answer, "the same session");
    }
    assert_eq!(service.received(), []);
    assert_eq!(agent.stop().len(), 8);
}

/// The services of TCP and UDP at the link-local address, behind the gateway, at which clouds tell a host its secrets.
fn serve_metadata(lab: &Lab) -> (SocketAddr, (DatagramWitness, Witness)) {
    let metadata = SocketAddr::from(([169, 254, 169, 254], 80));
    lab.server.ip("addr add 169.254.169.254/32 dev lo");
    lab.gateway.ip("route add 169.254.169.254/32 via 10.77.2.2");
    let datagrams = DatagramWitness::bound(&lab.server, &[metadata]);
    (metadata, (datagrams, Witness::start(&lab.server, 80)))
}

/// Link-local addresses, at which clouds tell a host its secrets, are not for the agent to relay to, unless a rule names
/// them.
#[test]
fn link_local_destinations_are_relayed_only_when_named() {
    let lab = Lab::new();
    let (metadata, _services) = serve_metadata(&lab);
    let mut agent = lab.agent("--iface cl0 --proto any --name all");
    let ask = || DatagramClient::connected(&lab.client, metadata).ask(b"secrets");
    ask().assert_direct();
    lab.ask(metadata.ip(), 80).assert_direct(&agent);
    agent.run("rule add --at 1 --proto any --dst 0.0.0.0/0 --name wide");
    ask().assert_direct();
    lab.ask(metadata.ip(), 80).assert_direct(&agent);
    agent.run("rule add --at 1 --proto any --dst 169.254.169.254 --name metadata");
    ask().assert_relayed_from(Family::V4.gateway_upstream());
    lab.ask(metadata.ip(), 80).assert_relayed(&agent);
    let flows = agent.stop();
    assert_eq!(flows.len(), 2);
    assert!(
        flows.iter().all(|flow| flow.rule == "metadata"),
        "{flows:?}"
    );
}

/// A rule names them by a set, too, for as long as the set has one of them.
#[test]
fn link_local_destinations_in_a_set_are_named() {
    let lab = Lab::new();
    let (metadata, _services) = serve_metadata(&lab);
    let mut agent = lab.agent("--iface cl0");
    agent.run("set add some 169.0.0.0/8");
    agent.run("rule add --proto any --dst set:some --name some");
    let ask = || DatagramClient::connected(&lab.client, metadata).ask(b"secrets");
    for _ in 0..2 {
        ask().assert_direct();
        lab.ask(metadata.ip(), 80).assert_direct(&agent);
        agent.run("set add some 169.254.169.254");
        ask().assert_relayed_from(Family::V4.gateway_upstream());
        lab.ask(metadata.ip(), 80).assert_relayed(&agent);
        agent.run("set del some 169.254.169.254");
    }
    ask().assert_direct();
    lab.ask(metadata.ip(), 80).assert_direct(&agent);
    assert_eq!(agent.stop().len(), 4);
}

/// With the agent killed, datagrams that a rule takes reach nobody, or the server itself, as the rule's `on_missing` has
/// it. Others pass.
#[test]
fn datagrams_follow_on_missing_when_the_agent_is_killed() {
    let lab = Lab::new();
    let witnesses = [53, 54, 55].map(|port| DatagramWitness::start(&lab.server, port));
    let mut agent = lab.agent("--iface cl0 --proto udp --dport 53 --name closed");
    agent.run("rule add --proto udp --dport 54 --on-missing pass --name open");
    let clients = |port: u16| {
        FAMILIES.map(|family| DatagramClient::connected(&lab.client, (family.near(), port).into()))
    };
    let [closed, open, others] = [53, 54, 55].map(clients);
    for client in closed.iter().chain(&open) {
        let answer = client.ask(b"alive");
        answer.assert_relayed_from(upstream(&answer));
    }
    agent.kill();
    let _ = witnesses.each_ref().map(DatagramWitness::received);
    for ((closed, open), other) in closed.iter().zip(&open).zip(&others) {
        closed.socket().send(b"a leak").unwrap();
        open.ask(b"past the dead").assert_direct();
        other.ask(b"none of ours").assert_direct();
    }
    assert_eq!(witnesses[0].received(), []);
    agent.run("unload");
    for client in clients(53) {
        client.ask(b"after").assert_direct();
    }
}

/// A client with many sockets, and a server that answers them all, from several workers.
#[test]
fn many_sessions_at_once_keep_apart() {
    const CLIENTS: usize = 200;
    let lab = Lab::new();
    let _witness = DatagramWitness::start(&lab.server, 443);
    let mut agent = lab.agent("--iface cl0 --proto udp --dport 443 --workers 3");
    let clients: Vec<_> = (0..CLIENTS)
        .map(|index| {
            let target = SocketAddr::new(FAMILIES[index % 2].near(), 443);
            DatagramClient::connected(&lab.client, target)
        })
        .collect();
    for round in 0..3 {
        for (index, client) in clients.iter().enumerate() {
            let answer = client.ask(&octets(index, round));
            answer.assert_relayed_from(upstream(&answer));
        }
    }
    assert_eq!(agent.flows(), [], "all of them are open");
    assert_eq!(agent.stop().len(), CLIENTS);
}

fn family_of(answer: &Answer) -> Family {
    if answer.target.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    }
}

fn upstream(answer: &Answer) -> std::net::IpAddr {
    family_of(answer).gateway_upstream()
}

/// Octets in which a gap or an exchange shows.
fn octets(length: usize, seed: u8) -> Vec<u8> {
    let octet = |index: usize| (index * 31 + index / 251).to_le_bytes()[0] ^ seed;
    (0..length).map(octet).collect()
}
