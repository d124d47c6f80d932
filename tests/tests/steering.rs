//! Which flows go through the agent, and which do not.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
};

use socket2::{Domain, Socket, Type};
use tproxy_common::{flow::Protocol, sockets};
use tproxy_tests::{
    Agent, Exchange, Family, Lab, Namespace,
    address::FAMILIES,
    bpf,
    lab::one_armed_server,
    pattern,
    peer::{Server, Witness},
    wait::uninterrupted,
};
use tproxy_user::{
    agent::turn,
    kernel::{FlowFilter, Maps},
};

/// TCP to a port that a rule names is relayed, in both families, with the original destination reported and the bytes
/// of both directions counted; another port of the same server stays direct.
#[test]
fn flows_to_a_named_port_go_through_the_agent() {
    const REQUEST: u64 = 100_000;
    const ANSWER: u64 = 300_000;
    let lab = Lab::new();
    let _web = Witness::start(&lab.server, 80);
    let _other = Witness::start(&lab.server, 81);
    let server = Server::start(&lab.server, 443, |mut stream| -> io::Result<u64> {
        let request = pattern::read_up_to(&mut stream, 0, REQUEST)?;
        pattern::write(&mut stream, ANSWER)?;
        Ok(request)
    });
    let mut agent = lab.agent("--iface cl0 --dport 80,443 --name web");
    for family in FAMILIES {
        let exchange = lab.ask(family.server(), 80);
        exchange.assert_relayed(&agent);
        let flow = agent.flow_between(exchange.client, exchange.target);
        assert_eq!(flow.rule, "web");
        assert_eq!(flow.upstream, "direct");
        assert_eq!(flow.end, "fin");
        lab.ask(family.server(), 81).assert_direct(&agent);

        let mut stream = lab.client.connect((family.near(), 443).into()).unwrap();
        pattern::write(&mut stream, REQUEST).unwrap();
        assert_eq!(pattern::read_to_end(&mut stream).unwrap(), ANSWER);
        assert_eq!(server.outcome().unwrap(), REQUEST);
        let client = stream.local_addr().unwrap();
        drop(stream);
        let flow = agent.flow_of(client);
        assert_eq!((flow.sent, flow.received), (REQUEST, ANSWER));
        assert_eq!(flow.server, (family.near(), 443).into());
    }
    assert_eq!(
        agent.stop().len(),
        4,
        "one line for each flow that was relayed"
    );
}

/// TCP to a prefix that a rule names is relayed whatever its port; an address outside of the prefix stays direct.
#[test]
fn flows_to_a_named_prefix_go_through_the_agent() {
    let lab = Lab::new();
    let _one = Witness::start(&lab.server, 80);
    let _other = Witness::start(&lab.server, 9999);
    let [v4, v6] = FAMILIES.map(Family::near_prefix);
    let mut agent = lab.agent(&format!("--iface cl0 --dst {v4},{v6}"));
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
        lab.ask(family.near(), 9999).assert_relayed(&agent);
        lab.ask(family.far(), 80).assert_direct(&agent);
        lab.ask(family.server(), 9999).assert_direct(&agent);
    }
    assert_eq!(agent.stop().len(), 4);
}

