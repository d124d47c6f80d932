//! Every outcome that the tc program comes to on a crafted frame: the verdict, the mark, the
//! counter, and the case beside it.

use tproxy_common::{
    agent::AgentState,
    attachment::{ANSWERS_ONLY, FULL},
    counters::RuleCounter,
    flow::{Protocol, worker_of},
    handover::{Ends, Place, Taken},
    outcome::Outcome,
};
use tproxy_user::{
    kernel::{Counters, Handover},
    rule::{Rule, RuleSpec},
};

use crate::{
    frame::{ACK, ETHERNET_HEADER, Extension, Frame, RST, SYN, Transport, shortest},
    sandbox::{
        FIRST_SLOT, MARK, Metadata, Sandbox, UPSTREAM_MARK, in_sandbox, index_of, ip, rule, words,
    },
};

const CLIENT: &str = "10.1.0.2:40000";
const SERVER: &str = "192.0.2.9:443";
const CLIENT_V6: &str = "[2001:db8:1::2]:40000";
const SERVER_V6: &str = "[2001:db8:9::9]:443";

fn syn() -> Frame {
    Frame::tcp(CLIENT, SERVER, SYN)
}

fn syn_v6() -> Frame {
    Frame::tcp(CLIENT_V6, SERVER_V6, SYN)
}

/// Drops whatever comes to it, so that a frame which should not come that far is noticed.
fn drop_all() -> Rule {
    rule(|spec| {
        spec.proto = Some("any".into());
        spec.action = Some("drop".into());
    })
}

fn web(edit: impl FnOnce(&mut RuleSpec)) -> Rule {
    rule(|spec| {
        spec.dport = words(&["443"]);
        edit(spec);
    })
}

type Edit = fn(&mut RuleSpec);

fn rule_counter(sandbox: &Sandbox, slot: u32) -> RuleCounter {
    let totals = Counters::new(&sandbox.maps).rules([slot].into_iter());
    totals.expect("the counters")[0].kernel
}

#[test]
fn frames_that_are_not_ip() {
    in_sandbox(|sandbox| {
        sandbox.install(&[drop_all()]);
        // ARP, a VLAN tag within the frame, a length of IEEE 802.3, an unknown EtherType.
        for ether_type in [0x0806, 0x8100, 0x0040, 0x88b5] {
            let frame = Frame {
                ether_type: Some(ether_type),
                ..syn()
            };
            assert_eq!(sandbox.outcome(&frame), Outcome::NotIp, "{ether_type:#06x}");
        }
        assert_eq!(sandbox.outcome(&syn()), Outcome::Dropped);
        assert_eq!(sandbox.outcome(&syn_v6()), Outcome::Dropped);
    });
}

#[test]
fn frames_for_other_hosts() {
    in_sandbox(|sandbox| {
        sandbox.install(&[drop_all()]);
        let broadcast = [0xff; 6];
        let multicast = [0x01, 0, 0x5e, 0, 0, 1];
        let other = [2, 0, 0, 0, 0, 7];
        for link in [broadcast, multicast, other] {
            for frame in [Frame { link, ..syn() }, Frame { link, ..syn_v6() }] {
                assert_eq!(sandbox.outcome(&frame), Outcome::NotForThisHost, "{link:?}");
            }
        }
        // Before anything of the packet is looked at.
        let fragment = Frame {
            link: other,
            fragment: 185,
            ..syn()
        };
        assert_eq!(sandbox.outcome(&fragment), Outcome::NotForThisHost);
    });
}

fn check(cases: Vec<(Frame, Outcome)>) {
    in_sandbox(|sandbox| {
        sandbox.install(&[drop_all()]);
        for (frame, outcome) in cases {
            assert_eq!(sandbox.outcome(&frame), outcome, "{frame:?}");
        }
    });
}

#[test]
fn ipv4_packets_that_can_and_cannot_be_read() {
    let with_fragment = |fragment| Frame { fragment, ..syn() };
    let with_option_words = |option_words| Frame {
        option_words,
        ..syn()
    };
    let with_data_offset = |data_offset| Frame {
        transport: Transport::Tcp {
            flags: SYN,
            data_offset,
        },
        ..syn()
    };
    let of_ipv6 = Frame {
        ether_type: Some(0x86dd),
        ..syn()
    };
    check(vec![
        (Frame::udp(CLIENT, SERVER), Outcome::Dropped),
        (with_option_words(10), Outcome::Dropped),
        (with_fragment(0x4000), Outcome::Dropped),
        // The first of several has ports, the others follow it.
        (with_fragment(0x2000), Outcome::Dropped),
        (with_fragment(0x00b9), Outcome::FragmentDropped),
        (with_data_offset(5), Outcome::Dropped),
        (with_data_offset(4), Outcome::Malformed),
        (of_ipv6, Outcome::Malformed),
        (Frame::other(CLIENT, SERVER, 1), Outcome::OtherProtocol),
        // TCP without its header.
        (Frame::other(CLIENT, SERVER, 6), Outcome::Malformed),
    ]);
}

