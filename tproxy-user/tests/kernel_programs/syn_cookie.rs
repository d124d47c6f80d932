//! The last ACK of a handshake by SYN cookie, for which there is no socket yet.

use std::{
    fs,
    io::Read as _,
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket},
};
use socket2::SockRef;
use tproxy_common::{address::Family, flow_filter::GRACE, outcome::Outcome, packet::parse};
use tproxy_tests::wait::uninterrupted;
use tproxy_user::{agent::turn, kernel::FlowFilter, relay::Listener};

use crate::{
    frame::{ACK, ETHERNET_HEADER, RST, SYN},
    sandbox::{Metadata, Sandbox, Workers, bound, in_sandbox, make_local, rule},
};

/// Client and server of each family.
const ENDS: [(&str, &str); 2] = [
    ("198.51.100.2", "198.51.100.9"),
    ("2001:db8:51::2", "2001:db8:51::9"),
];

/// Octets into the TCP header, RFC 9293, 3.1.
const ACKNOWLEDGMENT: usize = 8;
const FLAGS: usize = 13;

#[test]
fn the_last_ack_belongs_to_a_worker_and_a_forged_one_does_not() {
    in_sandbox(|sandbox| {
        let workers = prepare(sandbox, 2);
        for (client, server) in ENDS {
            let handshake = Handshake::by_cookie(sandbox, &workers.listeners, client, server);
            assert_eq!(handshake.while_open, Outcome::Established);

            // The sockets are gone: only the cookie says that the ACK is ours.
            let with = |edit: &dyn Fn(&mut [u8])| {
                let mut frame = handshake.ack.clone();
                edit(&mut frame[handshake.tcp..]);
                sandbox.outcome_with(&frame, Metadata::default())
            };
            assert_eq!(with(&|_| ()), Outcome::SynCookie, "{server}");
            assert_eq!(with(&|tcp| tcp[FLAGS] |= 0x08), Outcome::SynCookie);
            for forged in 0..4 {
                let flip = |tcp: &mut [u8]| tcp[ACKNOWLEDGMENT + forged] ^= 0x55;
                assert_eq!(with(&flip), Outcome::Foreign, "octet {forged}");
            }
            let another_port = |tcp: &mut [u8]| tcp[1] ^= 1;
            assert_eq!(with(&another_port), Outcome::Foreign);
            for flags in [RST | ACK, SYN | ACK, RST, 0] {
                assert_eq!(
                    with(&|tcp| tcp[FLAGS] = flags),
                    Outcome::Foreign,
                    "{flags:#04x}"
                );
            }
        }
    });
}

#[test]
fn an_ack_means_nothing_without_a_listener() {
    in_sandbox(|sandbox| {
        let workers = prepare(sandbox, 1);
        let handshake = Handshake::by_cookie(sandbox, &workers.listeners, ENDS[0].0, ENDS[0].1);
        let ack = || sandbox.outcome_with(&handshake.ack, Metadata::default());
        assert_eq!(ack(), Outcome::SynCookie);
        set_syncookies(0);
        assert_eq!(ack(), Outcome::Foreign);
        set_syncookies(2);
        assert_eq!(ack(), Outcome::SynCookie);
        drop(workers);
        assert_eq!(ack(), Outcome::Foreign);
    });
}

/// No socket is listed for it; the SYN that was answered with the cookie is what makes it ours.
#[test]
fn the_filter_of_flows_knows_a_handshake_by_its_syn() {
    in_sandbox(|sandbox| {
        let workers = prepare(sandbox, 1);
        sandbox.install(&[rule(|_| ())]);
        let filter = FlowFilter::open(&sandbox.maps).expect("the filter of flows");
        for (client, server) in ENDS {
            let handshake = Handshake::by_cookie(sandbox, &workers.listeners, client, server);
            let age = || {
                for _ in 0..GRACE {
                    turn(&filter).expect("the sockets are listed");
                }
            };
            let with = |flags| {
                let mut frame = handshake.ack.clone();
                frame[handshake.tcp + FLAGS] = flags;
                sandbox.outcome_with(&frame, Metadata::default())
            };
            age();
            age();
            assert_eq!(with(ACK), Outcome::Foreign, "no SYN of it passed here");
            assert_eq!(with(SYN), Outcome::Taken);
            age();
            assert_eq!(with(ACK), Outcome::SynCookie);
            // What follows the ACK, should the socket not be there yet.
            age();
            assert_eq!(with(ACK), Outcome::SynCookie);
        }
    });
}