/// A rule for one source prefix leaves other clients alone.
#[test]
fn flows_from_a_named_source_go_through_the_agent() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    lab.client
        .ip("addr add 10.77.1.66/24 dev eth0\naddr add fd77:1::66/64 dev eth0 nodad");
    let mut agent = lab.agent("--iface cl0 --src 10.77.1.66,fd77:1::66/128");
    for (family, named) in FAMILIES.into_iter().zip(["10.77.1.66", "fd77:1::66"]) {
        let target = SocketAddr::new(family.server(), 80);
        let exchange = Exchange::from(&lab.client, named.parse().unwrap(), target);
        assert_eq!(exchange.client.ip(), named.parse::<IpAddr>().unwrap());
        exchange.assert_relayed(&agent);
        Exchange::from(&lab.client, family.client(), target).assert_direct(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}

/// A listener takes the flows that are handed to it however it is bound: to the wildcard of a family or of both, or to
/// one address. Each sees where the flow was going.
#[test]
fn listeners_take_flows_however_they_are_bound() {
    let lab = Lab::new();
    let _other = Witness::start(&lab.server, 81);
    let mut agent = lab.agent("--iface cl0 --dport 80 --workers 1 --pin");
    let map = Path::new("/sys/fs/bpf/tproxy")
        .join(agent.instance())
        .join("SOCKETS");
    let place = sockets::relay(Protocol::Tcp, 0);
    agent.stop();
    let [v4, v6] = FAMILIES;
    for (address, families) in [
        (IpAddr::from(Ipv4Addr::UNSPECIFIED), vec![v4]),
        (Ipv6Addr::UNSPECIFIED.into(), vec![v4, v6]),
        (v4.gateway(), vec![v4]),
        (v6.gateway(), vec![v6]),
    ] {
        let listener = lab.gateway.enter(|| transparent_listener(address)).unwrap();
        bpf::set_socket(&map, place, &listener).unwrap();
        for family in families {
            let target = SocketAddr::new(family.near(), 80);
            let client = lab.connect_at_once(target).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let mut seen = accepted.local_addr().unwrap();
            seen.set_ip(seen.ip().to_canonical());
            assert_eq!(seen, target, "a listener at {address}");
            drop(client);
            lab.ask(family.near(), 81).assert_unproxied();
        }
    }
    for family in FAMILIES {
        assert_refused(&lab.client, (family.near(), 80).into());
    }
}

fn transparent_listener(address: IpAddr) -> io::Result<TcpListener> {
    let address = SocketAddr::new(address, 4711);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_ip_transparent_v4(true)?;
    socket.bind(&address.into())?;
    socket.listen(8)?;
    Ok(socket.into())
}

/// The listeners that flows are handed to are the agent's own, bound to the wildcard of both families. What others have
/// bound on the gateway, to the wildcard of one family, of both, or to one address, does not come between: a flow to
/// their port of a foreign host is the agent's, one to the gateway is theirs.
#[test]
fn listeners_of_others_neither_take_flows_nor_lose_any() {
    let lab = Lab::new();
    let _servers = [80, 81, 82].map(|port| Witness::start(&lab.server, port));
    let bound = |address: IpAddr, port| Witness::bound(&lab.gateway, (address, port).into());
    let _services = [
        bound(Ipv4Addr::UNSPECIFIED.into(), 80),
        bound(Ipv6Addr::UNSPECIFIED.into(), 81),
        bound(Family::V4.gateway(), 82),
        bound(Family::V6.gateway(), 82),
    ];
    let mut agent = lab.agent("--iface cl0 --name everything");
    for family in FAMILIES {
        for port in [80, 81, 82] {
            lab.ask(family.near(), port).assert_relayed(&agent);
            if (family, port) != (Family::V6, 80) {
                lab.ask(family.gateway(), port).assert_direct(&agent);
            }
        }
    }
    assert_refused(&lab.client, (Family::V6.gateway(), 80).into());
    assert_eq!(agent.stop().len(), 6);
}

/// All 24 combinations of the settings that decide whether a packet with a foreign destination is taken in: steering
/// works in each, with forwarding or without.
#[test]
fn every_combination_of_reverse_path_and_forwarding_settings_works() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --dport 80");
    let mut flows = 0;
    for forward in [0, 1] {
        lab.gateway.sysctl("net.ipv4.ip_forward", forward);
        for reverse_path_filter in [0, 1, 2] {
            lab.gateway
                .sysctl("net.ipv4.conf.all.rp_filter", reverse_path_filter);
            for source_valid_mark in [0, 1] {
                lab.gateway
                    .sysctl("net.ipv4.conf.all.src_valid_mark", source_valid_mark);
                for early_demux in [0, 1] {
                    lab.gateway.sysctl("net.ipv4.ip_early_demux", early_demux);
                    for family in FAMILIES {
                        let exchange = Exchange::attempt(&lab.client, (family.near(), 80).into());
                        let exchange = exchange.unwrap_or_else(|error| {
                            panic!(
                                "{error} over {family:?} with ip_forward={forward} \
                                 rp_filter={reverse_path_filter} src_valid_mark={source_valid_mark} \
                                 ip_early_demux={early_demux}"
                            )
                        });
                        exchange.assert_relayed(&agent);
                        flows += 1;
                    }
                }
            }
        }
    }
    assert_eq!(agent.stop().len(), flows);
}