#[test]
fn ipv6_packets_that_can_and_cannot_be_read() {
    let with = |extensions: &[Extension]| Frame {
        extensions: extensions.to_vec(),
        ..syn_v6()
    };
    let options = Extension::DestinationOptions { units: 0 };
    let hop_by_hop = Extension::HopByHop { units: 3 };
    let check_value = Extension::Authentication { words: 5 };
    let fragment = |field| Extension::Fragment { field };
    let routing = |segments_left| Extension::Routing {
        units: 2,
        segments_left,
    };
    let of_ipv4 = Frame {
        ether_type: Some(0x0800),
        ..syn_v6()
    };
    let other = |protocol| Frame::other(CLIENT_V6, SERVER_V6, protocol);
    check(vec![
        (Frame::udp(CLIENT_V6, SERVER_V6), Outcome::Dropped),
        (with(&[options; 8]), Outcome::Dropped),
        (with(&[options; 9]), Outcome::TooManyExtensions),
        (with(&[check_value]), Outcome::Dropped),
        (with(&[hop_by_hop, fragment(0)]), Outcome::Dropped),
        (with(&[fragment(1)]), Outcome::Dropped),
        (with(&[fragment(8)]), Outcome::FragmentDropped),
        (with(&[routing(0)]), Outcome::Dropped),
        (with(&[routing(1)]), Outcome::OtherProtocol),
        (of_ipv4, Outcome::Malformed),
        // ICMPv6, encrypted payload, no next header.
        (other(58), Outcome::OtherProtocol),
        (other(50), Outcome::OtherProtocol),
        (other(59), Outcome::OtherProtocol),
    ]);
}

/// The length in the IP header ends the packet: whatever the frame has behind it is padding.
#[test]
fn what_is_behind_the_length_of_a_packet_is_padding() {
    in_sandbox(|sandbox| {
        sandbox.install(&[drop_all()]);
        let extended = Frame {
            extensions: vec![Extension::HopByHop { units: 1 }],
            ..syn_v6()
        };
        for (frame, field) in [
            (syn(), 2),
            (Frame::udp(CLIENT, SERVER), 2),
            (syn_v6(), 4),
            (extended, 4),
        ] {
            let mut bytes = frame.bytes();
            let field = ETHERNET_HEADER + field;
            let stated = u16::from_be_bytes([bytes[field], bytes[field + 1]]);
            for length in 0..=stated + 1 {
                bytes[field..field + 2].copy_from_slice(&length.to_be_bytes());
                let outcome = if length < stated {
                    Outcome::Malformed
                } else {
                    Outcome::Dropped
                };
                assert_eq!(
                    sandbox.outcome_with(&bytes, Metadata::default()),
                    outcome,
                    "{length} of {stated} octets of {frame:?}"
                );
            }
        }
    });
}

/// Shorter ones come through a device, in `devices`.
#[test]
fn packets_cut_short_at_every_byte_behind_the_ip_header() {
    in_sandbox(|sandbox| {
        sandbox.install(&[drop_all()]);
        let extended = Frame {
            extensions: vec![
                Extension::HopByHop { units: 1 },
                Extension::Fragment { field: 0 },
                Extension::Authentication { words: 4 },
            ],
            ..syn_v6()
        };
        for frame in [syn(), syn_v6(), Frame::udp(CLIENT, SERVER), extended] {
            let bytes = frame.bytes();
            for length in shortest(&bytes)..=bytes.len() {
                let outcome = if length < bytes.len() {
                    Outcome::Malformed
                } else {
                    Outcome::Dropped
                };
                assert_eq!(
                    sandbox.outcome_with(&bytes[..length], Metadata::default()),
                    outcome,
                    "{length} octets of {frame:?}"
                );
            }
        }
    });
}

