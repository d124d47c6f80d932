//! When sessions of datagrams are opened, and how they end. Needs root.

#[expect(dead_code, reason = "shared by several test binaries")]
mod relay_support;
#[expect(dead_code, reason = "shared by several test binaries")]
#[path = "relay_support/steered.rs"]
mod steered;

use std::cell::Cell;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use tproxy_tests::wait::uninterrupted;
use tproxy_user::relay::{Admission, Settings};

use relay_support::{PATIENCE, eventually, tag};
use steered::{
    FAMILIES, V4, at, datagram_server, in_lab, is_silent, pattern, receive, receive_from,
    steer_errors, steered_relay, to,
};

#[test]
fn a_flood_in_one_session_leaves_others_their_turns() {
    in_lab(|lab| {
        let (server, upstream) = datagram_server(V4);
        let (sink, sink_address) = datagram_server(V4);
        let _relay = steered_relay(
            1,
            Settings::default(),
            Box::new(move |_, client, destination| {
                let flooded = destination.port() == 9;
                let upstream = if flooded { sink_address } else { upstream };
                Some(Admission::direct(tag(), client, upstream))
            }),
        );
        let flooding = AtomicBool::new(true);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let client = lab.client_at(V4.client, at(V4.far, 9));
                let flooding = &flooding;
                scope.spawn(move || {
                    while flooding.load(Ordering::Relaxed) {
                        client.send(&[0; 64]).unwrap();
                    }
                });
            }
            // From then on both floods come to sockets of their own: more than the worker's holds have passed.
            let mut received = HashMap::new();
            while received.len() < 2 || received.values().any(|count| *count < 1000) {
                *received.entry(receive_from(&sink).1).or_insert(0) += 1;
            }
            let exchange = || {
                for number in 0..200u32 {
                    let client = lab.client_at(V4.client, at(V4.far, 5300));
                    client.send(&number.to_be_bytes()).unwrap();
                    let (question, relay_address) = receive_from(&server);
                    server.send_to(&question, relay_address).unwrap();
                    assert_eq!(receive(&client), number.to_be_bytes());
                }
            };
            let exchanged = std::panic::catch_unwind(AssertUnwindSafe(exchange));
            flooding.store(false, Ordering::Relaxed);
            exchanged.unwrap();
        });
    });
}

#[test]
fn what_comes_faster_than_it_is_read_is_dropped_and_counted() {
    const NUMBER: u64 = 4000;
    in_lab(|lab| {
        let (server, upstream) = datagram_server(V4);
        let room = 64 << 20;
        setsockopt(&server, sockopt::RcvBufForce, &room).unwrap();
        let gate = Arc::new(Mutex::new(()));
        let gate_of_policy = Arc::clone(&gate);
        let relay = steered_relay(
            1,
            Settings::default(),
            Box::new(move |_, client, _| {
                let _open = gate_of_policy.lock().unwrap();
                Some(Admission::direct(tag(), client, upstream))
            }),
        );
        let client = lab.client_at(V4.client, at(V4.far, 5300));
        client.send(b"x").unwrap();
        receive(&server);
        // The worker is held up by the policy, while more comes than its sockets can hold.
        let closed = gate.lock().unwrap();
        let other = lab.client_at(V4.client, at(V4.far, 5301));
        other.send(b"y").unwrap();
        for _ in 0..NUMBER {
            client.send(&[0; 1400]).unwrap();
        }
        drop(closed);
        let arrived = Cell::new(0);
        eventually("an account of all", || {
            while !is_silent(&server) {
                receive(&server);
                arrived.set(arrived.get() + 1);
            }
            arrived.get() + relay.total(|stats| stats.dropped) == NUMBER + 1
        });
        let arrived = arrived.get();
        assert!(arrived > 50 && arrived < NUMBER, "{arrived} arrived");
    });
}

