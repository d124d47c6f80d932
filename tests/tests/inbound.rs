//! Flows that are addressed to the gateway itself.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use tproxy_tests::{
    Agent, DatagramClient, Exchange, Family, Lab,
    address::{FAMILIES, canonical},
    peer::{DatagramWitness, Server, Witness},
    wait::{self, uninterrupted},
};

/// A service of the gateway's own at a port that a rule names: relayed to it, passed to it, dropped or rejected, and
/// never touched at a port that no rule names.
#[test]
fn a_service_of_the_gateway_gets_what_the_rules_leave_it() {
    let lab = Lab::new();
    let services = [80, 81, 82, 83, 84].map(|port| Witness::start(&lab.gateway, port));
    let mut agent = lab.agent("--scope inbound --dport 80 --name relayed");
    agent.run("rule add --scope inbound --dport 81 --action pass --name passed");
    agent.run("rule add --scope inbound --dport 82 --action drop --name dropped");
    agent.run("rule add --scope inbound --dport 83 --action reject --name rejected");
    for family in FAMILIES {
        for address in [family.gateway(), family.gateway_upstream()] {
            let relayed = lab.ask(address, 80);
            relayed.assert_relayed_from(&agent, address);
            assert_eq!(agent.flow_of(relayed.client).rule, "relayed");
            lab.ask(address, 81).assert_direct(&agent);
            let silent = lab.connect_at_once((address, 82).into());
            assert_eq!(silent.unwrap_err().kind(), io::ErrorKind::TimedOut);
            let refused = lab.connect_at_once((address, 83).into());
            assert_eq!(
                refused.unwrap_err().kind(),
                io::ErrorKind::ConnectionRefused
            );
            lab.ask(address, 84).assert_direct(&agent);
        }
    }
    for unseen in &services[2..4] {
        assert_eq!(unseen.clients(), []);
    }
    assert_eq!(agent.stop().len(), 4);
    for family in FAMILIES {
        lab.ask(family.gateway(), 80).assert_unproxied();
    }
}

/// The same for datagrams.
#[test]
fn a_datagram_service_of_the_gateway_gets_what_the_rules_leave_it() {
    let lab = Lab::new();
    let own = FAMILIES.map(Family::gateway);
    let services = [53, 54, 55, 56, 57].map(|port| {
        let addresses = own.map(|address| SocketAddr::new(address, port));
        DatagramWitness::bound(&lab.gateway, &addresses)
    });
    let mut agent = lab.agent("--scope inbound --proto udp --dport 53 --name relayed");
    agent.run("rule add --scope inbound --proto udp --dport 54 --action pass --name passed");
    agent.run("rule add --scope inbound --proto udp --dport 55 --action drop --name dropped");
    agent.run("rule add --scope inbound --proto udp --dport 56 --action reject --name rejected");
    for family in FAMILIES {
        let client = |port| DatagramClient::connected(&lab.client, (family.gateway(), port).into());
        let relayed = client(53);
        for _ in 0..3 {
            relayed
                .ask(b"relayed")
                .assert_relayed_from(family.gateway());
        }
        client(54).ask(b"passed").assert_direct();
        client(55).socket().send(b"dropped").unwrap();
        let refused = client(56).try_ask(b"rejected").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        client(57).ask(b"none of ours").assert_direct();
    }
    for unheard in &services[2..4] {
        assert_eq!(unheard.received(), []);
    }
    assert_eq!(agent.stop().len(), 2);
}

