//! Routers beyond the gateway whose next link takes only short packets, towards the client and towards the server: IPv4
//! packets that may be cut are cut there, and whoever sent another is told by ICMP and sends shorter ones.

use std::{
    io,
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
};

use tproxy_tests::{
    Agent, DatagramClient, Family, Lab, Namespace,
    address::FAMILIES,
    datagrams::allow_many_errors,
    pattern,
    peer::{DatagramWitness, Server},
    wait,
};

/// What the narrow links take; IPv6 wants 1280 (RFC 8200, section 5).
const NARROW: u16 = 1300;

/// A lab whose client and server are routers, with hosts behind them at narrow links.
struct NarrowLab {
    lab: Lab,
    client: Namespace,
    server: Namespace,
}

impl NarrowLab {
    fn new() -> Self {
        let lab = Lab::new();
        let client = Namespace::create("beyond-client");
        let server = Namespace::create("beyond-server");
        for (subnet, host, router) in [(3, &client, &lab.client), (4, &server, &lab.server)] {
            for forwarding in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
                router.sysctl(forwarding, 1);
            }
            allow_many_errors(router);
            router.ip(&format!(
                "link add narrow mtu {NARROW} type veth peer name eth0 mtu {NARROW} netns {}\n\
                 link set narrow up",
                host.name()
            ));
            host.ip("link set lo up\nlink set eth0 up");
            for family in FAMILIES {
                let [prefix, host_at, router_at] = addresses(family, subnet);
                // Hosts at such a link would ask for short segments from the beginning.
                let (length, segment) = match family {
                    Family::V4 => (24, 1460),
                    Family::V6 => (64, 1440),
                };
                let next = if subnet == 3 {
                    family.client()
                } else {
                    family.server()
                };
                router.ip(&format!("addr add {router_at}/{length} dev narrow nodad"));
                host.ip(&format!(
                    "addr add {host_at}/{length} dev eth0 nodad\nroute add default via {router_at} advmss {segment}"
                ));
                lab.gateway
                    .ip(&format!("route add {prefix}/{length} via {next}"));
            }
        }
        Self {
            lab,
            client,
            server,
        }
    }

    /// The server, at this port.
    fn target(family: Family, port: u16) -> SocketAddr {
        let [_, server, _] = addresses(family, 4);
        SocketAddr::new(server, port)
    }

    /// How many ICMP errors of a family the gateway has been told: that a packet is too big, that a destination is
    /// unreachable in IPv4, which has no other word for it.
    fn told(&self, family: Family) -> u64 {
        if family == Family::V4 {
            return self.lab.gateway.counter("Icmp", "InDestUnreachs");
        }
        let counters = self.lab.gateway.proc_net("snmp6");
        let mut lines = counters.lines();
        let number = lines.find_map(|line| line.strip_prefix("Icmp6InPktTooBigs"));
        let number = number.and_then(|number| number.trim().parse().ok());
        number.expect("a counter of the kernel")
    }
}

/// A prefix, and the addresses in it of a host at a narrow link, and of its router.
fn addresses(family: Family, subnet: u16) -> [IpAddr; 3] {
    [0, 2, 1].map(|last| match family {
        Family::V4 => IpAddr::from([10, 77, subnet.to_be_bytes()[1], last]),
        Family::V6 => IpAddr::from([0xfd77, subnet, 0, 0, 0, 0, 0, last.into()]),
    })
}

/// Of datagrams that fit the gateway's links, whole or in fragments.
const LENGTHS: [usize; 2] = [1350, 4000];

/// Datagrams that fit the gateway's own links arrive in pieces, or are lost once and then arrive, in either direction and
/// whatever is the length of the first.
#[test]
fn datagrams_get_through_in_both_directions() {
    for length in LENGTHS {
        let narrow = NarrowLab::new();
        let agent = narrow.lab.agent("--iface cl0 --proto udp --dport 443");
        assert_datagrams_get_through(
            &narrow,
            &agent,
            (443, length),
            [First::Lost, First::LostByName],
        );
    }
}