/// With the interface towards the server attached as well, the agent's own upstream connections stay its own.
#[test]
fn upstream_connections_are_not_caught_on_another_attached_interface() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0,sv0 --name everything");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    assert_eq!(agent.stop().len(), 2, "no flow is taken twice");
}

/// On a gateway with one interface the upstream connection leaves by the interface at which the flow was caught.
#[test]
fn upstream_connections_are_not_caught_on_the_same_interface() {
    let lab = Lab::one_armed();
    let _witnesses = [80, 81].map(|port| Witness::start(&lab.server, port));
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        lab.ask(family.near(), 80)
            .assert_relayed_from(&agent, family.gateway());
        lab.ask(family.near(), 81).assert_direct(&agent);
        // On the link itself the client needs no gateway.
        lab.ask(one_armed_server(family), 80).assert_direct(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}

/// The network leads an upstream connection back through the gateway, over an attached interface: a loop without end if
/// it were caught again.
#[test]
fn upstream_connections_that_come_back_are_not_caught_again() {
    let lab = Lab::new();
    let beyond = beyond_a_hairpin(&lab);
    let _witness = Witness::start(&beyond, 80);
    let targets = ["203.0.113.9:80", "[2001:db8:3::9]:80"].map(|target| target.parse().unwrap());
    for target in targets {
        Exchange::of(&lab.client, target).assert_unproxied();
    }
    let mut agent = lab.agent("--iface cl0,sv0 --dport 80");
    for target in targets {
        Exchange::of(&lab.client, target).assert_relayed(&agent);
    }
    assert_eq!(agent.stop().len(), 2, "no flow is taken twice");
}

/// A namespace behind the gateway, to whose prefixes the gateway's own route leads through the server's namespace,
/// which sends everything back to the gateway.
fn beyond_a_hairpin(lab: &Lab) -> Namespace {
    let beyond = Namespace::create("beyond");
    lab.gateway.ip(&format!(
        "link add be0 type veth peer name eth0 netns {}",
        beyond.name()
    ));
    // Packets with the gateway's own source come in from outside.
    lab.gateway.sysctl("net.ipv4.conf.sv0.accept_local", 1);
    lab.gateway.sysctl("net.ipv4.conf.all.accept_redirects", 0);
    lab.gateway.sysctl("net.ipv4.conf.sv0.accept_redirects", 0);
    lab.gateway.ip("addr add 10.77.4.1/24 dev be0\n\
         addr add fd77:4::1/64 dev be0 nodad\n\
         link set be0 up\n\
         route add 203.0.113.0/24 via 10.77.2.2\n\
         route add 2001:db8:3::/48 via fd77:2::2\n\
         route add 203.0.113.0/24 via 10.77.4.2 table 77\n\
         route add 2001:db8:3::/48 via fd77:4::2 table 77\n\
         rule add iif sv0 to 203.0.113.0/24 lookup 77");
    lab.gateway
        .run("ip -6 rule add iif sv0 to 2001:db8:3::/48 lookup 77");
    lab.server.sysctl("net.ipv4.ip_forward", 1);
    lab.server.sysctl("net.ipv4.conf.all.send_redirects", 0);
    lab.server.sysctl("net.ipv4.conf.eth0.send_redirects", 0);
    lab.server.sysctl("net.ipv6.conf.all.forwarding", 1);
    beyond.ip("link set lo up\n\
         link set eth0 up\n\
         addr add 10.77.4.2/24 dev eth0\n\
         addr add fd77:4::2/64 dev eth0 nodad\n\
         addr add 203.0.113.9/32 dev lo\n\
         addr add 2001:db8:3::9/128 dev lo nodad\n\
         route add default via 10.77.4.1\n\
         route add default via fd77:4::1");
    beyond
}

/// The agent's own listening port takes nothing but steered flows: a direct connection is refused and counted, costs no
/// descriptor, and starts no loop. A flow to the same port of another host is a flow like any other.
#[test]
fn direct_connections_to_the_agents_port_are_refused() {
    const ATTEMPTS: u64 = 50;
    let lab = Lab::new();
    let mut agent = lab.agent("--iface cl0 --name everything");
    let port = agent.port();
    let _witness = Witness::start(&lab.server, port);
    lab.ask(Family::V4.near(), port).assert_relayed(&agent);
    let descriptors = agent.open_descriptors();
    let refused = agent.counter("direct_refused");

    for family in FAMILIES {
        for _ in 0..ATTEMPTS {
            assert_refused(&lab.client, (family.gateway(), port).into());
        }
        assert_refused(&lab.gateway, (family.gateway(), port).into());
        assert_refused(&lab.gateway, (family.loopback(), port).into());
    }

    assert_eq!(
        agent.counter("direct_refused") - refused,
        2 * (ATTEMPTS + 2)
    );
    agent.wait_for_descriptors(descriptors);
    assert_eq!(
        lab.client.counter("TcpExt", "TCPSynRetrans"),
        0,
        "refused at once"
    );
    lab.ask(Family::V6.near(), port).assert_relayed(&agent);
    assert_eq!(agent.stop().len(), 2);
}

/// A host that lets sockets be bound to any address (`ip_nonlocal_bind`) still tells foreign addresses from its own: a
/// flow to the agent's port number elsewhere is relayed, one to the agent itself is not.
#[test]
fn the_agents_port_elsewhere_is_relayed_where_any_address_can_be_bound() {
    let lab = Lab::new();
    lab.gateway.sysctl("net.ipv4.ip_nonlocal_bind", 1);
    lab.gateway.sysctl("net.ipv6.ip_nonlocal_bind", 1);
    let mut agent = lab.agent("--iface cl0 --name everything");
    let port = agent.port();
    let _witness = Witness::start(&lab.server, port);
    for family in FAMILIES {
        lab.ask(family.near(), port).assert_relayed(&agent);
        assert_refused(&lab.client, (family.gateway(), port).into());
    }
    assert_eq!(agent.stop().len(), 2);
}

fn assert_refused(namespace: &Namespace, target: SocketAddr) {
    let error = namespace
        .connect(target)
        .expect_err("a direct connection is refused");
    assert_eq!(
        error.kind(),
        io::ErrorKind::ConnectionRefused,
        "{target}: {error}"
    );
}

/// What this host opens to itself, at loopback or at its own addresses, is never caught, although the rule names
/// everything.
#[test]
fn connections_of_this_host_to_itself_are_never_caught() {
    let lab = Lab::new();
    let _own = Witness::start(&lab.gateway, 80);
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0,sv0 --name everything");
    for family in FAMILIES {
        for own in [
            family.loopback(),
            family.gateway(),
            family.gateway_upstream(),
        ] {
            Exchange::of(&lab.gateway, (own, 80).into()).assert_direct(&agent);
        }
        // Nor is what it opens to others: the scope is what passes through.
        let exchange = Exchange::of(&lab.gateway, (family.near(), 80).into());
        exchange.assert_direct(&agent);
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}

/// Flows are spread over all workers, and none is reset on the way.
#[test]
fn all_workers_take_flows() {
    const FLOWS: usize = 300;
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --dport 80 --workers 3");
    assert!(
        agent.ready_line().ends_with("1 rule, 3 workers"),
        "{}",
        agent.ready_line()
    );
    assert_eq!(agent.status()["workers"], 3);
    let before = context_switches_of_workers(&agent);
    assert_eq!(before.len(), 3, "{before:?}");
    for index in 0..FLOWS {
        lab.ask(FAMILIES[index % 2].near(), 80)
            .assert_relayed(&agent);
    }
    for (worker, switches) in context_switches_of_workers(&agent) {
        let worked = switches - before[&worker];
        assert!(worked >= 20, "{worker} has waited {worked} times");
    }
    assert!(
        agent.stop().iter().all(|flow| flow.end == "fin"),
        "no flow was reset"
    );
}

/// How often each worker of the agent has waited for something so far.
fn context_switches_of_workers(agent: &Agent) -> BTreeMap<String, u64> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", agent.id())).expect("the agent runs");
    let switches = |path: std::path::PathBuf| -> Option<u64> {
        let status = std::fs::read_to_string(path.join("status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse().ok()
    };
    tasks
        .flatten()
        .filter_map(|task| {
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            Some((name.trim().to_owned(), switches(task.path())?))
        })
        .filter(|(name, _)| name.starts_with("relay-"))
        .collect()
}

/// UDP to the very port and address of a TCP rule is left alone.
#[test]
fn a_rule_for_tcp_leaves_udp_alone() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --dport 80 --proto tcp");
    for family in FAMILIES {
        let bind = |namespace: &Namespace, address: IpAddr, port: u16| {
            namespace
                .enter(|| std::net::UdpSocket::bind((address, port)))
                .expect("bind a UDP socket")
        };
        let receiver = bind(&lab.server, family.any(), 80);
        let sender = bind(&lab.client, family.any(), 0);
        receiver
            .set_read_timeout(Some(tproxy_tests::wait::PATIENCE))
            .unwrap();
        sender.send_to(b"datagram", (family.server(), 80)).unwrap();
        let (length, from) =
            uninterrupted(|| receiver.recv_from(&mut [0; 64])).expect("the datagram arrives");
        assert_eq!((length, from.ip()), (8, family.client()));
        lab.ask(family.server(), 80).assert_relayed(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}

/// An interface that is not attached is not touched, although the rule would match.
#[test]
fn only_attached_interfaces_are_steered() {
    let lab = Lab::new();
    let _at_the_server = Witness::start(&lab.server, 80);
    let _at_the_client = Witness::start(&lab.client, 80);
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        Exchange::of(&lab.server, (family.client(), 80).into()).assert_direct(&agent);
        lab.ask(family.server(), 80).assert_relayed(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}

/// The connection of a client that sends nothing and leaves is relayed as what it is: empty in both directions.
#[test]
fn a_flow_without_bytes_is_reported_as_empty() {
    let lab = Lab::new();
    let server = Server::start(&lab.server, 80, |mut stream| {
        pattern::read_to_end(&mut stream)
    });
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        let mut stream = lab.client.connect((family.near(), 80).into()).unwrap();
        stream.flush().unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
        assert_eq!(server.outcome().unwrap(), 0);
        let flow = agent.flow_of(stream.local_addr().unwrap());
        assert_eq!((flow.sent, flow.received, flow.end.as_str()), (0, 0, "fin"));
    }
    assert_eq!(agent.stop().len(), 2);
}

/// A flow that says nothing is served when it speaks again, after its rule is gone and after the filter of flows has
/// become older than its last packet many times over; packets of a flow that is not the agent's are not even looked up
/// by then.
#[test]
fn an_idle_flow_outlives_the_epochs_of_the_filter() {
    const EPOCHS: usize = 20;
    let lab = Lab::new();
    let echo = |port| {
        Server::start(&lab.server, port, |mut stream| -> io::Result<u64> {
            io::copy(&mut stream.try_clone()?, &mut stream)
        })
    };
    let _servers = [echo(80), echo(81)];
    let mut agent = lab.agent("--iface cl0,sv0 --dport 80 --name web");
    let mut streams = Vec::new();
    for family in FAMILIES {
        for port in [80, 81] {
            let stream = lab.client.connect((family.near(), port).into()).unwrap();
            streams.push((port, stream));
        }
    }
    let ask = |streams: &mut [(u16, TcpStream)], wanted: u16| {
        for (_, stream) in streams.iter_mut().filter(|(port, _)| *port == wanted) {
            stream.write_all(b"are you there?").unwrap();
            stream.read_exact(&mut [0; 14]).unwrap();
        }
    };
    ask(&mut streams, 80);
    ask(&mut streams, 81);
    agent.run("rule del web");

    let pins = Path::new("/sys/fs/bpf/tproxy").join(agent.instance());
    let filter = FlowFilter::open(&Maps::new(&pins)).expect("the filter of flows");
    let turn = || turn(&filter).map_err(io::Error::other);
    lab.gateway
        .enter(|| (0..EPOCHS).try_for_each(|_| turn()))
        .expect("the sockets are listed");

    let before = (agent.counter("lookup_probe"), agent.counter("foreign"));
    ask(&mut streams, 81);
    let after = (agent.counter("lookup_probe"), agent.counter("foreign"));
    assert_eq!(after.0, before.0, "no segment was looked up");
    assert!(
        after.1 > before.1,
        "the direct flows went through the program"
    );
    let before = agent.counter("established");
    ask(&mut streams, 80);
    assert!(agent.counter("established") > before);
    drop(streams);
    let relayed = agent.stop();
    assert_eq!(relayed.len(), 2);
    assert!(
        relayed
            .iter()
            .all(|flow| flow.sent == 28 && flow.end == "fin")
    );
}
