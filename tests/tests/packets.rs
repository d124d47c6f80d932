//! Packets that are not ours pass unchanged, and ours are recognised in whatever form they come.

use std::{
    io,
    net::{IpAddr, Shutdown, SocketAddr, SocketAddrV4, SocketAddrV6, TcpStream, UdpSocket},
    time::Duration,
};

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel,
    Ipv6Header, TcpHeader,
};
use nix::net::if_::if_nametoindex;
use tproxy_tests::{
    Exchange, Family, Lab, Namespace,
    address::FAMILIES,
    pattern,
    peer::{Server, Witness},
    tun::Tunnel,
    wait,
    wire::{Direction, Frame, Wire, hardware_address},
};

const MB: u64 = 1_000_000;

/// What no rule names arrives byte for byte as it was sent, apart from the time to live: other ports of a named
/// address, other addresses at a named port, UDP at the very address and port, and ICMP.
#[test]
fn packets_that_no_rule_names_pass_unchanged() {
    let lab = Lab::new();
    let _echoes = [80, 81].map(|port| Server::start(&lab.server, port, echo));
    let [v4, v6] = FAMILIES.map(Family::near_prefix);
    let mut agent = lab.agent(&format!("--iface cl0 --dst {v4},{v6} --dport 80"));
    for family in FAMILIES {
        let mut tap = Tap::open(&lab);
        converse(&lab.client, (family.near(), 81).into());
        converse(&lab.client, (family.far(), 80).into());
        exchange_datagrams(&lab, (family.near(), 80).into());
        lab.client
            .run(&format!("ping -q -c 3 -i 0.01 -s 1000 {}", family.near()));
        tap.assert_unchanged(family.client(), family.near());
        tap.assert_unchanged(family.client(), family.far());
    }
    assert_eq!(agent.stop(), []);
}

/// Captures at both ends of the way through the gateway.
struct Tap {
    client: Wire,
    server: Wire,
    at_client: Vec<Frame>,
    at_server: Vec<Frame>,
}

impl Tap {
    fn open(lab: &Lab) -> Self {
        Self {
            client: Wire::open(&lab.client, "eth0"),
            server: Wire::open(&lab.server, "eth0"),
            at_client: Vec::new(),
            at_server: Vec::new(),
        }
    }

    /// Checks that what one end has sent is what the other has received, in both directions.
    #[track_caller]
    fn assert_unchanged(&mut self, client: IpAddr, server: IpAddr) {
        let between = |frames: &[Frame], direction| -> Vec<Vec<u8>> {
            let frames = frames.iter().filter(|frame| frame.direction == direction);
            let packets = frames.filter_map(|frame| frame.routed_packet(client, server));
            // Two CPUs of the gateway may overtake each other.
            let mut packets: Vec<Vec<u8>> = packets.collect();
            packets.sort_unstable();
            packets
        };
        let [up, down] = wait::until("everything sent has been received", || {
            self.at_client.extend(self.client.frames());
            self.at_server.extend(self.server.frames());
            let up = (
                between(&self.at_client, Direction::Out),
                between(&self.at_server, Direction::In),
            );
            let down = (
                between(&self.at_server, Direction::Out),
                between(&self.at_client, Direction::In),
            );
            let complete = up.0.len() == up.1.len() && down.0.len() == down.1.len();
            complete.then_some([up, down])
        });
        for (sent, received) in [up, down] {
            assert!(
                !sent.is_empty(),
                "something was sent between {client} and {server}"
            );
            for (index, (sent, received)) in sent.iter().zip(&received).enumerate() {
                assert!(
                    sent == received,
                    "packet {index} between {client} and {server}:\n{sent:x?}\n{received:x?}"
                );
            }
        }
    }
}

fn echo(mut stream: TcpStream) -> io::Result<u64> {
    let mut sink = stream.try_clone()?;
    io::copy(&mut stream, &mut sink)
}

/// Sends a megabyte and receives it back.
fn converse(client: &Namespace, target: SocketAddr) {
    let mut stream = client.connect(target).unwrap();
    let mut sending = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        pattern::write(&mut sending, MB)?;
        sending.shutdown(Shutdown::Write)
    });
    assert_eq!(pattern::read_to_end(&mut stream).unwrap(), MB);
    sender.join().unwrap().unwrap();
}

