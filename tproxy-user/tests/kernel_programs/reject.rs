//! New flows that a rule rejects: the answer, checked octet by octet, and what was counted.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::IpAddr,
    os::fd::AsFd as _,
};

use aya::{
    maps::{Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use etherparse::{NetSlice, SlicedPacket};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tproxy_common::{allowance::AT_ONCE, counters::RuleCounter, outcome::Outcome};
use tproxy_user::{delivery::Framing, kernel::Counters, rule::Rule};

use crate::{
    answer::assert_unreachable,
    devices::{attach, open_tun},
    frame::{ACK, ETHERNET_HEADER, Extension, Frame, SYN},
    sandbox::{FIRST_SLOT, Metadata, Sandbox, in_sandbox, ip, rule, words},
};

const CLIENT: &str = "10.1.0.2:40000";
const SERVER: &str = "192.0.2.9:443";
const CLIENT_V6: &str = "[2001:db8:1::2]:40000";
const SERVER_V6: &str = "[2001:db8:9::9]:443";

fn reject_web() -> Rule {
    rule(|spec| {
        spec.proto = Some("any".into());
        spec.dport = words(&["443"]);
        spec.action = Some("reject".into());
    })
}

fn counted(sandbox: &Sandbox) -> RuleCounter {
    let totals = Counters::new(&sandbox.maps).rules([FIRST_SLOT].into_iter());
    totals.expect("the counters")[0].kernel
}

#[test]
fn new_flows_of_either_protocol_are_answered_and_counted() {
    in_sandbox(|sandbox| {
        sandbox.install(&[reject_web()]);
        let frames = [
            Frame::tcp(CLIENT, SERVER, SYN),
            Frame::tcp(CLIENT_V6, SERVER_V6, SYN),
            Frame::udp(CLIENT, SERVER),
            Frame::udp(CLIENT_V6, SERVER_V6),
        ];
        let mut bytes = 0;
        for frame in &frames {
            assert_eq!(sandbox.outcome(frame), Outcome::Rejected, "{frame:?}");
            bytes += (frame.bytes().len() - ETHERNET_HEADER) as u64;
        }
        let expected = RuleCounter {
            flows: 4,
            packets: 4,
            bytes,
        };
        assert_eq!(counted(sandbox), expected);

        // Another port, and what is no new flow: untouched, and not counted.
        for (client, server) in [(CLIENT, "192.0.2.9:80"), (CLIENT_V6, "[2001:db8:9::9]:80")] {
            let datagram = Frame::udp(client, server);
            assert_eq!(sandbox.outcome(&datagram), Outcome::NoRule);
            let syn = Frame::tcp(client, server, SYN);
            assert_eq!(sandbox.outcome(&syn), Outcome::NoRule);
        }
        let segment = Frame::tcp(CLIENT, SERVER, ACK);
        assert_eq!(sandbox.outcome(&segment), Outcome::Foreign);
        assert_eq!(counted(sandbox), expected);
    });
}

/// As after a long pause, when the whole of what may be sent at once may be sent.
fn forget_answers(sandbox: &Sandbox) {
    let pin = sandbox.directory.join("ERROR_ALLOWANCE");
    let map = MapData::from_pin(pin).and_then(Map::from_map_data);
    let mut map: PerCpuArray<MapData, [u64; 2]> =
        map.and_then(TryInto::try_into).expect("the allowance");
    let of_each = vec![[0; 2]; nr_cpus().expect("the number of CPUs")];
    let values = PerCpuValues::try_from(of_each).expect("a value for each CPU");
    map.set(0, values, 0).expect("the allowance");
}

/// Of every length around the ends of words, of the helper's parts and of what may be quoted.
#[test]
fn datagrams_of_every_length_and_header_are_quoted() {
    in_sandbox(|sandbox| {
        sandbox.install(&[reject_web()]);
        let lengths = (0..20).chain(440..500).chain(505..525).chain(1005..1040);
        let longer = (1170..1200).chain([1472, 1473, 3500]);
        for payload in lengths.chain(longer) {
            for frame in [
                Frame::udp(CLIENT, SERVER),
                Frame {
                    option_words: 10,
                    ..Frame::udp(CLIENT, SERVER)
                },
                Frame::udp(CLIENT_V6, SERVER_V6),
                Frame {
                    extensions: vec![
                        Extension::HopByHop { units: 0 },
                        Extension::DestinationOptions { units: 9 },
                    ],
                    ..Frame::udp(CLIENT_V6, SERVER_V6)
                },
            ] {
                let frame = Frame { payload, ..frame };
                forget_answers(sandbox);
                assert_eq!(sandbox.outcome(&frame), Outcome::Rejected, "{frame:?}");
            }
        }
    });
}

#[test]
fn padding_of_a_short_frame_is_not_quoted() {
    in_sandbox(|sandbox| {
        sandbox.install(&[reject_web()]);
        for frame in [Frame::udp(CLIENT, SERVER), Frame::udp(CLIENT_V6, SERVER_V6)] {
            let mut bytes = frame.bytes();
            bytes.resize(bytes.len() + 18, 0xee);
            let outcome = sandbox.outcome_with(&bytes, Metadata::default());
            assert_eq!(outcome, Outcome::Rejected);
        }
    });
}

#[test]
fn nobody_in_particular_is_not_answered() {
    in_sandbox(|sandbox| {
        sandbox.install(&[reject_web()]);
        for (source, server) in [
            ("0.0.0.0:68", SERVER),
            ("224.0.0.1:5353", SERVER),
            ("255.255.255.255:5353", SERVER),
            ("127.0.0.1:5353", SERVER),
            ("[::]:5353", SERVER_V6),
            ("[ff02::fb]:5353", SERVER_V6),
            ("[::1]:5353", SERVER_V6),
        ] {
            for frame in [Frame::udp(source, server), Frame::tcp(source, server, SYN)] {
                let outcome = sandbox.outcome(&frame);
                assert_eq!(outcome, Outcome::RejectedUnanswered, "{frame:?}");
            }
        }
        assert_eq!(counted(sandbox).packets, 14);
    });
}

/// A length that contradicts the headers leaves nothing that could be quoted.
#[test]
fn a_datagram_that_is_cut_short_is_not_answered() {
    in_sandbox(|sandbox| {
        sandbox.install(&[reject_web()]);
        for (frame, at, length) in [
            (Frame::udp(CLIENT, SERVER), 2, 27_u16),
            (Frame::udp(CLIENT, SERVER), 2, 0),
            (Frame::udp(CLIENT_V6, SERVER_V6), 4, 7),
            (Frame::udp(CLIENT_V6, SERVER_V6), 4, 0),
        ] {
            let mut bytes = frame.bytes();
            bytes[ETHERNET_HEADER + at..][..2].copy_from_slice(&length.to_be_bytes());
            let outcome = sandbox.outcome_with(&bytes, Metadata::default());
            assert_eq!(outcome, Outcome::Malformed, "{length}");
        }
    });
}

#[test]
fn a_flood_of_datagrams_is_answered_in_part_and_discarded_whole() {
    const FLOOD: u64 = 2_000;
    in_sandbox(|sandbox| {
        sandbox.install(&[reject_web()]);
        let flood = |frame: &Frame| {
            let frame = frame.bytes();
            for _ in 0..FLOOD {
                sandbox.run(&frame, None, Metadata::default());
            }
        };
        let began = std::time::Instant::now();
        flood(&Frame::udp(CLIENT, SERVER));
        flood(&Frame::udp(CLIENT_V6, SERVER_V6));
        let milliseconds = u64::try_from(began.elapsed().as_millis()).expect("a short time");
        let answered = sandbox.occurred(Outcome::Rejected);
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let most = (AT_ONCE + milliseconds + 1) * processors as u64;
        assert!((AT_ONCE..=most).contains(&answered), "{answered} of {most}");
        assert_eq!(
            answered + sandbox.occurred(Outcome::RejectedUnanswered),
            2 * FLOOD
        );
        assert_eq!(counted(sandbox).packets, 2 * FLOOD);
        // A RST is no ICMP error.
        let before = sandbox.occurred(Outcome::Rejected);
        flood(&Frame::tcp(CLIENT, SERVER, SYN));
        assert_eq!(sandbox.occurred(Outcome::Rejected), before + FLOOD);
    });
}

/// Packets of a tun device have no link-layer header, and neither has the answer.
#[test]
fn datagrams_of_an_interface_without_ethernet_header() {
    in_sandbox(|sandbox| {
        let mut device = open_tun("tun0").expect("a tun device");
        ip("link set tun0 up");
        sandbox.install(&[reject_web()]);
        attach(sandbox, "tun0", Framing::Ip);
        for frame in [Frame::udp(CLIENT, SERVER), Frame::udp(CLIENT_V6, SERVER_V6)] {
            let frame = Frame {
                payload: 33,
                ..frame
            };
            let packet = &frame.bytes()[ETHERNET_HEADER..];
            device.write_all(packet).expect("the device takes a packet");
            assert_unreachable(packet, &answer_from(&mut device, &frame));
        }
        assert_eq!(sandbox.occurred(Outcome::Rejected), 2);
    });
}

/// What comes out of the device from the frame's destination. This host speaks there as well, for
/// itself.
fn answer_from(device: &mut File, frame: &Frame) -> Vec<u8> {
    loop {
        let mut waiting = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::from(10_000_u16);
        assert_eq!(poll(&mut waiting, limit), Ok(1), "an answer");
        let mut packet = vec![0; 2048];
        let length = device.read(&mut packet).expect("a packet");
        let parsed = SlicedPacket::from_ip(&packet[..length]).expect("a readable packet");
        let source: Option<IpAddr> = match parsed.net {
            Some(NetSlice::Ipv4(ip)) => Some(ip.header().source_addr().into()),
            Some(NetSlice::Ipv6(ip)) => Some(ip.header().source_addr().into()),
            _ => None,
        };
        if source == Some(frame.destination) {
            return packet[..length].to_vec();
        }
    }
}
