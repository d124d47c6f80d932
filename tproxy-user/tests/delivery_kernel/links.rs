//! Listing and watching interfaces.

use std::{fmt::Write as _, future::poll_fn, task::Poll, time::Duration};

use tproxy_user::delivery::{
    Framing, Link, LinkEvent, LinkWatch, controllers, link_by_name, list_links,
};

use crate::namespace::{in_namespace, ip, ip_batch, lost_notifications};

async fn next(watch: &mut LinkWatch) -> LinkEvent {
    let event = tokio::time::timeout(Duration::from_secs(1), watch.next()).await;
    event.expect("an event within a second").unwrap()
}

#[test]
fn interfaces_are_listed_with_what_their_packets_begin_with() {
    in_namespace(|netlink| async move {
        ip("link add v0 type veth peer name v1");
        ip("link set v0 up");
        ip("tuntap add mode tun name tun0");
        ip("tuntap add mode tap name tap0");
        ip("link property add dev v0 altname veth-zero");
        let links = list_links(&netlink).await.unwrap();
        let shown = |name: &str| {
            let link = links.iter().find(|link| link.name == name).unwrap();
            (link.framing, link.up)
        };
        assert_eq!(links.len(), 5);
        assert_eq!(shown("lo"), (Framing::Ethernet, true));
        assert_eq!(shown("v0"), (Framing::Ethernet, true));
        assert_eq!(shown("v1"), (Framing::Ethernet, false));
        assert_eq!(shown("tun0"), (Framing::Ip, false));
        assert_eq!(shown("tap0"), (Framing::Ethernet, false));

        let v0 = link_by_name(&netlink, "v0").await.unwrap();
        assert_eq!(links.iter().find(|link| link.name == "v0"), Some(&v0));
        for name in ["v2", "", "veth-zero"] {
            let error = link_by_name(&netlink, name).await.unwrap_err();
            let words = format!("no such interface: {name}; `ip link` lists them");
            assert_eq!(error.to_string(), words);
        }
    });
}

/// A connection has one dump at a time. One that nobody waits for any more is in no other's way.
#[test]
fn a_list_that_is_given_up_does_not_spoil_the_next() {
    const PAIRS: usize = 100;
    in_namespace(|netlink| async move {
        // More than the kernel tells with one answer.
        let mut commands = String::new();
        for index in 0..PAIRS {
            writeln!(commands, "link add v{index} type veth peer name w{index}").unwrap();
        }
        ip_batch(&commands);
        for _ in 0..20 {
            // It is asked for, and given up before there is an answer.
            let mut given_up = Box::pin(list_links(&netlink));
            let asked = poll_fn(|context| Poll::Ready(given_up.as_mut().poll(context)));
            assert!(asked.await.is_pending());
            drop(given_up);
            let links = list_links(&netlink).await.unwrap();
            assert_eq!(links.len(), 2 * PAIRS + 1);
        }
    });
}

#[test]
fn each_thing_that_happens_to_an_interface_is_told_once() {
    in_namespace(|netlink| async move {
        let mut watch = LinkWatch::open(&netlink).await.unwrap();
        assert_eq!(
            watch
                .links()
                .map(|link| link.name.as_str())
                .collect::<Vec<_>>(),
            ["lo"]
        );

        ip("tuntap add mode tun name t0");
        let LinkEvent::Added(added) = next(&mut watch).await else {
            panic!("not added")
        };
        assert_eq!(
            (added.name.as_str(), added.framing, added.up),
            ("t0", Framing::Ip, false)
        );
        let up = Link {
            up: true,
            ..added.clone()
        };
        ip("link set t0 up");
        assert_eq!(next(&mut watch).await, LinkEvent::Up(up.clone()));
        // Of no interest.
        ip("link set t0 mtu 1400");
        ip("link set t0 down");
        assert_eq!(next(&mut watch).await, LinkEvent::Down(added.clone()));
        let renamed = Link {
            name: "t1".into(),
            ..added.clone()
        };
        ip("link set t0 name t1");
        let event = LinkEvent::Renamed {
            from: "t0".into(),
            link: renamed.clone(),
        };
        assert_eq!(next(&mut watch).await, event);
        assert_eq!(watch.links().last(), Some(&renamed));
        ip("link del t1");
        assert_eq!(next(&mut watch).await, LinkEvent::Removed(renamed.clone()));

        ip("tuntap add mode tun name t1");
        let LinkEvent::Added(again) = next(&mut watch).await else {
            panic!("not added")
        };
        assert_eq!(again.name, "t1");
        assert_ne!(again.index, renamed.index);
    });
}

#[test]
fn each_bridge_that_an_interface_becomes_a_port_of_is_told_once() {
    in_namespace(|netlink| async move {
        ip("link add br0 type bridge");
        ip("link add br1 type bridge");
        ip("link add v0 type veth peer name v1");
        let mut watch = LinkWatch::open(&netlink).await.unwrap();
        for bridge in ["br0", "br1", "br0"] {
            ip(&format!("link set v0 master {bridge}"));
            ip("link set v0 mtu 1400");
            ip("link set v0 mtu 1500");
            let LinkEvent::BecamePort(link) = next(&mut watch).await else {
                panic!("not told of {bridge}")
            };
            let controller = link_by_name(&netlink, bridge).await.unwrap().index;
            assert_eq!(
                (link.name.as_str(), link.controller),
                ("v0", Some(controller))
            );
            let controllers = controllers(&netlink).await.unwrap();
            assert_eq!(controllers, [(link.index, bridge.to_owned())].into());
            ip("link set v0 nomaster");
        }
        ip("link set v0 up");
        let event = next(&mut watch).await;
        assert!(matches!(event, LinkEvent::Up(_)), "{event:?}");
    });
}

#[test]
fn a_bridge_port_that_is_released_is_not_gone() {
    in_namespace(|netlink| async move {
        ip("link add br0 type bridge");
        ip("link add v0 type veth peer name v1");
        ip("link set v0 master br0");
        let mut watch = LinkWatch::open(&netlink).await.unwrap();
        ip("link set v0 nomaster");
        ip("tuntap add mode tun name t0");
        let event = next(&mut watch).await;
        assert!(
            matches!(&event, LinkEvent::Added(link) if link.name == "t0"),
            "{event:?}"
        );
    });
}

#[test]
fn interfaces_are_listed_again_when_events_were_lost() {
    in_namespace(|netlink| async move {
        ip("link add v0 type veth peer name v1");
        ip("link add w0 type veth peer name w1");
        let mut watch = LinkWatch::open(&netlink).await.unwrap();
        // While this thread waits for `ip`, nobody reads the netlink socket.
        let mut batch = String::new();
        for mtu in 1000..2000 {
            writeln!(batch, "link set w0 mtu {mtu}").unwrap();
        }
        batch.push_str("link del v0\nlink set w0 name x0\nlink set w1 up\n");
        ip_batch(&batch);
        assert_ne!(lost_notifications(), 0, "the test has to fill the socket");

        let mut events = Vec::new();
        for _ in 0..4 {
            events.push(match next(&mut watch).await {
                LinkEvent::Removed(link) => format!("- {}", link.name),
                LinkEvent::Renamed { from, link } => format!("{from} > {}", link.name),
                LinkEvent::Up(link) => format!("up {}", link.name),
                other => panic!("{other:?}"),
            });
        }
        events.sort();
        assert_eq!(events, ["- v0", "- v1", "up w1", "w0 > x0"]);
    });
}
