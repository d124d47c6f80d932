//! The relay without descriptors. Limits belong to a process, so this test has one to itself.

#[expect(dead_code, reason = "shared by several test binaries")]
mod relay_support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrusage, setrlimit};
use socket2::{Domain, Socket, Type};

use relay_support::{Harness, accept, eventually, patient, server};

#[test]
fn connections_wait_while_descriptors_are_exhausted() {
    setrlimit(Resource::RLIMIT_NOFILE, 600, 600).unwrap();
    let (listener, upstream) = server();
    let harness = Harness::new(upstream);
    assert_eq!(harness.relay.capacity().descriptors, 600);
    round_trip(harness.connect(), &listener);
    harness.ended();

    // No descriptor is left: the kernel completes the connection, and nobody can accept it.
    let client = socket();
    let mut eaten = eat_descriptors();
    let client = connect(client, harness.address);
    eventually("a pause", || harness.total(|stats| stats.pauses) > 0);
    let before = cpu_time();
    std::thread::sleep(Duration::from_secs(1));
    let used = cpu_time().checked_sub(before).unwrap();
    assert!(
        used < Duration::from_millis(50),
        "used {used:?} in a second of waiting"
    );
    assert_eq!(harness.total(|stats| stats.accepted), 1);

    // The accepted socket takes the one that is free, upstream the one that the relay has kept, the server another.
    eaten.truncate(eaten.len() - 2);
    let server = accept(&listener);
    drop(eaten);
    exchange(client, server);
    assert_eq!(harness.ended().end, "fin");
    assert_eq!(harness.total(|stats| stats.shed), 0);

    round_trip(harness.connect(), &listener);
    harness.ended();
}

/// Opens files until the process has no descriptor left.
fn eat_descriptors() -> Vec<File> {
    let mut eaten = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        eaten.push(file);
    }
    eaten
}

fn socket() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()
}

fn connect(socket: Socket, address: SocketAddr) -> TcpStream {
    socket.connect(&address.into()).unwrap();
    patient(socket.into())
}

fn round_trip(client: TcpStream, listener: &TcpListener) {
    exchange(client, accept(listener));
}

fn exchange(mut client: TcpStream, mut server: TcpStream) {
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    server.write_all(b"y").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

/// User and system time that this process has used.
fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| {
            Duration::from_micros(
                u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap(),
            )
        })
        .sum()
}