/// The same where a service of the gateway has the port, so that no socket of the agent can.
#[test]
fn answers_get_through_without_a_socket_of_their_own() {
    for length in LENGTHS {
        let narrow = NarrowLab::new();
        let everywhere = (Family::V6.any(), 53).into();
        let _service = DatagramWitness::bound(&narrow.lab.gateway, &[everywhere]);
        let agent = narrow.lab.agent("--iface cl0 --proto udp --dport 53");
        assert_datagrams_get_through(&narrow, &agent, (53, length), [First::Lost, First::Arrives]);
    }
}

/// The same where the server sees the client.
#[test]
fn datagrams_from_the_clients_address_get_through() {
    for length in LENGTHS {
        let narrow = NarrowLab::new();
        let agent = narrow
            .lab
            .agent("--iface cl0 --proto udp --dport 443 --source client");
        assert_datagrams_get_through(&narrow, &agent, (443, length), [First::LostByName; 2]);
    }
}

/// What becomes of the first datagram of IPv6 in a direction.
#[derive(Clone, Copy)]
enum First {
    /// It is lost, and who sent it told, at an address of the gateway.
    Lost,
    /// It is lost, and who sent it told, at an address that the agent has used.
    LostByName,
    /// It is sent in short fragments.
    Arrives,
}

#[track_caller]
fn assert_datagrams_get_through(
    narrow: &NarrowLab,
    agent: &Agent,
    (port, length): (u16, usize),
    [question, answer]: [First; 2],
) {
    let payload = vec![7; length];
    for family in FAMILIES {
        let target = NarrowLab::target(family, port);
        let witness = DatagramWitness::bound(&narrow.server, &[target]);
        let client = DatagramClient::connected(&narrow.client, target);
        let loses = |first, arrives_at_server| {
            let told = || match first {
                First::Lost => narrow.told(family),
                First::LostByName => agent.counter("icmp_error"),
                First::Arrives => unreachable!("nobody is told"),
            };
            let before = told();
            client.socket().send(&payload).unwrap();
            if arrives_at_server {
                assert_eq!(witness.next().payload, payload);
            }
            wait::until("the gateway is told", || (told() > before).then_some(()));
            assert_eq!(witness.received(), []);
        };
        if family == Family::V6 {
            loses(question, false);
            if !matches!(answer, First::Arrives) {
                loses(answer, true);
            }
        }
        client.ask(&payload).assert_truthful();
        assert_eq!(witness.received().len(), 1);
    }
    assert_eq!(agent.rules()[0]["live"], 2);
}

/// TCP in both directions at once: the segments become shorter, and every byte arrives.
#[test]
fn streams_get_through_in_both_directions() {
    for source in ["agent", "client"] {
        let narrow = NarrowLab::new();
        let server = Server::start(&narrow.server, 80, both_ways);
        let mut agent = narrow
            .lab
            .agent(&format!("--iface cl0 --dport 80 --source {source}"));
        for family in FAMILIES {
            let (told, marked) = (narrow.told(family), agent.counter("icmp_error"));
            let stream = narrow.client.connect(NarrowLab::target(family, 80));
            assert_eq!(both_ways(stream.unwrap()).unwrap(), LENGTH);
            assert_eq!(server.outcome().unwrap(), LENGTH);
            assert!(narrow.told(family) >= told + 2, "from both sides");
            assert!(agent.counter("icmp_error") > marked, "in another's name");
        }
        assert_eq!(agent.stop().len(), 2);
    }
}

const LENGTH: u64 = 4 << 20;

fn both_ways(mut stream: TcpStream) -> io::Result<u64> {
    let mut sending = stream.try_clone()?;
    let sender = std::thread::spawn(move || {
        pattern::write(&mut sending, LENGTH)?;
        sending.shutdown(Shutdown::Write)
    });
    let received = pattern::read_to_end(&mut stream)?;
    sender.join().expect("the sender does not panic")?;
    Ok(received)
}
