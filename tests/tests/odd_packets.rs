//! Packets that nobody sends in earnest, or not to this host, and flows that look odd but are not.

use std::{net::IpAddr, time::Duration};

use etherparse::{IpFragOffset, IpNumber, Ipv4Header};
use tproxy_tests::{
    Exchange, Family, Lab,
    address::FAMILIES,
    crafted::{self, ethernet, extension, ip, ipv4, syn, tcp_ports, tcp_syn},
    peer::Witness,
    wait,
    wire::{Direction, Frame, Wire, hardware_address},
};

/// SYNs that are not for this host on the link (another hardware address, broadcast) or in the network (broadcast and
/// multicast addresses) are never taken, whatever the rule says.
#[test]
fn syns_for_other_hosts_and_for_groups_are_not_taken() {
    const OTHER_HOST: [u8; 6] = [2, 0, 0, 0, 0, 99];
    const BROADCAST: [u8; 6] = [0xff; 6];
    let lab = Lab::new();
    let witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --name everything");
    let wire = Wire::open(&lab.client, "eth0");
    let gateway = hardware_address(&lab.gateway, "cl0");
    let own = hardware_address(&lab.client, "eth0");

    for family in FAMILIES {
        for hardware in [OTHER_HOST, BROADCAST] {
            wire.send(&ethernet(
                own,
                hardware,
                &syn(family.client(), family.near(), 80),
            ));
        }
    }
    for group in [
        "255.255.255.255",
        "10.77.1.255",
        "224.0.0.1",
        "239.1.2.3",
        "ff02::1",
        "ff0e::9",
    ] {
        let group: IpAddr = group.parse().unwrap();
        let client = if group.is_ipv4() {
            Family::V4.client()
        } else {
            Family::V6.client()
        };
        wire.send(&ethernet(own, gateway, &syn(client, group, 80)));
    }
    // What comes after these in the same queue has been answered: they would have been.
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    let answers = wire
        .frames()
        .into_iter()
        .filter(|frame| frame.direction == Direction::In);
    let to_crafted =
        answers.filter(|frame| tcp_ports(frame).is_some_and(|ports| ports.1 == crafted::PORT));
    assert_eq!(
        to_crafted.count(),
        0,
        "no answer to a packet that is not for this host"
    );
    assert_eq!(
        witness.clients().len(),
        2,
        "the server saw the two relayed flows only"
    );
    assert_eq!(agent.stop().len(), 2);
}

/// Odd packets pass unchanged: fragments, truncated headers, unknown protocols, options and extension headers of flows
/// that no rule names, and chains of headers longer than anybody would follow.
#[test]
fn odd_packets_pass_unchanged() {
    let lab = Lab::new();
    let own = hardware_address(&lab.client, "eth0");
    let gateway = hardware_address(&lab.gateway, "cl0");
    // The server's answers are of no interest; it must have seen the packets before it makes any.
    let mut agent = lab.agent("--iface cl0,sv0 --dport 80");
    for packets in [odd_ipv4_packets(), odd_ipv6_packets()] {
        let wire = Wire::open(&lab.client, "eth0");
        let server = Wire::open(&lab.server, "eth0");
        for (what, packet) in &packets {
            wire.send(&ethernet(own, gateway, packet));
            let family = if packet[0] >> 4 == 4 {
                Family::V4
            } else {
                Family::V6
            };
            let expected = Frame {
                direction: Direction::In,
                vlan: None,
                bytes: ethernet(own, gateway, packet),
            }
            .routed_packet(family.client(), family.near());
            let received = wait::within(Duration::from_secs(5), || {
                let mut frames = server
                    .frames()
                    .into_iter()
                    .filter(|frame| frame.direction == Direction::In);
                frames.find_map(|frame| frame.routed_packet(family.client(), family.near()))
            });
            assert_eq!(received, expected, "{family:?} {what}");
        }
    }
    assert_eq!(agent.stop(), []);
}

/// A short packet passes although its frame goes on with what would make it a SYN for a named port.
#[test]
fn padding_is_no_part_of_a_packet() {
    let lab = Lab::new();
    let own = hardware_address(&lab.client, "eth0");
    let gateway = hardware_address(&lab.gateway, "cl0");
    let mut agent = lab.agent("--iface cl0,sv0 --dport 80");
    for family in FAMILIES {
        let (client, server) = (family.client(), family.near());
        let syn = tcp_syn(client, server, 80);
        let wire = Wire::open(&lab.client, "eth0");
        let at_server = Wire::open(&lab.server, "eth0");
        for length in 0..syn.len() {
            let (segment, padding) = syn.split_at(length);
            let packet = ip(client, server, IpNumber::TCP, &[], segment);
            let frame = ethernet(own, gateway, &packet);
            wire.send(&[&frame, padding].concat());
            let sent = Frame {
                direction: Direction::In,
                vlan: None,
                bytes: frame,
            };
            let arrived = wait::within(Duration::from_secs(5), || {
                let mut frames = at_server
                    .frames()
                    .into_iter()
                    .filter(|frame| frame.direction == Direction::In);
                frames.find_map(|frame| frame.routed_packet(client, server))
            });
            // The router takes the padding off.
            assert_eq!(
                arrived,
                sent.routed_packet(client, server),
                "{family:?}, {length} octets of TCP"
            );
        }
    }
    assert_eq!(agent.stop(), []);
}

