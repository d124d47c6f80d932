//! Segments in mid-flow: marked when a socket of this host has the flow, in whatever state, and
//! left alone when none has.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::libc;
use socket2::SockRef;
use tproxy_common::outcome::Outcome;
use tproxy_tests::wait::uninterrupted;
use tproxy_user::kernel::attach_lookup;

use crate::{
    frame::{ACK, ETHERNET_HEADER, FIN, Frame, PSH, RST, SYN},
    sandbox::{Metadata, Sandbox, bound, connection, in_sandbox, make_local, rule},
};

/// Client and server of each family.
const ENDS: [(&str, &str); 2] = [
    ("198.51.100.2:40000", "198.51.100.9:443"),
    ("[2001:db8:51::2]:40000", "[2001:db8:51::9]:443"),
];

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Another port of the same address.
pub(crate) fn beside(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port() + 1)
}

/// Runs a test for each family, with its addresses of [`ENDS`] local and a rule that drops every
/// new flow.
pub(crate) fn for_each_family(
    test: impl Fn(&Sandbox, SocketAddr, SocketAddr) + Copy + Send + 'static,
) {
    for (client, server) in ENDS {
        in_sandbox(move |sandbox| {
            let (client, server) = (address(client), address(server));
            make_local(client.ip());
            make_local(server.ip());
            sandbox.install(&[rule(|spec| {
                spec.proto = Some("any".into());
                spec.action = Some("drop".into());
            })]);
            test(sandbox, client, server);
        });
    }
}

pub(crate) fn segment(sandbox: &Sandbox, from: SocketAddr, to: SocketAddr, flags: u8) -> Outcome {
    sandbox.outcome(&Frame::tcp_between(from, to, flags))
}

/// An ICMP error from a router to the sender of a segment, with what it sent quoted.
fn error_about(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let quoted = Frame::tcp_between(from, to, ACK).bytes();
    let router = SocketAddr::new(to.ip(), 0);
    let kind: &[u8] = match from {
        SocketAddr::V4(_) => &[3, 4, 0, 0, 0, 0, 5, 0],
        SocketAddr::V6(_) => &[2, 0, 0, 0, 0, 0, 5, 0],
    };
    let protocol = if from.is_ipv4() { 1 } else { 58 };
    let carrier = Frame::other(&router.to_string(), &from.to_string(), protocol);
    let network = if from.is_ipv4() { 20 } else { 40 };
    let mut frame = carrier.bytes()[..ETHERNET_HEADER + network].to_vec();
    frame.extend(kind);
    frame.extend(&quoted[ETHERNET_HEADER..]);
    let (field, length) = match from {
        SocketAddr::V4(_) => (2, frame.len() - ETHERNET_HEADER),
        SocketAddr::V6(_) => (4, frame.len() - ETHERNET_HEADER - network),
    };
    let length = u16::try_from(length).expect("a short packet").to_be_bytes();
    frame[ETHERNET_HEADER + field..][..2].copy_from_slice(&length);
    frame
}

#[test]
fn icmp_errors_about_a_connected_socket() {
    for_each_family(|sandbox, client, server| {
        let outcome = |from, to| sandbox.outcome_with(&error_about(from, to), Metadata::default());
        assert_eq!(outcome(server, client), Outcome::OtherProtocol);
        let _open = connection(client, server);
        assert_eq!(outcome(server, client), Outcome::IcmpError);
        assert_eq!(outcome(client, server), Outcome::IcmpError);
        assert_eq!(outcome(server, beside(client)), Outcome::OtherProtocol);
    });
}

#[test]
fn segments_of_a_connected_socket_in_both_directions() {
    for_each_family(|sandbox, client, server| {
        assert_eq!(segment(sandbox, client, server, ACK), Outcome::Foreign);
        let _open = connection(client, server);
        for (from, to) in [(client, server), (server, client)] {
            for flags in [
                ACK,
                ACK | PSH,
                ACK | FIN,
                RST,
                RST | ACK,
                SYN | ACK,
                SYN | RST,
                0,
            ] {
                assert_eq!(
                    segment(sandbox, from, to, flags),
                    Outcome::Established,
                    "{from} {to} {flags:#04x}"
                );
            }
            // Neither a new flow with the same ends nor another protocol.
            assert_eq!(segment(sandbox, from, to, SYN), Outcome::Dropped);
            let datagram = Frame {
                transport: crate::frame::Transport::Udp,
                ..Frame::tcp_between(from, to, 0)
            };
            assert_eq!(sandbox.outcome(&datagram), Outcome::Dropped);
            for (from, to) in [(beside(from), to), (from, beside(to))] {
                assert_eq!(segment(sandbox, from, to, ACK), Outcome::Foreign);
            }
        }
    });
}

#[test]
fn segments_of_a_flow_whose_rule_is_gone() {
    for_each_family(|sandbox, client, server| {
        let _open = connection(client, server);
        sandbox.install(&[]);
        assert_eq!(segment(sandbox, client, server, ACK), Outcome::Established);
        assert_eq!(segment(sandbox, client, server, SYN), Outcome::NoRule);
    });
}

#[test]
fn segments_of_a_flow_in_time_wait() {
    for_each_family(|sandbox, client, server| {
        let (mut at_client, at_server) = connection(client, server);
        // Who closes first has TIME_WAIT: here the server, as is usual behind a relay.
        drop(at_server);
        assert_eq!(
            uninterrupted(|| at_client.read(&mut [0; 1])).expect("a FIN"),
            0
        );
        drop(at_client);
        wait_for_time_wait(server, client);
        assert_eq!(segment(sandbox, client, server, ACK), Outcome::Established);
        assert_eq!(
            segment(sandbox, client, server, ACK | FIN),
            Outcome::Established
        );
        // The client's end is gone for good.
        assert_eq!(segment(sandbox, server, client, ACK), Outcome::Foreign);
        // A SYN of the same ends is a new flow.
        assert_eq!(segment(sandbox, client, server, SYN), Outcome::Dropped);
    });
}

