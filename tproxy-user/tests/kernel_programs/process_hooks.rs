//! Flows that processes of this host open, from the system call to the socket that gets them.

mod owners;
mod setting;

use std::{
    io::{self, ErrorKind, Read as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
};

use nix::errno::Errno;
use socket2::{Domain, SockRef, Socket, Type};
use tproxy_common::{
    address::Address,
    flow::Protocol,
    handover::{Ends, Taken},
    outcome::Outcome,
};
use tproxy_user::kernel::LocalUdp;

use crate::{
    neighbour::{
        FAR, NEAR, accept, any, canonical, datagrams_at, families, is_idle, listen, patient,
        receive,
    },
    sandbox::{ASSIGNMENT, FIRST_SLOT, MARK, UPSTREAM_MARK, ip, rule},
};
use setting::{
    DROPPED, OPEN, PASSED, REDIRECTED, REJECTED, RELAYED, UNNAMED, assert_accepted, assert_errno,
    at, in_setting, local, of_worker,
};

#[test]
fn connections_of_this_host_go_where_their_rules_say() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (relay, _) = of_worker(&workers);
        let redirected = listen("[::]:0".parse().unwrap());
        setting.redirect_to(&redirected, &datagrams_at("[::]:0".parse().unwrap()));
        for family in families() {
            for (port, listener, outcome) in [
                (RELAYED, &relay, Outcome::LocalTaken),
                (OPEN, &relay, Outcome::LocalTaken),
                (REDIRECTED, &redirected, Outcome::LocalTaken),
                (PASSED, setting.tcp(PASSED), Outcome::LocalPassed),
                (UNNAMED, setting.tcp(UNNAMED), Outcome::LocalNoRule),
            ] {
                let ((), moved) = setting.occurred(|| assert_accepted(family, port, listener));
                assert_eq!(moved, [(outcome, 1)], "{family:?} {port}");
            }
            for (port, errno, outcome) in [
                (REJECTED, Errno::ECONNREFUSED, Outcome::LocalRejected),
                (DROPPED, Errno::EPERM, Outcome::LocalDropped),
            ] {
                let connect = || TcpStream::connect(at(family, port));
                let (result, moved) = setting.occurred(connect);
                assert_errno(result, errno);
                assert_eq!(moved, [(outcome, 1)], "{family:?} {port}");
            }
        }
        for port in [RELAYED, REJECTED, DROPPED, REDIRECTED, OPEN] {
            assert!(is_idle(setting.tcp(port)), "{port}");
        }
    });
}

/// The source of a connection is the address that its socket is bound to. The one that its route would
/// give it is not known yet.
#[test]
fn rules_hold_for_sources() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (relay, _) = of_worker(&workers);
        let passed = setting.tcp(RELAYED);
        for family in families() {
            let target = at(family, RELAYED);
            setting
                .sandbox
                .install(&[local(|spec| spec.src = vec![family.own.to_string()])]);
            for (bound, listener) in [
                (any(target), passed),
                (SocketAddr::new(family.own, 0), &relay),
            ] {
                let client = Socket::new(Domain::for_address(target), Type::STREAM, None);
                let client = client.expect("a socket");
                client.bind(&bound.into()).expect("an address of this host");
                client.connect(&target.into()).expect("a connection");
                assert_eq!(accept(listener).1, target, "{bound}");
            }
        }
    });
}

/// An IPv6 socket that names an IPv4 address goes by the rules for IPv4.
#[test]
fn a_connection_to_a_mapped_address_is_one_of_ipv4() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (relay, datagrams) = of_worker(&workers);
        let [v4, _] = families();
        setting
            .sandbox
            .install(&[local(|spec| spec.dst = vec!["192.0.2.0/24".into()])]);
        let std::net::IpAddr::V4(server) = v4.server else {
            panic!("an IPv4 address");
        };
        let mapped = SocketAddr::new(server.to_ipv6_mapped().into(), RELAYED);
        let client = TcpStream::connect(mapped).expect("a connection");
        let (_accepted, destination, source) = accept(&relay);
        assert_eq!(destination, at(v4, RELAYED));
        assert_eq!(source, canonical(client.local_addr().expect("an address")));
        let socket = UdpSocket::bind("[::]:0").expect("a socket");
        socket.connect(mapped).expect("a way");
        socket.send(b"question").expect("a datagram");
        assert_eq!(receive(&datagrams).0, b"question");
    });
}