#[test]
fn silence_ends_a_session_and_either_end_can_break_it() {
    in_lab(|lab| {
        let (server, upstream) = datagram_server(V4);
        let settings = Settings {
            udp_idle: Duration::from_millis(1200),
            udp_idle_dns: Duration::from_millis(300),
            ..Settings::default()
        };
        let relay = steered_relay(1, settings, to(upstream));
        let client = lab.client_at(V4.client, at(V4.far, 5300));
        let resolver = lab.client_at(V4.client, at(V4.far, 53));
        let started = Instant::now();
        client.send(b"x").unwrap();
        let (_, relay_address) = receive_from(&server);
        resolver.send(b"x").unwrap();
        receive(&server);
        let ended = relay.ended();
        assert_eq!(ended.destination.port(), 53);
        assert_eq!(ended.end, "idle");
        assert!(started.elapsed() >= Duration::from_millis(300));
        // Upstream keeps it, and then the client does.
        let kept = Instant::now();
        server.send_to(b"y", relay_address).unwrap();
        assert_eq!(receive(&client), b"y");
        let next = kept + Duration::from_secs(1);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        assert!(relay.none_ended());
        let kept = Instant::now();
        client.send(b"z").unwrap();
        assert_eq!(receive_from(&server), (b"z".to_vec(), relay_address));
        assert_eq!(relay.ended().end, "idle");
        assert!(kept.elapsed() >= Duration::from_millis(1200));
        assert_eq!(relay.total(|stats| stats.sessions), 0);
        // A session of its own for what comes afterwards.
        client.send(b"again").unwrap();
        assert_eq!(receive(&server), b"again");
        assert_eq!(relay.total(|stats| stats.sessions_opened), 3);
    });
}

#[test]
fn a_source_has_so_many_sessions_and_harms_no_other() {
    in_lab(|lab| {
        let (server, upstream) = datagram_server(V4);
        let settings = Settings {
            udp_sessions_per_source: 2,
            ..Settings::default()
        };
        let relay = steered_relay(1, settings, to(upstream));
        let client = |address, port| lab.client_at(address, at(V4.far, port));
        let neighbour = client("10.9.0.3", 1);
        let [first, second, third] = [1, 2, 3].map(|port| client(V4.client, port));
        let opened = Instant::now();
        for socket in [&neighbour, &first, &second] {
            socket.send(b"x").unwrap();
            receive(&server);
        }
        third.send(b"too many").unwrap();
        eventually("a drop", || relay.total(|stats| stats.dropped) == 1);
        assert!(relay.none_ended());
        // The one that is idle for a second gives way, the one in use does not.
        eventually("a session that may be given up", || {
            opened.elapsed() > Duration::from_millis(1500)
        });
        first.send(b"x").unwrap();
        receive(&server);
        third.send(b"now").unwrap();
        assert_eq!(receive(&server), b"now");
        let ended = relay.ended();
        assert_eq!(
            (ended.end.as_str(), ended.destination.port()),
            ("evicted", 2)
        );
        assert_eq!(relay.total(|stats| stats.sessions), 3);
        assert_eq!(relay.total(|stats| stats.evicted), 1);
        neighbour.send(b"still there").unwrap();
        assert_eq!(receive(&server), b"still there");
        assert!(relay.none_ended());
    });
}

#[test]
fn all_sources_together_have_so_many_sessions() {
    in_lab(|lab| {
        let (server, upstream) = datagram_server(V4);
        let settings = Settings {
            udp_sessions: Some(1),
            ..Settings::default()
        };
        let relay = steered_relay(2, settings, to(upstream));
        assert_eq!(relay.relay.capacity().sessions, 1);
        let first = lab.client_at(V4.client, at(V4.far, 5300));
        first.send(b"x").unwrap();
        receive(&server);
        let second = lab.client_at("10.9.0.3", at(V4.far, 5300));
        second.send(b"x").unwrap();
        eventually("a drop", || relay.total(|stats| stats.dropped) == 1);
        assert!(relay.none_ended());
        first.send(b"y").unwrap();
        assert_eq!(receive(&server), b"y");
    });
}

