//! What a poll costs beside thousands of sockets.

use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tproxy_common::flow::Protocol;
use tproxy_user::listener::{Wanted, Watcher};

use crate::{
    holder::{PLAIN, datagrams, listener},
    namespace::in_namespace,
};

const OTHERS: u16 = 4000;

const POLLS: u32 = 50;

fn wanted() -> Vec<Wanted<u16>> {
    let ports = 80..90;
    let both = [Protocol::Tcp, Protocol::Udp];
    let wanted = both.into_iter().flat_map(|protocol| {
        ports.clone().map(move |port| Wanted {
            key: port,
            protocol,
            address: ([0, 0, 0, 0], port).into(),
            needs_transparent: false,
        })
    });
    wanted.collect()
}

/// The mean of polls that find nothing new.
fn cost() -> Duration {
    let mut watcher = Watcher::new(wanted());
    assert_eq!(watcher.poll().unwrap().len(), 20);
    let begin = Instant::now();
    for _ in 0..POLLS {
        assert!(watcher.poll().unwrap().is_empty());
    }
    begin.elapsed() / POLLS
}

#[test]
fn thousands_of_other_sockets_hardly_slow_a_poll() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    in_namespace(|| {
        let _wanted: Vec<_> = (80..90)
            .flat_map(|port| {
                let at = format!("0.0.0.0:{port}");
                [listener(&at, PLAIN), datagrams(&at, PLAIN)]
            })
            .collect();
        let alone = cost();
        let others: Vec<_> = (10_000..10_000 + OTHERS)
            .flat_map(|port| {
                let at = format!("127.0.0.1:{port}");
                [listener(&at, PLAIN), datagrams(&at, PLAIN)]
            })
            .collect();
        let beside = cost();
        println!(
            "a poll of 20 addresses: {alone:?}, beside {} other sockets: {beside:?}",
            others.len()
        );
        assert!(
            beside < alone + Duration::from_millis(20),
            "{alone:?} {beside:?}"
        );
    });
}