/// A connected socket has the address that it would have without us, and is answered from where it is
/// connected to.
#[test]
fn datagrams_of_connected_sockets_go_where_their_rules_say() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (_, relay) = of_worker(&workers);
        let redirected = datagrams_at("[::]:0".parse().unwrap());
        setting.redirect_to(&listen("[::]:0".parse().unwrap()), &redirected);
        for family in families() {
            for (port, socket) in [
                (RELAYED, &relay),
                (OPEN, &relay),
                (REDIRECTED, &redirected),
                (PASSED, setting.udp(PASSED)),
                (UNNAMED, setting.udp(UNNAMED)),
            ] {
                let target = at(family, port);
                let client = patient(UdpSocket::bind(any(target)).expect("a socket"));
                client.connect(target).expect("a way");
                let own = client.local_addr().expect("an address");
                assert_eq!(own.ip(), family.own, "{port}");
                client.send(b"question").expect("a datagram");
                let (question, source) = receive(socket);
                assert_eq!((question.as_slice(), source), (&b"question"[..], own));
                if ![PASSED, UNNAMED].contains(&port) {
                    let answering = datagrams_at(target);
                    answering.send_to(b"answer", own).expect("a datagram");
                    assert_eq!(receive(&client), (b"answer".to_vec(), target));
                }
            }
            let connect = |port| {
                let client = UdpSocket::bind(any(at(family, port))).expect("a socket");
                client.connect(at(family, port))
            };
            assert_errno(connect(REJECTED), Errno::ECONNREFUSED);
            assert_errno(connect(DROPPED), Errno::EPERM);
        }
    });
}

/// One that names a destination with each datagram is answered at a stand-in for its address.
#[test]
fn datagrams_of_other_sockets_go_where_their_rules_say() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (_, relay) = of_worker(&workers);
        let redirected = datagrams_at("[::]:0".parse().unwrap());
        setting.redirect_to(&listen("[::]:0".parse().unwrap()), &redirected);
        for family in families() {
            let client = patient(UdpSocket::bind(any(at(family, 0))).expect("a socket"));
            let port_of_client = client.local_addr().expect("an address").port();
            let stand_in = if family.own.is_ipv4() {
                ASSIGNMENT.stand_in_v4().into()
            } else {
                ASSIGNMENT.stand_in_v6().into()
            };
            // To one after another, by one socket.
            for (port, socket, from) in [
                (RELAYED, &relay, stand_in),
                (PASSED, setting.udp(PASSED), family.own),
                (REDIRECTED, &redirected, stand_in),
                (UNNAMED, setting.udp(UNNAMED), family.own),
                (OPEN, &relay, stand_in),
            ] {
                let target = at(family, port);
                client.send_to(b"question", target).expect("a datagram");
                let (question, source) = receive(socket);
                assert_eq!(question, b"question");
                assert_eq!(source, SocketAddr::new(from, port_of_client), "{port}");
                if from == stand_in {
                    let answering = datagrams_at(target);
                    answering.send_to(b"answer", source).expect("a datagram");
                    assert_eq!(receive(&client), (b"answer".to_vec(), target));
                }
            }
            let send = |port| client.send_to(b"question", at(family, port));
            assert_errno(send(REJECTED), Errno::ECONNREFUSED);
            assert_errno(send(DROPPED), Errno::EPERM);
        }
    });
}

#[test]
fn on_missing_decides_when_nobody_is_there() {
    in_setting(|setting| {
        drop(setting.sandbox.start_workers(1));
        for family in families() {
            assert_accepted(family, OPEN, setting.tcp(OPEN));
            for port in [RELAYED, REDIRECTED] {
                assert_errno(TcpStream::connect(at(family, port)), Errno::ECONNREFUSED);
                let client = UdpSocket::bind(any(at(family, port))).expect("a socket");
                let sent = client.send_to(b"question", at(family, port));
                assert_errno(sent, Errno::ECONNREFUSED);
                assert_errno(client.connect(at(family, port)), Errno::ECONNREFUSED);
            }
        }
        // An agent that drains leaves new flows alone.
        let workers = setting.sandbox.start_workers(1);
        let maps = &setting.sandbox.maps;
        let state = maps.agent().expect("the state").draining();
        maps.set_agent(state).expect("the state");
        for family in families() {
            assert_accepted(family, RELAYED, setting.tcp(RELAYED));
        }
        drop(workers);
    });
}