#[test]
fn a_port_that_nobody_has_is_reported_to_the_client() {
    in_lab(|lab| {
        for family in FAMILIES {
            let (server, upstream) = datagram_server(family);
            let relay = steered_relay(1, Settings::default(), to(upstream));
            let client = lab.client_at(family.client, at(family.far, 5300));
            let other = lab.client_at(family.client, at(family.far, 5300));
            client.send(b"x").unwrap();
            receive(&server);
            drop(server);
            client.send(&pattern(3000)).unwrap();
            let error = uninterrupted(|| client.recv(&mut [0; 16])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{family:?}");
            assert_eq!(relay.ended().end, "refused");
            assert!(is_silent(&other));
            // And again, by a session of its own.
            client.send(b"x").unwrap();
            let error = uninterrupted(|| client.recv(&mut [0; 16])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{family:?}");
            assert_eq!(relay.ended().end, "refused");
        }
    });
}

#[test]
fn a_client_that_is_gone_ends_its_session() {
    in_lab(|lab| {
        for family in FAMILIES {
            let (server, upstream) = datagram_server(family);
            let relay = steered_relay(1, Settings::default(), to(upstream));
            let client = lab.client_at(family.client, at(family.far, 5300));
            client.send(b"x").unwrap();
            let (_, relay_address) = receive_from(&server);
            drop(client);
            // The error comes to the address of the destination, from the client's host.
            steer_errors();
            server.send_to(b"y", relay_address).unwrap();
            assert_eq!(relay.ended().end, "client-reset", "{family:?}");
        }
    });
}

#[test]
fn no_way_to_upstream_is_reported() {
    in_lab(|lab| {
        // No route: TEST-NET-3.
        let relay = steered_relay(1, Settings::default(), to(at("203.0.113.1", 9)));
        let client = lab.client_at(V4.client, at(V4.far, 5300));
        client.send(b"x").unwrap();
        assert_eq!(relay.ended().end, "unreachable");
        assert_eq!(relay.total(|stats| stats.connect_failed), 1);
        assert_eq!(relay.total(|stats| stats.sessions), 0);
        // Linux keeps the error from a program that has not asked for it (IP_RECVERR, ip(7)).
        assert!(is_silent(&client));
    });
}

#[test]
fn what_the_policy_refuses_and_what_leads_back_here_is_counted() {
    in_lab(|lab| {
        let (server, upstream) = datagram_server(V4);
        let relay = steered_relay(
            1,
            Settings::default(),
            Box::new(move |_, client, destination| match destination.port() {
                1 => None,
                port => Some(Admission::direct(
                    tag(),
                    client,
                    if port == 5300 {
                        upstream
                    } else {
                        at("127.0.0.1", port)
                    },
                )),
            }),
        );
        for port in [1, relay.address.port(), 5300] {
            lab.client_at(V4.client, at(V4.far, port))
                .send(b"x")
                .unwrap();
        }
        assert_eq!(receive(&server), b"x");
        assert_eq!(relay.total(|stats| stats.refused), 1);
        assert_eq!(relay.total(|stats| stats.own_port), 1);
        assert_eq!(relay.total(|stats| stats.dropped), 2);
        assert_eq!(relay.total(|stats| stats.sessions_opened), 1);
    });
}

#[test]
fn draining_waits_for_silence_and_stopping_for_nothing() {
    in_lab(|lab| {
        let (server, upstream) = datagram_server(V4);
        let relay = steered_relay(1, Settings::default(), to(upstream));
        let client = lab.client_at(V4.client, at(V4.far, 5300));
        client.send(b"x").unwrap();
        let (_, relay_address) = receive_from(&server);
        relay.relay.drain(PATIENCE);
        let started = Instant::now();
        // Until the worker has been told, sessions are still opened.
        eventually("a drop", || {
            let late = lab.client_at(V4.client, at(V4.far, 5301));
            late.send(b"x").unwrap();
            relay.total(|stats| stats.dropped) > 0
        });
        server.send_to(b"y", relay_address).unwrap();
        assert_eq!(receive(&client), b"y");
        relay.relay.join().unwrap();
        while !is_silent(&server) {
            receive(&server);
        }
        assert!(started.elapsed() >= Duration::from_secs(1));
        assert!(started.elapsed() < PATIENCE / 2);
        assert_eq!(relay.ended().end, "drained");

        let relay = steered_relay(1, Settings::default(), to(upstream));
        client.send(b"x").unwrap();
        receive(&server);
        let started = Instant::now();
        relay.relay.stop();
        relay.relay.join().unwrap();
        assert!(started.elapsed() < Duration::from_secs(1));
        assert_eq!(relay.ended().end, "drained");
    });
}

#[test]
fn a_drain_ends_at_its_deadline_for_sessions_in_use() {
    in_lab(|lab| {
        let (server, upstream) = datagram_server(V4);
        let relay = steered_relay(1, Settings::default(), to(upstream));
        let client = lab.client_at(V4.client, at(V4.far, 5300));
        client.send(b"x").unwrap();
        receive(&server);
        relay.relay.drain(Duration::from_secs(2));
        let started = Instant::now();
        while relay.none_ended() {
            assert!(started.elapsed() < PATIENCE, "it goes on");
            client.send(b"x").unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(started.elapsed() >= Duration::from_secs(2));
        relay.relay.join().unwrap();
    });
}
