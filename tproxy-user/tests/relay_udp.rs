//! Datagrams through the relay, between two network namespaces. Needs root.

#[expect(dead_code, reason = "shared by several test binaries")]
mod relay_support;
#[expect(dead_code, reason = "shared by several test binaries")]
#[path = "relay_support/steered.rs"]
mod steered;

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::UdpSocket;

use caps::{CapSet, Capability};
use tproxy_tests::wait::uninterrupted;
use tproxy_user::relay::{Admission, Settings};

use relay_support::{Harness, tag};
use steered::{
    FAMILIES, V4, at, datagram_server, in_lab, is_silent, patient, pattern, receive, receive_from,
    require_mark, send_joined, steer_to_sessions_only, steered_listeners, steered_relay, to,
};

#[test]
fn replies_come_from_the_original_destination() {
    in_lab(|lab| {
        for family in FAMILIES {
            let (server, upstream) = datagram_server(family);
            let relay = steered_relay(1, Settings::default(), to(upstream));
            let destination = at(family.far, 5300);
            let client = lab.client_at(family.client, destination);
            client.send(b"question").unwrap();
            let (question, relay_address) = receive_from(&server);
            assert_eq!(question, b"question");
            server.send_to(b"the answer", relay_address).unwrap();
            assert_eq!(receive_from(&client), (b"the answer".to_vec(), destination));
            relay.relay.stop();
            let ended = relay.ended();
            assert_eq!(ended.client, client.local_addr().unwrap());
            assert_eq!(ended.destination, destination);
            assert_eq!((ended.to_upstream, ended.to_client), (8, 10));
            assert_eq!(ended.end, "drained");
        }
    });
}

#[test]
fn later_datagrams_come_to_the_session_itself() {
    in_lab(|lab| {
        for family in FAMILIES {
            let (server, upstream) = datagram_server(family);
            let relay = steered_relay(1, Settings::default(), to(upstream));
            let destination = at(family.far, 5300);
            let client = lab.client_at(family.client, destination);
            let stranger = lab.client_at(family.client, destination);
            client.send(b"first").unwrap();
            assert_eq!(receive(&server), b"first");
            steer_to_sessions_only();
            stranger.send(b"nobody's").unwrap();
            client.send(b"second").unwrap();
            assert_eq!(receive(&server), b"second");
            assert!(is_silent(&server));
            assert_eq!(relay.total(|stats| stats.sessions_opened), 1);
        }
    });
}

#[test]
fn a_burst_that_opens_a_session_keeps_its_order() {
    const NUMBER: u32 = 500;
    in_lab(|lab| {
        let (server, upstream) = datagram_server(V4);
        let relay = steered_relay(1, Settings::default(), to(upstream));
        for round in 0..20 {
            let client = lab.client_at(V4.client, at(V4.far, 6000 + round));
            for number in 0..NUMBER {
                client.send(&number.to_be_bytes()).unwrap();
                // What the server's buffer cannot hold is no question of order.
                if number % 100 == 99 {
                    for expected in number - 99..=number {
                        assert_eq!(receive(&server), expected.to_be_bytes());
                    }
                }
            }
        }
        assert_eq!(relay.total(|stats| stats.dropped), 0);
    });
}

#[test]
fn datagrams_of_others_at_a_reply_socket_find_their_sessions() {
    in_lab(|lab| {
        // Without nft the kernel gives a reply socket everything for its address until it is
        // connected. The relay's port is the destination's.
        let (server, upstream) = datagram_server(V4);
        let relay = steered_relay(1, Settings::default(), to(upstream));
        let destination = at("10.9.0.1", relay.address.port());
        // They live until the end, so that none gets the port of an earlier one.
        let rounds: Vec<Vec<UdpSocket>> = (0..20)
            .map(|_| {
                (0..16)
                    .map(|_| lab.client_at(V4.client, destination))
                    .collect()
            })
            .collect();
        for (round, clients) in rounds.iter().enumerate() {
            // Too many for one sender at a time to find the moment.
            std::thread::scope(|scope| {
                for client in clients {
                    scope.spawn(|| {
                        for _ in 0..4 {
                            let own = client.local_addr().unwrap().to_string();
                            client.send(own.as_bytes()).unwrap();
                        }
                    });
                }
            });
            for _ in 0..4 * clients.len() {
                let (own, relay_address) = receive_from(&server);
                server.send_to(&own, relay_address).unwrap();
            }
            for client in clients {
                let own = client.local_addr().unwrap().to_string();
                for _ in 0..4 {
                    assert_eq!(receive(client), own.as_bytes(), "round {round}");
                }
            }
        }
        assert_eq!(relay.total(|stats| stats.sessions_opened), 20 * 16);
        assert_eq!(relay.total(|stats| stats.dropped), 0);
    });
}

