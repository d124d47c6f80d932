//! Flows that processes of the gateway itself open: which go through the agent, and what the processes see.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::Path,
    process::Command,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, poll};
use socket2::{Domain, SockRef, Socket, Type};
use tproxy_tests::{
    Agent, ControlGroup, DatagramClient, Exchange, Family, Lab, Namespace, Snapshot,
    address::{FAMILIES, mapped},
    agent::unique_instance,
    bpf, control_group,
    datagrams::allow_many_errors,
    peer::{DatagramWitness, Server, Witness},
    process::Process,
    wait::{self, uninterrupted},
};

/// A user that has no files and no processes of its own.
const NOBODY: &str = "65534";

/// Connections that processes open to a port that a rule names are relayed, with the source address of the way to the
/// server although the host has two interfaces and no default route, and at once: no SYN is sent twice. Another port
/// stays direct.
#[test]
fn connections_of_this_host_to_a_named_port_go_through_the_agent() {
    let lab = Lab::new();
    let _witnesses = [80, 81].map(|port| Witness::start(&lab.server, port));
    let mut agent = lab.agent("--scope local --dport 80 --name web");
    for family in FAMILIES {
        let (taken, other) = ((family.near(), 80).into(), (family.near(), 81).into());
        for _ in 0..20 {
            Exchange::of(&lab.gateway, taken).assert_relayed_locally(&agent);
        }
        Exchange::of(&lab.gateway, other).assert_direct(&agent);
        // By the socket of both families as well.
        Exchange::of(&lab.gateway, mapped(taken)).assert_relayed_locally(&agent);
        Exchange::of(&lab.gateway, mapped(other)).assert_direct(&agent);
        // One that is bound to an address has it still.
        let bound = Exchange::from(&lab.gateway, family.gateway(), taken);
        bound.assert_relayed(&agent);
        assert_eq!(bound.client.ip(), family.gateway());
    }
    assert_eq!(lab.gateway.counter("TcpExt", "TCPSynRetrans"), 0);
    let flows = agent.stop();
    assert_eq!(flows.len(), 44);
    assert!(flows.iter().all(|flow| flow.rule == "web"));
}

/// A program that connects without waiting sees what it would see without an agent.
#[test]
fn connecting_without_waiting_works() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--scope local --dport 80");
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 80);
        let socket = lab.gateway.enter(|| {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            match socket.connect(&target.into()) {
                Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => {}
                outcome => panic!("not in progress: {outcome:?}"),
            }
            socket
        });
        let mut events = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        assert_eq!(poll(&mut events, 10_000_u16).unwrap(), 1);
        assert_eq!(socket.take_error().unwrap().map(|error| error.kind()), None);
        socket.set_nonblocking(false).unwrap();
        let stream = TcpStream::from(socket);
        assert_eq!(stream.peer_addr().unwrap(), target);
        Exchange::over(stream, target)
            .unwrap()
            .assert_relayed_locally(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}

/// Rules name users, and control groups with those below them. Other users and groups go their own way.
#[test]
fn users_and_control_groups_tell_whose_flows_are_taken() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let (group, other) = (ControlGroup::create(), ControlGroup::create());
    let below = group.child("below");
    let mut agent = lab.agent(&format!(
        "--scope local --dport 80 --uid {NOBODY} --name user"
    ));
    agent.run(&format!(
        "rule add --scope local --dport 80 --name group --cgroup {}",
        group.path().display()
    ));
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 80);
        let ask = |start: &dyn Fn(&str) -> Command| Exchange::by_program(target, start);
        let by = |group: &ControlGroup| ask(&|line| group.command_line(&lab.gateway, line));

        let of_user = ask(&|line| as_user(&lab.gateway, line));
        of_user.assert_relayed_locally(&agent);
        let of_root = ask(&|line| lab.gateway.command_line(line));
        of_root.assert_direct(&agent);
        for (exchange, rule) in [
            (of_user, "user"),
            (by(&group), "group"),
            (by(&below), "group"),
        ] {
            exchange.assert_relayed_locally(&agent);
            let flow = agent.flow_between(exchange.client, exchange.target);
            assert_eq!(flow.rule, rule);
        }
        by(&other).assert_direct(&agent);
    }
    assert_eq!(agent.stop().len(), 6);
}

