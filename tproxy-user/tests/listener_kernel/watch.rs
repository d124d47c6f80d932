//! Listeners that come, go and change while they are watched.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use socket2::Socket;
use tproxy_common::flow::Protocol;
use tproxy_user::listener::{Change, Error, Event, Wanted, Watcher};

use crate::{
    holder::{Holder, PLAIN, SHARED, TRANSPARENT, address, datagrams, listener},
    namespace::in_namespace,
};

/// How long anything may take that should happen at once, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn wanted(key: &'static str, at: &str) -> Wanted<&'static str> {
    Wanted {
        key,
        protocol: Protocol::Tcp,
        address: address(at),
        needs_transparent: false,
    }
}

fn poll(watcher: &mut Watcher<&'static str>) -> Vec<String> {
    let changes = watcher.poll().unwrap();
    changes.iter().map(describe).collect()
}

fn describe(change: &Change<&str>) -> String {
    let what = match &change.event {
        Event::Found(found) => format!("found {}", found.process.pid),
        Event::Gone { process, .. } => format!("gone {}", process.pid),
        Event::Released { .. } => "released".into(),
        Event::Refused(Error::NotTransparent { process, .. }) => {
            format!("not transparent {}", process.pid)
        }
        Event::Refused(error) => error.to_string(),
        Event::Nobody(_) => "nobody".into(),
    };
    format!("{} {what}", change.key)
}

#[test]
fn a_program_that_restarts_is_found_again_and_its_end_is_noticed_at_once() {
    in_namespace(|| {
        let mut watcher = Watcher::new(vec![wanted("web", "0.0.0.0:80")]);
        assert_eq!(poll(&mut watcher), ["web nobody"]);
        assert!(poll(&mut watcher).is_empty());
        for _ in 0..3 {
            // Every time it gets the port, which nobody keeps bound.
            let mut holder = Holder::of(listener("0.0.0.0:80", PLAIN));
            let pid = holder.pid();
            assert_eq!(poll(&mut watcher), [format!("web found {pid}")]);
            assert!(poll(&mut watcher).is_empty());
            assert!(!watcher.wait(Duration::ZERO), "it is alive");
            holder.kill();
            assert!(watcher.wait(PATIENCE), "its end is noticed");
            assert_eq!(
                poll(&mut watcher),
                [format!("web gone {pid}"), "web nobody".into()]
            );
            assert!(!watcher.wait(Duration::ZERO), "there is no end but one");
        }
    });
}

#[test]
fn a_port_is_free_when_its_program_has_ended() {
    in_namespace(|| {
        let mut watcher = Watcher::new(vec![wanted("web", "127.0.0.1:80")]);
        let holder = Holder::of(listener("127.0.0.1:80", PLAIN));
        let changes = watcher.poll().unwrap();
        holder.end();
        let bind = || std::net::TcpListener::bind("127.0.0.1:80");
        assert!(bind().is_err(), "a duplicate keeps the port");
        drop(changes);
        bind().expect("the port is free");
    });
}

#[test]
fn a_socket_that_is_reopened_by_the_same_process_is_another() {
    in_namespace(|| {
        let own = std::process::id();
        let mut watcher = Watcher::new(vec![wanted("web", "0.0.0.0:80")]);
        let first = listener("0.0.0.0:80", PLAIN);
        assert_eq!(poll(&mut watcher), [format!("web found {own}")]);
        drop(first);
        let _second = listener("0.0.0.0:80", PLAIN);
        assert_eq!(
            poll(&mut watcher),
            [format!("web gone {own}"), format!("web found {own}")]
        );
    });
}

#[test]
fn members_of_a_group_come_and_go_one_by_one() {
    in_namespace(|| {
        let member = || Holder::of(listener("[::]:80", SHARED));
        let mut watcher = Watcher::new(vec![wanted("web", "[::]:80")]);
        let mut holders: Vec<Holder> = (0..6).map(|_| member()).collect();
        let found: Vec<String> = holders[..4]
            .iter()
            .map(|holder| format!("web found {}", holder.pid()))
            .collect();
        assert_eq!(poll(&mut watcher), found);
        let gone = holders.remove(1);
        let pid = gone.pid();
        gone.end();
        // One that had no room takes its place, and the others stay.
        let next = holders[3].pid();
        assert_eq!(
            poll(&mut watcher),
            [format!("web gone {pid}"), format!("web found {next}")]
        );
        assert!(poll(&mut watcher).is_empty());
    });
}

