//! Delivery of the flows of this host's own processes.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use tproxy_tests::wait::uninterrupted;
use tproxy_user::delivery::{
    Assignment, Delivery, Flows, LocalAddresses, Netlink, PRIORITY, Wanted, Watch, choose,
    local_addresses, remove_leftovers,
};

use crate::{
    log_capture,
    namespace::{everything, in_namespace, ip, ip_batch, routes_in, rules_to, within},
};

const OURS: Assignment = Assignment {
    mark: 0x7470_0000,
    table: 7470,
};

/// The flows of this host, and none that arrive.
const LOCAL: Flows<'static, &'static str> = Flows {
    interfaces: &[],
    local: true,
};

/// Long after the 20 ms that are waited for changes to be over, also on a machine that is busy.
const SOON: Duration = Duration::from_secs(5);

/// Two interfaces, each with two addresses of IPv4 and one of IPv6, and no default route.
fn two_interfaces() {
    for (name, number) in [("a", 1), ("b", 2)] {
        ip(&format!("link add {name}0 type veth peer name {name}1"));
        ip(&format!("link set {name}1 up"));
        ip(&format!("addr add 10.{number}.0.1/24 dev {name}0"));
        ip(&format!("addr add 10.{number}.0.9/24 dev {name}0"));
        ip(&format!("addr add 192.168.{number}.1/24 dev {name}0"));
        ip(&format!(
            "addr add 2001:db8:{number}::1/64 dev {name}0 nodad"
        ));
        ip(&format!("link set {name}0 up"));
    }
}

async fn watched(netlink: Netlink) -> (Delivery, Watch) {
    let delivery = Delivery::new(netlink, OURS);
    let watch = delivery.watch().unwrap();
    delivery.apply(&LOCAL).await.unwrap();
    (delivery, watch)
}

/// The source that a UDP socket gets which connects to this address, with or without our mark.
fn source(destination: &str, mark: Option<u32>) -> io::Result<IpAddr> {
    let destination: IpAddr = destination.parse().unwrap();
    let destination = SocketAddr::new(destination, 53);
    let socket = Socket::new(Domain::for_address(destination), Type::DGRAM, None)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.connect(&destination.into())?;
    Ok(socket.local_addr()?.as_socket().unwrap().ip())
}

/// Whether a marked socket gets the same source, or the same error, as one without a mark.
fn is_the_same(destination: &str) -> bool {
    let text = |source: io::Result<IpAddr>| match source {
        Ok(source) => source.to_string(),
        Err(error) => error.to_string(),
    };
    let [without, with] = [None, Some(OURS.mark)].map(|mark| text(source(destination, mark)));
    without == with
}

#[track_caller]
fn assert_source(destination: &str, expected: &str) {
    assert!(is_the_same(destination), "{destination}\n{}", everything());
    let source = source(destination, Some(OURS.mark)).unwrap();
    assert_eq!(source.to_string(), expected, "{destination}");
    assert!(is_delivered(destination, &source));
}

#[track_caller]
fn assert_unreachable(destination: &str) {
    for mark in [None, Some(OURS.mark)] {
        let error = source(destination, mark).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{mark:?}");
    }
}

/// Whether marked packets of a socket with this source come here.
fn is_delivered(destination: &str, source: &IpAddr) -> bool {
    let family = if source.is_ipv4() { "-4" } else { "-6" };
    let flow = format!(
        "{destination} from {source} mark {:#x} ipproto udp",
        OURS.mark
    );
    ip(&format!("{family} route get {flow}")).contains("dev lo")
}

