//! Flows that arrive on an attached interface, all the way to the socket that gets them.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use aya::maps::{Map, MapData, SockMap};
use tproxy_common::{
    address::Family,
    flow::{Protocol, worker_of},
    limits::COUNTER_SLOTS,
    outcome::Outcome,
    sockets::{self, MEMBERS},
    turn::CONNECTIONS,
};
use tproxy_tests::wait::uninterrupted;
use tproxy_user::{
    relay::Listener,
    rule::{Rule, RuleSpec},
};

use crate::{
    neighbour::{
        Addresses, NEAR, Neighbour, accept, attach_to_link, datagrams_at, deliver, families,
        is_idle, listen, receive, sysctl, wait_until,
    },
    sandbox::{FIRST_SLOT, Sandbox, in_sandbox, rule, words},
};

fn any_of(family: Addresses) -> &'static str {
    if family.own.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Runs a test beside a neighbour, whose flows come through the programs.
fn beside_a_neighbour(test: impl FnOnce(&Sandbox, &Neighbour) + Send + 'static) {
    in_sandbox(|sandbox| {
        let neighbour = Neighbour::on_link();
        attach_to_link(sandbox);
        deliver(&[NEAR], false);
        test(sandbox, &neighbour);
    });
}

/// A rule for a port, for both protocols.
fn to_port(port: &str, edit: impl FnOnce(&mut RuleSpec)) -> Rule {
    rule(|spec| {
        spec.proto = Some("any".into());
        spec.dport = words(&[port]);
        edit(spec);
    })
}

fn redirect(spec: &mut RuleSpec) {
    spec.action = Some("redirect".into());
    spec.to = Some("127.0.0.1:8080".into());
}

/// Has the rule with the first slot hand its flows of both families to this socket.
fn put(sandbox: &Sandbox, protocol: Protocol, member: usize, socket: &OwnedFd) {
    for family in [Family::V4, Family::V6] {
        put_for(sandbox, protocol, family, member, socket);
    }
}

/// The same with those of one family.
fn put_for(sandbox: &Sandbox, protocol: Protocol, family: Family, member: usize, socket: &OwnedFd) {
    let maps = &sandbox.maps;
    let set = maps.set_redirect_member(protocol, family, FIRST_SLOT, member, socket);
    set.expect("the socket is taken");
}

fn remove(sandbox: &Sandbox, protocol: Protocol, member: usize) {
    for family in [Family::V4, Family::V6] {
        let maps = &sandbox.maps;
        let removed = maps.remove_redirect_member(protocol, family, FIRST_SLOT, member);
        removed.expect("the place is emptied");
    }
}

fn duplicate(listener: &TcpListener) -> OwnedFd {
    listener.try_clone().expect("a duplicate").into()
}

