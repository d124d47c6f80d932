//! Datagrams in fragments, in the order in which they were sent and in others: whether they are put
//! together here, go on or are discarded.

use std::cmp::Ordering;
use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket},
};
use tproxy_common::outcome::Outcome;
use tproxy_user::rule::{Rule, RuleSpec};

use crate::{
    devices::send,
    frame::ETHERNET_HEADER,
    neighbour::{
        Addresses, FAR, NEAR, Neighbour, PATIENCE, attach_to_link, deliver, families, patient,
        receive, wait_until,
    },
    sandbox::{Sandbox, Workers, in_sandbox, rule},
};

/// Octets of a datagram that makes three fragments on the link.
const LENGTH: usize = 4000;

/// Where all datagrams go.
const PORT: u16 = 81;

/// The fragments of a datagram, as frames.
type Fragments = [Vec<u8>; 3];

/// Orders in which they may arrive.
const ORDERS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];

/// A namespace with programs, a neighbour, a worker, and datagrams that the neighbour may send.
struct Setting<'a> {
    sandbox: &'a Sandbox,
    neighbour: Neighbour,
    worker: UdpSocket,
    _workers: Workers,
    datagrams: Vec<(Addresses, [Fragments; ORDERS.len()])>,
}

fn in_setting(rules: Vec<Rule>, test: impl FnOnce(&Setting<'_>) + Send + 'static) {
    in_sandbox(move |sandbox| {
        let neighbour = Neighbour::on_link();
        // Before the programs are attached, so that they have not seen them.
        let datagrams = families()
            .map(|family| (family, ORDERS.map(|_| sent(&neighbour, family))))
            .into();
        attach_to_link(sandbox);
        deliver(&[NEAR], false);
        sandbox.install(&rules);
        let workers = sandbox.start_workers(1);
        let worker = workers.listeners[0].udp.try_clone();
        test(&Setting {
            sandbox,
            neighbour,
            worker: patient(worker.expect("a duplicate")),
            _workers: workers,
            datagrams,
        });
    });
}

impl Setting<'_> {
    /// Sends fragments in this order, and says what became of each.
    fn outcomes(&self, fragments: &Fragments, order: [usize; 3]) -> [Outcome; 3] {
        order.map(|place| self.outcome(&fragments[place]))
    }

    fn outcome(&self, fragment: &[u8]) -> Outcome {
        let before = self.sandbox.outcomes();
        self.neighbour.run(|| send(fragment, FAR));
        let seen = || {
            let moved = self.sandbox.moved_since(&before);
            // Of neighbour discovery there may be some at any time, and sk_lookup follows.
            let of_fragments = moved.into_iter().map(|(outcome, _)| outcome);
            let mut of_fragments = of_fragments.filter(|outcome| OF_FRAGMENTS.contains(outcome));
            let first = of_fragments.next();
            assert_eq!(of_fragments.next(), None, "two outcomes of one fragment");
            first
        };
        wait_until(|| seen().is_some());
        seen().expect("an outcome")
    }

    /// Checks that the worker gets a whole datagram from the neighbour.
    #[track_caller]
    fn assert_received(&self, family: Addresses) {
        let (datagram, source) = receive(&self.worker);
        assert_eq!(datagram, contents());
        assert_eq!(source.ip(), family.client);
    }

    /// Checks that the worker has nothing.
    #[track_caller]
    fn assert_idle(&self) {
        let waiting = recv(self.worker.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT);
        assert_eq!(waiting, Err(Errno::EAGAIN));
    }
}

const OF_FRAGMENTS: [Outcome; 8] = [
    Outcome::Fragment,
    Outcome::FragmentTaken,
    Outcome::FragmentDropped,
    Outcome::Taken,
    Outcome::Dropped,
    Outcome::Passed,
    Outcome::NoRule,
    Outcome::NotForwarded,
];

fn contents() -> Vec<u8> {
    (0..LENGTH).map(|place| place.to_le_bytes()[0]).collect()
}

/// The fragments of a datagram that the neighbour sends, as they arrive.
fn sent(neighbour: &Neighbour, family: Addresses) -> Fragments {
    let arriving = Arriving::start();
    let client = neighbour.datagrams_to(SocketAddr::new(family.server, PORT));
    client.send(&contents()).expect("a datagram");
    [(); 3].map(|()| arriving.fragment())
}

/// All frames that arrive on the link.
struct Arriving(OwnedFd);

