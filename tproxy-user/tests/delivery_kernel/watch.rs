//! Restoring what something else removes.

use std::{fmt::Write as _, fs, process::Command, sync::mpsc, thread, time::Duration};

use caps::{CapSet, Capability};
use tproxy_user::delivery::{Assignment, Delivery, Flows, Netlink, Watch};

use crate::{
    log_capture,
    namespace::{everything, in_namespace, ip, ip_batch, lost_notifications, routes_in, within},
};

const OURS: Assignment = Assignment {
    mark: 0x7470_0000,
    table: 7470,
};

/// How long a repair may take. It takes about 25 ms when nothing else runs.
const SOON: Duration = Duration::from_millis(800);

const RULE: &str = "iif v0 fwmark 0x74700000/0x74700000 lookup 7470";

async fn watched(netlink: Netlink) -> (Delivery, Watch) {
    ip("link add v0 type veth peer name v1");
    let delivery = Delivery::new(netlink, OURS);
    delivery.apply(&Flows::forwarded(&["v0"])).await.unwrap();
    let watch = delivery.watch().unwrap();
    (delivery, watch)
}

#[test]
fn each_rule_and_route_that_is_removed_is_restored_and_named() {
    in_namespace(|netlink| async move {
        let (_delivery, _watch) = watched(netlink).await;
        let applied = everything();
        for (removal, named) in [
            (
                format!("rule del {RULE}"),
                format!("policy rule \"{RULE}\" (IPv4)"),
            ),
            (
                format!("-6 rule del {RULE}"),
                format!("policy rule \"{RULE}\" (IPv6)"),
            ),
            (
                "route del local default dev lo table 7470".into(),
                "route \"local default dev lo table 7470\" (IPv4)".into(),
            ),
            (
                "-6 route del local default dev lo table 7470".into(),
                "route \"local default dev lo table 7470\" (IPv6)".into(),
            ),
        ] {
            ip(&removal);
            assert_ne!(everything(), applied);
            within(SOON, &removal, || everything() == applied).await;
            let warning = format!("WARN: restored the {named}, which was missing");
            assert_eq!(log_capture::lines().last(), Some(&warning));
        }
    });
}

#[test]
fn everything_that_is_removed_at_once_is_restored() {
    in_namespace(|netlink| async move {
        let (_delivery, _watch) = watched(netlink).await;
        let applied = everything();
        for removal in [
            "rule flush",
            "-6 rule flush",
            "route flush table 7470",
            "-6 route flush table 7470",
            "rule add lookup main pref 32766",
            "rule add lookup default pref 32767",
            "-6 rule add lookup main pref 32766",
        ] {
            ip(removal);
        }
        within(SOON, "after a flush", || everything() == applied).await;
    });
}

#[test]
fn what_was_removed_before_the_watch_began_is_restored() {
    in_namespace(|netlink| async move {
        let delivery = Delivery::new(netlink, OURS);
        delivery.apply(&Flows::forwarded(&["v0"])).await.unwrap();
        let applied = everything();
        ip(&format!("rule del {RULE}"));
        let _watch = delivery.watch().unwrap();
        within(SOON, "the rule", || everything() == applied).await;
    });
}

#[test]
fn the_routes_come_back_after_lo_was_down() {
    in_namespace(|netlink| async move {
        let (_delivery, _watch) = watched(netlink).await;
        let applied = everything();
        ip("link set lo down");
        within(SOON, "lo", || everything() == applied).await;
    });
}

#[test]
fn ipv6_is_delivered_from_when_it_is_enabled() {
    in_namespace(|netlink| async move {
        let setting = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
        fs::write(setting, "1").unwrap();
        let (_delivery, _watch) = watched(netlink).await;
        assert!(routes_in("-6", OURS.table).is_empty());
        fs::write(setting, "0").unwrap();
        within(SOON, "the rule of IPv6", || {
            ip("-6 rule show").contains(RULE_AS_SHOWN)
        })
        .await;
        assert_eq!(routes_in("-6", OURS.table).len(), 1);

        fs::write(setting, "1").unwrap();
        within(SOON, "no route of IPv6", || {
            routes_in("-6", OURS.table).is_empty()
        })
        .await;
        fs::write(setting, "0").unwrap();
        within(SOON, "the route of IPv6", || {
            routes_in("-6", OURS.table).len() == 1
        })
        .await;
    });
}

const RULE_AS_SHOWN: &str = "from all fwmark 0x74700000/0x74700000 iif v0 lookup 7470";

#[test]
fn what_delivery_removes_itself_stays_removed() {
    in_namespace(|netlink| async move {
        let before = everything();
        let (delivery, watch) = watched(netlink).await;
        delivery.apply(&Flows::forwarded(&["v1"])).await.unwrap();
        settle().await;
        assert!(!ip("rule show").contains("iif v0"), "{}", ip("rule show"));
        delivery.remove().await.unwrap();
        settle().await;
        ip("link del v0");
        assert_eq!(everything(), before);
        drop(watch);

        delivery.apply(&Flows::forwarded(&["v1"])).await.unwrap();
        ip("rule del iif v1 fwmark 0x74700000/0x74700000 lookup 7470");
        settle().await;
        assert!(!ip("rule show").contains("iif v1"), "the watch has ended");
    });
}

/// Long enough for a repair. That nothing happens cannot be waited for.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(200)).await;
}