/// The same for datagrams, of sockets that are connected (bash) and of those that are not (socat).
#[test]
fn users_and_control_groups_tell_whose_datagrams_are_taken() {
    let lab = Lab::new();
    let witness = DatagramWitness::start(&lab.server, 53);
    let group = ControlGroup::create();
    let below = group.child("below");
    let path = group.path().display();
    let mut agent = lab.agent(&format!(
        "--scope local --proto udp --uid {NOBODY} --name user"
    ));
    agent.run(&format!(
        "rule add --scope local --proto udp --name group --cgroup {path}"
    ));
    let mut expected = Vec::new();
    for family in FAMILIES {
        let version = if family == Family::V4 { 4 } else { 6 };
        let at = |host: IpAddr| [connected_script(host), free_script(host, version)];
        // The address tells the flows apart.
        for script in at(family.near()) {
            run_script(as_user(&lab.gateway, "bash -c"), &script);
            run_script(group.command_line(&lab.gateway, "bash -c"), &script);
            run_script(below.command_line(&lab.gateway, "bash -c"), &script);
            expected.extend([
                (family.near(), "user"),
                (family.near(), "group"),
                (family.near(), "group"),
            ]);
        }
        for script in at(family.far()) {
            run_script(lab.gateway.command_line("bash -c"), &script);
        }
    }
    for _ in 0..16 {
        let _ = witness.next();
    }
    let mut flows: Vec<_> = agent
        .stop()
        .into_iter()
        .map(|flow| (flow.server.ip(), flow.rule))
        .collect();
    flows.sort();
    let mut expected: Vec<_> = expected
        .into_iter()
        .map(|(address, rule)| (address, rule.to_owned()))
        .collect();
    expected.sort();
    assert_eq!(flows, expected);
}

fn as_user(namespace: &Namespace, line: &str) -> Command {
    namespace.command_line(&format!("setpriv --reuid {NOBODY} --clear-groups {line}"))
}

/// Sends by a connected socket, and waits for the answer.
fn connected_script(host: IpAddr) -> String {
    format!(
        "exec 3<>/dev/udp/{host}/53; printf hello >&3; timeout 15 dd bs=2048 count=1 status=none <&3"
    )
}

/// Sends by a socket that is not connected.
fn free_script(host: IpAddr, version: u8) -> String {
    let host = SocketAddr::new(host, 53);
    format!("printf hello | socat -u - UDP{version}-DATAGRAM:{host}")
}

#[track_caller]
fn run_script(mut command: Command, script: &str) {
    let mut process = Process::start(command.arg(script));
    let status = process.wait();
    assert!(
        status.success(),
        "{script}: {status} {}",
        process.stderr.text()
    );
}

/// How an address is written.
type Wrap = fn(SocketAddr) -> SocketAddr;

/// Datagrams of all kinds of sockets are relayed, the first as well as the next: connected or not, bound to an address
/// or not, of one family or of both. Those to other ports of the same sockets go direct.
#[test]
fn datagrams_of_this_host_to_a_named_port_go_through_the_agent() {
    let lab = Lab::new();
    let _witnesses = [53, 54].map(|port| DatagramWitness::start(&lab.server, port));
    let mut agent = lab.agent("--scope local --proto udp --dport 53 --name dns");
    let mut sessions = 0;
    for family in FAMILIES {
        let taken = SocketAddr::new(family.near(), 53);
        let other = SocketAddr::new(family.near(), 54);
        let relayed_from = family.gateway_upstream();
        for wrap in [|address| address, mapped] {
            let client = DatagramClient::connected(&lab.gateway, wrap(taken));
            assert_eq!(
                client.address().ip().to_canonical(),
                relayed_from,
                "its source"
            );
            let first = client.ask(b"connected");
            first.assert_relayed_from(relayed_from);
            for _ in 0..3 {
                assert_eq!(client.ask(b"again"), first, "the same session");
            }
            DatagramClient::connected(&lab.gateway, wrap(other))
                .ask(b"other")
                .assert_direct();
            // The same socket, connected to the one and the other in turn.
            for _ in 0..2 {
                client.socket().connect(wrap(other)).unwrap();
                client.ask(b"elsewhere").assert_direct();
                client.socket().connect(wrap(taken)).unwrap();
                client.ask(b"and back").assert_relayed_from(relayed_from);
            }
            sessions += 1;
        }
        let both = "::".parse().unwrap();
        let binds: [(IpAddr, Wrap); 4] = [
            (family.any(), |address| address),
            (both, mapped),
            (family.gateway_upstream(), |address| address),
            (family.gateway(), |address| address),
        ];
        for (address, wrap) in binds {
            let client = DatagramClient::bound(&lab.gateway, address);
            for _ in 0..3 {
                client
                    .ask_at(wrap(taken), b"taken")
                    .assert_relayed_from(relayed_from);
                client.ask_at(wrap(other), b"other").assert_direct();
            }
            sessions += 1;
        }
    }
    let flows = agent.stop();
    // A socket that was connected anew may have another address on its way.
    assert!(flows.len() >= sessions, "{flows:?}");
    assert!(
        flows
            .iter()
            .all(|flow| flow.rule == "dns" && flow.server.port() == 53)
    );
}