#[test]
fn packets_of_the_agents_own_connections() {
    in_sandbox(|sandbox| {
        sandbox.install(&[drop_all()]);
        let marked = |frame: &Frame, mark| {
            let metadata = Metadata {
                mark,
                ..Metadata::default()
            };
            sandbox.outcome_with(&frame.bytes(), metadata)
        };
        for frame in [syn(), syn_v6(), Frame::tcp(CLIENT, SERVER, ACK)] {
            assert_eq!(marked(&frame, UPSTREAM_MARK), Outcome::OwnUpstream);
            // Bits that are not ours belong to somebody else.
            assert_eq!(marked(&frame, UPSTREAM_MARK | 0xff), Outcome::OwnUpstream);
        }
        for mark in [0, MARK, MARK | 0xff, 0xff, UPSTREAM_MARK & 0x0fff_ffff] {
            assert_eq!(marked(&syn(), mark), Outcome::Dropped, "{mark:#x}");
        }
    });
}

#[test]
fn new_flows_that_no_rule_matches() {
    in_sandbox(|sandbox| {
        // Before the first generation, and with an empty one.
        assert_eq!(sandbox.outcome(&syn()), Outcome::NoRule);
        sandbox.install(&[]);
        assert_eq!(sandbox.outcome(&syn()), Outcome::NoRule);
        assert_eq!(sandbox.outcome(&syn_v6()), Outcome::NoRule);

        let drop = |edit: Edit| {
            [web(|spec| {
                spec.action = Some("drop".into());
                edit(spec);
            })]
        };
        let cases: [(Edit, Outcome); 9] = [
            (|_| (), Outcome::Dropped),
            (|spec| spec.dport = words(&["444", "80"]), Outcome::NoRule),
            (|spec| spec.sport = words(&["40001-65535"]), Outcome::NoRule),
            (|spec| spec.sport = words(&["40000"]), Outcome::Dropped),
            (
                |spec| spec.src = words(&["10.1.0.0/24", "!10.1.0.2"]),
                Outcome::NoRule,
            ),
            (|spec| spec.src = words(&["10.1.0.0/24"]), Outcome::Dropped),
            (|spec| spec.dst = words(&["192.0.2.0/29"]), Outcome::NoRule),
            (|spec| spec.dst = words(&["192.0.2.8/29"]), Outcome::Dropped),
            (|spec| spec.proto = Some("udp".into()), Outcome::NoRule),
        ];
        for (edit, outcome) in cases {
            let rules = drop(edit);
            sandbox.install(&rules);
            assert_eq!(sandbox.outcome(&syn()), outcome, "{rules:?}");
        }
    });
}

#[test]
fn a_rule_holds_for_the_interfaces_that_it_names() {
    in_sandbox(|sandbox| {
        ip(
            "link add d0 address 02:00:00:00:00:01 type veth peer name d1 address 02:00:00:00:00:01",
        );
        let mut only_d1 = drop_all();
        only_d1.interfaces = words(&["d1"]);
        sandbox.install(&[only_d1]);
        let frame = Frame {
            link: [2, 0, 0, 0, 0, 1],
            ..syn()
        };
        for (name, outcome) in [("d0", Outcome::NoRule), ("d1", Outcome::Dropped)] {
            let metadata = Metadata {
                interface: index_of(name).expect("the interface"),
                ..Metadata::default()
            };
            assert_eq!(
                sandbox.outcome_with(&frame.bytes(), metadata),
                outcome,
                "{name}"
            );
        }
        assert_eq!(sandbox.outcome(&syn()), Outcome::NoRule);
    });
}

/// Nothing but answers is looked for where only servers are, until the interface is attached in full.
#[test]
fn new_flows_on_an_interface_for_answers_are_left_alone() {
    in_sandbox(|sandbox| {
        let interface = index_of("lo").expect("the interface");
        sandbox.install(&[drop_all()]);
        let datagram = Frame::udp(CLIENT, SERVER);
        for (attachment, outcome) in [
            (ANSWERS_ONLY, Outcome::AnswersOnly),
            (FULL, Outcome::Dropped),
        ] {
            sandbox
                .maps
                .set_interface(interface, attachment)
                .expect("there is room");
            for frame in [syn(), syn_v6(), datagram.clone()] {
                assert_eq!(sandbox.outcome(&frame), outcome);
            }
            assert_eq!(
                sandbox.outcome(&Frame::tcp(CLIENT, SERVER, ACK)),
                Outcome::Foreign
            );
        }
    });
}

