//! How many flows a source may have at once.

#[expect(dead_code, reason = "shared by several test binaries")]
mod relay_support;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tproxy_user::relay::{Admission, Settings};

use relay_support::{
    Harness, accept, assert_reset, eventually, patient, reset, server, silent_server, tag, with_udp,
};

const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

fn limited(flows: usize) -> Settings {
    Settings {
        flows_per_source: Some(flows),
        connect_timeout: Duration::from_secs(2),
        ..Settings::default()
    }
}

fn connect_from(source: IpAddr, address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    patient(socket.into())
}

fn round_trip(mut client: &TcpStream, mut server: &TcpStream) {
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    server.write_all(b"y").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_source_has_so_many_flows_over_all_workers_and_harms_no_other() {
    let (listener, upstream) = server();
    let listeners: Vec<_> = (0..2)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let addresses = [0, 1].map(|worker| listeners[worker].local_addr().unwrap());
    let harness = Harness::on(listeners, upstream, limited(3));
    let flow = |source, worker: usize| {
        let client = connect_from(source, addresses[worker]);
        let server = accept(&listener);
        round_trip(&client, &server);
        (client, server)
    };
    let mut flows = vec![flow(SOURCE, 0), flow(SOURCE, 0), flow(SOURCE, 1)];
    for (number, &address) in (1..).zip(&addresses) {
        assert_reset(&mut connect_from(SOURCE, address));
        assert_eq!(harness.total(|stats| stats.over_limit), number);
    }
    let neighbours = [flow(OTHER, 0), flow(OTHER, 1)];
    // The upstream of those that were reset was not asked.
    assert_eq!(harness.policy.opened.load(Ordering::Relaxed), 5);
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    listener.set_nonblocking(false).unwrap();

    drop(flows.pop());
    assert_eq!(harness.ended().end, "fin");
    eventually("a free place", || harness.total(|stats| stats.flows) == 4);
    flows.push(flow(SOURCE, 0));
    assert_reset(&mut connect_from(SOURCE, addresses[1]));
    for (client, server) in flows.iter().chain(&neighbours) {
        round_trip(client, server);
    }
}

#[test]
fn however_a_flow_ends_its_place_is_given_back() {
    let (listener, working) = server();
    let (_full, silent) = silent_server();
    let closed = server().1;
    let unreachable: SocketAddr = "255.255.255.255:80".parse().unwrap();
    let upstream = Arc::new(Mutex::new(working));
    let chosen = Arc::clone(&upstream);
    let harness = Harness::choosing(
        vec![with_udp(TcpListener::bind("127.0.0.1:0").unwrap())],
        limited(1),
        Box::new(move |_, client, _| {
            let upstream = *chosen.lock().unwrap();
            Some(Admission::direct(tag(), client, upstream))
        }),
    );
    let connect_to = |address| {
        *upstream.lock().unwrap() = address;
        harness.connect()
    };
    let flow = || (connect_to(working), accept(&listener));
    let expect_end = |end: &str| {
        assert_eq!(harness.ended().end, end);
        // The place is free, and it is one.
        let (client, server) = flow();
        assert_reset(&mut harness.connect());
        round_trip(&client, &server);
        drop((client, server));
        assert_eq!(harness.ended().end, "fin");
    };
    drop(flow());
    expect_end("fin");
    reset(flow().0);
    expect_end("client-reset");
    let (client, server) = flow();
    reset(server);
    expect_end("upstream-reset");
    drop(client);
    for (address, end) in [
        (closed, "refused"),
        (unreachable, "unreachable"),
        (silent, "timeout"),
    ] {
        assert_reset(&mut connect_to(address));
        expect_end(end);
    }
    reset(connect_to(silent));
    expect_end("client-reset");
}