#[test]
fn the_longest_datagrams_arrive_whole() {
    in_lab(|lab| {
        for family in FAMILIES {
            let (server, upstream) = datagram_server(family);
            let _relay = steered_relay(1, Settings::default(), to(upstream));
            let client = lab.client_at(family.client, at(family.far, 5300));
            for length in [0, 1, 1472, 1473, 4000, 65_507, 10, 0] {
                let datagram = pattern(length);
                client.send(&datagram).unwrap();
                let (received, relay_address) = receive_from(&server);
                assert!(received == datagram, "{length} bytes to upstream");
                server.send_to(&datagram, relay_address).unwrap();
                assert!(receive(&client) == datagram, "{length} bytes to the client");
            }
        }
    });
}

#[test]
fn joined_datagrams_come_out_as_they_went_in() {
    in_lab(|lab| {
        for family in FAMILIES {
            let (server, upstream) = datagram_server(family);
            let relay = steered_relay(1, Settings::default(), to(upstream));
            let client = lab.client_at(family.client, at(family.far, 5300));
            client.send(b"open").unwrap();
            assert_eq!(receive(&server), b"open");
            for (segment, length) in [(1200, 40 * 1200 + 7), (100, 64 * 100), (1400, 1401)] {
                let whole = pattern(length);
                send_joined(&client, &whole, segment);
                let mut relay_address = None;
                for datagram in whole.chunks(segment.into()) {
                    let (received, sender) = receive_from(&server);
                    assert!(received == datagram, "{segment} of {length} to upstream");
                    relay_address = Some(sender);
                }
                server.connect(relay_address.unwrap()).unwrap();
                send_joined(&server, &whole, segment);
                for datagram in whole.chunks(segment.into()) {
                    assert!(
                        receive(&client) == datagram,
                        "{segment} of {length} to the client"
                    );
                }
            }
            assert_eq!(relay.total(|stats| stats.dropped), 0);
        }
    });
}

#[test]
fn datagrams_of_mixed_lengths_keep_their_bounds() {
    in_lab(|lab| {
        let (server, upstream) = datagram_server(V4);
        let relay = steered_relay(1, Settings::default(), to(upstream));
        let client = lab.client_at(V4.client, at(V4.far, 5300));
        // Equal ones, a shorter one that ends a message, longer ones, ones above the MTU.
        let lengths = [
            700, 700, 700, 300, 700, 0, 0, 900, 900, 3000, 3000, 3000, 5, 5, 1,
        ];
        for _ in 0..50 {
            for &length in &lengths {
                client.send(&pattern(length)).unwrap();
            }
            for &length in &lengths {
                let (datagram, relay_address) = receive_from(&server);
                assert!(datagram == pattern(length), "{length} bytes to upstream");
                server.send_to(&datagram, relay_address).unwrap();
            }
            for &length in &lengths {
                assert!(receive(&client) == pattern(length), "{length} bytes back");
            }
        }
        assert_eq!(relay.total(|stats| stats.dropped), 0);
    });
}

#[test]
fn a_service_on_the_same_port_is_neither_robbed_nor_in_the_way() {
    in_lab(|lab| {
        for (family, wildcard) in FAMILIES.into_iter().zip(["0.0.0.0", "::"]) {
            let service = patient(UdpSocket::bind(at(wildcard, 5353)).unwrap());
            let (server, upstream) = datagram_server(family);
            let relay = steered_relay(1, Settings::default(), to(upstream));
            let client = lab.client_at(family.client, at(family.far, 5353));
            let local = lab.client_at(family.client, at(family.gateway, 5353));
            for length in [5, 0, 1472, 4000, 65_507] {
                client.send(&pattern(length)).unwrap();
                let (received, relay_address) = receive_from(&server);
                assert!(received == pattern(length), "{length} bytes to upstream");
                server.send_to(&pattern(length), relay_address).unwrap();
                let (received, sender) = receive_from(&client);
                assert!(received == pattern(length), "{length} bytes to the client");
                assert_eq!(sender, at(family.far, 5353));

                local.send(b"to the service").unwrap();
                let (received, sender) = receive_from(&service);
                assert_eq!(received, b"to the service");
                service.send_to(b"from the service", sender).unwrap();
                assert_eq!(receive(&local), b"from the service");
            }
            let joined = pattern(10 * 1000 + 1);
            client.send(b"x").unwrap();
            server.connect(receive_from(&server).1).unwrap();
            send_joined(&server, &joined, 1000);
            for datagram in joined.chunks(1000) {
                assert!(receive(&client) == datagram, "one of several at once");
            }
            // Nor does the service see anything of the relay's.
            assert!(is_silent(&service));
            assert_eq!(relay.total(|stats| stats.sessions_opened), 1);
            assert_eq!(relay.total(|stats| stats.dropped), 0);
        }
    });
}