#[test]
fn flows_to_and_from_this_host_are_not_forwarded() {
    in_sandbox(|sandbox| {
        sandbox.install(&[drop_all()]);
        let local = [
            "192.0.2.8/30",
            "127.0.0.0/8",
            "2001:db8:9::9/128",
            "::1/128",
        ];
        let prefixes: Vec<_> = local.iter().map(|text| text.parse().unwrap()).collect();
        sandbox
            .maps
            .set_local_prefixes(&prefixes)
            .expect("prefixes");
        let cases = [
            (CLIENT, SERVER, Outcome::NotForwarded),
            (SERVER, CLIENT, Outcome::NotForwarded),
            (CLIENT, "192.0.2.12:443", Outcome::Dropped),
            (CLIENT_V6, SERVER_V6, Outcome::NotForwarded),
            (SERVER_V6, CLIENT_V6, Outcome::NotForwarded),
            (CLIENT_V6, "[2001:db8:9::8]:443", Outcome::Dropped),
            (CLIENT, "127.0.0.1:443", Outcome::NotForwarded),
            (CLIENT, "224.0.0.1:443", Outcome::NotForwarded),
            (CLIENT, "255.255.255.255:443", Outcome::NotForwarded),
            (CLIENT_V6, "[::1]:443", Outcome::NotForwarded),
            (CLIENT_V6, "[fe80::1]:443", Outcome::NotForwarded),
            (CLIENT_V6, "[ff02::1]:443", Outcome::NotForwarded),
            (CLIENT_V6, "[::ffff:10.0.0.1]:443", Outcome::NotForwarded),
        ];
        for (source, destination, outcome) in cases {
            for frame in [
                Frame::tcp(source, destination, SYN),
                Frame::udp(source, destination),
            ] {
                assert_eq!(sandbox.outcome(&frame), outcome, "{frame:?}");
            }
        }
        // What no rule wants is not looked at any closer.
        sandbox.install(&[]);
        assert_eq!(sandbox.outcome(&syn()), Outcome::NoRule);
        assert_eq!(rule_counter(sandbox, FIRST_SLOT).flows, 4);
    });
}

#[test]
fn the_first_rule_that_matches_decides_and_counts() {
    in_sandbox(|sandbox| {
        let pass = rule(|spec| {
            spec.action = Some("pass".into());
            spec.dst = words(&["192.0.2.0/24", "2001:db8:9::/48"]);
        });
        sandbox.install(&[pass, drop_all()]);
        assert_eq!(sandbox.outcome(&syn()), Outcome::Passed);
        assert_eq!(sandbox.outcome(&syn_v6()), Outcome::Passed);
        let elsewhere = Frame::tcp(CLIENT, "198.51.100.9:443", SYN);
        assert_eq!(sandbox.outcome(&elsewhere), Outcome::Dropped);
        let datagram = Frame {
            payload: 100,
            ..Frame::udp(CLIENT, SERVER)
        };
        assert_eq!(sandbox.outcome(&datagram), Outcome::Dropped);
        let counted = |flows, packets, bytes| RuleCounter {
            flows,
            packets,
            bytes,
        };
        assert_eq!(rule_counter(sandbox, FIRST_SLOT), counted(2, 0, 0));
        // 20 + 20 octets of the segment, 20 + 8 + 100 of the datagram.
        assert_eq!(
            rule_counter(sandbox, FIRST_SLOT + 1),
            counted(2, 2, 40 + 128)
        );
    });
}

#[test]
fn a_flow_to_relay_is_taken_and_announced() {
    in_sandbox(|sandbox| {
        sandbox.install(&[drop_all_but_web(), web(|_| ())]);
        let _listeners = sandbox.start_workers(2);
        let handover = Handover::open(&sandbox.maps).expect("the table");
        for (frame, client, server) in [(syn(), CLIENT, SERVER), (syn_v6(), CLIENT_V6, SERVER_V6)] {
            let client: std::net::SocketAddr = client.parse().unwrap();
            let server: std::net::SocketAddr = server.parse().unwrap();
            let place = Place::of(&Ends {
                protocol: Protocol::Tcp,
                source: client.ip().into(),
                source_port: client.port(),
                destination: server.ip().into(),
                destination_port: server.port(),
            });
            assert_eq!(handover.taken(place), None);
            assert_eq!(sandbox.outcome(&frame), Outcome::Taken);
            assert_eq!(
                handover.taken(place),
                Some(Taken {
                    slot: FIRST_SLOT + 1,
                    redirected: false,
                })
            );
        }
        assert_eq!(rule_counter(sandbox, FIRST_SLOT + 1).flows, 2);
        assert_eq!(rule_counter(sandbox, FIRST_SLOT + 1).packets, 0);
        // A SYN that asks for ECN opens a flow as well; other flags do not.
        assert_eq!(
            sandbox.outcome(&Frame::tcp(CLIENT, SERVER, SYN | 0xc0)),
            Outcome::Taken
        );
    });
}

