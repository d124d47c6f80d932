//! Choosing a mark and a table.

use tproxy_user::delivery::{Assignment, Delivery, Flows, Neighbour, Netlink, Wanted, choose};

use crate::namespace::{everything, in_namespace, ip};

const DEFAULT: Assignment = Assignment {
    mark: 0x7470_0000,
    table: 7470,
};

#[test]
fn the_defaults_are_chosen_when_they_are_free() {
    in_namespace(|netlink| async move {
        // Marks and tables of others that do not touch ours.
        ip("rule add fwmark 0x80000/0xff0000 lookup main pref 5210");
        ip("rule add not fwmark 0xca6c lookup 51820");
        ip("rule add fwmark 0/0xff lookup main");
        ip("-6 rule add fwmark 1 lookup 100");
        ip("route add blackhole 10.0.0.0/8 table 747");
        let before = everything();
        assert_eq!(choose(&netlink, Wanted::default()).await.unwrap(), DEFAULT);
        assert_eq!(everything(), before);
    });
}

#[test]
fn others_are_chosen_when_the_defaults_are_taken() {
    in_namespace(|netlink| async move {
        ip("-6 rule add fwmark 0x74700000/0x74700000 lookup 7470");
        ip("rule add fwmark 0x74000000/0xff000000 to 10.0.0.0/8 lookup 7471");
        ip("rule del fwmark 0x74000000/0xff000000 to 10.0.0.0/8 lookup 7471");
        ip("-6 route add unreachable 2001:db8::/32 table 7471");
        let chosen = choose(&netlink, Wanted::default()).await.unwrap();
        assert_eq!(
            chosen,
            Assignment {
                mark: 0x7468_0000,
                table: 7472
            }
        );
    });
}

/// An instance without interfaces and rules has nothing in the kernel that would show what it has chosen.
#[test]
fn what_another_instance_has_chosen_is_taken() {
    in_namespace(|netlink| async move {
        let neighbours = [Neighbour {
            instance: "quiet".into(),
            assignment: DEFAULT,
        }];
        let wanted = Wanted {
            neighbours: &neighbours,
            ..Wanted::default()
        };
        let chosen = choose(&netlink, wanted).await.unwrap();
        assert_eq!((chosen.mark, chosen.table), (0x7468_0000, 7471));
        for (mark, table) in [
            (Some(DEFAULT.mark), None),
            (Some(DEFAULT.mark | 1), None),
            (None, Some(DEFAULT.table)),
            (None, Some(DEFAULT.table | 1 << 16)),
        ] {
            let asked = Wanted {
                mark,
                table,
                ..wanted
            };
            let refused = choose(&netlink, asked).await.unwrap_err().to_string();
            assert!(refused.contains("instance quiet"), "{refused}");
        }
        let others = Wanted {
            mark: Some(0x1000),
            table: Some(100),
            ..wanted
        };
        let chosen = choose(&netlink, others).await.unwrap();
        assert_eq!((chosen.mark, chosen.table), (0x1000, 100));
    });
}

#[test]
fn a_second_instance_chooses_others_and_neither_selects_the_packets_of_the_other() {
    in_namespace(|netlink| async move {
        let mut chosen: Vec<Assignment> = Vec::new();
        for _ in 0..16 {
            let assignment = choose(&netlink, Wanted::default()).await.unwrap();
            Delivery::new(netlink.clone(), assignment)
                .apply(&Flows::forwarded(&["v0"]))
                .await
                .unwrap();
            for other in &chosen {
                assert_ne!(other.mark & assignment.mark, other.mark);
                assert_ne!(other.mark & assignment.mark, assignment.mark);
                assert_ne!(other.table, assignment.table);
            }
            chosen.push(assignment);
        }
        let error = choose(&netlink, Wanted::default()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "all 16 default marks are taken, 0x74700000 by the policy rule \"74: from all \
             fwmark 0x74700000/0x74700000 iif v0 lookup 7470\": choose a mark with --mark"
        );
    });
}

