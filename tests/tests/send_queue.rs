//! What waits in a socket of a long transfer fits the path that it leaves by.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use tproxy_tests::{Family, Lab, address::FAMILIES, pattern, peer::Server, tun::Tunnel};

/// What the kernel grants a socket that has been given a short queue, in bytes.
const SHORT: u64 = 256 * 1024;
/// A transfer that is long, with enough of it left to fill a queue.
const LONG_TRANSFER: u64 = 16_000_000;
const SMALL_TRANSFER: u64 = 500_000;

/// A path within the host takes what is sent at once.
#[test]
fn a_path_within_the_host_has_a_short_queue() {
    let lab = Lab::new();
    let _server = serve(&lab, LONG_TRANSFER);
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        let flow = exchange(&lab, family.near(), LONG_TRANSFER);
        assert_eq!(queue(&lab, Towards::Server), SHORT, "{family:?}");
        assert_eq!(queue(&lab, Towards::Client), SHORT, "{family:?}");
        drop(flow);
    }
    agent.stop();
}

/// A flow that may be over soon is left alone.
#[test]
fn a_small_transfer_keeps_the_queue_of_the_kernel() {
    let lab = Lab::new();
    // So that no queue gets to the length that is looked for by itself.
    lab.gateway.sysctl("net.ipv4.tcp_wmem", "4096 16384 65536");
    let _server = serve(&lab, SMALL_TRANSFER);
    let mut agent = lab.agent("--iface cl0 --dport 80");
    let flow = exchange(&lab, Family::V4.near(), SMALL_TRANSFER);
    assert!(queue(&lab, Towards::Server) < SHORT);
    assert!(queue(&lab, Towards::Client) < SHORT);
    drop(flow);
    agent.stop();
}

/// A longer path is filled by what waits. Each socket of a flow has its own.
#[test]
fn a_longer_path_has_the_queue_of_the_kernel() {
    let lab = Lab::new();
    let _tunnel = Tunnel::with_delay(&lab.gateway, &lab.server, "tun0", Duration::from_millis(1));
    lab.gateway
        .ip("addr add 10.77.4.1/24 dev tun0\nlink set tun0 up");
    lab.server
        .ip("addr add 10.77.4.2/24 dev tun0\nlink set tun0 up");
    let _server = serve(&lab, LONG_TRANSFER);
    let mut agent = lab.agent("--iface cl0 --dport 80");
    let flow = exchange(&lab, "10.77.4.2".parse().unwrap(), LONG_TRANSFER);
    assert!(queue(&lab, Towards::Server) > 2 * SHORT);
    assert_eq!(queue(&lab, Towards::Client), SHORT);
    drop(flow);
    agent.stop();
}

/// Takes a transfer of a length, and sends one as long.
fn serve(lab: &Lab, length: u64) -> Server<io::Result<u64>> {
    Server::start(&lab.server, 80, move |mut stream: TcpStream| {
        pattern::read_up_to(&mut stream, 0, length)?;
        pattern::write(&mut stream, length)?;
        pattern::read_to_end(&mut stream)
    })
}

/// Sends a transfer and takes the server's. The flow stays.
fn exchange(lab: &Lab, server: IpAddr, length: u64) -> TcpStream {
    let mut stream = lab.client.connect(SocketAddr::new(server, 80)).unwrap();
    pattern::write(&mut stream, length).unwrap();
    assert_eq!(pattern::read_up_to(&mut stream, 0, length).unwrap(), length);
    stream
}

/// Which of the agent's sockets of the one flow.
#[derive(Debug, Clone, Copy)]
enum Towards {
    Client,
    Server,
}

/// The bytes that the send queue of a socket may take.
#[track_caller]
fn queue(lab: &Lab, towards: Towards) -> u64 {
    let filter = match towards {
        Towards::Client => "sport = :80",
        Towards::Server => "dport = :80",
    };
    let sockets = lab
        .gateway
        .output(&format!("ss -tnmH state established {filter}"));
    let queues: Vec<_> = sockets
        .split(&['(', ',', ')'])
        .filter_map(|field| field.strip_prefix("tb"))
        .collect();
    let [queue] = queues[..] else {
        panic!("not one socket towards the {towards:?}:\n{sockets}");
    };
    queue.parse().expect("a number")
}
