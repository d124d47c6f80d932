//! Datagrams of real programs through the relay: DNS, QUIC, and a steady stream.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use tproxy_tests::{
    Agent, Family, FlowLine, Lab,
    address::FAMILIES,
    peer::{Answer, Dnsmasq, Iperf, LONG_NAME, NAME, Nginx, QuicServer, dig, send_datagrams},
};

/// What `tproxy run` is given here: sessions of datagrams are reported when it ends at the latest.
const ARGUMENTS: &str = "--iface cl0 --proto any --dport 53,80,443,5201 --drain 1";

/// Ends the agent and returns the sessions of datagrams that it reported.
#[track_caller]
fn sessions(agent: &mut Agent) -> Vec<FlowLine> {
    let mut flows = agent.stop();
    flows.retain(|flow| flow.protocol == "udp");
    flows
}

#[track_caller]
fn ask_for_address(lab: &Lab, server: SocketAddr, options: &str) -> Answer {
    let answer = dig(&lab.client, server, &format!("A {NAME} {options}"));
    assert_eq!(answer.records, [Dnsmasq::ADDRESS]);
    answer
}

/// Questions go through the relay over UDP and TCP, one whose answer does not fit a datagram over both; answers come from
/// the address that was asked. A server at a port that no rule names sees the client itself.
#[test]
fn dns_is_relayed_over_udp_and_tcp() {
    let lab = Lab::new();
    let (named, other) = (
        Dnsmasq::start(&lab.server, 53),
        Dnsmasq::start(&lab.server, 5300),
    );
    let mut agent = lab.agent(ARGUMENTS);
    for family in FAMILIES {
        for address in [family.near(), family.far(), family.server()] {
            assert!(!ask_for_address(&lab, (address, 53).into(), "").over_tcp);
            assert!(ask_for_address(&lab, (address, 53).into(), "+tcp").over_tcp);
        }
        let answer = dig(
            &lab.client,
            (family.near(), 53).into(),
            &format!("TXT {LONG_NAME}"),
        );
        assert!(answer.over_tcp, "what does not fit is asked for again");
        assert_eq!(answer.records[0].matches('x').count(), Dnsmasq::TEXT_LENGTH);
        for options in ["", "+tcp"] {
            ask_for_address(&lab, (family.near(), 5300).into(), options);
        }
    }
    let seen_by = |server: &Dnsmasq, each: fn(Family) -> IpAddr, count: usize| {
        let clients = FAMILIES.map(|family| vec![each(family); count]).concat();
        assert_eq!(server.clients(NAME, clients.len()), clients);
    };
    seen_by(&named, Family::gateway_upstream, 6);
    seen_by(&other, Family::client, 2);

    let flows = agent.stop();
    let count = |protocol: &str| {
        flows
            .iter()
            .filter(|flow| flow.protocol == protocol)
            .count()
    };
    assert_eq!((count("udp"), count("tcp")), (8, 8), "{flows:#?}");
    assert!(flows.iter().all(|flow| flow.server.port() == 53));
}

/// The datagrams of a long answer are all there when they come in fragments: EDNS lets dig take 4,096 bytes.
#[test]
fn answers_of_several_fragments_are_relayed() {
    let lab = Lab::new();
    let named = Dnsmasq::start(&lab.server, 53);
    let _agent = lab.agent(ARGUMENTS);
    for family in FAMILIES {
        let question = format!("TXT {} +bufsize=4096 +ignore", Dnsmasq::FRAGMENTED_NAME);
        let answer = dig(&lab.client, (family.near(), 53).into(), &question);
        assert!(!answer.over_tcp);
        assert_eq!(
            answer.records[0].matches('x').count(),
            Dnsmasq::FRAGMENTED_LENGTH
        );
    }
    let seen = named.clients(Dnsmasq::FRAGMENTED_NAME, 2);
    assert_eq!(seen, FAMILIES.map(Family::gateway_upstream));
}