#[test]
fn rules_and_routes_for_local_flows_come_and_go() {
    in_namespace(|netlink| async move {
        two_interfaces();
        let before = everything();
        let delivery = Delivery::new(netlink, OURS);
        let of_interfaces = Flows::forwarded(&["v0"]);
        delivery.apply(&of_interfaces).await.unwrap();
        let without = everything();
        let both = Flows {
            local: true,
            ..of_interfaces
        };
        delivery.apply(&both).await.unwrap();
        for (family, stand_in, rules) in [
            ("-4", "127.116.29.46", 3),
            ("-6", "fd74:7072:6f78:79::1d2e", 5),
        ] {
            let found = rules_to(family, OURS.table);
            assert_eq!(found.len(), rules, "{found:?}");
            for rule in &found {
                assert_eq!(rule["priority"], PRIORITY);
                assert_eq!(rule["protocol"], "kernel");
            }
            let local: Vec<_> = found.iter().filter(|rule| rule["iif"] == "lo").collect();
            assert_eq!(local.len(), rules - 1);
            assert!(local.iter().any(|rule| rule["fwmark"] == "0x74700000"));
            assert!(local.iter().any(|rule| rule["src"] == stand_in));
        }
        let routes = routes_in("-4", OURS.table);
        assert!(routes.iter().all(|route| route["protocol"] == "kernel"));
        let of = |prefix: &str| {
            let route = routes.iter().find(|route| route["dst"] == prefix);
            route.map(|route| route["prefsrc"].as_str().unwrap_or_default())
        };
        assert_eq!(of("default"), Some(""));
        assert_eq!(of("10.1.0.0/24"), Some("10.1.0.1"));
        assert_eq!(of("192.168.2.0/24"), Some("192.168.2.1"));
        assert_eq!(routes.len(), 5);
        let routes = routes_in("-6", OURS.table);
        assert!(routes.iter().all(|route| route["protocol"] == "kernel"));
        let of = |prefix: &str| {
            let route = routes.iter().find(|route| route["dst"] == prefix);
            route.map(|route| route["prefsrc"].as_str().unwrap_or_default())
        };
        assert_eq!(of("default"), Some(""));
        assert_eq!(of("2001:db8:2::/64"), Some("2001:db8:2::1"));
        assert_eq!(routes.len(), 3);

        let applied = everything();
        delivery.apply(&both).await.unwrap();
        assert_eq!(everything(), applied, "applying twice changes nothing");
        delivery.apply(&of_interfaces).await.unwrap();
        assert_eq!(everything(), without);
        delivery.apply(&LOCAL).await.unwrap();
        delivery.remove().await.unwrap();
        assert_eq!(everything(), before);
    });
}

#[test]
fn a_connected_socket_gets_the_source_that_it_would_have_had() {
    in_namespace(|netlink| async move {
        two_interfaces();
        // By a gateway, by a preferred source, by the lowest metric, by the first of two next hops.
        ip("route add 172.16.0.0/16 via 192.168.1.7");
        ip("route add 172.17.0.0/16 via 10.2.0.7");
        ip("route add 172.18.0.0/16 dev b0 src 10.2.0.9");
        ip("route add 172.19.0.0/16 via 10.1.0.7 metric 9");
        ip("route add 172.19.0.0/16 via 10.2.0.7 metric 5");
        ip("route add 172.20.0.0/16 nexthop via 10.2.0.7 nexthop via 10.2.0.8");
        ip("nexthop add id 7 via 192.168.2.7 dev b0");
        ip("route add 172.21.0.0/16 nhid 7");
        ip("route add 172.22.0.0/16 via 10.1.0.7 tos 0x10");
        // An interface without an address.
        ip("route add 172.23.0.0/16 dev b1");
        // The address of the other interface has more in common with this destination.
        ip("-6 route add 2001:db8:1:5::/64 via 2001:db8:2::7");
        ip("-6 route add 2001:db8:100::/48 via 2001:db8:1::7");
        ip("-6 route add 2001:db8:101::/48 via 2001:db8:1::7 table 100");
        ip("-6 rule add from all lookup 100 pref 1000");
        Delivery::new(netlink, OURS).apply(&LOCAL).await.unwrap();
        for (destination, expected) in [
            ("10.1.0.7", "10.1.0.1"),
            ("10.2.0.7", "10.2.0.1"),
            ("192.168.2.7", "192.168.2.1"),
            ("172.16.0.1", "192.168.1.1"),
            ("172.17.0.1", "10.2.0.1"),
            ("172.18.0.1", "10.2.0.9"),
            ("172.19.0.1", "10.2.0.1"),
            ("172.20.0.1", "10.2.0.1"),
            ("172.21.0.1", "192.168.2.1"),
            ("172.23.0.1", "10.1.0.1"),
            ("2001:db8:1::7", "2001:db8:1::1"),
            ("2001:db8:2::7", "2001:db8:2::1"),
            ("2001:db8:1:5::7", "2001:db8:2::1"),
            ("2001:db8:100::7", "2001:db8:1::1"),
            ("2001:db8:101::7", "2001:db8:1::1"),
        ] {
            assert_source(destination, expected);
        }
        for nowhere in ["198.51.100.1", "172.22.0.1", "2001:db9::1", "fd00::1"] {
            assert_unreachable(nowhere);
        }
        // What has a source already, as a TCP socket has when it is marked, comes here all the same.
        for (family, destination, source) in [
            ("-4", "198.51.100.1", "10.1.0.1"),
            ("-6", "2001:db9::1", "2001:db8:1::1"),
        ] {
            let flow = format!(
                "{destination} from {source} mark {:#x} ipproto tcp",
                OURS.mark
            );
            let route = ip(&format!("{family} route get {flow}"));
            assert!(route.contains("dev lo"), "{route}");
        }
    });
}