/// With the agent killed, a service of the gateway's own behind a rule gets nothing, or all, as the rule's `on_missing`
/// has it. Others are not concerned.
#[test]
fn a_service_of_the_gateway_follows_on_missing_when_the_agent_is_killed() {
    let lab = Lab::new();
    let services = [80, 81, 82].map(|port| Witness::start(&lab.gateway, port));
    let own = FAMILIES.map(Family::gateway);
    let datagrams = [80, 81, 82].map(|port| {
        DatagramWitness::bound(
            &lab.gateway,
            &own.map(|address| SocketAddr::new(address, port)),
        )
    });
    let mut agent = lab.agent("--scope inbound --proto any --dport 80 --name closed");
    agent.run("rule add --scope inbound --proto any --dport 81 --on-missing pass --name open");
    let client = |family: Family, port| {
        DatagramClient::connected(&lab.client, (family.gateway(), port).into())
    };
    for family in FAMILIES {
        for port in [80, 81] {
            lab.ask(family.gateway(), port)
                .assert_relayed_from(&agent, family.gateway());
            client(family, port)
                .ask(b"alive")
                .assert_relayed_from(family.gateway());
        }
    }
    agent.kill();
    let _ = (services[0].clients(), datagrams[0].received());
    for family in FAMILIES {
        let refused = lab.connect_at_once((family.gateway(), 80).into());
        assert_eq!(
            refused.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        let refused = client(family, 80).try_ask(b"closed").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        for port in [81, 82] {
            lab.ask(family.gateway(), port).assert_unproxied();
            client(family, port).ask(b"open").assert_direct();
        }
    }
    assert_eq!(
        (services[0].clients(), datagrams[0].received()),
        (vec![], vec![])
    );
    agent.run("unload");
    for family in FAMILIES {
        lab.ask(family.gateway(), 80).assert_unproxied();
    }
}

/// What this host says to itself, at loopback or at its own addresses, is never caught, although the rule names
/// everything: neither TCP nor datagrams.
#[test]
fn flows_of_this_host_to_itself_are_never_caught() {
    let lab = Lab::new();
    let _own = Witness::start(&lab.gateway, 80);
    let mut agent = lab.agent("--scope inbound --proto any --name everything");
    for family in FAMILIES {
        for address in [
            family.loopback(),
            family.gateway(),
            family.gateway_upstream(),
        ] {
            let target = SocketAddr::new(address, 80);
            let _datagrams = DatagramWitness::bound(&lab.gateway, &[target]);
            Exchange::of(&lab.gateway, target).assert_direct(&agent);
            DatagramClient::connected(&lab.gateway, target)
                .ask(b"connected")
                .assert_direct();
            DatagramClient::bound(&lab.gateway, family.any())
                .ask_at(target, b"free")
                .assert_direct();
        }
        lab.ask(family.gateway(), 80)
            .assert_relayed_from(&agent, family.gateway());
    }
    assert_eq!(agent.stop().len(), 2);
}

/// What is routed through the gateway is not addressed to it, and what the gateway opens itself is neither.
#[test]
fn other_scopes_are_not_concerned() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let _datagrams = DatagramWitness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --scope inbound --proto any --name everything");
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 80);
        lab.ask(target.ip(), 80).assert_direct(&agent);
        Exchange::of(&lab.gateway, target).assert_direct(&agent);
        for namespace in [&lab.client, &lab.gateway] {
            DatagramClient::connected(namespace, target)
                .ask(b"through")
                .assert_direct();
        }
    }
    assert_eq!(agent.stop(), []);
}

/// A rule for all ports leaves SSH alone, by which the host may be administered. One that names its port has it.
#[test]
fn ssh_is_caught_only_when_named() {
    let lab = Lab::new();
    let _services = [22, 23].map(|port| Witness::start(&lab.gateway, port));
    let mut agent = lab.agent("--scope inbound --name all");
    agent.run("rule add --scope inbound --dport 1-1024 --name low");
    for family in FAMILIES {
        lab.ask(family.gateway(), 22).assert_direct(&agent);
        lab.ask(family.gateway(), 23)
            .assert_relayed_from(&agent, family.gateway());
        agent.run("rule add --at 1 --scope inbound --dport 22 --name ssh");
        lab.ask(family.gateway(), 22)
            .assert_relayed_from(&agent, family.gateway());
        agent.run("rule del ssh");
        lab.ask(family.gateway(), 22).assert_direct(&agent);
    }
    assert_eq!(agent.stop().len(), 4);
}

/// Ranges of ports, and all addresses of a prefix that the host answers at, to one listener, which needs no privilege
/// and sees where each flow was going. Ports beside the range are refused as ever.
#[test]
fn ranges_of_ports_and_prefixes_go_to_one_listener() {
    let lab = Lab::new();
    for family in FAMILIES {
        // Not the server's any more: the gateway's.
        let prefix = family.near_prefix();
        lab.gateway.ip(&format!(
            "route del {prefix}\nroute add local {prefix} dev lo"
        ));
    }
    let listener = Witness::start(&lab.gateway, 4711);
    let [v4, v6] = FAMILIES.map(Family::near_prefix);
    let mut agent = lab.agent(&format!(
        "--scope inbound --dst {v4},{v6} --dport 8000-8999,9999 --action redirect --to [::]:4711"
    ));
    for family in FAMILIES {
        let mut others = [family.near(), family.near()];
        others[1] = match family {
            Family::V4 => [192, 0, 2, 200].into(),
            Family::V6 => [0x2001, 0xdb8, 1, 7, 0, 0, 0, 0x77].into(),
        };
        for address in others {
            for port in [8000, 8500, 8999, 9999] {
                lab.ask(address, port).assert_direct(&agent);
            }
            for port in [7999, 9000] {
                let refused = lab.connect_at_once((address, port).into());
                assert_eq!(
                    refused.unwrap_err().kind(),
                    io::ErrorKind::ConnectionRefused
                );
            }
        }
    }
    assert_eq!(listener.clients().len(), 16);
    assert_eq!(agent.stop(), [], "the agent has no part in it");
}

