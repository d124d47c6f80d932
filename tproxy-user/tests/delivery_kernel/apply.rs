//! Adding and removing rules and routes.

use caps::{CapSet, Capability};
use tproxy_user::delivery::{Assignment, Delivery, Error, Flows, PRIORITY, remove_leftovers};

use crate::namespace::{everything, in_namespace, in_namespace_as_made, ip, routes_in, rules_to};

const OURS: Assignment = Assignment {
    mark: 0x7470_0000,
    table: 7470,
};

#[test]
fn apply_adds_rules_and_routes_of_both_families_and_remove_leaves_nothing() {
    in_namespace(|netlink| async move {
        ip("link add v0 type veth peer name v1");
        ip("addr add 10.1.0.1/24 dev v0");
        ip("rule add from 10.9.0.0/16 lookup 99");
        let before = everything();

        let delivery = Delivery::new(netlink, OURS);
        delivery
            .apply(&Flows::forwarded(&["v0", "v1"]))
            .await
            .unwrap();
        for family in ["-4", "-6"] {
            let rules = rules_to(family, OURS.table);
            assert_eq!(rules.len(), 2, "{rules:?}");
            for (rule, interface) in rules.iter().zip(["v0", "v1"]) {
                assert_eq!(rule["iif"], interface);
                assert_eq!(rule["fwmark"], "0x74700000");
                assert_eq!(rule["fwmask"], "0x74700000");
                assert_eq!(rule["priority"], PRIORITY);
                assert_eq!(rule["protocol"], "kernel");
            }
            let routes = routes_in(family, OURS.table);
            assert_eq!(routes.len(), 1, "{routes:?}");
            assert_eq!(routes[0]["type"], "local");
            assert_eq!(routes[0]["dst"], "default");
            assert_eq!(routes[0]["dev"], "lo");
            assert_eq!(routes[0]["protocol"], "kernel");
        }
        let applied = everything();
        delivery
            .apply(&Flows::forwarded(&["v0", "v1"]))
            .await
            .unwrap();
        assert_eq!(everything(), applied, "applying twice changes nothing");

        delivery.remove().await.unwrap();
        assert_eq!(everything(), before);
        delivery.remove().await.unwrap();
        assert_eq!(
            everything(),
            before,
            "removing what is not there changes nothing"
        );
    });
}

#[test]
fn marked_packets_of_the_interface_are_local_and_no_others() {
    in_namespace(|netlink| async move {
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{setting}"), "1").unwrap();
        }
        for (interface, number) in [("v0", 1), ("v1", 2)] {
            if number == 1 {
                ip("link add v0 type veth peer name v1");
            }
            ip(&format!("addr add 10.{number}.0.1/24 dev {interface}"));
            ip(&format!(
                "addr add fd00:{number}::1/64 dev {interface} nodad"
            ));
        }
        ip("link set v0 up");
        ip("link set v1 up");
        // Rules at the priorities of other programs, which would take every packet elsewhere.
        for family in ["-4", "-6"] {
            ip(&format!("{family} route add default dev v1 table 52"));
            for priority in [512, 1000, 5270, 32764] {
                ip(&format!("{family} rule add lookup 52 pref {priority}"));
            }
        }
        Delivery::new(netlink, OURS)
            .apply(&Flows::forwarded(&["v0"]))
            .await
            .unwrap();

        for (family, destination, from_v0, from_v1) in [
            ("-4", "198.51.100.1", "10.1.0.2", "10.2.0.2"),
            ("-6", "2001:db8::1", "fd00:1::2", "fd00:2::2"),
        ] {
            let routed = |source: &str, interface: &str, mark: &str| {
                let flow = format!("{destination} from {source} iif {interface} mark {mark}");
                ip(&format!("{family} route get {flow}"))
            };
            for mark in ["0x74700000", "0x74700001", "0xffffffff"] {
                let local = routed(from_v0, "v0", mark);
                assert!(
                    local.contains("dev lo") && local.contains("table 7470"),
                    "{local}"
                );
            }
            for (source, interface, mark) in [
                (from_v0, "v0", "0"),
                (from_v0, "v0", "0x74600000"),
                (from_v1, "v1", "0x74700000"),
            ] {
                let forwarded = routed(source, interface, mark);
                assert!(forwarded.contains("dev v1"), "{forwarded}");
                assert!(!forwarded.contains("table 7470"), "{forwarded}");
            }
        }
    });
}