#[test]
fn a_removal_among_more_changes_than_the_socket_holds_is_restored() {
    in_namespace(|netlink| async move {
        let (_delivery, _watch) = watched(netlink).await;
        settle().await;
        let applied = everything();
        // While this thread waits for `ip`, nobody reads the netlink socket.
        let mut batch = String::new();
        for change in ["add", "del"] {
            for number in 0..2000 {
                let (high, low) = (number / 250, number % 250);
                writeln!(
                    batch,
                    "route {change} blackhole 10.{high}.{low}.0/24 table 9"
                )
                .unwrap();
            }
        }
        assert_eq!(lost_notifications(), 0);
        ip_batch(&batch);
        ip(&format!("rule del {RULE}"));
        ip("-6 route del local default dev lo table 7470");
        assert_ne!(lost_notifications(), 0, "the test has to fill the socket");
        assert_ne!(everything(), applied);
        within(SOON, "after an overrun", || everything() == applied).await;
    });
}

#[test]
fn a_fight_with_another_program_is_slow() {
    in_namespace(|netlink| async move {
        let (_delivery, _watch) = watched(netlink).await;
        let removals = async {
            let mut removals = 0_u32;
            loop {
                let removal = Command::new("ip")
                    .args(["rule", "del", "pref", "74"])
                    .output();
                removals += u32::from(removal.unwrap().status.success());
                tokio::time::sleep(Duration::from_millis(2)).await;
                if removals > 1000 {
                    return removals;
                }
            }
        };
        // Ten at once, then one a second.
        let ended = tokio::time::timeout(Duration::from_secs(4), removals).await;
        assert!(ended.is_err(), "{ended:?}");
        let restored = log_capture::lines()
            .iter()
            .filter(|line| line.contains("restored"))
            .count();
        assert!((10..=14).contains(&restored), "{restored} repairs");
    });
}

#[test]
fn full_tables_of_unicast_routes_do_not_reach_the_watch() {
    in_namespace(|netlink| async move {
        let (_delivery, _watch) = watched(netlink).await;
        ip("link set v0 up");
        settle().await;
        let mut batch = String::new();
        for number in 0..2000 {
            writeln!(
                batch,
                "route add 10.{}.{}.0/24 dev v0",
                number / 250,
                number % 250
            )
            .unwrap();
        }
        ip_batch(&batch);
        assert_eq!(lost_notifications(), 0);
    });
}

#[test]
fn a_route_in_the_place_of_ours_is_reported_once_and_ours_is_back_when_it_goes() {
    in_namespace(|netlink| async move {
        let (_delivery, _watch) = watched(netlink).await;
        settle().await;
        let applied = everything();
        ip("-6 route del local default dev lo table 7470");
        ip("-6 route add unreachable default metric 1024 table 7470");
        // The rest is restored all the same.
        ip(&format!("rule del {RULE}"));
        within(SOON, "the rule", || ip("rule show").contains(RULE_AS_SHOWN)).await;
        let errors = || {
            let lines = log_capture::lines();
            lines
                .into_iter()
                .filter(|line| line.starts_with("ERROR"))
                .collect::<Vec<_>>()
        };
        within(SOON, "the error", || !errors().is_empty()).await;
        assert_eq!(
            errors(),
            [
                "ERROR: cannot add the route \"local default dev lo table 7470\" (IPv6): the route \
              \"unreachable default dev lo\" is in its place; trying again every 1s"
            ]
        );
        ip("-6 route del unreachable default metric 1024 table 7470");
        within(Duration::from_secs(3), "our route", || {
            everything() == applied
        })
        .await;
        assert_eq!(errors().len(), 1);
    });
}

#[test]
fn without_the_capability_the_failure_to_restore_is_reported_once() {
    in_namespace(|netlink| async move {
        let (_delivery, _watch) = watched(netlink).await;
        settle().await;
        let removal = thread_that_waits(|| ip(&format!("rule del {RULE}")));
        caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
        removal.send(()).unwrap();
        let errors = || {
            let lines = log_capture::lines();
            lines
                .into_iter()
                .filter(|line| line.starts_with("ERROR"))
                .collect::<Vec<_>>()
        };
        within(SOON, "an error", || !errors().is_empty()).await;
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let words = format!(
            "ERROR: cannot add the policy rule \"{RULE}\" (IPv4): Operation not permitted \
             (CAP_NET_ADMIN is missing: run as root); trying again every 1s"
        );
        assert_eq!(errors(), [words]);
    });
}

/// A thread of this network namespace that keeps its capabilities and acts when it is told to.
fn thread_that_waits(act: impl FnOnce() -> String + Send + 'static) -> mpsc::Sender<()> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        receiver.recv().unwrap();
        act();
    });
    sender
}

#[test]
fn a_rule_of_others_that_comes_before_ours_is_warned_of() {
    in_namespace(|netlink| async move {
        let warnings = || {
            let lines = log_capture::lines();
            lines
                .into_iter()
                .filter(|line| line.contains("comes before ours"))
                .collect::<Vec<_>>()
        };
        ip("rule add fwmark 0x80000/0xff0000 lookup 9 pref 10");
        ip("rule add iif v1 lookup 9 pref 11");
        ip("rule add oif v0 lookup 9 pref 12");
        ip("rule add lookup 9 pref 100");
        ip("-6 rule add iif v0 fwmark 0x70000000/0xf0000000 lookup 9 pref 13");
        let (_delivery, _watch) = watched(netlink).await;
        assert_eq!(
            warnings(),
            [
                "WARN: the policy rule \"13: from all fwmark 0x70000000/0xf0000000 iif v0 lookup 9\" \
              comes before ours and may take packets away from the agent; give it a priority above \
              74 if it should not"
            ]
        );
        ip("-6 rule del pref 13");
        // As `wg-quick` does: without a priority, a rule comes before all others but `local`.
        ip("rule add not fwmark 0xca6c lookup 51820");
        within(SOON, "a second warning", || warnings().len() == 2).await;
        assert!(warnings()[1].contains("\"9: not from all fwmark 0xca6c lookup 51820\""));
    });
}