impl Arriving {
    fn start() -> Self {
        let packets = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK,
            SockProtocol::EthAll,
        );
        Self(packets.expect("a packet socket"))
    }

    /// The next that has a fragment of a datagram in it.
    fn fragment(&self) -> Vec<u8> {
        let limit = PollTimeout::try_from(PATIENCE).expect("a limit");
        loop {
            let mut waiting = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut waiting, limit), Ok(1), "a frame");
            let mut frame = vec![0; 2048];
            let length = recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty());
            frame.truncate(length.expect("a frame"));
            if is_fragment(&frame) {
                return frame;
            }
        }
    }
}

fn is_fragment(frame: &[u8]) -> bool {
    let packet = &frame[ETHERNET_HEADER..];
    match frame[12..ETHERNET_HEADER] {
        // More fragments, or an offset (RFC 791, 3.1).
        [0x08, 0x00] => packet[9] == 17 && (packet[6] & 0x3f != 0 || packet[7] != 0),
        // A fragment header (RFC 8200, 4.5).
        [0x86, 0xdd] => packet[6] == 44 && packet[40] == 17,
        _ => false,
    }
}

fn to_port(port: u16, action: &str) -> Rule {
    rule(|spec: &mut RuleSpec| {
        spec.proto = Some("udp".into());
        spec.dport = vec![port.to_string()];
        spec.action = Some(action.into());
    })
}

/// Whichever of its fragments comes first, the datagram comes to the worker as a whole.
#[test]
fn a_datagram_that_is_taken_is_put_together_from_any_order() {
    in_setting(vec![to_port(PORT, "relay")], |setting| {
        for (family, datagrams) in &setting.datagrams {
            for (fragments, order) in datagrams.iter().zip(ORDERS) {
                let outcomes = setting.outcomes(fragments, order);
                setting.assert_received(*family);
                for (place, outcome) in order.into_iter().zip(outcomes) {
                    let expected = match place {
                        0 => Outcome::Taken,
                        _ => Outcome::FragmentTaken,
                    };
                    assert_eq!(outcome, expected, "{order:?}: {outcomes:?}");
                }
            }
        }
        setting.assert_idle();
    });
}

/// What overtakes the first fragment is kept, and comes to nothing without it.
#[test]
fn a_datagram_that_is_dropped_comes_nowhere_in_any_order() {
    in_setting(vec![to_port(PORT, "drop")], |setting| {
        for (_, datagrams) in &setting.datagrams {
            for (fragments, order) in datagrams.iter().zip(ORDERS) {
                let outcomes = setting.outcomes(fragments, order);
                let first = order.iter().position(|place| *place == 0).unwrap_or(0);
                let expected: [Outcome; 3] = std::array::from_fn(|place| match place.cmp(&first) {
                    Ordering::Less => Outcome::FragmentTaken,
                    Ordering::Equal => Outcome::Dropped,
                    Ordering::Greater => Outcome::FragmentDropped,
                });
                assert_eq!(outcomes, expected, "{order:?}");
                // Once more: by now they are known.
                assert_eq!(setting.outcome(&fragments[2]), Outcome::FragmentDropped);
            }
        }
        setting.assert_idle();
    });
}

/// No rule is for this port. Who sends in order is not concerned; a datagram that may have been taken is relayed
/// when something of it was kept.
#[test]
fn a_datagram_to_another_port_goes_on_unless_something_of_it_was_kept() {
    in_setting(vec![to_port(PORT + 1, "relay")], |setting| {
        for (family, datagrams) in &setting.datagrams {
            for (fragments, order) in datagrams.iter().zip(ORDERS) {
                let outcomes = setting.outcomes(fragments, order);
                if order[0] == 0 {
                    let expected = [Outcome::NoRule, Outcome::Fragment, Outcome::Fragment];
                    assert_eq!(outcomes, expected, "{order:?}");
                } else {
                    assert_eq!(outcomes, [Outcome::FragmentTaken; 3], "{order:?}");
                    setting.assert_received(*family);
                }
            }
        }
        setting.assert_idle();
    });
}

/// Where no rule can be for them, whatever their ports are, in whatever order.
#[test]
fn datagrams_between_other_addresses_are_not_concerned() {
    let elsewhere = rule(|spec| {
        spec.proto = Some("udp".into());
        spec.dst = vec!["198.51.100.0/24".into(), "2001:db8:a::/48".into()];
    });
    let tcp_alone = rule(|_| ());
    in_setting(vec![elsewhere, tcp_alone], |setting| {
        for (_, datagrams) in &setting.datagrams {
            for (fragments, order) in datagrams.iter().zip(ORDERS) {
                let outcomes = setting.outcomes(fragments, order);
                let expected = order.map(|place| match place {
                    0 => Outcome::NoRule,
                    _ => Outcome::Fragment,
                });
                assert_eq!(outcomes, expected, "{order:?}");
            }
        }
        setting.assert_idle();
    });
}