fn duplicate_udp(socket: &UdpSocket) -> OwnedFd {
    socket.try_clone().expect("a duplicate").into()
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: io::Result<T>) {
    let error = result.expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

/// Whatever place of the rule has its socket; what the rule does not match goes to a worker.
#[test]
fn a_redirected_connection_comes_to_its_listener_from_every_place() {
    beside_a_neighbour(|sandbox, neighbour| {
        let workers = sandbox.start_workers(1);
        sandbox.install(&[to_port("80", redirect), to_port("81", |_| ())]);
        let listener = listen(address("[::]:0"));
        for family in families() {
            let target = SocketAddr::new(family.server, 80);
            assert_refused(neighbour.connect(target));
            for member in 0..MEMBERS as usize {
                put(sandbox, Protocol::Tcp, member, &duplicate(&listener));
                let client = neighbour.connect(target).expect("a connection");
                let (_accepted, destination, source) = accept(&listener);
                assert_eq!((destination, source.ip()), (target, family.client));
                drop(client);
                remove(sandbox, Protocol::Tcp, member);
            }
            assert_refused(neighbour.connect(target));
            let other = SocketAddr::new(family.server, 81);
            let _client = neighbour.connect(other).expect("a connection");
            let (_accepted, destination, _) = accept(&workers.listeners[0].tcp);
            assert_eq!(destination, other);
        }
        assert!(is_idle(&listener));
        assert_eq!(sandbox.occurred(Outcome::Missing), 0);
    });
}

/// Each family has its listener, and one of IPv6 alone is nobody for IPv4, as one of IPv4 is for IPv6.
#[test]
fn a_redirected_connection_comes_to_a_listener_of_its_family() {
    beside_a_neighbour(|sandbox, neighbour| {
        let _workers = sandbox.start_workers(1);
        sandbox.install(&[to_port("80", redirect)]);
        let [v4, v6] = families();
        let of = |family| listen(address(any_of(family)));
        let (listener_v4, listener_v6) = (of(v4), listen_v6_only());
        let targets = [v4, v6].map(|family| SocketAddr::new(family.server, 80));
        let listeners = [(Family::V4, &listener_v4), (Family::V6, &listener_v6)];
        for (family, listener) in listeners {
            put_for(sandbox, Protocol::Tcp, family, 0, &duplicate(listener));
        }
        for (target, (_, listener)) in targets.into_iter().zip(listeners) {
            let _client = neighbour.connect(target).expect("a connection");
            assert_eq!(accept(listener).1, target);
        }
        for ([own, other], (family, listener)) in [targets, [targets[1], targets[0]]]
            .into_iter()
            .zip(listeners)
        {
            remove(sandbox, Protocol::Tcp, 0);
            put_for(sandbox, Protocol::Tcp, family, 0, &duplicate(listener));
            let _client = neighbour.connect(own).expect("a connection");
            assert_eq!(accept(listener).1, own);
            assert_refused(neighbour.connect(other));
        }
        assert_eq!(sandbox.occurred(Outcome::Missing), 0);
    });
}

fn listen_v6_only() -> TcpListener {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).expect("a socket");
    socket.set_only_v6(true).expect("an option");
    socket.set_ip_transparent_v4(true).expect("an option");
    socket.bind(&address("[::]:0").into()).expect("a free port");
    socket.listen(128).expect("a listener");
    let limit = socket.set_read_timeout(Some(crate::neighbour::PATIENCE));
    limit.expect("an option");
    socket.into()
}

/// Every SYN is answered with a cookie, so that the last ACK finds no socket but the listener.
#[test]
fn connections_are_made_by_cookies_of_whoever_listens() {
    beside_a_neighbour(|sandbox, neighbour| {
        sysctl("net.ipv4.tcp_syncookies", "2");
        let workers = sandbox.start_workers(2);
        sandbox.install(&[to_port("80", redirect), to_port("81", |_| ())]);
        let of_v4 = listen(address("0.0.0.0:0"));
        let of_v6 = listen_v6_only();
        // Each family's is behind the other's.
        for order in [[&of_v4, &of_v6], [&of_v6, &of_v4]] {
            for (member, listener) in order.into_iter().enumerate() {
                put(sandbox, Protocol::Tcp, member, &duplicate(listener));
            }
            for (family, listener) in families().into_iter().zip([&of_v4, &of_v6]) {
                let cookies = sandbox.occurred(Outcome::SynCookie);
                let target = SocketAddr::new(family.server, 80);
                let mut client = neighbour.connect(target).expect("a connection");
                let (mut accepted, destination, _) = accept(listener);
                assert_eq!(destination, target);
                client.write_all(b"?").expect("a connection");
                accepted.read_exact(&mut [0]).expect("a connection");
                let seen = sandbox.moved_since(&[0; _]);
                assert!(
                    sandbox.occurred(Outcome::SynCookie) > cookies,
                    "{target}: {seen:?}"
                );
            }
        }
        for family in families() {
            let cookies = sandbox.occurred(Outcome::SynCookie);
            let target = SocketAddr::new(family.server, 81);
            let mut client = neighbour.connect(target).expect("a connection");
            client.write_all(b"?").expect("a connection");
            wait_until(|| sandbox.occurred(Outcome::Established) > 0);
            assert!(sandbox.occurred(Outcome::SynCookie) > cookies, "{target}");
        }
        drop(workers);
    });
}