/// Sockets that somebody has marked or bound to a device are left alone: their owner has plans for them.
#[test]
fn sockets_with_a_mark_or_a_device_are_left_alone() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let _datagrams = DatagramWitness::start(&lab.server, 80);
    let mut agent = lab.agent("--scope local --proto any --dport 80");
    let mark = 0x51_u32.to_ne_bytes();
    let marked = (nix::libc::SOL_SOCKET, nix::libc::SO_MARK, &mark[..]);
    let to_device = (
        nix::libc::SOL_SOCKET,
        nix::libc::SO_BINDTODEVICE,
        &b"sv0"[..],
    );
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 80);
        for option in [marked, to_device] {
            Exchange::with_option(&lab.gateway, option, target).assert_direct(&agent);
        }
        let prepare: [fn(&Socket) -> io::Result<()>; 2] = [
            |socket| socket.set_mark(0x51),
            |socket| socket.bind_device(Some(b"sv0")),
        ];
        for prepare in prepare {
            for is_connected in [false, true] {
                let socket = UdpSocket::from(lab.gateway.enter(|| {
                    let socket =
                        Socket::new(Domain::for_address(target), Type::DGRAM, None).unwrap();
                    prepare(&socket).unwrap();
                    socket
                        .bind(&SocketAddr::new(family.any(), 0).into())
                        .unwrap();
                    socket
                }));
                if is_connected {
                    socket.connect(target).unwrap();
                    DatagramClient::over(socket).ask(b"mine").assert_direct();
                } else {
                    DatagramClient::over(socket)
                        .ask_at(target, b"mine")
                        .assert_direct();
                }
            }
        }
        Exchange::of(&lab.gateway, target).assert_relayed_locally(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}

/// `reject` refuses at once, as a host does at which nobody listens; `drop` says that it is not permitted. What no rule
/// names goes on.
#[test]
fn flows_that_are_rejected_or_dropped_fail_at_once() {
    let lab = Lab::new();
    let unseen = [80, 81].map(|port| Witness::start(&lab.server, port));
    let unheard = [80, 81].map(|port| DatagramWitness::start(&lab.server, port));
    let _witness = Witness::start(&lab.server, 82);
    let _datagrams = DatagramWitness::start(&lab.server, 82);
    let mut agent =
        lab.agent("--scope local --proto any --dport 80 --action reject --name rejected");
    agent.run("rule add --scope local --proto any --dport 81 --action drop --name dropped");
    let mut refused = 0;
    for family in FAMILIES {
        for (port, kind) in [
            (80, io::ErrorKind::ConnectionRefused),
            (81, io::ErrorKind::PermissionDenied),
        ] {
            let target = SocketAddr::new(family.near(), port);
            let errors = [
                Exchange::attempt(&lab.gateway, target).expect_err("a refusal"),
                Exchange::attempt(&lab.gateway, mapped(target)).expect_err("a refusal"),
                DatagramClient::try_connected(&lab.gateway, target).expect_err("a refusal"),
                DatagramClient::bound(&lab.gateway, family.any())
                    .try_ask_at(target, b"hello")
                    .expect_err("a refusal"),
            ];
            for error in errors {
                assert_eq!(error.kind(), kind, "{target}: {error}");
                refused += 1;
            }
        }
        let target = SocketAddr::new(family.near(), 82);
        Exchange::of(&lab.gateway, target).assert_direct(&agent);
        DatagramClient::connected(&lab.gateway, target)
            .ask(b"hello")
            .assert_direct();
    }
    for (unseen, unheard) in unseen.iter().zip(&unheard) {
        assert_eq!((unseen.clients(), unheard.received()), (vec![], vec![]));
    }
    let counted: u64 = agent
        .rules()
        .iter()
        .map(|rule| rule["flows"].as_u64().unwrap())
        .sum();
    assert_eq!(counted, refused);
    assert_eq!(agent.stop(), []);
}

