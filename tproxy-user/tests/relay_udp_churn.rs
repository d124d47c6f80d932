//! Thousands of sessions, and nothing left of them. Descriptors belong to a process, so this test has one to itself.

#[expect(dead_code, reason = "shared by several test binaries")]
mod relay_support;
#[expect(dead_code, reason = "shared by several test binaries")]
#[path = "relay_support/steered.rs"]
mod steered;

use std::net::UdpSocket;
use std::time::Duration;

use tproxy_user::relay::{Admission, Settings};

use relay_support::{eventually, tag};
use steered::{V4, V6, at, datagram_server, in_lab, patient, receive_from, steered_relay};

const ROUNDS: usize = 5;
const SESSIONS: u16 = 1_000;

#[test]
fn nothing_is_left_of_ten_thousand_sessions() {
    in_lab(|lab| {
        let servers = [V4, V6].map(datagram_server);
        let [upstream_v4, upstream_v6] = [servers[0].1, servers[1].1];
        let settings = Settings {
            udp_idle: Duration::from_millis(200),
            udp_sessions_per_source: usize::MAX,
            ..Settings::default()
        };
        let relay = steered_relay(
            2,
            settings,
            Box::new(move |_, client, destination| {
                let upstream = if destination.is_ipv4() {
                    upstream_v4
                } else {
                    upstream_v6
                };
                Some(Admission::direct(tag(), client, upstream))
            }),
        );
        let mut descriptors = Vec::new();
        for _ in 0..ROUNDS {
            for (family, (server, _)) in [V4, V6].into_iter().zip(&servers) {
                let client =
                    lab.in_client(|| patient(UdpSocket::bind(at(family.client, 0)).unwrap()));
                for port in 0..SESSIONS {
                    let destination = at(family.far, 10_000 + port);
                    client.send_to(b"ping", destination).unwrap();
                    let (_, relay_address) = receive_from(server);
                    server.send_to(b"pong", relay_address).unwrap();
                    assert_eq!(receive_from(&client), (b"pong".to_vec(), destination));
                }
            }
            for _ in 0..2 * SESSIONS {
                let ended = relay.ended();
                assert_eq!((ended.to_upstream, ended.to_client), (4, 4));
                assert_eq!(ended.end, "idle");
            }
            descriptors.push(open_descriptors());
        }
        eventually("no session left", || {
            relay.total(|stats| stats.sessions) == 0
        });
        assert!(relay.none_ended());
        let opened = relay.total(|stats| stats.sessions_opened);
        assert_eq!(opened, 2 * u64::from(SESSIONS) * ROUNDS as u64);
        assert_eq!(relay.total(|stats| stats.dropped), 0);
        // The first round has started the workers.
        assert_eq!(descriptors, [descriptors[0]; ROUNDS]);
    });
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