/// Sends three datagrams and receives them back.
fn exchange_datagrams(lab: &Lab, target: SocketAddr) {
    let bind = |namespace: &Namespace, address| {
        let socket = namespace
            .enter(|| UdpSocket::bind::<SocketAddr>(address))
            .expect("bind a UDP socket");
        socket.set_read_timeout(Some(wait::PATIENCE)).unwrap();
        socket
    };
    let server = bind(&lab.server, target);
    let any = if target.is_ipv4() {
        Family::V4.any()
    } else {
        Family::V6.any()
    };
    let client = bind(&lab.client, (any, 0).into());
    let mut buffer = [0; 2048];
    for length in [0, 1, 1400] {
        client.send_to(&vec![7; length], target).unwrap();
        let (received, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(&buffer[..received], from).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap(), (length, target));
    }
}

/// ARP and neighbour discovery work at an attached interface of which a rule takes everything.
#[test]
fn neighbours_are_found_again() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --name everything");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
        lab.client.run("ip neigh flush all");
        lab.gateway.run("ip neigh flush all");
        lab.ask(family.near(), 80).assert_relayed(&agent);
        lab.client
            .run(&format!("ping -q -c 1 {}", family.gateway()));
        lab.gateway
            .run(&format!("ping -q -c 1 {}", family.client()));
    }
    assert_eq!(agent.stop().len(), 4);
}

/// ICMP echo passes unchanged where a rule takes all TCP.
#[test]
fn icmp_passes_unchanged() {
    let lab = Lab::new();
    let mut agent = lab.agent("--iface cl0,sv0 --name everything");
    for family in FAMILIES {
        let mut tap = Tap::open(&lab);
        for size in [0, 56, 1400] {
            lab.client
                .run(&format!("ping -q -c 2 -i 0.01 -s {size} {}", family.near()));
        }
        tap.assert_unchanged(family.client(), family.near());
    }
    assert_eq!(agent.stop(), []);
}

/// Broadcasts and multicasts are delivered to programs of this host, and leave flows of the rule alone.
#[test]
fn broadcasts_and_multicasts_are_delivered() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --name everything");
    let groups = ["255.255.255.255", "10.77.1.255", "239.1.2.3", "ff02::1:99"];
    for (port, group) in (5001..).zip(groups) {
        let group: IpAddr = group.parse().unwrap();
        let receiver = lab.gateway.enter(|| group_member(group, port)).unwrap();
        receiver.set_read_timeout(Some(wait::PATIENCE)).unwrap();
        lab.client.enter(|| send_to_group(group, port)).unwrap();
        let (length, from) = receiver
            .recv_from(&mut [0; 64])
            .unwrap_or_else(|error| panic!("{group}: {error}"));
        assert_eq!(length, 8);
        // In IPv6 the sender is a link-local address.
        assert_eq!(from.ip() == Family::V4.client(), group.is_ipv4());
    }
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}

/// A socket that receives what is sent to `group` on the client's link; called in the gateway.
fn group_member(group: IpAddr, port: u16) -> io::Result<UdpSocket> {
    match group {
        IpAddr::V4(group) => {
            let socket = UdpSocket::bind((Family::V4.any(), port))?;
            if group.is_multicast() {
                let IpAddr::V4(interface) = Family::V4.gateway() else {
                    unreachable!("an IPv4 address")
                };
                socket.join_multicast_v4(&group, &interface)?;
            }
            Ok(socket)
        }
        IpAddr::V6(group) => {
            let socket = UdpSocket::bind((Family::V6.any(), port))?;
            socket.join_multicast_v6(&group, if_nametoindex("cl0")?)?;
            Ok(socket)
        }
    }
}

/// Sends a datagram to `group`; called in the client.
fn send_to_group(group: IpAddr, port: u16) -> io::Result<usize> {
    let any = if group.is_ipv4() {
        Family::V4.any()
    } else {
        Family::V6.any()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_broadcast(group.is_ipv4())?;
    let target = match group {
        IpAddr::V4(group) => SocketAddr::V4(SocketAddrV4::new(group, port)),
        IpAddr::V6(group) => {
            SocketAddr::V6(SocketAddrV6::new(group, port, 0, if_nametoindex("eth0")?))
        }
    };
    socket.send_to(b"datagram", target)
}

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
        answers.filter(|frame| tcp_ports(frame).is_some_and(|ports| ports.1 == CRAFTED_PORT));
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

/// The source port of SYNs made by hand, outside of what the kernel chooses from.
const CRAFTED_PORT: u16 = 1999;

fn syn(source: IpAddr, destination: IpAddr, port: u16) -> Vec<u8> {
    ip(
        source,
        destination,
        IpNumber::TCP,
        &[],
        &tcp_syn(source, destination, port),
    )
}

fn tcp_syn(source: IpAddr, destination: IpAddr, port: u16) -> Vec<u8> {
    let mut header = TcpHeader::new(CRAFTED_PORT, port, 1, 65_535);
    header.syn = true;
    header.checksum = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), &[])
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), &[])
        }
        _ => panic!("addresses of one family"),
    }
    .expect("a short packet");
    header.to_bytes().to_vec()
}