/// Sockets with a mark of somebody's, addresses of this host and of its links, and other namespaces.
#[test]
fn what_is_none_of_ours_is_left_alone() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (relay, datagrams) = of_worker(&workers);
        setting.sandbox.install(&[local(|_| ())]);
        for family in families() {
            for mark in [UPSTREAM_MARK, 1] {
                let target = at(family, RELAYED);
                let socket = Socket::new(Domain::for_address(target), Type::STREAM, None);
                let socket = socket.expect("a socket");
                socket.set_mark(mark).expect("an option");
                socket.connect(&target.into()).expect("a connection");
                assert_eq!(accept(setting.tcp(RELAYED)).1, target);
                assert_eq!(socket.mark().expect("an option"), mark);
            }
            // To itself.
            let own = listen(SocketAddr::new(family.own, 0));
            let address = own.local_addr().expect("an address");
            let _client = TcpStream::connect(address).expect("a connection");
            assert_eq!(accept(&own).1, address);
            // From elsewhere.
            let target = at(family, RELAYED);
            let _client = setting.neighbour.connect(target).expect("a connection");
            assert_eq!(accept(setting.tcp(RELAYED)).1, target);
        }
        ip(&format!("route add 169.254.0.0/16 dev {NEAR}"));
        setting
            .neighbour
            .run(|| ip(&format!("addr add 169.254.169.254/16 dev {FAR}")));
        let metadata: SocketAddr = (([169, 254, 169, 254]), RELAYED).into();
        let _client = TcpStream::connect(metadata).expect("a connection");
        assert_eq!(accept(setting.tcp(RELAYED)).1, metadata);
        assert!(is_idle(&relay));
        let named = local(|spec| spec.dst = vec!["169.254.169.254".into()]);
        setting.sandbox.install(&[named]);
        let _client = TcpStream::connect(metadata).expect("a connection");
        assert_eq!(accept(&relay).1, metadata);
        let client = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        client.send_to(b"question", metadata).expect("a datagram");
        assert_eq!(receive(&datagrams).0, b"question");
    });
}

/// A socket that is connected again goes by what its new destination says.
#[test]
fn a_socket_that_is_connected_again_is_decided_about_again() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (relay, datagrams) = of_worker(&workers);
        for family in families() {
            let client = UdpSocket::bind(any(at(family, 0))).expect("a socket");
            for (port, socket) in [
                (RELAYED, &datagrams),
                (PASSED, setting.udp(PASSED)),
                (OPEN, &datagrams),
                (UNNAMED, setting.udp(UNNAMED)),
            ] {
                client.connect(at(family, port)).expect("a way");
                client.send(b"question").expect("a datagram");
                assert_eq!(receive(socket).0, b"question", "{port}");
                let mark = SockRef::from(&client).mark().expect("an option");
                let is_taken = [RELAYED, OPEN].contains(&port);
                assert_eq!(mark, if is_taken { MARK } else { 0 }, "{port}");
            }
            // TCP is connected again when it was refused.
            let target = at(family, REJECTED);
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None);
            let socket = socket.expect("a socket");
            let refused = socket.connect(&target.into()).expect_err("it is refused");
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            socket
                .connect(&at(family, RELAYED).into())
                .expect("a connection");
            assert_eq!(accept(&relay).1, at(family, RELAYED));
        }
    });
}