#[test]
fn a_listener_that_is_not_transparent_is_refused_once_and_taken_when_it_is() {
    in_namespace(|| {
        let own = std::process::id();
        let mut watcher = Watcher::new(vec![
            Wanted {
                needs_transparent: true,
                ..wanted("forward", "0.0.0.0:80")
            },
            wanted("inbound", "0.0.0.0:80"),
        ]);
        let socket = listener("0.0.0.0:80", PLAIN);
        assert_eq!(
            poll(&mut watcher),
            [
                format!("forward not transparent {own}"),
                format!("inbound found {own}")
            ]
        );
        for _ in 0..5 {
            assert!(poll(&mut watcher).is_empty());
        }
        socket.set_ip_transparent_v4(true).unwrap();
        assert_eq!(poll(&mut watcher), [format!("forward found {own}")]);
        drop(socket);
        let _transparent = listener("0.0.0.0:80", TRANSPARENT);
        let changes = poll(&mut watcher);
        assert!(
            changes.contains(&format!("forward found {own}")),
            "{changes:?}"
        );
    });
}

#[test]
fn wanted_addresses_come_and_go() {
    in_namespace(|| {
        let own = std::process::id();
        let _sockets = [80, 81].map(|port| listener(&format!("0.0.0.0:{port}"), PLAIN));
        let _datagrams = datagrams("127.0.0.1:80", PLAIN);
        let mut watcher = Watcher::new(vec![wanted("a", "0.0.0.0:80")]);
        assert_eq!(poll(&mut watcher), [format!("a found {own}")]);
        let udp = Wanted {
            protocol: Protocol::Udp,
            ..wanted("c", "127.0.0.1:80")
        };
        watcher.set_wanted(vec![
            wanted("b", "127.0.0.1:81"),
            udp,
            wanted("a", "0.0.0.0:80"),
        ]);
        let found = [format!("b found {own}"), format!("c found {own}")];
        assert_eq!(poll(&mut watcher), found);
        watcher.set_wanted(vec![wanted("a", "0.0.0.0:81")]);
        assert_eq!(
            poll(&mut watcher),
            [
                "b released".into(),
                "c released".into(),
                "a released".into(),
                format!("a found {own}")
            ]
        );
        watcher.set_wanted(Vec::new());
        assert_eq!(poll(&mut watcher), ["a released"]);
    });
}

#[test]
fn a_socket_that_lives_on_in_another_process_stays() {
    in_namespace(|| {
        let socket = listener("0.0.0.0:80", PLAIN);
        let second: OwnedFd = socket.as_fd().try_clone_to_owned().unwrap();
        let first = Holder::of(socket);
        let mut watcher = Watcher::new(vec![wanted("web", "0.0.0.0:80")]);
        let second = Holder::of(Socket::from(second));
        assert_eq!(poll(&mut watcher).len(), 1);
        first.end();
        assert!(poll(&mut watcher).is_empty());
        assert!(!watcher.wait(Duration::ZERO));
        let pid = second.pid();
        second.end();
        let changes = poll(&mut watcher);
        assert!(changes.contains(&"web nobody".into()), "{pid}: {changes:?}");
    });
}

/// A process may end between any two steps of a poll: nothing of that is told as a failure.
#[test]
fn programs_that_restart_all_the_time_make_no_errors() {
    in_namespace(|| {
        let polls = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            // A new thread is in the namespace of its creator.
            let restarts = scope.spawn(|| {
                let deadline = Instant::now() + PATIENCE;
                for lives_for in (0..3).cycle().take(60) {
                    let holder = Holder::of(listener("0.0.0.0:80", SHARED));
                    let end = polls.load(Ordering::Relaxed) + lives_for;
                    while polls.load(Ordering::Relaxed) < end {
                        assert!(Instant::now() < deadline, "polls take too long");
                        std::thread::yield_now();
                    }
                    holder.end();
                }
            });
            let mut found = 0;
            let mut gone = 0;
            let mut watcher = Watcher::new(vec![wanted("web", "0.0.0.0:80")]);
            let mut is_over = false;
            while !is_over {
                // What this poll does not see there is none of.
                is_over = restarts.is_finished();
                for change in watcher.poll().unwrap() {
                    match change.event {
                        Event::Found(_) => found += 1,
                        Event::Gone { .. } => gone += 1,
                        Event::Nobody(_) | Event::Released { .. } => {}
                        Event::Refused(error) => panic!("{error}"),
                    }
                }
                polls.fetch_add(1, Ordering::Relaxed);
            }
            restarts.join().unwrap();
            assert!(found > 0);
            assert_eq!(found, gone);
        });
    });
}