/// An IP packet. IPv4 has `options` in its header; IPv6 has them as they are behind its header.
fn ip(
    source: IpAddr,
    destination: IpAddr,
    protocol: IpNumber,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let payload_length = u16::try_from(payload.len()).expect("a short packet");
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4Header::new(
                payload_length,
                64,
                protocol,
                source.octets(),
                destination.octets(),
            )
            .expect("short");
            header.options = Ipv4Options::try_from(options).expect("up to ten words of options");
            ipv4(header, payload)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: payload_length + u16::try_from(options.len()).expect("short"),
                next_header: protocol,
                hop_limit: 64,
                source: source.octets(),
                destination: destination.octets(),
            };
            [&header.to_bytes(), options, payload].concat()
        }
        _ => panic!("addresses of one family"),
    }
}

fn ipv4(mut header: Ipv4Header, payload: &[u8]) -> Vec<u8> {
    let length = header.header_len() + payload.len();
    header.total_len = u16::try_from(length).expect("a short packet");
    header.header_checksum = header.calc_header_checksum();
    [&header.to_bytes(), payload].concat()
}

fn ethernet(source: [u8; 6], destination: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 4 {
        EtherType::IPV4
    } else {
        EtherType::IPV6
    };
    let header = Ethernet2Header {
        source,
        destination,
        ether_type,
    };
    [&header.to_bytes(), packet].concat()
}

/// The source and destination ports of a TCP segment without options or extension headers.
fn tcp_ports(frame: &Frame) -> Option<(u16, u16)> {
    let packet = frame.bytes.get(14..)?;
    let (protocol, header) = if packet.first()? >> 4 == 4 {
        (packet.get(9)?, 20)
    } else {
        (packet.get(6)?, 40)
    };
    let ports = packet.get(header..header + 4)?;
    (*protocol == 6).then(|| {
        (
            u16::from_be_bytes([ports[0], ports[1]]),
            u16::from_be_bytes([ports[2], ports[3]]),
        )
    })
}

