//! Flows are recognised whatever is in front of the IP header and however packets are aggregated.

use std::{
    io,
    net::{IpAddr, Shutdown, TcpStream},
};

use tproxy_tests::{
    Lab,
    address::FAMILIES,
    crafted::{self, ethernet, syn, tcp_ports},
    pattern,
    peer::{Server, Witness},
    tun::Tunnel,
    wait,
    wire::{Direction, Wire, hardware_address},
};

const MB: u64 = 1_000_000;

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
    assert!(
        agent.log().contains("attach br0 in its place"),
        "{}",
        agent.log()
    );
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
            && tcp_ports(frame).is_some_and(|ports| ports.1 == crafted::PORT)
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