fn odd_ipv4_packets() -> Vec<(&'static str, Vec<u8>)> {
    let (client, server) = (Family::V4.client(), Family::V4.near());
    let syn_to_80 = tcp_syn(client, server, 80);
    let fragment = |offset: u16, more: bool, payload: &[u8]| {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (client, server) else {
            panic!("both are IPv4")
        };
        let mut header =
            Ipv4Header::new(0, 64, IpNumber::TCP, source.octets(), destination.octets())
                .expect("short");
        header.identification = 7;
        header.fragment_offset = IpFragOffset::try_new(offset).expect("13 bits");
        header.more_fragments = more;
        ipv4(header, payload)
    };
    vec![
        (
            "SYN with options to another port",
            ip(
                client,
                server,
                IpNumber::TCP,
                &[1; 40],
                &tcp_syn(client, server, 81),
            ),
        ),
        (
            "a later fragment that looks like a SYN",
            fragment(3, false, &syn_to_80),
        ),
        ("a middle fragment", fragment(1, true, &syn_to_80)),
        (
            "TCP with nothing in it",
            ip(client, server, IpNumber::TCP, &[], &[]),
        ),
        (
            "TCP with half of the ports",
            ip(client, server, IpNumber::TCP, &[], &syn_to_80[..3]),
        ),
        (
            "TCP with ports and nothing else",
            ip(client, server, IpNumber::TCP, &[], &syn_to_80[..4]),
        ),
        (
            "TCP without its flags",
            ip(client, server, IpNumber::TCP, &[], &syn_to_80[..13]),
        ),
        (
            "UDP that is truncated",
            ip(client, server, IpNumber::UDP, &[], &[0; 5]),
        ),
        (
            "an experimental protocol",
            ip(client, server, IpNumber(253), &[], &syn_to_80),
        ),
        (
            "IPv4 in IPv4",
            ip(
                client,
                server,
                IpNumber::IPV4,
                &[],
                &syn(client, server, 80),
            ),
        ),
        ("an ACK of no known flow to another port", {
            let mut ack = tcp_syn(client, server, 81);
            ack[13] = 0x10;
            ip(client, server, IpNumber::TCP, &[], &ack)
        }),
    ]
}

fn odd_ipv6_packets() -> Vec<(&'static str, Vec<u8>)> {
    let (client, server) = (Family::V6.client(), Family::V6.near());
    let (syn_to_80, syn_to_81) = (tcp_syn(client, server, 80), tcp_syn(client, server, 81));
    let packet = |first: IpNumber, headers: &[u8], payload: &[u8]| {
        ip(client, server, first, headers, payload)
    };
    let destination = IpNumber::IPV6_DESTINATION_OPTIONS;
    let fragment = |offset_and_more: u16| {
        let [high, low] = offset_and_more.to_be_bytes();
        [IpNumber::TCP.0, 0, high, low, 0, 0, 0, 7]
    };
    let long_chain: Vec<u8> = (0..40)
        .flat_map(|index| {
            extension(
                if index == 39 {
                    IpNumber::TCP
                } else {
                    destination
                },
                1,
            )
        })
        .collect();
    vec![
        (
            "destination options before a SYN to another port",
            packet(destination, &extension(IpNumber::TCP, 4), &syn_to_81),
        ),
        (
            "more headers than anybody follows",
            packet(destination, &long_chain, &syn_to_81),
        ),
        (
            "a later fragment that looks like a SYN",
            packet(
                IpNumber::IPV6_FRAGMENTATION_HEADER,
                &fragment(3 << 3),
                &syn_to_80,
            ),
        ),
        (
            "a middle fragment",
            packet(
                IpNumber::IPV6_FRAGMENTATION_HEADER,
                &fragment(3 << 3 | 1),
                &syn_to_80,
            ),
        ),
        (
            "no next header",
            packet(IpNumber::IPV6_NO_NEXT_HEADER, &[], &syn_to_80),
        ),
        ("TCP with nothing in it", packet(IpNumber::TCP, &[], &[])),
        (
            "TCP with ports and nothing else",
            packet(IpNumber::TCP, &[], &syn_to_80[..4]),
        ),
        (
            "TCP without its flags",
            packet(IpNumber::TCP, &[], &syn_to_80[..13]),
        ),
        ("an extension header that ends outside of the packet", {
            let mut header = extension(IpNumber::TCP, 1);
            header[1] = 30;
            packet(destination, &header, &syn_to_80)
        }),
        (
            "an experimental protocol",
            packet(IpNumber(253), &[], &syn_to_80),
        ),
    ]
}

/// A flow whose every packet carries IP options or extension headers is recognised behind them.
#[test]
fn flows_behind_options_and_extension_headers_are_taken() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let _other = Witness::start(&lab.server, 81);
    let mut agent = lab.agent("--iface cl0 --dport 80");
    let record_route = [1, 7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0];
    let options: [(Family, i32, i32, &[u8]); 6] = [
        (Family::V4, libc::IPPROTO_IP, libc::IP_OPTIONS, &[1; 4]),
        (Family::V4, libc::IPPROTO_IP, libc::IP_OPTIONS, &[1; 40]),
        (
            Family::V4,
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            &record_route,
        ),
        (
            Family::V6,
            libc::IPPROTO_IPV6,
            libc::IPV6_HOPOPTS,
            &extension(IpNumber(0), 1),
        ),
        (
            Family::V6,
            libc::IPPROTO_IPV6,
            libc::IPV6_DSTOPTS,
            &extension(IpNumber(0), 1),
        ),
        (
            Family::V6,
            libc::IPPROTO_IPV6,
            libc::IPV6_DSTOPTS,
            &extension(IpNumber(0), 8),
        ),
    ];
    for (family, level, name, value) in options {
        let ask = |port| {
            Exchange::with_option(
                &lab.client,
                (level, name, value),
                (family.near(), port).into(),
            )
        };
        ask(80).assert_relayed(&agent);
        ask(81).assert_direct(&agent);
    }
    assert_eq!(agent.stop().len(), 6);
}