/// What this host says to itself is never caught, at loopback, at its own addresses or in its own broadcasts, although
/// the rule names everything.
#[test]
fn flows_of_this_host_to_itself_are_never_caught() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let _own = Witness::start(&lab.gateway, 80);
    let mut agent = lab.agent("--scope local --proto any --name everything");
    for family in FAMILIES {
        let own = [
            family.loopback(),
            family.gateway(),
            family.gateway_upstream(),
        ];
        for address in own {
            let target = SocketAddr::new(address, 80);
            let _datagrams = DatagramWitness::bound(&lab.gateway, &[target]);
            for target in [target, mapped(target)] {
                Exchange::of(&lab.gateway, target).assert_direct(&agent);
                DatagramClient::connected(&lab.gateway, target)
                    .ask(b"connected")
                    .assert_direct();
                let any = if target.is_ipv4() {
                    Family::V4
                } else {
                    Family::V6
                }
                .any();
                DatagramClient::bound(&lab.gateway, any)
                    .ask_at(target, b"free")
                    .assert_direct();
            }
        }
        Exchange::of(&lab.gateway, (family.near(), 80).into()).assert_relayed_locally(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}

/// Link-local addresses, at which clouds tell a host its secrets, are for the agent only when a rule names them, however
/// they are written.
#[test]
fn link_local_destinations_are_relayed_only_when_named() {
    let lab = Lab::new();
    let metadata = SocketAddr::from(([169, 254, 169, 254], 80));
    lab.server.ip("addr add 169.254.169.254/32 dev lo");
    lab.gateway.ip("route add 169.254.169.254/32 via 10.77.2.2");
    let _witness = Witness::start(&lab.server, 80);
    let _datagrams = DatagramWitness::bound(&lab.server, &[metadata]);
    let mut agent = lab.agent("--scope local --proto any --name all");
    let relayed_from = Family::V4.gateway_upstream();
    for is_named in [false, true] {
        if is_named {
            agent.run(
                "rule add --at 1 --scope local --proto any --dst 169.254.169.254 --name metadata",
            );
        }
        for target in [metadata, mapped(metadata)] {
            let exchange = Exchange::of(&lab.gateway, target);
            let answer = DatagramClient::connected(&lab.gateway, target).ask(b"secrets");
            if is_named {
                exchange.assert_relayed_locally(&agent);
                answer.assert_relayed_from(relayed_from);
            } else {
                exchange.assert_direct(&agent);
                answer.assert_direct();
            }
        }
    }
    let flows = agent.stop();
    assert_eq!(flows.len(), 4);
    assert!(flows.iter().all(|flow| flow.rule == "metadata"));
}

/// A flow outlives the rule that took it, also when an unrelated route is added. A new one goes direct.
#[test]
fn a_flow_outlives_its_rule() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let _datagrams = DatagramWitness::start(&lab.server, 80);
    let mut agent = lab.agent("--scope local --proto any --dport 80 --name all");
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 80);
        let stream = lab.gateway.connect(target).unwrap();
        let connected = DatagramClient::connected(&lab.gateway, target);
        let before = connected.ask(b"before");
        before.assert_relayed_from(family.gateway_upstream());

        agent.run("rule del all");
        lab.gateway
            .ip("route add 203.0.113.0/24 via 10.77.2.2\nroute add 2001:db8:3::/48 via fd77:2::2");
        Exchange::of(&lab.gateway, target).assert_direct(&agent);
        DatagramClient::connected(&lab.gateway, target)
            .ask(b"new")
            .assert_direct();
        assert_eq!(connected.ask(b"after"), before, "the same session");
        Exchange::over(stream, target)
            .unwrap()
            .assert_relayed_locally(&agent);

        lab.gateway
            .ip("route del 203.0.113.0/24\nroute del 2001:db8:3::/48");
        agent.run("rule add --scope local --proto any --dport 80 --name all");
        Exchange::of(&lab.gateway, target).assert_relayed_locally(&agent);
    }
    assert_eq!(agent.stop().len(), 6);
}

