//! The filter of flows: segments of flows that no socket can have cost no lookup, and no flow that
//! a socket has is ever taken for one of them.

use std::{
    io::Read as _,
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use nix::errno::Errno;
use tproxy_common::{flow::Protocol, flow_filter::GRACE, handover::Ends, outcome::Outcome};
use tproxy_tests::wait::uninterrupted;
use tproxy_user::{
    agent::turn,
    delivery::for_each_flow,
    kernel::{FlowFilter, attach_lookup},
};

use crate::{
    established::{beside, defer_accept, for_each_family, segment, wait_for_time_wait},
    frame::{ACK, FIN, Frame, RST, SYN},
    sandbox::{Sandbox, bound, connection, in_sandbox, make_local, rule},
};

fn filter(sandbox: &Sandbox) -> FlowFilter {
    FlowFilter::open(&sandbox.maps).expect("the filter of flows")
}

/// Turns the epoch until no stamp from before counts.
fn fill(filter: &FlowFilter) {
    for _ in 0..=GRACE {
        turn(filter).expect("the sockets are listed");
    }
}

/// The ends of a flow as the packets from `source` show them.
fn ends(source: SocketAddr, destination: SocketAddr) -> Ends {
    Ends {
        protocol: Protocol::Tcp,
        source: source.ip().into(),
        source_port: source.port(),
        destination: destination.ip().into(),
        destination_port: destination.port(),
    }
}

/// The flows of all sockets of this namespace.
fn listed() -> Vec<Ends> {
    let mut flows = Vec::new();
    for_each_flow(|ends| flows.push(*ends)).expect("the sockets are listed");
    flows
}

#[test]
fn a_segment_of_another_flow_costs_no_lookup() {
    for_each_family(|sandbox, client, server| {
        attach_lookup(sandbox.directory).expect("the program is attached");
        let filter = filter(sandbox);
        let lookups = |flags| {
            let before = sandbox.occurred(Outcome::Probe);
            assert_eq!(segment(sandbox, client, server, flags), Outcome::Foreign);
            sandbox.occurred(Outcome::Probe) - before
        };
        // Until the filter knows all sockets, every flow may have one.
        for _ in 0..=GRACE {
            assert_eq!(lookups(ACK), 1);
            turn(&filter).expect("the sockets are listed");
        }
        for flags in [ACK, FIN | ACK, FIN, 0] {
            assert_eq!(lookups(flags), 0, "{flags:#04x}");
        }
        // What may answer a SYN of this host is looked up whatever the filter says.
        for flags in [SYN | ACK, RST, RST | ACK] {
            assert_eq!(lookups(flags), 1, "{flags:#04x}");
        }
        assert_eq!(lookups(ACK), 0);
    });
}

#[test]
fn a_connection_is_found_in_every_epoch() {
    for_each_family(|sandbox, client, server| {
        let filter = filter(sandbox);
        let _open = connection(client, server);
        // The epoch comes around within these.
        for _ in 0..300 {
            turn(&filter).expect("the sockets are listed");
        }
        for (from, to) in [(client, server), (server, client)] {
            assert_eq!(segment(sandbox, from, to, ACK), Outcome::Established);
        }
        assert_eq!(
            segment(sandbox, beside(client), server, ACK),
            Outcome::Foreign
        );
    });
}

/// Its socket has v4-mapped addresses, its packets have not.
#[test]
fn a_connection_of_a_dual_stack_socket_is_found_in_every_epoch() {
    in_sandbox(|sandbox| {
        let (client, server) = ("198.51.100.2:40000", "198.51.100.9:443");
        let (client, server): (SocketAddr, SocketAddr) =
            (client.parse().unwrap(), server.parse().unwrap());
        make_local(client.ip());
        make_local(server.ip());
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 443)).expect("a listener");
        let connecting = bound(client);
        connecting.connect(&server.into()).expect("a connection");
        // A request of the listener's first, then a socket.
        for accepted in [None, listener.accept().ok()] {
            fill(&filter(sandbox));
            assert_eq!(segment(sandbox, client, server, ACK), Outcome::Established);
            drop(accepted);
        }
    });
}

/// A list of sockets may miss one that shares its hash chain with another that ends.
#[test]
fn a_connection_that_a_list_missed_is_found() {
    for_each_family(|sandbox, client, server| {
        let filter = filter(sandbox);
        let _open = connection(client, server);
        let found = || segment(sandbox, client, server, ACK);
        fill(&filter);
        for _ in 1..GRACE {
            filter.turn();
        }
        assert_eq!(found(), Outcome::Established);
        // Having been found is as good as having been listed.
        for _ in 0..10 {
            for _ in 0..GRACE {
                filter.turn();
            }
            assert_eq!(found(), Outcome::Established);
        }
        // Only one that was missed again and again is lost, until it is listed.
        for _ in 0..=GRACE {
            filter.turn();
        }
        assert_eq!(found(), Outcome::Foreign);
        turn(&filter).expect("the sockets are listed");
        assert_eq!(found(), Outcome::Established);
    });
}

#[test]
fn a_flow_that_was_taken_is_looked_up_before_it_has_a_socket() {
    for_each_family(|sandbox, client, server| {
        attach_lookup(sandbox.directory).expect("the program is attached");
        let _listeners = sandbox.start_workers(1);
        sandbox.install(&[rule(|_| ())]);
        let filter = filter(sandbox);
        fill(&filter);
        let lookups = |outcome| {
            let before = sandbox.occurred(Outcome::Probe);
            assert_eq!(segment(sandbox, client, server, ACK), outcome);
            sandbox.occurred(Outcome::Probe) - before
        };
        assert_eq!(lookups(Outcome::Foreign), 0);
        assert_eq!(segment(sandbox, client, server, SYN), Outcome::Taken);
        for _ in 0..=GRACE {
            assert_eq!(lookups(Outcome::Orphaned), 1);
            filter.turn();
        }
        // The server must not see it, however late it comes.
        assert_eq!(lookups(Outcome::Orphaned), 0);
    });
}