#[test]
fn a_taken_mark_is_refused_with_the_rule_that_holds_it() {
    in_namespace(|netlink| async move {
        let mark = |mark| Wanted {
            mark: Some(mark),
            ..Wanted::default()
        };
        ip("rule add fwmark 0x74700000/0x74700000 lookup 100 pref 32765");
        ip("-6 rule add from 2001:db8::/32 to 2001:db8::1 fwmark 0x10/0xf0 oif lo prohibit pref 7");
        ip("rule add not fwmark 0xca6c lookup 51820 pref 8");
        let before = everything();
        assert_eq!(
            refusal(&netlink, mark(0x7470_0000)).await,
            "mark 0x74700000 is taken by the policy rule \"32765: from all fwmark \
             0x74700000/0x74700000 lookup 100\": choose another with --mark"
        );
        // Theirs selects packets with ours; ours packets with theirs.
        for taken in [0x7470_0001, 0x0070_0000] {
            assert!(
                refusal(&netlink, mark(taken))
                    .await
                    .contains("32765: from all fwmark")
            );
        }
        assert_eq!(
            refusal(&netlink, mark(0xf12)).await,
            "mark 0xf12 is taken by the policy rule \"7: from 2001:db8::/32 to 2001:db8::1 fwmark \
             0x10/0xf0 oif lo prohibit\": choose another with --mark"
        );
        assert_eq!(
            refusal(&netlink, mark(0xca6c)).await,
            "mark 0xca6c is taken by the policy rule \"8: not from all fwmark 0xca6c lookup \
             51820\": choose another with --mark"
        );
        assert_eq!(
            refusal(&netlink, mark(0)).await,
            "mark 0 marks nothing: choose another with --mark"
        );
        assert_eq!(choose(&netlink, mark(0x2000)).await.unwrap().mark, 0x2000);
        assert_eq!(everything(), before);
    });
}

/// A rule of somebody else that would lead the agent's own connections astray.
#[test]
fn a_mark_is_taken_when_upstream_connections_would_be_selected() {
    in_namespace(|netlink| async move {
        ip("rule add fwmark 0x74600000 lookup 100");
        let chosen = choose(&netlink, Wanted::default()).await.unwrap();
        // 0x74680000 would have the same one.
        assert_eq!(chosen.mark, 0x7458_0000);
    });
}

#[test]
fn a_taken_table_is_refused_with_what_it_holds() {
    in_namespace(|netlink| async move {
        let table = |table| Wanted {
            table: Some(table),
            ..Wanted::default()
        };
        ip("link add eth0 type veth peer name eth1");
        ip("link set eth0 up");
        ip("addr add 10.0.0.2/24 dev eth0");
        ip("route add default via 10.0.0.1 dev eth0 table 7470");
        ip("-6 route add 2001:db8::1 dev eth0 table 100");
        ip("rule add from 10.0.0.0/8 iif eth0 lookup 200 pref 9");
        let before = everything();
        for (taken, words) in [
            (
                7470,
                "table 7470 is taken: it holds the route \"default via 10.0.0.1 dev eth0\"; \
                 choose another with --table",
            ),
            (
                100,
                "table 100 is taken: it holds the route \"2001:db8::1 dev eth0\"; choose another \
                 with --table",
            ),
            (
                200,
                "table 200 is taken: the policy rule \"9: from 10.0.0.0/8 iif eth0 lookup 200\" \
                 looks it up; choose another with --table",
            ),
            (
                254,
                "table 254 is reserved by the kernel: choose another with --table",
            ),
            (
                0,
                "table 0 is reserved by the kernel: choose another with --table",
            ),
        ] {
            assert_eq!(refusal(&netlink, table(taken)).await, words);
        }
        assert_eq!(choose(&netlink, table(201)).await.unwrap().table, 201);
        assert_eq!(everything(), before);
    });
}

#[test]
fn leftovers_of_a_dead_agent_are_taken_over_and_those_of_a_living_one_are_not() {
    in_namespace(|netlink| async move {
        let ours = Assignment {
            mark: 0x40,
            table: 64,
        };
        Delivery::new(netlink.clone(), ours)
            .apply(&Flows::forwarded(&["v0"]))
            .await
            .unwrap();

        let previous = Wanted {
            previous: Some(ours),
            ..Wanted::default()
        };
        assert_eq!(choose(&netlink, previous).await.unwrap(), ours);
        let explicit = Wanted {
            mark: Some(0x40),
            table: Some(64),
            previous: Some(ours),
            ..Wanted::default()
        };
        assert_eq!(choose(&netlink, explicit).await.unwrap(), ours);
        assert_eq!(choose(&netlink, Wanted::default()).await.unwrap(), DEFAULT);
        let explicit = Wanted {
            mark: Some(0x40),
            ..Wanted::default()
        };
        assert!(
            refusal(&netlink, explicit)
                .await
                .starts_with("mark 0x40 is taken by")
        );

        // Somebody else came by in the meantime.
        ip("route add blackhole 10.0.0.0/8 table 64");
        let moved = Assignment {
            mark: 0x40,
            table: 7470,
        };
        assert_eq!(choose(&netlink, previous).await.unwrap(), moved);
    });
}

async fn refusal(netlink: &Netlink, wanted: Wanted<'_>) -> String {
    match choose(netlink, wanted).await {
        Ok(chosen) => panic!("{wanted:?} gives {chosen:?}\n{}", everything()),
        Err(error) => error.to_string(),
    }
}