#[test]
fn a_default_route_gives_everything_a_source_wherever_it_is() {
    in_namespace(|netlink| async move {
        two_interfaces();
        ip("route add default via 10.2.0.7 table 100");
        let delivery = Delivery::new(netlink, OURS);
        delivery.apply(&LOCAL).await.unwrap();
        // Nobody looks that table up; but somebody might.
        let with_mark = source("198.51.100.1", Some(OURS.mark)).unwrap();
        assert_eq!(with_mark.to_string(), "10.2.0.1");
        ip("route add default via 10.1.0.7");
        delivery.apply(&LOCAL).await.unwrap();
        assert_source("198.51.100.1", "10.1.0.1");
        assert_source("1.1.1.1", "10.1.0.1");
        assert_source("10.2.0.7", "10.2.0.1");
        let routes = routes_in("-4", OURS.table);
        let same = routes.iter().filter(|route| route["dst"] == "10.1.0.0/24");
        assert_eq!(same.count(), 0, "the default route says that: {routes:?}");
        // As some VPN clients do.
        ip("route add 0.0.0.0/1 via 10.2.0.7");
        delivery.apply(&LOCAL).await.unwrap();
        assert_source("1.1.1.1", "10.2.0.1");
        assert_source("10.1.0.7", "10.1.0.1");
        assert_source("198.51.100.1", "10.1.0.1");
    });
}

#[test]
fn changes_of_routes_and_addresses_are_followed() {
    in_namespace(|netlink| async move {
        two_interfaces();
        let (delivery, _watch) = watched(netlink).await;
        assert_unreachable("198.51.100.1");
        let gives = |destination, expected: &str| {
            let source = source(destination, Some(OURS.mark));
            is_the_same(destination) && source.is_ok_and(|source| source.to_string() == expected)
        };
        for (change, destination, expected) in [
            ("route add default via 10.1.0.7", "198.51.100.1", "10.1.0.1"),
            (
                "route replace default via 10.2.0.7",
                "198.51.100.1",
                "10.2.0.1",
            ),
            (
                "route add 198.51.100.0/24 dev a0 src 10.1.0.9",
                "198.51.100.1",
                "10.1.0.9",
            ),
            // The kernel takes the route with its source.
            ("addr del 10.1.0.9/24 dev a0", "198.51.100.1", "10.2.0.1"),
            (
                "addr add 203.0.113.1/24 dev b0",
                "203.0.113.7",
                "203.0.113.1",
            ),
            (
                "-6 route add default via 2001:db8:2::7",
                "2001:db8:1:5::7",
                "2001:db8:2::1",
            ),
            (
                "-6 route add 2001:db8:100::/48 dev b0 src 2001:db8:1::1",
                "2001:db8:100::7",
                "2001:db8:1::1",
            ),
            (
                "-6 addr del 2001:db8:1::1/64 dev a0",
                "2001:db8:100::7",
                "2001:db8:2::1",
            ),
            ("link set a0 down", "10.1.0.7", "10.2.0.1"),
            ("link set a0 up", "10.1.0.7", "10.1.0.1"),
            ("link del a0", "10.1.0.7", "10.2.0.1"),
        ] {
            ip(change);
            within(SOON, change, || gives(destination, expected)).await;
        }
        for (family, nowhere) in [("-4", "198.51.100.1"), ("-6", "2001:db9::1")] {
            assert!(is_the_same(nowhere));
            source(nowhere, None).unwrap();
            ip(&format!("{family} route del default"));
            within(SOON, "no default route", || {
                source(nowhere, Some(OURS.mark)).is_err()
            })
            .await;
            assert_unreachable(nowhere);
        }
        assert!(
            log_capture::lines()
                .iter()
                .all(|line| line.starts_with("DEBUG"))
        );

        delivery.apply(&Flows::forwarded(&["b0"])).await.unwrap();
        ip("route add default via 10.2.0.7");
        let nothing =
            tokio::time::timeout(Duration::from_millis(200), std::future::pending::<()>());
        nothing.await.unwrap_err();
        assert_eq!(routes_in("-4", OURS.table).len(), 1, "nobody asks for them");
    });
}