#[test]
fn segments_of_a_half_closed_flow() {
    for_each_family(|sandbox, client, server| {
        let (at_client, mut at_server) = connection(client, server);
        at_client.shutdown(Shutdown::Write).expect("a FIN");
        assert_eq!(
            uninterrupted(|| at_server.read(&mut [0; 1])).expect("a FIN"),
            0
        );
        assert_eq!(segment(sandbox, client, server, ACK), Outcome::Established);
        assert_eq!(segment(sandbox, server, client, ACK), Outcome::Established);
    });
}

#[test]
fn segments_of_a_flow_that_was_reset() {
    for_each_family(|sandbox, client, server| {
        let (mut at_client, at_server) = connection(client, server);
        let on_close = SockRef::from(&at_server);
        on_close
            .set_linger(Some(Duration::ZERO))
            .expect("an option");
        drop(at_server);
        let error = uninterrupted(|| at_client.read(&mut [0; 1])).expect_err("a RST");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(segment(sandbox, client, server, ACK), Outcome::Foreign);
        assert_eq!(segment(sandbox, server, client, ACK), Outcome::Foreign);
    });
}

#[test]
fn segments_of_a_handshake_that_is_not_complete() {
    for_each_family(|sandbox, client, server| {
        let listener = TcpListener::bind(server).expect("a listener");
        defer_accept(&listener);
        let connecting = bound(client);
        connecting.connect(&server.into()).expect("a connection");
        listener.set_nonblocking(true).expect("an option");
        let error = listener.accept().expect_err("nothing to accept yet");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        // The server's end is a request only.
        assert_eq!(segment(sandbox, client, server, ACK), Outcome::Established);
        assert_eq!(
            segment(sandbox, beside(client), server, ACK),
            Outcome::Foreign
        );
    });
}

#[test]
fn listening_sockets_have_no_flow() {
    for_each_family(|sandbox, client, server| {
        let _own = TcpListener::bind(server).expect("a listener");
        let _any = TcpListener::bind(("::", server.port() + 1)).expect("a listener");
        for attached in [false, true] {
            if attached {
                attach_lookup(sandbox.directory).expect("the program is attached");
            }
            for server in [server, beside(server)] {
                for flags in [ACK, RST, SYN | ACK, FIN | ACK] {
                    assert_eq!(
                        segment(sandbox, client, server, flags),
                        Outcome::Foreign,
                        "{server} {flags:#04x} {attached}"
                    );
                }
            }
        }
    });
}

/// A lookup that misses runs the `sk_lookup` program, which answers at once; one that hits, and a
/// real connection, do not count as probes.
#[test]
fn a_miss_is_one_probe_of_the_lookup_program() {
    for_each_family(|sandbox, client, server| {
        attach_lookup(sandbox.directory).expect("the program is attached");
        let probes = || sandbox.occurred(Outcome::Probe);
        let own = [client, server].map(|end| IpNet::from(end.ip()));
        let maps = &sandbox.maps;
        maps.set_local_prefixes(&own).expect("local prefixes");
        let (mut at_client, mut at_server) = connection(client, server);
        // What this host says to itself would not be forwarded.
        maps.set_local_prefixes(&[]).expect("local prefixes");
        assert_eq!(probes(), 0);
        assert!(sandbox.occurred(Outcome::NotOurs) > 0);
        assert_eq!(segment(sandbox, client, server, ACK), Outcome::Established);
        assert_eq!(probes(), 0);
        assert_eq!(
            segment(sandbox, beside(client), server, ACK),
            Outcome::Foreign
        );
        assert_eq!(probes(), 1);
        assert_eq!(
            segment(sandbox, beside(client), server, SYN),
            Outcome::Dropped
        );
        assert_eq!(probes(), 1);
        at_client.write_all(b"?").expect("the connection works");
        at_server
            .read_exact(&mut [0; 1])
            .expect("the connection works");
    });
}

/// Waits until all that is left of a connection is `TIME_WAIT` at `own`.
pub(crate) fn wait_for_time_wait(own: SocketAddr, peer: SocketAddr) {
    // include/net/tcp_states.h
    const TCP_TIME_WAIT: &str = "06";
    let table = if own.is_ipv4() { "tcp" } else { "tcp6" };
    let (own, peer) = (
        format!(":{:04X}", own.port()),
        format!(":{:04X}", peer.port()),
    );
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let path = format!("/proc/thread-self/net/{table}");
        let sockets = fs::read_to_string(path).expect("a list of sockets");
        // Behind the number of each: its address, its peer's, its state.
        let of_both: Vec<Vec<&str>> = sockets
            .lines()
            .map(|line| line.split_whitespace().skip(1).take(3).collect())
            .filter(|fields: &Vec<&str>| {
                let has = |port: &String| fields[..2].iter().any(|end| end.ends_with(port));
                has(&own) && has(&peer)
            })
            .collect();
        if let [only] = of_both.as_slice()
            && only[0].ends_with(&own)
            && only[2] == TCP_TIME_WAIT
        {
            return;
        }
        assert!(Instant::now() < deadline, "not in TIME_WAIT:\n{sockets}");
        thread::yield_now();
    }
}

/// Connections count as complete only when they carry data (`TCP_DEFER_ACCEPT`, tcp(7)).
pub(crate) fn defer_accept(listener: &TcpListener) {
    let seconds: libc::c_int = 30;
    // SAFETY: the option's value is an int that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            4,
        )
    };
    assert_eq!(result, 0, "TCP_DEFER_ACCEPT");
}