/// What was decided about a connection that is over does not stick to its socket.
#[test]
fn a_tcp_socket_forgets_where_it_was_connected_to() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (relay, _) = of_worker(&workers);
        for family in families() {
            let target = at(family, RELAYED);
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None);
            let socket = socket.expect("a socket");
            for (port, listener) in [
                (RELAYED, &relay),
                (PASSED, setting.tcp(PASSED)),
                (OPEN, &relay),
                (UNNAMED, setting.tcp(UNNAMED)),
            ] {
                let target = at(family, port);
                socket.connect(&target.into()).expect("a connection");
                let (accepted, destination, _) = accept(listener);
                assert_eq!(destination, target);
                // Whoever closes first has the port for a while: not the socket, which goes on.
                drop(accepted);
                disconnect(&socket);
            }
        }
    });
}

/// Ends the connection of a socket, which can be connected again (`AF_UNSPEC`, connect(2)).
fn disconnect(socket: &Socket) {
    let nowhere = libc::sockaddr {
        sa_family: 0,
        sa_data: [0; 14],
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr>()).expect("a small number");
    // SAFETY: the address lives through the call, and is of this length.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// A socket that is bound to an address takes answers there alone, so that is noted for the relay.
#[test]
fn the_address_of_a_bound_socket_is_noted() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (_, relay) = of_worker(&workers);
        let noted = LocalUdp::open(&setting.sandbox.maps).expect("the table");
        for family in families() {
            let target = at(family, RELAYED);
            for (bound, address) in [
                (any(target), None),
                (SocketAddr::new(family.own, 0), Some(family.own)),
            ] {
                let client = UdpSocket::bind(bound).expect("a socket");
                client.send_to(b"question", target).expect("a datagram");
                let (question, source) = receive(&relay);
                assert_eq!(question, b"question");
                assert_ne!(source.ip(), family.own);
                let ends = Ends {
                    protocol: Protocol::Udp,
                    source: source.ip().into(),
                    source_port: source.port(),
                    destination: target.ip().into(),
                    destination_port: target.port(),
                };
                let entry = noted.of_port(ends.destination.family(), source.port());
                let expected = address.map(|address| Address::from(address).mapped_octets());
                assert_eq!(entry.bound(), expected);
                let slot = FIRST_SLOT + 1;
                let taken = Taken {
                    slot,
                    redirected: false,
                };
                assert_eq!(entry.taken(&ends), Some(taken));
            }
        }
    });
}

/// What another program brings to the loopback device is its own: another instance's flows, for example.
#[test]
fn flows_that_others_bring_here_are_theirs() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (relay, _) = of_worker(&workers);
        for family in ["-4", "-6"] {
            ip(&format!("{family} rule add iif lo fwmark 1 lookup 100"));
            ip(&format!(
                "{family} route add local default dev lo table 100"
            ));
        }
        let forwarded = rule(|spec| spec.proto = Some("any".into()));
        for rules in [vec![forwarded.clone()], vec![forwarded, local(|_| ())]] {
            setting.sandbox.install(&rules);
            for family in families() {
                let target = at(family, RELAYED);
                let theirs = listen(SocketAddr::from(([0_u16; 8], RELAYED)));
                let socket = Socket::new(Domain::for_address(target), Type::STREAM, None);
                let socket = socket.expect("a socket");
                socket.set_mark(1).expect("an option");
                let own = SocketAddr::new(family.own, 0);
                socket.bind(&own.into()).expect("an address");
                socket.connect(&target.into()).expect("a connection");
                assert_eq!(accept(&theirs).1, target);
                let socket = Socket::new(Domain::for_address(target), Type::DGRAM, None);
                let socket = socket.expect("a socket");
                socket.set_mark(1).expect("an option");
                let own = SocketAddr::new(family.own, 0);
                socket.bind(&own.into()).expect("an address");
                let theirs = datagrams_at(SocketAddr::from(([0_u16; 8], RELAYED)));
                socket
                    .send_to(b"question", &target.into())
                    .expect("a datagram");
                assert_eq!(receive(&theirs).0, b"question");
            }
        }
        assert!(is_idle(&relay));
    });
}