#[test]
fn a_default_route_of_ipv6_gives_everything_a_source() {
    in_namespace(|netlink| async move {
        two_interfaces();
        ip("addr add fd00:2::1/64 dev b0 nodad");
        ip("-6 route add default via 2001:db8:2::7");
        Delivery::new(netlink, OURS).apply(&LOCAL).await.unwrap();
        assert_source("2001:db9::1", "2001:db8:2::1");
        assert_source("2001:db8:1:5::7", "2001:db8:2::1");
        assert_source("2001:db8:1::7", "2001:db8:1::1");
        // A private destination has a private source.
        assert_source("fd00:9::1", "fd00:2::1");
    });
}

#[test]
fn a_host_without_ipv6_addresses_does_not_reach_ipv6_destinations() {
    in_namespace(|netlink| async move {
        ip("link add v0 type veth peer name v1");
        ip("link set v0 up");
        ip("link set v1 up");
        ip("addr add 10.1.0.1/24 dev v0");
        ip("route add default via 10.1.0.7");
        Delivery::new(netlink, OURS).apply(&LOCAL).await.unwrap();
        assert_unreachable("2001:db8::1");
        assert_source("198.51.100.1", "10.1.0.1");
    });
}

#[test]
fn packets_that_arrive_on_lo_are_delivered_beside_local_flows() {
    in_namespace(|netlink| async move {
        let before = everything();
        let delivery = Delivery::new(netlink, OURS);
        let both = Flows {
            interfaces: &["lo"],
            local: true,
        };
        for flows in [&LOCAL, &both, &Flows::forwarded(&["lo"]), &LOCAL] {
            delivery.apply(flows).await.unwrap();
            let of_v6 = rules_to("-6", OURS.table);
            let marked: Vec<_> = of_v6
                .iter()
                .filter(|rule| !rule["fwmark"].is_null())
                .collect();
            let expected = if flows.interfaces.is_empty() { 2 } else { 1 };
            assert_eq!(marked.len(), expected, "{of_v6:?}");
        }
        delivery.remove().await.unwrap();
        assert_eq!(everything(), before);
    });
}

#[test]
fn what_is_removed_is_restored() {
    in_namespace(|netlink| async move {
        two_interfaces();
        let (_delivery, _watch) = watched(netlink).await;
        let applied = everything();
        for removal in [
            "rule del fwmark 0x74700000/0x74700000 iif lo lookup 7470",
            "-6 rule del fwmark 0x74700000/0x74700000 iif lo ipproto tcp lookup 7470",
            "-6 rule del fwmark 0x74700000/0x74700000 iif lo ipproto udp lookup 7470",
            "rule del from 127.116.29.46 iif lo lookup 7470",
            "-6 rule del from fd74:7072:6f78:79::1d2e iif lo lookup 7470",
            "-6 rule del to fd74:7072:6f78:79::1d2e iif lo lookup 7470",
            "route del local 10.1.0.0/24 dev lo table 7470",
            "-6 route del local 2001:db8:1::/64 dev lo table 7470",
            "route del local default dev lo table 7470",
            "-6 route del local default dev lo table 7470",
            "link set lo down",
        ] {
            let rules = |text: &str| {
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                lines.sort();
                lines
            };
            ip(removal);
            assert_ne!(rules(&everything()), rules(&applied), "{removal}");
            within(SOON, removal, || rules(&everything()) == rules(&applied)).await;
        }
    });
}