/// A QUIC handshake and a download of some megabytes, checked by the certificate and by a digest.
#[test]
fn quic_downloads_are_relayed() {
    let lab = Lab::new();
    let mut agent = lab.agent(ARGUMENTS);
    let mut clients = BTreeSet::new();
    for family in FAMILIES {
        let server: SocketAddr = (family.near(), 443).into();
        let named = QuicServer::start(&lab.server, server);
        let (port, seen) = named.download(&lab.client, 3 << 20);
        assert_eq!(
            seen.ip(),
            family.gateway_upstream(),
            "the server sees the gateway"
        );
        clients.insert((SocketAddr::new(family.client(), port), server));

        let other = QuicServer::start(&lab.server, (family.near(), 4433).into());
        let (port, seen) = other.download(&lab.client, 100_000);
        assert_eq!(seen, (family.client(), port).into());
    }
    let sessions = sessions(&mut agent);
    // They end together, in whatever order.
    let ends = |flow: &FlowLine| (flow.client, flow.server);
    let ends: BTreeSet<_> = sessions.iter().map(ends).collect();
    assert_eq!(ends, clients);
    assert!(
        sessions.iter().all(|flow| flow.received > 3 << 20),
        "{sessions:#?}"
    );
}

/// Several downloads at once, each in a session of its own.
#[test]
fn quic_downloads_at_once_are_relayed() {
    const AT_ONCE: usize = 4;
    let lab = Lab::new();
    let mut agent = lab.agent(ARGUMENTS);
    let server: SocketAddr = (Family::V4.far(), 443).into();
    let named = QuicServer::start(&lab.server, server);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let (_, seen) = named.download(&lab.client, 500_000);
                assert_eq!(seen.ip(), Family::V4.gateway_upstream());
            });
        }
    });
    assert_eq!(sessions(&mut agent).len(), AT_ONCE);
}

/// A stream of datagrams at a modest rate, in either direction, beside the TCP connection that controls it: none is lost.
#[test]
fn a_modest_stream_of_datagrams_loses_nothing() {
    let lab = Lab::new();
    let mut agent = lab.agent(ARGUMENTS);
    let mut senders = Vec::new();
    for family in FAMILIES {
        for (port, is_relayed) in [(5201, true), (5202, false)] {
            let address: SocketAddr = (family.near(), port).into();
            let _server = Iperf::start(&lab.server, address);
            for reverse in [false, true] {
                let report = send_datagrams(&lab.client, address, reverse);
                report.assert_complete();
                if is_relayed {
                    senders.push((report.client, address, reverse));
                }
            }
        }
    }
    let sessions = sessions(&mut agent);
    for (client, server, reverse) in &senders {
        let session = sessions
            .iter()
            .find(|flow| (flow.client, flow.server) == (*client, *server));
        let session = session.unwrap_or_else(|| panic!("{client} is not in {sessions:#?}"));
        let bytes = if *reverse {
            session.received
        } else {
            session.sent
        };
        assert!(bytes > 200 * 1200, "{session:?}");
    }
    assert_eq!(sessions.len(), senders.len(), "{sessions:#?}");
}

/// With a rule for both protocols, TCP to the same port is relayed as ever.
#[test]
fn a_rule_for_both_protocols_takes_tcp_as_well() {
    let lab = Lab::new();
    let _servers = [80, 81].map(|port| Nginx::start(&lab.server, port));
    let mut agent = lab.agent(ARGUMENTS);
    for family in FAMILIES {
        let fetch = |port: u16| {
            let server: SocketAddr = (family.near(), port).into();
            lab.client
                .output(&format!("curl -sS --noproxy * http://{server}/who"))
        };
        let near = family.near();
        assert_eq!(fetch(80), format!("{} {near}", family.gateway_upstream()));
        assert_eq!(fetch(81), format!("{} {near}", family.client()));
    }
    assert_eq!(agent.stop().len(), 2);
}