#[test]
fn one_capability_is_enough_and_all_packets_are_marked() {
    in_lab(|lab| {
        let (server, upstream) = datagram_server(V4);
        let listeners = steered_listeners(1);
        let destination = at(V4.far, 53);
        let client = lab.client_at(V4.client, destination);
        let other = lab.client_at(V4.client, at(V4.far, 5300));
        let mark = 0x1234;
        require_mark(mark, upstream.port());
        let kept = HashSet::from([Capability::CAP_NET_RAW]);
        for set in [CapSet::Effective, CapSet::Permitted] {
            caps::set(None, set, &kept).unwrap();
        }
        let settings = Settings {
            mark: Some(mark),
            ..Settings::default()
        };
        let relay = Harness::choosing(listeners, settings, to(upstream));
        // Without CAP_NET_BIND_SERVICE there is no socket at this port.
        for _ in 0..2 {
            client.send(b"question").unwrap();
            let (_, relay_address) = receive_from(&server);
            server.send_to(b"answer", relay_address).unwrap();
            assert_eq!(receive_from(&client), (b"answer".to_vec(), destination));
        }
        assert_eq!(relay.total(|stats| stats.sessions_opened), 1);
        other.send(b"question").unwrap();
        let (_, relay_address) = receive_from(&server);
        server.send_to(b"answer", relay_address).unwrap();
        assert_eq!(receive(&other), b"answer");
        drop(server);
        client.send(b"question").unwrap();
        let error = uninterrupted(|| client.recv(&mut [0; 16])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(relay.ended().end, "refused");
    });
}

#[test]
fn replies_go_to_another_address_if_the_policy_says_so() {
    in_lab(|lab| {
        let (server, upstream) = datagram_server(V4);
        let actual = lab.in_client(|| patient(UdpSocket::bind(at("10.9.0.3", 0)).unwrap()));
        let reply_to = actual.local_addr().unwrap();
        let relay = steered_relay(
            1,
            Settings::default(),
            Box::new(move |_, _, _| {
                Some(Admission {
                    rule: tag(),
                    upstream,
                    source: None,
                    client: reply_to,
                })
            }),
        );
        let client = lab.client_at(V4.client, at(V4.far, 5300));
        for _ in 0..3 {
            client.send(b"question").unwrap();
            let (_, relay_address) = receive_from(&server);
            server.send_to(b"answer", relay_address).unwrap();
            assert_eq!(
                receive_from(&actual),
                (b"answer".to_vec(), at(V4.far, 5300))
            );
        }
        assert!(is_silent(&client));
        assert_eq!(relay.total(|stats| stats.sessions_opened), 1);
        relay.relay.stop();
        assert_eq!(relay.ended().client, client.local_addr().unwrap());
    });
}

#[test]
fn every_worker_has_sessions() {
    in_lab(|lab| {
        let (server, upstream) = datagram_server(V4);
        let relay = steered_relay(2, Settings::default(), to(upstream));
        let clients: Vec<UdpSocket> = (0..64)
            .map(|_| lab.client_at(V4.client, at(V4.far, 5300)))
            .collect();
        for _ in 0..2 {
            for client in &clients {
                let own = client.local_addr().unwrap().to_string();
                client.send(own.as_bytes()).unwrap();
                let (echo, relay_address) = receive_from(&server);
                server.send_to(&echo, relay_address).unwrap();
                assert_eq!(receive(client), own.as_bytes());
            }
        }
        let stats = relay.relay.stats();
        assert!(
            stats.iter().all(|stats| stats.sessions_opened > 0),
            "{stats:?}"
        );
        assert_eq!(relay.total(|stats| stats.sessions_opened), 64);
    });
}