#[test]
fn a_datagram_from_a_stand_in_is_delivered_and_answered() {
    in_namespace(|netlink| async move {
        two_interfaces();
        Delivery::new(netlink, OURS).apply(&LOCAL).await.unwrap();
        for (destination, stand_in) in [
            ("198.51.100.1", IpAddr::from(OURS.stand_in_v4())),
            ("2001:db8:9::1", IpAddr::from(OURS.stand_in_v6())),
        ] {
            let destination: SocketAddr = (destination.parse::<IpAddr>().unwrap(), 53).into();
            let relay = transparent_socket(destination);
            // Stands for an unbound socket whose source the sendmsg hook sets.
            let sender = transparent_socket((stand_in, 0).into());
            let port = sender.local_addr().unwrap().as_socket().unwrap().port();
            sender.send_to(b"question", &destination.into()).unwrap();
            assert_eq!(
                receive(&relay),
                ("question".into(), (stand_in, port).into())
            );
            drop(sender);

            let any: IpAddr = if stand_in.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                std::net::Ipv6Addr::UNSPECIFIED.into()
            };
            let application = transparent_socket((any, port).into());
            relay
                .send_to(b"answer", &SocketAddr::new(stand_in, port).into())
                .unwrap();
            assert_eq!(receive(&application), ("answer".into(), destination));
        }
    });
}

fn transparent_socket(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None).unwrap();
    // It counts for both families.
    socket.set_ip_transparent_v4(true).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

fn receive(socket: &Socket) -> (String, SocketAddr) {
    let socket: std::net::UdpSocket = socket.try_clone().unwrap().into();
    let mut buffer = [0; 64];
    let (length, from) = uninterrupted(|| socket.recv_from(&mut buffer)).expect("a datagram");
    let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
    (text, from)
}

#[test]
fn several_instances_serve_local_flows_side_by_side() {
    in_namespace(|netlink| async move {
        two_interfaces();
        ip("route add default via 10.1.0.7");
        let local_before = local_addresses(&netlink, 0).await.unwrap();
        let before = everything();
        let mut instances = Vec::new();
        for _ in 0..3 {
            let assignment = choose(&netlink, Wanted::default()).await.unwrap();
            let delivery = Delivery::new(netlink.clone(), assignment);
            delivery.apply(&LOCAL).await.unwrap();
            instances.push(delivery);
        }
        for instance in &instances {
            let Assignment { mark, table } = instance.assignment();
            let found = source("198.51.100.1", Some(mark)).unwrap();
            assert_eq!(found.to_string(), "10.1.0.1");
            // The routes of the others do not make this host's own what it only has routes to.
            let mut addresses = LocalAddresses::open(&netlink, table).await.unwrap();
            assert_eq!(addresses.prefixes(), local_before);
            let again = instances[0].apply(&LOCAL);
            again.await.unwrap();
            let none = tokio::time::timeout(Duration::from_millis(100), addresses.changed()).await;
            assert!(none.is_err(), "{none:?}");
        }
        // Of the tables whose stand-ins of IPv4 are the same only one can be had.
        let wanted = Wanted {
            table: Some(OURS.table + 0x1_0000),
            ..Wanted::default()
        };
        assert_eq!(
            choose(&netlink, wanted).await.unwrap_err().to_string(),
            "table 73006 is taken: the policy rule \"74: from 127.116.29.46 iif lo lookup 7470\" is \
             for the source that goes with it; choose another with --table"
        );
        let first = instances.remove(0);
        first.remove().await.unwrap();
        assert_eq!(choose(&netlink, wanted).await.unwrap().table, 73006);
        for instance in instances {
            assert_eq!(rules_to("-6", instance.assignment().table).len(), 4);
            instance.remove().await.unwrap();
        }
        assert_eq!(everything(), before);
    });
}