#[test]
fn small_tables_are_written_and_recognised_like_large_ones() {
    in_namespace(|netlink| async move {
        let before = everything();
        let delivery = Delivery::new(netlink, Assignment { mark: 1, table: 74 });
        delivery.apply(&Flows::forwarded(&["eth7"])).await.unwrap();
        let applied = everything();
        assert_ne!(applied, before);
        delivery.apply(&Flows::forwarded(&["eth7"])).await.unwrap();
        assert_eq!(everything(), applied);
        delivery.remove().await.unwrap();
        assert_eq!(everything(), before);
    });
}

#[test]
fn apply_follows_the_set_of_interfaces() {
    in_namespace(|netlink| async move {
        let interfaces = |family| -> Vec<String> {
            let rules = rules_to(family, OURS.table);
            rules
                .iter()
                .map(|rule| rule["iif"].as_str().unwrap().to_owned())
                .collect()
        };
        let delivery = Delivery::new(netlink, OURS);
        delivery
            .apply(&Flows::forwarded(&["a0", "b0"]))
            .await
            .unwrap();
        delivery
            .apply(&Flows::forwarded(&["b0", "c0"]))
            .await
            .unwrap();
        for family in ["-4", "-6"] {
            assert_eq!(interfaces(family), ["b0", "c0"]);
        }
        delivery
            .apply(&Flows::<&str>::forwarded(&[]))
            .await
            .unwrap();
        assert!(interfaces("-4").is_empty());
        assert_eq!(routes_in("-4", OURS.table).len(), 1);
    });
}

#[test]
fn a_rule_outlives_its_interface_and_is_moved_when_the_name_changes() {
    in_namespace(|netlink| async move {
        let detached = || {
            let shown = ["rule show", "-6 rule show"].map(ip);
            shown.map(|rules| rules.contains("[detached]"))
        };
        ip("link add v0 type veth peer name v1");
        let delivery = Delivery::new(netlink, OURS);
        delivery.apply(&Flows::forwarded(&["v0"])).await.unwrap();
        assert_eq!(detached(), [false, false]);

        ip("link del v0");
        assert_eq!(detached(), [true, true]);
        ip("link add v0 type veth peer name v1");
        assert_eq!(detached(), [false, false], "in force again by itself");

        ip("link set v0 name w0");
        assert_eq!(detached(), [true, true], "the rule goes by the name");
        delivery.apply(&Flows::forwarded(&["w0"])).await.unwrap();
        assert_eq!(detached(), [false, false]);
        for family in ["-4", "-6"] {
            let rules = rules_to(family, OURS.table);
            assert_eq!(rules.len(), 1, "{rules:?}");
            assert_eq!(rules[0]["iif"], "w0");
        }
    });
}

#[test]
fn a_failure_half_way_undoes_what_was_added_before_it() {
    in_namespace(|netlink| async move {
        // In the place of our route of IPv6, after that of IPv4 has been added.
        ip("-6 route add unreachable default metric 1024 table 7470");
        let before = everything();
        let error = Delivery::new(netlink, OURS)
            .apply(&Flows::forwarded(&["v0"]))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::InPlace { .. }), "{error:?}");
        assert_eq!(
            error.to_string(),
            "cannot add the route \"local default dev lo table 7470\" (IPv6): \
             the route \"unreachable default dev lo\" is in its place"
        );
        assert_eq!(everything(), before);
    });
}

#[test]
fn a_rule_that_the_kernel_takes_for_ours_is_named() {
    in_namespace(|netlink| async move {
        ip(
            "-6 rule add from fd00::/8 iif v0 fwmark 0x74700000/0x74700000 lookup 7470 \
            protocol kernel pref 74",
        );
        let before = everything();
        let error = Delivery::new(netlink, OURS)
            .apply(&Flows::forwarded(&["v0"]))
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot add the policy rule \"iif v0 fwmark 0x74700000/0x74700000 lookup 7470\" (IPv6): \
             the policy rule \"74: from fd00::/8 fwmark 0x74700000/0x74700000 iif v0 lookup \
             7470\" is in its place"
        );
        assert_eq!(everything(), before);
    });
}