/// An IPv6 extension header of `words` times eight bytes, filled with an option that a node skips when it does not
/// know it (RFC 8200, section 4.2: the highest bits of its type are zero).
fn extension(next: IpNumber, words: u8) -> Vec<u8> {
    let length = usize::from(words) * 8;
    let mut header = vec![0; length];
    header[..4].copy_from_slice(&[
        next.0,
        words - 1,
        0x1e,
        u8::try_from(length - 4).expect("short"),
    ]);
    header
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

/// Packets of a tun device have no Ethernet header: their flows are taken all the same.
#[test]
fn flows_from_a_device_without_ethernet_header_are_taken() {
    let lab = Lab::new();
    let _tunnel = Tunnel::between(&lab.client, &lab.gateway, "tun0");
    lab.client.ip("addr add 10.77.3.2/24 dev tun0\n\
         addr add fd77:3::2/64 dev tun0 nodad\n\
         link set tun0 up\n\
         route add 192.0.2.0/24 via 10.77.3.1\n\
         route add 2001:db8:1::/48 via fd77:3::1");
    lab.gateway.ip("addr add 10.77.3.1/24 dev tun0\n\
         addr add fd77:3::1/64 dev tun0 nodad\n\
         link set tun0 up");
    let _witnesses = [80, 81].map(|port| Witness::start(&lab.server, port));
    let mut agent = lab.agent("--iface tun0,cl0 --dport 80");
    for family in FAMILIES {
        // By the tunnel and by the link with Ethernet headers, at the same time.
        lab.ask(family.near(), 80).assert_relayed(&agent);
        lab.ask(family.near(), 81).assert_direct(&agent);
        lab.ask(family.far(), 80).assert_relayed(&agent);
        lab.ask(family.far(), 81).assert_direct(&agent);
    }
    let flows = agent.stop();
    assert_eq!(flows.len(), 4);
    let through_the_tunnel =
        ["10.77.3.2", "fd77:3::2"].map(|address| address.parse::<IpAddr>().unwrap());
    assert_eq!(
        flows
            .iter()
            .filter(|flow| through_the_tunnel.contains(&flow.client.ip()))
            .count(),
        2
    );
}

/// A gateway that bridges: frames between other stations pass unchanged, tagged or not, although a rule names their
/// flows and the port of the bridge is attached.
#[test]
fn bridged_and_tagged_frames_pass_unchanged() {
    const TAG: [u8; 4] = [0x81, 0x00, 0x00, 0x05];
    let lab = Lab::new();
    lab.gateway.ip("addr flush dev cl0\naddr flush dev sv0\n\
         link add br0 type bridge\nlink set br0 up\n\
         link set cl0 master br0\nlink set sv0 master br0");
    let own = hardware_address(&lab.client, "eth0");
    let destination = hardware_address(&lab.server, "eth0");
    let agent = lab.agent("--iface cl0 --name everything");
    let sender = Wire::open(&lab.client, "eth0");
    let receiver = Wire::open(&lab.server, "eth0");
    for family in FAMILIES {
        let plain = ethernet(own, destination, &syn(family.client(), family.near(), 80));
        let tagged = [&plain[..12], &TAG, &plain[12..]].concat();
        for (frame, tag) in [(&plain, None), (&tagged, Some(5))] {
            sender.send(frame);
            wait::until(
                &format!("{family:?} passes the bridge with tag {tag:?}"),
                || {
                    let mut frames = receiver.frames().into_iter();
                    frames
                        .any(|received| {
                            received.direction == Direction::In
                                && received.bytes == plain
                                && received.vlan == tag
                        })
                        .then_some(())
                },
            );
        }
    }
    assert_eq!(agent.flows(), []);
}

/// Tagged frames at an attached interface that has no such VLAN are nobody's: they are not taken either.
#[test]
fn tagged_frames_are_left_alone() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --name everything");
    let own = hardware_address(&lab.client, "eth0");
    let gateway = hardware_address(&lab.gateway, "cl0");
    let wire = Wire::open(&lab.client, "eth0");
    for family in FAMILIES {
        let plain = ethernet(own, gateway, &syn(family.client(), family.near(), 80));
        wire.send(&[&plain[..12], &[0x81, 0x00, 0x00, 0x05], &plain[12..]].concat());
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    let answered = wire.frames().iter().any(|frame| {
        frame.direction == Direction::In
            && tcp_ports(frame).is_some_and(|ports| ports.1 == CRAFTED_PORT)
    });
    assert!(!answered, "no answer to a tagged frame");
    assert_eq!(agent.stop().len(), 2);
}

/// Byte-exact through the agent and past it with every kind of offload: packets of 64 KB, aggregated on receipt or
/// not, checksums left to the device or not.
#[test]
fn transfers_are_byte_exact_with_every_offload() {
    const LONGEST_FRAME: usize = 1514;
    let lab = Lab::new();
    let _servers = [80, 81].map(|port| Server::start(&lab.server, port, echo_20_megabytes));
    let mut agent = lab.agent("--iface cl0 --dport 80");
    let settings = [
        ("as they come", vec![]),
        ("aggregation on receipt", vec![("gro", true)]),
        (
            "no segmentation offload",
            vec![("tso", false), ("gso", false)],
        ),
        ("checksums in software", vec![("tx", false)]),
    ];
    for (what, features) in &settings {
        for (feature, on) in features {
            lab.offload(feature, *on);
        }
        let large = features.iter().all(|feature| feature.1);
        for family in FAMILIES {
            let wire = Wire::open(&lab.server, "eth0");
            for port in [80, 81] {
                let mut stream = lab.client.connect((family.near(), port).into()).unwrap();
                pattern::write(&mut stream, 20 * MB).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                assert_eq!(
                    pattern::read_to_end(&mut stream).unwrap(),
                    20 * MB,
                    "{what}"
                );
                let longest = wire
                    .frames()
                    .iter()
                    .map(|frame| frame.bytes.len())
                    .max()
                    .unwrap_or(0);
                assert_eq!(
                    longest > LONGEST_FRAME,
                    large,
                    "{what}: a frame of {longest} bytes"
                );
            }
        }
        for (feature, on) in features {
            lab.offload(feature, !*on);
        }
    }
    assert_eq!(agent.stop().len(), settings.len() * FAMILIES.len());
}

fn echo_20_megabytes(mut stream: TcpStream) -> io::Result<u64> {
    let received = pattern::read_to_end(&mut stream)?;
    pattern::write(&mut stream, received)?;
    Ok(received)
}