#[test]
fn datagrams_come_to_a_worker_or_to_who_they_are_redirected_to() {
    beside_a_neighbour(|sandbox, neighbour| {
        let workers = sandbox.start_workers(1);
        sandbox.install(&[to_port("80", redirect), to_port("81", |_| ())]);
        let redirected = datagrams_at(address("[::]:0"));
        put(sandbox, Protocol::Udp, 2, &duplicate_udp(&redirected));
        let worker = &workers.listeners[0].udp;
        let limit = worker.set_read_timeout(Some(crate::neighbour::PATIENCE));
        limit.expect("an option");
        for family in families() {
            for (port, socket) in [(80, &redirected), (81, worker)] {
                let target = SocketAddr::new(family.server, port);
                let client = neighbour.datagrams_to(target);
                client.send(b"question").expect("a datagram");
                let (question, source) = receive(socket);
                assert_eq!(question, b"question");
                assert_eq!(source, client.local_addr().expect("an address"));
                // From where the client sent to.
                let answering = datagrams_at(target);
                answering.send_to(b"answer", source).expect("a datagram");
                let mut answer = [0; 16];
                let length = uninterrupted(|| client.recv(&mut answer)).expect("an answer");
                assert_eq!(&answer[..length], b"answer");
            }
        }
    });
}

/// A session's own socket gets what follows, whatever the rules say by then.
#[test]
fn datagrams_of_a_connected_socket_stay_with_it() {
    beside_a_neighbour(|sandbox, neighbour| {
        let workers = sandbox.start_workers(1);
        let worker = &workers.listeners[0].udp;
        let limit = worker.set_read_timeout(Some(crate::neighbour::PATIENCE));
        limit.expect("an option");
        for family in families() {
            sandbox.install(&[to_port("81", |_| ())]);
            let target = SocketAddr::new(family.server, 81);
            let client = neighbour.datagrams_to(target);
            client.send(b"first").expect("a datagram");
            let (_, source) = receive(worker);
            let session = datagrams_at(target);
            session.connect(source).expect("a way");
            sandbox.install(&[]);
            let before = sandbox.occurred(Outcome::EstablishedUdp);
            for _ in 0..3 {
                client.send(b"later").expect("a datagram");
                assert_eq!(receive(&session).0, b"later");
            }
            assert_eq!(sandbox.occurred(Outcome::EstablishedUdp), before + 3);
            drop(session);
            let before = sandbox.occurred(Outcome::NoRule);
            client.send(b"too late").expect("a datagram");
            wait_until(|| sandbox.occurred(Outcome::NoRule) > before);
            assert_eq!(
                sandbox.occurred(Outcome::EstablishedUdp),
                3 + 3 * u64::from(family.own.is_ipv6())
            );
        }
    });
}

/// Each worker has its places. Connections come to them in turn, those that are opened at once to one,
/// whatever goes to another program in between; datagrams come to the worker of their client.
#[test]
fn workers_take_turns_at_connections_and_have_their_own_datagrams() {
    const WORKERS: u32 = 3;
    beside_a_neighbour(|sandbox, neighbour| {
        let workers = sandbox.start_workers(WORKERS);
        let another = listen(address("[::]:0"));
        sandbox.install(&[to_port("82", redirect), to_port("81", |_| ())]);
        put(sandbox, Protocol::Tcp, 0, &duplicate(&another));
        let listeners = &workers.listeners;
        for Listener { tcp, udp } in listeners {
            tcp.set_nonblocking(true).expect("an option");
            udp.set_read_timeout(Some(crate::neighbour::PATIENCE))
                .expect("an option");
        }
        // Families have no turns of their own.
        assert_turns(listeners, |number| {
            let family = families()[number % 2];
            let connect = |port| neighbour.connect(SocketAddr::new(family.server, port));
            let _client = connect(82).expect("a connection");
            drop(another.accept().expect("a connection"));
            connect(81).expect("a connection")
        });
        let mut flows = [0; WORKERS as usize];
        for family in families() {
            let target = SocketAddr::new(family.server, 81);
            for _ in 0..24 {
                let client = neighbour.datagrams_to(target);
                client.send(b"question").expect("a datagram");
                let port = client.local_addr().expect("an address").port();
                let worker = worker_of(&family.client.into(), port, WORKERS) as usize;
                assert_eq!(receive(&listeners[worker].udp).1.port(), port);
                flows[worker] += 1;
            }
        }
        assert!(flows.iter().all(|flows| *flows > 0), "{flows:?}");
    });
}