/// A process whose datagram reaches a host on which nobody has the port learns so, whether its socket is connected or
/// asks to be told.
#[test]
fn a_process_learns_that_a_port_is_unreachable() {
    let lab = Lab::new();
    allow_many_errors(&lab.server);
    let mut agent = lab.agent("--scope local --proto udp --dport 53,443");
    for family in FAMILIES {
        for port in [53, 443] {
            let target = SocketAddr::new(family.near(), port);
            let connected = DatagramClient::connected(&lab.gateway, target);
            let free = DatagramClient::bound(&lab.gateway, family.any());
            let bound = DatagramClient::bound(&lab.gateway, family.gateway_upstream());
            for client in [&free, &bound] {
                client.request_errors();
            }
            for _ in 0..20 {
                for error in [
                    connected.try_ask(b"anybody?"),
                    free.try_ask_at(target, b"anybody?"),
                    bound.try_ask_at(target, b"anybody?"),
                ] {
                    let error = error.expect_err("nobody answers");
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
                }
            }
        }
    }
    assert!(agent.stop().len() >= 12);
}

/// A resolver of this host at the very port that the rule takes, bound to the wildcard and not willing to share: it has
/// what is sent to this host, and the agent what is sent elsewhere.
#[test]
fn a_service_of_this_host_at_the_same_port_is_neither_robbed_nor_in_the_way() {
    let lab = Lab::new();
    let _witness = DatagramWitness::start(&lab.server, 53);
    let mut agent = lab.agent("--scope local --proto udp --dport 53");
    let ask = |family: Family| {
        let target = SocketAddr::new(family.near(), 53);
        let relayed_from = family.gateway_upstream();
        DatagramClient::connected(&lab.gateway, target)
            .ask(b"connected")
            .assert_relayed_from(relayed_from);
        DatagramClient::bound(&lab.gateway, family.any())
            .ask_at(target, b"free")
            .assert_relayed_from(relayed_from);
    };
    FAMILIES.into_iter().for_each(ask);
    for family in FAMILIES {
        // Dual-stack for IPv6, which would have both.
        let socket = lab.gateway.enter(|| UdpSocket::bind((family.any(), 53)));
        let service = DatagramWitness::over(vec![socket.expect("the port is free")]);
        FAMILIES.into_iter().for_each(ask);
        assert_eq!(service.received(), []);
        let own = DatagramClient::bound(&lab.gateway, family.loopback());
        own.socket()
            .send_to(b"own", (family.loopback(), 53))
            .unwrap();
        assert_eq!(service.next().peer, own.address());
    }
    assert_eq!(agent.stop().len(), 12);
}

/// With the agent killed, flows that a rule takes are refused, or go their own way, as the rule's `on_missing` has it.
#[test]
fn flows_follow_on_missing_when_the_agent_is_killed() {
    let lab = Lab::new();
    let _witnesses = [80, 81, 82].map(|port| Witness::start(&lab.server, port));
    let _datagrams = [80, 81, 82].map(|port| DatagramWitness::start(&lab.server, port));
    let mut agent = lab.agent("--scope local --proto any --dport 80 --name closed");
    agent.run("rule add --scope local --proto any --dport 81 --on-missing pass --name open");
    for family in FAMILIES {
        for port in [80, 81] {
            Exchange::of(&lab.gateway, (family.near(), port).into()).assert_relayed_locally(&agent);
        }
    }
    agent.kill();
    for family in FAMILIES {
        let closed = SocketAddr::new(family.near(), 80);
        for error in [
            Exchange::attempt(&lab.gateway, closed).expect_err("a refusal"),
            DatagramClient::try_connected(&lab.gateway, closed).expect_err("a refusal"),
        ] {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
        }
        for port in [81, 82] {
            let target = SocketAddr::new(family.near(), port);
            Exchange::of(&lab.gateway, target).assert_unproxied();
            DatagramClient::connected(&lab.gateway, target)
                .ask(b"past the dead")
                .assert_direct();
        }
    }
    agent.run("unload");
    for family in FAMILIES {
        Exchange::of(&lab.gateway, (family.near(), 80).into()).assert_unproxied();
    }
}