/// A connection of this host's own is found by the answer to its SYN, before any list has it.
#[test]
fn a_connection_that_begins_here_is_found_by_its_answer() {
    for_each_family(|sandbox, client, server| {
        let filter = filter(sandbox);
        fill(&filter);
        // Nobody answers: nothing leads to this address but the route that makes it local.
        let connecting = bound(client);
        connecting.set_nonblocking(true).expect("an option");
        crate::sandbox::ip(&format!("route del local {} dev lo", server.ip()));
        crate::sandbox::ip(&format!("route add {} dev lo", server.ip()));
        let error = connecting.connect(&server.into()).expect_err("no answer");
        assert_eq!(error.raw_os_error(), Some(Errno::EINPROGRESS as i32));
        assert_eq!(segment(sandbox, server, client, ACK), Outcome::Foreign);
        assert_eq!(
            segment(sandbox, server, client, SYN | ACK),
            Outcome::Established
        );
        assert_eq!(segment(sandbox, server, client, ACK), Outcome::Established);
    });
}

/// Answers to a connected UDP socket are found as long as it is there, however long none has come.
#[test]
fn a_connected_udp_socket_is_found_in_every_epoch() {
    for_each_family(|sandbox, client, server| {
        let filter = filter(sandbox);
        fill(&filter);
        let answer = |port: u16| {
            let to = SocketAddr::new(client.ip(), port);
            sandbox.outcome(&Frame::udp(&server.to_string(), &to.to_string()))
        };
        let socket = UdpSocket::bind(client).expect("a free address");
        assert_eq!(answer(client.port()), Outcome::Dropped);
        assert_eq!(listed(), []);
        socket.connect(server).expect("a route");
        let found = Ends {
            protocol: Protocol::Udp,
            ..ends(server, client)
        };
        assert_eq!(listed(), [found]);
        // Nobody knows of the new flow yet but who has opened it.
        assert_eq!(answer(client.port()), Outcome::Dropped);
        filter.stamp(&found);
        assert_eq!(answer(client.port()), Outcome::EstablishedUdp);
        assert_eq!(answer(client.port() ^ 1), Outcome::Dropped);
        for _ in 0..10 {
            fill(&filter);
            assert_eq!(answer(client.port()), Outcome::EstablishedUdp);
        }
        drop(socket);
        assert_eq!(answer(client.port()), Outcome::Dropped);
    });
}

#[test]
fn what_is_left_of_a_connection_is_found_in_every_epoch() {
    for_each_family(|sandbox, client, server| {
        let (mut at_client, at_server) = connection(client, server);
        drop(at_server);
        assert_eq!(
            uninterrupted(|| at_client.read(&mut [0; 1])).expect("a FIN"),
            0
        );
        drop(at_client);
        wait_for_time_wait(server, client);
        fill(&filter(sandbox));
        assert_eq!(segment(sandbox, client, server, ACK), Outcome::Established);
        assert_eq!(segment(sandbox, server, client, ACK), Outcome::Foreign);
    });
}

#[test]
fn a_handshake_is_found_in_every_epoch() {
    for_each_family(|sandbox, client, server| {
        let listener = TcpListener::bind(server).expect("a listener");
        defer_accept(&listener);
        let connecting = bound(client);
        connecting.connect(&server.into()).expect("a connection");
        fill(&filter(sandbox));
        assert_eq!(segment(sandbox, client, server, ACK), Outcome::Established);
    });
}

/// More flows than slots: nothing is foreign without a lookup, and everything is as without filter.
#[test]
fn a_filter_that_is_full_only_costs_lookups() {
    in_sandbox(|sandbox| {
        attach_lookup(sandbox.directory).expect("the program is attached");
        let (client, server) = ("10.1.0.2:40000", "192.0.2.9:443");
        let (client, server): (SocketAddr, SocketAddr) =
            (client.parse().unwrap(), server.parse().unwrap());
        let filter = filter(sandbox);
        fill(&filter);
        for host in 0..256_u16 {
            let of_host = SocketAddr::new([10, 2, 0, host.to_be_bytes()[1]].into(), 0);
            for port in 0..=u16::MAX {
                filter.stamp(&ends(SocketAddr::new(of_host.ip(), port), server));
            }
        }
        for port in 0..100 {
            let client = SocketAddr::new(client.ip(), port);
            assert_eq!(segment(sandbox, client, server, ACK), Outcome::Foreign);
        }
        assert_eq!(sandbox.occurred(Outcome::Probe), 100);
    });
}

#[test]
fn all_flows_are_listed_as_their_peers_show_them() {
    for_each_family(|_, client, server| {
        assert_eq!(listed(), []);
        let _listener = TcpListener::bind(beside(server)).expect("a listener");
        assert_eq!(listed(), []);
        let (at_client, at_server) = connection(client, server);
        let mut both = [ends(client, server), ends(server, client)];
        let mut flows = listed();
        let order = |ends: &Ends| (ends.source, ends.source_port);
        both.sort_by_key(order);
        flows.sort_by_key(order);
        assert_eq!(flows, both);
        drop::<(TcpStream, TcpStream)>((at_client, at_server));
    });
}