/// A connected socket that names another destination with a datagram goes by what that destination says;
/// but what is let go of one that is marked already comes here all the same, and is the agent's to pass on.
#[test]
fn a_connected_socket_may_send_elsewhere() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (_, relay) = of_worker(&workers);
        for family in families() {
            for connected in [RELAYED, PASSED] {
                let client = UdpSocket::bind(any(at(family, 0))).expect("a socket");
                client.connect(at(family, connected)).expect("a way");
                let let_go = |port| match connected {
                    RELAYED => &relay,
                    _ => setting.udp(port),
                };
                for (port, socket) in [
                    (OPEN, &relay),
                    (PASSED, let_go(PASSED)),
                    (UNNAMED, let_go(UNNAMED)),
                ] {
                    let target = at(family, port);
                    client.send_to(b"question", target).expect("a datagram");
                    assert_eq!(receive(socket).0, b"question", "{connected} {port}");
                }
                let send = |port| client.send_to(b"question", at(family, port));
                assert_errno(send(REJECTED), Errno::ECONNREFUSED);
                assert_errno(send(DROPPED), Errno::EPERM);
            }
        }
    });
}

/// Multipath TCP is TCP to a rule.
#[test]
fn multipath_connections_go_where_their_rules_say() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (relay, _) = of_worker(&workers);
        for family in families() {
            let socket = |port| {
                let domain = Domain::for_address(at(family, port));
                let protocol = socket2::Protocol::MPTCP;
                Socket::new(domain, Type::STREAM, Some(protocol)).expect("a socket")
            };
            let connecting = socket(RELAYED);
            let target = at(family, RELAYED);
            connecting.connect(&target.into()).expect("a connection");
            assert_eq!(accept(&relay).1, target);
            let refused = socket(REJECTED).connect(&at(family, REJECTED).into());
            assert_errno(refused, Errno::ECONNREFUSED);
        }
    });
}

/// Data with the SYN (RFC 7413), whichever way a process asks for it.
#[test]
fn fast_open_connections_go_where_their_rules_say() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (relay, _) = of_worker(&workers);
        for family in families() {
            for deferred in [false, true] {
                let open = |port: u16| {
                    let target = at(family, port);
                    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None);
                    let socket = socket.expect("a socket");
                    if deferred {
                        set_fast_open_connect(&socket);
                        socket.connect(&target.into())?;
                        socket.send(b"?")?;
                    } else {
                        let flags = libc::MSG_FASTOPEN;
                        socket.send_to_with_flags(b"?", &target.into(), flags)?;
                    }
                    Ok(socket)
                };
                for (port, listener) in [(RELAYED, &relay), (PASSED, setting.tcp(PASSED))] {
                    let _client = open(port).expect("a connection");
                    let (mut accepted, destination, _) = accept(listener);
                    assert_eq!(destination, at(family, port), "{deferred}");
                    accepted.read_exact(&mut [0]).expect("a connection");
                }
                assert_errno(open(REJECTED), Errno::ECONNREFUSED);
            }
        }
    });
}

/// `TCP_FASTOPEN_CONNECT` (tcp(7)).
fn set_fast_open_connect(socket: &Socket) {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN_CONNECT,
            (&raw const on).cast(),
            4,
        )
    };
    assert_eq!(result, 0, "TCP_FASTOPEN_CONNECT");
}

/// Two sockets may have one port, of different families: each has its own way after the other's.
#[test]
fn sockets_of_both_families_may_have_one_port() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (_, relay) = of_worker(&workers);
        let redirected = datagrams_at("[::]:0".parse().unwrap());
        setting.redirect_to(&listen("[::]:0".parse().unwrap()), &redirected);
        let [v4, v6] = families();
        let of_v4 = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        of_v4.connect(at(v4, RELAYED)).expect("a way");
        let port = of_v4.local_addr().expect("an address").port();
        let of_v6 = Socket::new(Domain::IPV6, Type::DGRAM, None).expect("a socket");
        of_v6.set_only_v6(true).expect("an option");
        let any_v6 = SocketAddr::from(([0_u16; 8], port));
        of_v6.bind(&any_v6.into()).expect("the same port");
        of_v6.connect(&at(v6, REDIRECTED).into()).expect("a way");
        for _ in 0..2 {
            of_v4.send(b"first").expect("a datagram");
            assert_eq!(receive(&relay).0, b"first");
            of_v6.send(b"second").expect("a datagram");
            assert_eq!(receive(&redirected).0, b"second");
        }
    });
}