/// Processes of other network namespaces are not the agent's business, although the hooks see them.
#[test]
fn processes_of_other_namespaces_are_not_caught() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let _datagrams = DatagramWitness::start(&lab.server, 80);
    let mut agent = lab.agent("--scope local --proto any --name everything");
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 80);
        lab.ask(target.ip(), 80).assert_direct(&agent);
        DatagramClient::connected(&lab.client, target)
            .ask(b"connected")
            .assert_direct();
        DatagramClient::bound(&lab.client, family.any())
            .ask_at(target, b"free")
            .assert_direct();
        Exchange::of(&lab.gateway, target).assert_relayed_locally(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}

/// The hooks are attached for as long as a rule of this scope is there, and at the end everything is as before.
#[test]
fn hooks_are_attached_while_a_rule_needs_them() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --dport 80");
    assert!(hooks(&instance).is_empty());
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 80);
        Exchange::of(&lab.gateway, target).assert_direct(&agent);
        agent.run("rule add --scope local --dport 80 --name local");
        let attached = hooks(&instance);
        assert_eq!(attached.len(), 5);
        let all = bpf::process_hooks(&control_group::root()).unwrap();
        assert!(
            attached.iter().all(|id| all.contains(id)),
            "{attached:?} of {all:?}"
        );
        Exchange::of(&lab.gateway, target).assert_relayed_locally(&agent);

        agent.run("rule del local");
        assert!(hooks(&instance).is_empty());
        assert_detached(&attached);
        Exchange::of(&lab.gateway, target).assert_direct(&agent);
    }
    agent.run("rule add --scope local --dport 80");
    let attached = hooks(&instance);
    agent.stop();
    assert_detached(&attached);
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);

    let mut killed = Agent::start_under(&lab.gateway, &instance, "", "--scope local --dport 80");
    let attached = hooks(&instance);
    assert_eq!(attached.len(), 5);
    killed.kill();
    killed.run("unload");
    assert_detached(&attached);
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// The programs of an instance's hooks.
fn hooks(instance: &str) -> Vec<u32> {
    let directory = Path::new("/sys/fs/bpf/tproxy").join(instance);
    let names = ["opening", "connect4", "connect6", "sendmsg4", "sendmsg6"];
    let pins = names.map(|name| directory.join(format!("link-{name}")));
    let there = pins.iter().filter(|pin| fs::exists(pin).unwrap());
    there
        .map(|pin| bpf::program_of_link(pin).unwrap())
        .collect()
}

#[track_caller]
fn assert_detached(programs: &[u32]) {
    let root = control_group::root();
    // A link that a process had open a moment ago goes with that.
    wait::until("the end of the hooks", || {
        let attached = bpf::process_hooks(&root).unwrap();
        let is_gone = |id| !attached.contains(id);
        programs.iter().all(is_gone).then_some(())
    });
}

/// A connection that a process resets is reset at the server, and one that the server refuses is refused.
#[test]
fn refusals_and_resets_reach_the_process() {
    let lab = Lab::new();
    let server = Server::start(&lab.server, 80, |mut stream| {
        stream.write_all(b"!").unwrap();
        uninterrupted(|| stream.read(&mut [0])).map_err(|error| error.kind())
    });
    let mut agent = lab.agent("--scope local --dport 80,81");
    for family in FAMILIES {
        let mut stream = lab.gateway.connect((family.near(), 80).into()).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(stream);
        assert_eq!(server.outcome(), Err(io::ErrorKind::ConnectionReset));
        let refused = Exchange::attempt(&lab.gateway, (family.near(), 81).into());
        refused.expect_err("nobody listens there");
    }
    assert_eq!(agent.stop().len(), 4);
}