/// What is left of a flow that was taken stays here, so that the server never sees it; another flow
/// goes on, even with the same ports once it was let go.
#[test]
fn segments_of_a_taken_flow_without_a_socket_are_kept() {
    in_sandbox(|sandbox| {
        sandbox.install(&[web(|_| ())]);
        let workers = sandbox.start_workers(2);
        let segment = |flags| sandbox.outcome(&Frame::tcp(CLIENT, SERVER, flags));
        for flags in [ACK, SYN | ACK, RST, SYN | RST, 0] {
            assert_eq!(segment(flags), Outcome::Foreign, "{flags:#04x}");
        }
        assert_eq!(segment(SYN), Outcome::Taken);
        for flags in [ACK, SYN | ACK, RST, SYN | RST, 0] {
            assert_eq!(segment(flags), Outcome::Orphaned, "{flags:#04x}");
        }
        drop(workers);
        assert_eq!(segment(ACK), Outcome::Orphaned);
        sandbox.install(&[]);
        assert_eq!(segment(SYN), Outcome::NoRule);
        assert_eq!(segment(ACK), Outcome::Foreign);
    });
}

fn drop_all_but_web() -> Rule {
    rule(|spec| {
        spec.action = Some("drop".into());
        spec.dport = words(&["1-442", "444-65535"]);
    })
}

#[test]
fn a_flow_is_taken_or_not_by_whether_its_own_worker_is_there() {
    in_sandbox(|sandbox| {
        let workers = 4;
        let _two_listeners = sandbox.start_workers(2);
        sandbox
            .maps
            .set_agent(AgentState::accepting(workers, 3129))
            .expect("an agent");
        let open = web(|spec| spec.on_missing = Some("pass".into()));
        let closed = web(|spec| spec.on_missing = Some("drop".into()));
        let mut seen = [0; 2];
        for port in 40_000..40_040 {
            let frame = Frame {
                source_port: port,
                ..syn()
            };
            let worker = worker_of(&frame.source.into(), port, workers);
            let present = worker < 2;
            seen[usize::from(present)] += 1;
            sandbox.install(std::slice::from_ref(&open));
            let outcome = if present {
                Outcome::Taken
            } else {
                Outcome::PassedMissing
            };
            assert_eq!(sandbox.outcome(&frame), outcome, "worker {worker}");
            sandbox.install(std::slice::from_ref(&closed));
            let outcome = if present {
                Outcome::Taken
            } else {
                Outcome::RefusedMissing
            };
            assert_eq!(sandbox.outcome(&frame), outcome, "worker {worker}");
        }
        assert!(seen[0] > 5 && seen[1] > 5, "{seen:?}");
    });
}

#[test]
fn a_refused_flow_is_answered_whatever_its_headers() {
    in_sandbox(|sandbox| {
        sandbox
            .maps
            .set_agent(AgentState::accepting(1, 3129))
            .expect("an agent");
        sandbox.install(&[web(|_| ())]);
        let options = Frame {
            option_words: 3,
            ..syn()
        };
        let extensions = Frame {
            extensions: vec![Extension::DestinationOptions { units: 1 }],
            ..syn_v6()
        };
        let with_payload = Frame {
            payload: 7,
            ..syn()
        };
        for frame in [syn(), syn_v6(), options, extensions, with_payload] {
            assert_eq!(
                sandbox.outcome(&frame),
                Outcome::RefusedMissing,
                "{frame:?}"
            );
        }
    });
}

#[test]
fn an_agent_that_drains_or_is_gone_takes_nothing_new() {
    in_sandbox(|sandbox| {
        let open = web(|spec| spec.on_missing = Some("pass".into()));
        sandbox.install(&[open]);
        // No agent has ever been here.
        assert_eq!(sandbox.outcome(&syn()), Outcome::PassedDraining);
        let mut workers = sandbox.start_workers(1);
        assert_eq!(sandbox.outcome(&syn()), Outcome::Taken);
        let state = sandbox.maps.agent().expect("the state");
        sandbox.maps.set_agent(state.draining()).expect("the state");
        assert_eq!(sandbox.outcome(&syn()), Outcome::PassedDraining);
        assert_eq!(sandbox.outcome(&syn_v6()), Outcome::PassedDraining);
        // Its workers have ended, the agent not yet.
        workers.listeners.clear();
        assert_eq!(sandbox.outcome(&syn()), Outcome::PassedDraining);
        drop(workers);
        assert_eq!(sandbox.outcome(&syn()), Outcome::PassedMissing);
        sandbox.maps.set_agent(state).expect("the state");
        assert_eq!(sandbox.outcome(&syn()), Outcome::PassedMissing);
        assert_eq!(rule_counter(sandbox, FIRST_SLOT).flows, 7);
    });
}
