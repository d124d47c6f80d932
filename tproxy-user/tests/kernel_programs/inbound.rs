//! Flows to this host itself: what sk_lookup gives to whom.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use socket2::{Domain, Socket, Type};
use tproxy_common::{address::Family, flow::Protocol, outcome::Outcome};
use tproxy_tests::wait::uninterrupted;
use tproxy_user::rule::{Rule, RuleSpec};

use crate::{
    neighbour::{
        Addresses, Neighbour, accept, any, attach_to_link, families, is_idle, listen, patient,
        receive, wait_until,
    },
    sandbox::{FIRST_SLOT, Sandbox, in_sandbox, rule, words},
};

/// One port for each thing that can become of a flow, and one that no rule names.
const RELAYED: u16 = 80;
const PASSED: u16 = 81;
const REJECTED: u16 = 82;
const DROPPED: u16 = 83;
const REDIRECTED: u16 = 84;
const OPEN: u16 = 85;
const UNNAMED: u16 = 86;

fn to_port(port: u16, edit: impl FnOnce(&mut RuleSpec)) -> Rule {
    rule(|spec| {
        spec.scope = Some("inbound".into());
        spec.proto = Some("any".into());
        spec.dport = vec![port.to_string()];
        edit(spec);
    })
}

fn action(word: &str) -> impl FnOnce(&mut RuleSpec) {
    move |spec| spec.action = Some(word.into())
}

fn rules() -> [Rule; 6] {
    [
        to_port(REDIRECTED, |spec| {
            spec.action = Some("redirect".into());
            spec.to = Some("127.0.0.1:8080".into());
        }),
        to_port(RELAYED, |_| ()),
        to_port(PASSED, action("pass")),
        to_port(REJECTED, action("reject")),
        to_port(DROPPED, action("drop")),
        to_port(OPEN, |spec| spec.on_missing = Some("pass".into())),
    ]
}

/// Runs a test beside a neighbour, with rules for flows to this host. Nothing has to be delivered, for
/// they come here anyway.
fn beside_a_neighbour(test: impl FnOnce(&Sandbox, &Neighbour) + Send + 'static) {
    in_sandbox(|sandbox| {
        let neighbour = Neighbour::on_link();
        attach_to_link(sandbox);
        sandbox.install(&rules());
        test(sandbox, &neighbour);
    });
}

/// This host's own services at every address.
struct Services(Vec<(u16, TcpListener, UdpSocket)>);

impl Services {
    fn start() -> Self {
        let ports = [
            RELAYED, PASSED, REJECTED, DROPPED, REDIRECTED, OPEN, UNNAMED,
        ];
        let start = |port| {
            let address = SocketAddr::from(([0_u16; 8], port));
            let udp = UdpSocket::bind(address).expect("a free port");
            (port, listen(address), patient(udp))
        };
        Self(ports.map(start).into())
    }

    fn tcp(&self, port: u16) -> &TcpListener {
        let mut services = self.0.iter();
        &services
            .find(|service| service.0 == port)
            .expect("it is there")
            .1
    }

    fn udp(&self, port: u16) -> &UdpSocket {
        let mut services = self.0.iter();
        &services
            .find(|service| service.0 == port)
            .expect("it is there")
            .2
    }
}

