//! What no rule names passes unchanged, and what the network itself needs still works.

use std::{
    io,
    net::{IpAddr, Shutdown, SocketAddr, SocketAddrV4, SocketAddrV6, TcpStream, UdpSocket},
};

use nix::net::if_::if_nametoindex;
use tproxy_tests::{
    Family, Lab, Namespace,
    address::FAMILIES,
    pattern,
    peer::{Server, Witness},
    wait::{self, uninterrupted},
    wire::{Direction, Frame, Wire},
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
        let (received, from) = uninterrupted(|| server.recv_from(&mut buffer)).unwrap();
        server.send_to(&buffer[..received], from).unwrap();
        assert_eq!(
            uninterrupted(|| client.recv_from(&mut buffer)).unwrap(),
            (length, target)
        );
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
        let (length, from) = uninterrupted(|| receiver.recv_from(&mut [0; 64]))
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