#[test]
fn a_failed_change_of_interfaces_leaves_the_ones_before() {
    in_namespace(|netlink| async move {
        let delivery = Delivery::new(netlink, OURS);
        delivery.apply(&Flows::forwarded(&["v0"])).await.unwrap();
        ip("-6 route del local default dev lo table 7470");
        ip("-6 route add unreachable default metric 1024 table 7470");
        let before = everything();
        delivery
            .apply(&Flows::forwarded(&["v1"]))
            .await
            .unwrap_err();
        assert_eq!(everything(), before);
    });
}

#[test]
fn names_that_no_interface_can_have_are_refused_before_anything_changes() {
    in_namespace(|netlink| async move {
        let before = everything();
        let delivery = Delivery::new(netlink, OURS);
        for name in ["", "sixteen-letters-", "a b", "a/b", ".."] {
            let error = delivery
                .apply(&Flows::forwarded(&["v0", name]))
                .await
                .unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{name:?} is not an interface name")
            );
        }
        assert_eq!(everything(), before);
    });
}

#[test]
fn without_the_capability_the_refusal_says_so_and_nothing_changes() {
    in_namespace(|netlink| async move {
        let before = everything();
        Delivery::new(netlink.clone(), OURS)
            .apply(&Flows::forwarded(&["v0"]))
            .await
            .unwrap();
        let applied = everything();
        caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
        let delivery = Delivery::new(netlink, OURS);
        assert_eq!(
            delivery
                .apply(&Flows::forwarded(&["v1"]))
                .await
                .unwrap_err()
                .to_string(),
            "cannot add the policy rule \"iif v1 fwmark 0x74700000/0x74700000 lookup 7470\" (IPv4): \
             Operation not permitted (CAP_NET_ADMIN is missing: run as root)"
        );
        assert_eq!(
            delivery.remove().await.unwrap_err().to_string(),
            "cannot remove the policy rule \"iif v0 fwmark 0x74700000/0x74700000 lookup 7470\" \
             (IPv6): Operation not permitted (CAP_NET_ADMIN is missing: run as root)"
        );
        assert_eq!(everything(), applied);
        caps::raise(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
        delivery.remove().await.unwrap();
        assert_eq!(everything(), before);
    });
}

#[test]
fn lo_is_set_up_when_it_is_down() {
    in_namespace_as_made(|netlink| async move {
        assert!(ip("-o link show lo").contains("state DOWN"));
        Delivery::new(netlink, OURS)
            .apply(&Flows::forwarded(&["v0"]))
            .await
            .unwrap();
        assert!(ip("-o link show up").contains("lo"));
        assert_eq!(routes_in("-6", OURS.table).len(), 1);
    });
}

#[test]
fn without_ipv6_there_is_delivery_for_ipv4() {
    in_namespace(|netlink| async move {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let before = everything();
        let delivery = Delivery::new(netlink, OURS);
        delivery.apply(&Flows::forwarded(&["v0"])).await.unwrap();
        assert_eq!(rules_to("-4", OURS.table).len(), 1);
        assert_eq!(routes_in("-4", OURS.table).len(), 1);
        assert_eq!(rules_to("-6", OURS.table).len(), 0);
        assert_eq!(routes_in("-6", OURS.table).len(), 0);
        delivery.remove().await.unwrap();
        assert_eq!(everything(), before);
    });
}

#[test]
fn leftovers_are_removed_and_what_only_resembles_them_is_not() {
    in_namespace(|netlink| async move {
        // Another mark, another mask, another table, another protocol, one more selector.
        for rule in [
            "iif v0 fwmark 0x74680000/0x74680000 lookup 7471 protocol kernel pref 74",
            "iif v0 fwmark 0x74700000 lookup 7470 protocol kernel pref 74",
            "iif v0 fwmark 0x74700000/0x74700000 lookup 7470 protocol static pref 74",
            "iif v0 fwmark 0x74700000/0x74700000 lookup 7470 protocol kernel pref 75",
            "from 10.0.0.0/8 iif v9 fwmark 0x74700000/0x74700000 lookup 7470 protocol kernel pref 74",
        ] {
            ip(&format!("rule add {rule}"));
        }
        ip("route add local 10.0.0.0/8 dev lo table 7470 proto kernel");
        ip("-6 route add local default dev lo table 7471 proto kernel");
        let before = everything();
        Delivery::new(netlink.clone(), OURS)
            .apply(&Flows::forwarded(&["v0", "v1"]))
            .await
            .unwrap();
        assert_ne!(everything(), before);
        remove_leftovers(&netlink, OURS).await.unwrap();
        assert_eq!(everything(), before);
    });
}