fn at(family: Addresses, port: u16) -> SocketAddr {
    SocketAddr::new(family.own, port)
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: io::Result<T>) {
    let error = result.expect_err("it is refused");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

/// Connects, and checks that this listener gets the flow as it was.
#[track_caller]
fn assert_accepted(neighbour: &Neighbour, target: SocketAddr, listener: &TcpListener) {
    let client = neighbour.connect(target).expect("a connection");
    let (_accepted, destination, source) = accept(listener);
    assert_eq!(destination, target);
    assert_eq!(source, client.local_addr().expect("an address"));
}

/// Sends a datagram, and checks that this socket gets it.
#[track_caller]
fn assert_received(neighbour: &Neighbour, target: SocketAddr, socket: &UdpSocket) {
    let client = neighbour.datagrams_to(target);
    client.send(b"question").expect("a datagram");
    let (question, source) = receive(socket);
    assert_eq!(question, b"question");
    assert_eq!(source, client.local_addr().expect("an address"));
}

#[test]
fn connections_to_this_host_go_where_their_rules_say() {
    beside_a_neighbour(|sandbox, neighbour| {
        let services = Services::start();
        let workers = sandbox.start_workers(1);
        let redirected = listen("[::]:0".parse().unwrap());
        let duplicate = redirected.try_clone().expect("a duplicate").into();
        let maps = &sandbox.maps;
        for family in [Family::V4, Family::V6] {
            let set = maps.set_redirect_member(Protocol::Tcp, family, FIRST_SLOT, 1, &duplicate);
            set.expect("the socket is taken");
        }
        for family in families() {
            let occurred = |outcome| sandbox.occurred(outcome);
            let before = [Outcome::InboundTaken, Outcome::InboundPassed].map(occurred);
            for (port, listener) in [
                (RELAYED, &workers.listeners[0].tcp),
                (OPEN, &workers.listeners[0].tcp),
                (REDIRECTED, &redirected),
                (PASSED, services.tcp(PASSED)),
                (UNNAMED, services.tcp(UNNAMED)),
            ] {
                assert_accepted(neighbour, at(family, port), listener);
            }
            assert_eq!(occurred(Outcome::InboundTaken), before[0] + 3);
            assert_eq!(occurred(Outcome::InboundPassed), before[1] + 1);
            assert_refused(neighbour.connect(at(family, REJECTED)));
        }
        for port in [RELAYED, REJECTED, REDIRECTED, OPEN] {
            assert!(is_idle(services.tcp(port)), "{port}");
        }
        assert_eq!(sandbox.occurred(Outcome::InboundRejected), 2);
    });
}

/// No answer comes, be it that somebody is there or that nobody is.
#[test]
fn what_is_dropped_looks_lost() {
    beside_a_neighbour(|sandbox, neighbour| {
        let services = Services::start();
        let workers = sandbox.start_workers(1);
        let dropped = || sandbox.occurred(Outcome::InboundDropped);
        for (times, family) in (0..).zip(families()) {
            let target = at(family, DROPPED);
            let connecting = neighbour.run(|| {
                let socket = Socket::new(Domain::for_address(target), Type::STREAM, None);
                let socket = socket.expect("a socket");
                socket.set_nonblocking(true).expect("an option");
                let error = socket.connect(&target.into()).expect_err("no answer yet");
                assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
                socket
            });
            wait_until(|| dropped() > 2 * times);
            let client = neighbour.datagrams_to(target);
            let before = dropped();
            client.send(b"question").expect("a datagram");
            wait_until(|| dropped() > before);
            // An answer would be here by the time that another's is.
            assert_accepted(neighbour, at(family, PASSED), services.tcp(PASSED));
            assert!(connecting.take_error().expect("an option").is_none());
            assert!(client.take_error().expect("an option").is_none());
            assert!(connecting.peer_addr().is_err(), "it is not connected");
        }
        assert!(is_idle(services.tcp(DROPPED)));
        drop(workers);
        // Without the sockets that discard there is nothing to drop with, and yet nobody gets it.
        assert_refused(neighbour.connect(at(families()[0], DROPPED)));
        assert!(is_idle(services.tcp(DROPPED)));
    });
}

#[test]
fn datagrams_to_this_host_go_where_their_rules_say() {
    beside_a_neighbour(|sandbox, neighbour| {
        let services = Services::start();
        let workers = sandbox.start_workers(1);
        let worker = workers.listeners[0].udp.try_clone().expect("a duplicate");
        let worker = patient(worker);
        let redirected = patient(UdpSocket::bind("[::]:0").expect("a socket"));
        let duplicate = redirected.try_clone().expect("a duplicate").into();
        let maps = &sandbox.maps;
        for family in [Family::V4, Family::V6] {
            let set = maps.set_redirect_member(Protocol::Udp, family, FIRST_SLOT, 3, &duplicate);
            set.expect("the socket is taken");
        }
        for family in families() {
            for (port, socket) in [
                (RELAYED, &worker),
                (OPEN, &worker),
                (REDIRECTED, &redirected),
                (PASSED, services.udp(PASSED)),
                (UNNAMED, services.udp(UNNAMED)),
            ] {
                assert_received(neighbour, at(family, port), socket);
            }
            let client = neighbour.datagrams_to(at(family, REJECTED));
            client.send(b"question").expect("a datagram");
            assert_refused(uninterrupted(|| client.recv(&mut [0; 1])));
        }
        assert_eq!(sandbox.occurred(Outcome::InboundRejected), 2);
    });
}

#[test]
fn on_missing_decides_when_nobody_is_there() {
    beside_a_neighbour(|sandbox, neighbour| {
        let services = Services::start();
        drop(sandbox.start_workers(1));
        for family in families() {
            assert_accepted(neighbour, at(family, OPEN), services.tcp(OPEN));
            assert_received(neighbour, at(family, OPEN), services.udp(OPEN));
            for port in [RELAYED, REDIRECTED] {
                assert_refused(neighbour.connect(at(family, port)));
                let client = neighbour.datagrams_to(at(family, port));
                client.send(b"question").expect("a datagram");
                assert_refused(uninterrupted(|| client.recv(&mut [0; 1])));
            }
        }
        assert_eq!(sandbox.occurred(Outcome::InboundPassedMissing), 4);
        assert_eq!(sandbox.occurred(Outcome::InboundRefusedMissing), 8);
    });
}

/// An agent that drains, or has never been, leaves flows to the services.
#[test]
fn an_agent_that_drains_takes_nothing_new() {
    beside_a_neighbour(|sandbox, neighbour| {
        let services = Services::start();
        let [v4, v6] = families();
        assert_accepted(neighbour, at(v4, RELAYED), services.tcp(RELAYED));
        let workers = sandbox.start_workers(1);
        assert_accepted(neighbour, at(v4, RELAYED), &workers.listeners[0].tcp);
        let state = sandbox.maps.agent().expect("the state").draining();
        sandbox.maps.set_agent(state).expect("the state");
        for family in [v4, v6] {
            assert_accepted(neighbour, at(family, RELAYED), services.tcp(RELAYED));
            assert_received(neighbour, at(family, RELAYED), services.udp(RELAYED));
        }
    });
}

/// Nor is what this host says to itself, to any address of its own.
#[test]
fn a_rule_for_all_ports_leaves_ssh_alone() {
    beside_a_neighbour(|sandbox, neighbour| {
        let everything = rule(|spec| {
            spec.scope = Some("inbound".into());
            spec.action = Some("reject".into());
        });
        let ports = rule(|spec| {
            spec.scope = Some("inbound".into());
            spec.dport = words(&["20-30"]);
            spec.action = Some("reject".into());
        });
        sandbox.install(&[ports, everything]);
        let [ssh, other] = [22, 23].map(|port| listen(SocketAddr::from(([0_u16; 8], port))));
        for family in families() {
            assert_accepted(neighbour, at(family, 22), &ssh);
            assert_refused(neighbour.connect(at(family, 23)));
            for address in [at(family, 23), at(family, 22)] {
                let _client = TcpStream::connect(address).expect("a connection");
            }
            assert_eq!(accept(&other).1, at(family, 23));
            assert_eq!(accept(&ssh).1, at(family, 22));
        }
        sandbox.install(&[to_port(22, action("reject"))]);
        for family in families() {
            assert_refused(neighbour.connect(at(family, 22)));
        }
    });
}

/// Datagrams of this host to itself neither, from a socket with any of its addresses.
#[test]
fn what_this_host_says_to_itself_is_left_alone() {
    beside_a_neighbour(|sandbox, _| {
        let services = Services::start();
        let _workers = sandbox.start_workers(1);
        for family in families() {
            for port in [RELAYED, REJECTED, DROPPED, REDIRECTED] {
                let target = at(family, port);
                let client = UdpSocket::bind(any(target)).expect("a socket");
                client.send_to(b"question", target).expect("a datagram");
                assert_eq!(receive(services.udp(port)).0, b"question");
                let _client = TcpStream::connect(target).expect("a connection");
                assert_eq!(accept(services.tcp(port)).1, target);
            }
        }
        let seen = sandbox.moved_since(&[0; _]);
        let of_rules = seen.iter().filter(|(outcome, _)| {
            let number = *outcome as u32;
            (Outcome::InboundTaken as u32..=Outcome::InboundRefusedMissing as u32).contains(&number)
        });
        assert_eq!(of_rules.count(), 0, "{seen:?}");
    });
}

/// The answer to what a connected socket of this host has asked is its own. What is sent to one that is
/// not connected cannot be told from what somebody opens: a rule for its port takes the answer as well.
#[test]
fn answers_to_connected_sockets_are_left_alone() {
    beside_a_neighbour(|sandbox, neighbour| {
        let _workers = sandbox.start_workers(1);
        let everything = rule(|spec| {
            spec.scope = Some("inbound".into());
            spec.proto = Some("any".into());
            spec.action = Some("drop".into());
        });
        sandbox.install(&[everything]);
        for family in families() {
            let server =
                neighbour.run(|| patient(UdpSocket::bind((family.client, 53)).expect("a socket")));
            let target = SocketAddr::new(family.client, 53);
            let client = || patient(UdpSocket::bind((family.own, 0)).expect("a socket"));
            let connected = client();
            connected.connect(target).expect("a way");
            connected.send(b"question").expect("a datagram");
            let (_, source) = receive(&server);
            server.send_to(b"answer", source).expect("a datagram");
            assert_eq!(receive(&connected).0, b"answer");

            let dropped = sandbox.occurred(Outcome::InboundDropped);
            let unconnected = client();
            unconnected
                .send_to(b"question", target)
                .expect("a datagram");
            let (_, source) = receive(&server);
            server.send_to(b"answer", source).expect("a datagram");
            wait_until(|| sandbox.occurred(Outcome::InboundDropped) > dropped);
        }
    });
}
