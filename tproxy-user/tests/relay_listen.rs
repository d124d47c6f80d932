//! Listening sockets for foreign addresses. Needs `CAP_NET_RAW` or `CAP_NET_ADMIN`.

#[expect(dead_code, reason = "shared by several test binaries")]
mod relay_support;

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, SockRef, Socket, Type};
use tproxy_user::relay::{Admission, ListenError, Listener, Settings, bind};

use relay_support::{Harness, accept, server, tag};

#[test]
fn all_workers_share_one_port_and_take_both_families() {
    let (listener, upstream) = server();
    let listeners = bind(0, 3).unwrap();
    let port = listeners[0].tcp.local_addr().unwrap().port();
    assert_ne!(port, 0);
    assert_eq!(listeners.len(), 3);
    for Listener { tcp, udp } in &listeners {
        assert_eq!(tcp.local_addr().unwrap().port(), port);
        assert_eq!(udp.local_addr().unwrap().port(), port);
        for socket in [SockRef::from(tcp), SockRef::from(udp)] {
            assert!(socket.ip_transparent_v4().unwrap() && socket.reuse_port().unwrap());
        }
    }

    let harness = relay(listeners, upstream);
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        let mut client = TcpStream::connect(&address).unwrap();
        client.write_all(b"x").unwrap();
        accept(&listener).read_exact(&mut [0]).unwrap();
        drop(client);
        let ended = harness.ended();
        assert_eq!(
            ended.destination,
            address.parse().unwrap(),
            "IPv4 is not reported as mapped IPv6"
        );
        assert_eq!(ended.client.is_ipv4(), ended.destination.is_ipv4());
    }
}

#[test]
fn every_worker_gets_flows() {
    let (listener, upstream) = server();
    let listeners = bind(0, 2).unwrap();
    let port = listeners[0].tcp.local_addr().unwrap().port();
    let harness = relay(listeners, upstream);
    for _ in 0..64 {
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        drop(accept(&listener));
        drop(client);
        assert_eq!(harness.ended().end, "fin");
    }
    let accepted: Vec<u64> = harness
        .relay
        .stats()
        .iter()
        .map(|stats| stats.accepted)
        .collect();
    assert_eq!(accepted.iter().sum::<u64>(), 64);
    assert!(accepted.iter().all(|&count| count > 0), "{accepted:?}");
}

#[test]
fn a_port_that_somebody_has_is_refused() {
    let holders: [fn() -> Socket; 5] = [
        || TcpListener::bind("127.0.0.1:0").unwrap().into(),
        || {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
                .unwrap()
                .into()
        },
        // One that would share its port.
        || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket
                .bind(&SocketAddr::from(([0, 0, 0, 0], 0)).into())
                .unwrap();
            socket.listen(1).unwrap();
            socket
        },
        // Another relay.
        || bind(0, 1).unwrap().remove(0).tcp.into(),
        // One who has it for UDP alone, and would share it.
        || {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket
                .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
                .unwrap();
            socket
        },
    ];
    alone(move || {
        for (number, holder) in holders.iter().enumerate() {
            let holder = holder();
            let taken = holder.local_addr().unwrap().as_socket().unwrap().port();
            match bind(taken, 2) {
                Err(ListenError::PortTaken { port }) => assert_eq!(port, taken),
                other => panic!("holder {number}: {other:?}"),
            }
            drop(holder);
            bind(taken, 2).expect("the port is free again");
        }
    });
}

#[test]
fn a_port_with_connections_in_time_wait_is_free() {
    alone(|| {
        let listeners = bind(0, 1).unwrap();
        let port = listeners[0].tcp.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        // The side that closes first keeps TIME_WAIT.
        drop(listeners[0].tcp.accept().unwrap());
        drop(client);
        drop(listeners);
        bind(port, 1).expect("TIME_WAIT does not hold the port");
    });
}

/// Runs a test in a network namespace of its own, where nobody else is given a port that has just become
/// free.
fn alone(test: impl FnOnce() + Send + 'static) {
    let alone = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
        test();
    });
    if let Err(panic) = alone.join() {
        std::panic::resume_unwind(panic);
    }
}

fn relay(listeners: Vec<Listener>, upstream: SocketAddr) -> Harness {
    let choice = move |_, client, _| Some(Admission::direct(tag(), client, upstream));
    Harness::choosing(listeners, Settings::default(), Box::new(choice))
}