#[test]
fn leftovers_are_removed_and_what_only_resembles_them_is_not() {
    in_namespace(|netlink| async move {
        two_interfaces();
        ip("rule add from 127.116.29.46 lookup 7470 protocol kernel pref 74");
        ip("rule add from 127.116.29.0/24 iif lo lookup 7470 protocol kernel pref 74");
        ip("rule add from 127.116.29.46 iif lo lookup 7471 protocol kernel pref 74");
        ip("rule add from 127.116.29.46 iif lo lookup 7470 pref 74");
        ip("-6 rule add to fd74:7072:6f78:79::1d2f iif lo lookup 7470 protocol kernel pref 74");
        ip("route add local 10.9.0.0/16 dev lo table 7470 proto kernel");
        ip("route add local 10.1.0.0/16 dev lo table 7470 proto static src 10.1.0.1");
        ip("route add 10.1.0.0/17 dev a0 table 7470 proto kernel src 10.1.0.1");
        ip("-6 route add local 2001:db8:9::/48 dev lo table 7470 proto static");
        ip("-6 route add local 2001:db8:9::/48 dev lo table 7470 proto kernel metric 5");
        let before = everything();
        let delivery = Delivery::new(netlink.clone(), OURS);
        delivery.apply(&LOCAL).await.unwrap();
        assert_ne!(everything(), before);
        let previous = Wanted {
            previous: Some(OURS),
            ..Wanted::default()
        };
        remove_leftovers(&netlink, OURS).await.unwrap();
        assert_eq!(everything(), before);
        // What is left is not ours, so that the table is another's.
        assert_ne!(choose(&netlink, previous).await.unwrap().table, OURS.table);
    });
}

#[test]
fn the_leftovers_of_a_dead_agent_are_taken_over() {
    in_namespace(|netlink| async move {
        two_interfaces();
        let delivery = Delivery::new(netlink.clone(), OURS);
        delivery.apply(&LOCAL).await.unwrap();
        let previous = Wanted {
            previous: Some(OURS),
            ..Wanted::default()
        };
        assert_eq!(choose(&netlink, previous).await.unwrap(), OURS);
        let chosen = choose(&netlink, Wanted::default()).await.unwrap();
        assert_ne!(chosen.table, OURS.table);
        assert_ne!(chosen.mark, OURS.mark);
    });
}

#[test]
fn a_failure_half_way_undoes_what_was_done_before_it() {
    in_namespace(|netlink| async move {
        two_interfaces();
        let delivery = Delivery::new(netlink, OURS);
        delivery.apply(&LOCAL).await.unwrap();
        // A source that has changed, which is written before the rule that fails.
        ip("route replace 10.1.0.0/24 dev b0 src 10.2.0.9");
        ip("-6 rule del to fd74:7072:6f78:79::1d2e iif lo lookup 7470");
        ip(
            "-6 rule add from 2001:db8::/32 to fd74:7072:6f78:79::1d2e iif lo lookup 7470 \
            protocol kernel pref 74",
        );
        let before = everything();
        let error = delivery.apply(&LOCAL).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot add the policy rule \"to fd74:7072:6f78:79::1d2e iif lo lookup 7470\" (IPv6): \
             the policy rule \"74: from 2001:db8::/32 to fd74:7072:6f78:79::1d2e iif lo lookup \
             7470\" is in its place"
        );
        assert_eq!(everything(), before);
    });
}

#[test]
fn more_sources_than_are_followed_are_warned_of_once() {
    in_namespace(|netlink| async move {
        use std::fmt::Write as _;
        two_interfaces();
        let mut batch = String::new();
        for number in 0..1500 {
            // Neighbours have different sources, so that none can be left out.
            let device = ["a0", "b0"][number % 2];
            writeln!(
                batch,
                "route add 172.{}.{}.0/24 dev {device}",
                number / 250,
                number % 250
            )
            .unwrap();
        }
        ip_batch(&batch);
        let delivery = Delivery::new(netlink, OURS);
        for _ in 0..2 {
            delivery.apply(&LOCAL).await.unwrap();
        }
        assert_eq!(routes_in("-4", OURS.table).len(), 1025);
        let lines = log_capture::lines();
        let warnings = lines.iter().filter(|line| line.starts_with("WARN"));
        assert_eq!(
            warnings.collect::<Vec<_>>(),
            [
                "WARN: this host has routes with 1504 different sources, of which the 1024 with the \
              shortest prefixes are followed: the others' connected UDP sockets get another source"
            ]
        );
        delivery.remove().await.unwrap();
        assert!(routes_in("-4", OURS.table).is_empty());
    });
}