/// Listeners that answer every SYN with a cookie.
fn prepare(sandbox: &Sandbox, workers: u32) -> Workers {
    for (client, server) in ENDS {
        make_local(client.parse().unwrap());
        make_local(server.parse().unwrap());
    }
    set_syncookies(2);
    sandbox.start_workers(workers)
}

/// `net.ipv4.tcp_syncookies`, ip-sysctl: 0 never, 2 always.
fn set_syncookies(value: u8) {
    fs::write("/proc/sys/net/ipv4/tcp_syncookies", value.to_string()).expect("a sysctl");
}

/// A real handshake, observed on `lo`, whose connection is reset afterwards.
struct Handshake {
    /// The frame with its last ACK.
    ack: Vec<u8>,
    /// Where the TCP header begins in it.
    tcp: usize,
    /// What the programs said of it as long as the connection was there.
    while_open: Outcome,
}

impl Handshake {
    fn by_cookie(sandbox: &Sandbox, listeners: &[Listener], client: &str, server: &str) -> Self {
        let port = listeners[0].tcp.local_addr().expect("an address").port();
        let server = SocketAddr::new(server.parse().unwrap(), port);
        let capture = Capture::start();
        let socket = bound(SocketAddr::new(client.parse().unwrap(), 0));
        socket.connect(&server.into()).expect("a connection");
        let mut client: TcpStream = socket.into();
        let source = client.local_addr().expect("an address");
        // Now the ACK has arrived.
        let accepted = accept(listeners);
        let (ack, tcp) = capture.last_ack_of_handshake(source, server);
        let while_open = sandbox.outcome_with(&ack, Metadata::default());
        // Reset, so that no socket stays, not even one in TIME_WAIT.
        let on_close = SockRef::from(&accepted);
        on_close
            .set_linger(Some(Duration::ZERO))
            .expect("an option");
        drop(accepted);
        uninterrupted(|| client.read(&mut [0; 1])).expect_err("a RST");
        Self {
            ack,
            tcp,
            while_open,
        }
    }
}

/// The connection that one of these listeners has.
fn accept(listeners: &[Listener]) -> TcpStream {
    let mut waiting: Vec<PollFd<'_>> = listeners
        .iter()
        .map(|listener| PollFd::new(listener.tcp.as_fd(), PollFlags::POLLIN))
        .collect();
    let limit = PollTimeout::from(10_000_u16);
    assert_eq!(poll(&mut waiting, limit), Ok(1), "one connection");
    let ready = waiting.iter().position(|of| of.any() == Some(true));
    let (accepted, _) = listeners[ready.expect("one listener")]
        .tcp
        .accept()
        .expect("a connection");
    accepted
}

/// All frames of this network namespace.
struct Capture(OwnedFd);

impl Capture {
    fn start() -> Self {
        let packets = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK,
            SockProtocol::EthAll,
        );
        Self(packets.expect("a packet socket"))
    }

    /// The client's first bare ACK, and where its TCP header begins.
    fn last_ack_of_handshake(&self, client: SocketAddr, server: SocketAddr) -> (Vec<u8>, usize) {
        let family = if client.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        loop {
            let mut frame = vec![0; 2048];
            let length = match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Err(Errno::EAGAIN) => panic!("no ACK from {client} to {server}"),
                length => length.expect("a frame"),
            };
            frame.truncate(length);
            let Ok(headers) = parse(frame.as_slice(), family, ETHERNET_HEADER) else {
                continue;
            };
            if frame[headers.transport_offset + FLAGS] == ACK
                && headers.source_port == client.port()
                && headers.destination_port == server.port()
            {
                return (frame, headers.transport_offset);
            }
        }
    }
}