/// Opens connections, and checks that each worker gets them in turn: while they come at once as many as a
/// turn has, and none fewer.
#[track_caller]
fn assert_turns(listeners: &[Listener], connect: impl Fn(usize) -> TcpStream) {
    const RUN: usize = CONNECTIONS as usize;
    const PAUSE: Duration = Duration::from_millis(5);
    let mut before: Option<(usize, Instant)> = None;
    let mut run = 0;
    let mut at_once = 0;
    let mut accepted = vec![0; listeners.len()];
    for number in 0..3 * RUN * listeners.len() {
        let start = Instant::now();
        let _client = connect(number);
        let mut worker = None;
        wait_until(|| {
            worker = listeners
                .iter()
                .position(|listener| listener.tcp.accept().is_ok());
            worker.is_some()
        });
        let worker = worker.expect("it was waited for");
        accepted[worker] += 1;
        let same = before.is_some_and(|(last, _)| last == worker);
        if let Some((last, last_start)) = before {
            let next = (last + 1) % listeners.len();
            assert!(same || worker == next, "{worker} after {last}");
            if last_start.elapsed() < PAUSE && run < RUN {
                assert!(same, "{worker} after {run} of {last}");
                at_once += 1;
            }
        }
        run = if same { run + 1 } else { 1 };
        assert!(run <= RUN, "{run} in a row");
        before = Some((worker, start));
    }
    assert!(at_once > 0, "no two connections were opened at once");
    assert!(accepted.iter().all(|number| *number > 0), "{accepted:?}");
}

/// The last place of the last rule is within the map; a place is empty when its socket is closed.
#[test]
fn places_of_sockets_are_filled_and_emptied() {
    in_sandbox(|sandbox| {
        let maps = &sandbox.maps;
        assert_eq!(emptied(sandbox), Vec::<u32>::new());
        let start = || sandbox.start_workers(2);
        drop(start());
        assert_eq!(emptied(sandbox), Vec::<u32>::new());
        let workers = start();
        let mut expected = vec![sockets::LIFELINE];
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            expected.extend([0, 1].map(|worker| sockets::relay(protocol, worker)));
            expected.push(sockets::discarding(protocol));
        }
        expected.sort_unstable();
        assert_eq!(emptied(sandbox), expected);
        drop(workers);

        let last = u32::try_from(COUNTER_SLOTS).expect("a small number") - 1;
        let listener = listen(address("[::]:0"));
        let datagrams = datagrams_at(address("[::]:0"));
        for (protocol, socket) in [
            (Protocol::Tcp, duplicate(&listener)),
            (Protocol::Udp, duplicate_udp(&datagrams)),
        ] {
            for family in [Family::V4, Family::V6] {
                let first = sockets::redirect(protocol, family, last);
                let set = |count| {
                    let members = std::iter::repeat_n(&socket, count);
                    let set = maps.set_redirect(protocol, family, last, members);
                    set.expect("the sockets are taken");
                };
                // More than there are places for; then fewer, which leaves nothing of those before.
                for (count, places) in [(9, 4), (3, 3), (1, 1), (0, 0)] {
                    set(4);
                    set(count);
                    let expected: Vec<u32> = (first..first + places).collect();
                    assert_eq!(emptied(sandbox), expected, "{count}");
                }
                for member in 0..MEMBERS as usize {
                    set(4);
                    let removed = maps.remove_redirect_member(protocol, family, last, member);
                    removed.expect("the place is emptied");
                    let again = maps.remove_redirect_member(protocol, family, last, member);
                    again.expect("an empty place is no error");
                    let place = first + u32::try_from(member).expect("a small number");
                    let expected: Vec<u32> = (first..first + MEMBERS)
                        .filter(|other| *other != place)
                        .collect();
                    assert_eq!(emptied(sandbox), expected);
                }
            }
        }
        // The very last one.
        let last_place = sockets::redirect(Protocol::Udp, Family::V6, last) + MEMBERS - 1;
        assert_eq!(last_place as usize, sockets::PLACES - 1);
    });
}

/// Empties all places, and says which had a socket. The kernel does not say it otherwise of a map with
/// values of this size.
fn emptied(sandbox: &Sandbox) -> Vec<u32> {
    let pin = sandbox.directory.join("SOCKETS");
    let map = MapData::from_pin(pin).and_then(Map::from_map_data);
    let mut map: SockMap<MapData> = map.and_then(TryInto::try_into).expect("the sockets");
    let places = 0..u32::try_from(sockets::PLACES).expect("a small number");
    places
        .filter(|place| map.clear_index(place).is_ok())
        .collect()
}