/// A relayed flow to the gateway's own service outlives its rule, and a new one goes direct.
#[test]
fn a_flow_outlives_its_rule() {
    let lab = Lab::new();
    let server = Server::start(&lab.gateway, 80, |mut stream| -> io::Result<u8> {
        let mut octet = [0];
        stream.read_exact(&mut octet)?;
        stream.write_all(&octet)?;
        stream.read_exact(&mut octet)?;
        Ok(octet[0])
    });
    let _witness = Witness::start(&lab.gateway, 81);
    let mut agent = lab.agent("--scope inbound --dport 80,81 --name all");
    for family in FAMILIES {
        let mut stream = lab.client.connect((family.gateway(), 80).into()).unwrap();
        stream.write_all(b"1").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        agent.run("rule del all");
        lab.gateway
            .ip("route add 203.0.113.0/24 via 10.77.2.2\nroute add 2001:db8:3::/48 via fd77:2::2");
        lab.ask(family.gateway(), 81).assert_direct(&agent);
        stream.write_all(b"2").unwrap();
        assert_eq!(server.outcome().unwrap(), b'2');
        let client = stream.local_addr().unwrap();
        drop(stream);
        assert_eq!(agent.flow_of(client).rule, "all");
        lab.gateway
            .ip("route del 203.0.113.0/24\nroute del 2001:db8:3::/48");
        agent.run("rule add --scope inbound --dport 80,81 --name all");
        lab.ask(family.gateway(), 81)
            .assert_relayed_from(&agent, family.gateway());
    }
    assert_eq!(agent.stop().len(), 4);
}

/// Answers to a program of the gateway's own that asks from an unconnected socket are its own, unless a rule is for every
/// port. Such a rule is warned of.
#[test]
fn answers_to_this_host_are_taken_by_rules_for_every_port() {
    let lab = Lab::new();
    let _server = DatagramWitness::start(&lab.server, 53);
    let mut agent = lab.agent("--scope inbound --proto udp --dport 53,123 --name service");
    let listener = lab.gateway.enter(|| UdpSocket::bind("[::]:4712")).unwrap();
    listener.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    for family in FAMILIES {
        let client = DatagramClient::bound(&lab.gateway, family.any());
        let target = SocketAddr::new(family.near(), 53);
        client.ask_at(target, b"mine").assert_direct();
        let every = agent.attempt(
            "rule add --name every --scope inbound --proto udp --action redirect --to [::]:4712",
        );
        assert_eq!(every.code, Some(0));
        let warned = every.stderr.iter().any(|line| {
            ["every", "answers", "dport"]
                .iter()
                .all(|word| line.contains(word))
        });
        assert!(warned, "{:?}", every.stderr);
        client.socket().send_to(b"lost", target).unwrap();
        let (_, from) = uninterrupted(|| listener.recv_from(&mut [0; 1024])).unwrap();
        assert_eq!(canonical(from), target);
        let connected = DatagramClient::connected(&lab.gateway, target);
        connected.ask(b"connected").assert_direct();
        agent.run("rule del every");
        client.ask_at(target, b"mine again").assert_direct();
    }
    let quiet = agent.attempt("rule add --name some --scope inbound --proto any --dport 80");
    assert_eq!((quiet.code, quiet.stderr), (Some(0), Vec::new()));
    assert_eq!(agent.stop(), []);
}

/// What a firewall has to let through for flows that are delivered to this host instead of being forwarded: under a
/// policy of drop for what is addressed to it, with connection tracking, the packets with the agent's mark.
#[test]
fn a_firewall_that_drops_has_to_let_marked_packets_in() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let _datagrams = DatagramWitness::start(&lab.server, 80);
    let mut agent = lab.agent("--scope local --proto any --dport 80 --name local");
    agent.run("rule add --scope inbound --proto any --dport 8080 --name inbound");
    let _own = Witness::start(&lab.gateway, 8080);
    let ask = |agent: &Agent, family: Family| {
        let target = SocketAddr::new(family.near(), 80);
        Exchange::of(&lab.gateway, target).assert_relayed_locally(agent);
        DatagramClient::connected(&lab.gateway, target)
            .ask(b"connected")
            .assert_relayed_from(family.gateway_upstream());
        DatagramClient::bound(&lab.gateway, family.any())
            .ask_at(target, b"free")
            .assert_relayed_from(family.gateway_upstream());
        lab.ask(family.gateway(), 8080)
            .assert_relayed_from(agent, family.gateway());
    };
    let firewall = |accepted: &str| {
        lab.gateway.nft(&format!(
            "table inet firewall\ndelete table inet firewall\n\
             table inet firewall {{\n chain input {{\n type filter hook input priority 0; policy drop;\n \
             ct state established,related accept\n meta l4proto ipv6-icmp accept\n {accepted}\n }}\n}}"
        ));
    };
    // Loopback, as every such policy has it, and the ports of inbound flows.
    firewall("iifname lo accept\n tcp dport 8080 accept");
    for family in FAMILIES {
        ask(&agent, family);
    }
    firewall("tcp dport 8080 accept");
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 80);
        let bound = Duration::from_millis(700);
        let silent = lab
            .gateway
            .enter(|| TcpStream::connect_timeout(&target, bound));
        assert_eq!(silent.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
    lab.gateway.nft("delete table inet firewall");
    for family in FAMILIES {
        ask(&agent, family);
    }
    wait::until("the flows", || (agent.flows().len() >= 8).then_some(()));
    agent.stop();
}
