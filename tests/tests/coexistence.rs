//! Programs of others at the same hooks: all of them still run.

use std::{io, os::fd::OwnedFd};

use tproxy_tests::{
    Agent, DatagramClient, Family, Lab, Snapshot,
    address::FAMILIES,
    agent::{ATTACH_MODES, unique_instance},
    bpf::{self, CountingProgram, PinDirectory, Place},
    peer::{DatagramWitness, Witness},
    wait,
};

/// Programs before and after ours, whichever way ours is attached, attached earlier and later than ours, with tcx and with clsact, see every packet of
/// flows that we take and of flows that we leave alone, and are there when we are gone.
#[test]
fn programs_before_and_after_ours_still_run() {
    for mode in ATTACH_MODES {
        let lab = Lab::new();
        let _witnesses = [80, 81].map(|port| Witness::start(&lab.server, port));
        let pins = PinDirectory::mount();
        let clsact = CountingProgram::load();
        clsact.pin(&pins.path().join("clsact"));
        lab.gateway.run("tc qdisc add dev cl0 clsact");
        lab.gateway.run(&format!(
            "tc filter add dev cl0 ingress prio 1 bpf direct-action object-pinned {}",
            pins.path().join("clsact").display()
        ));
        let (first, last) = (CountingProgram::load(), CountingProgram::load());
        let _links = attach_where_there_is_tcx(&lab, &first, &last);
        let instance = unique_instance();
        let before = Snapshot::of(&lab.gateway, &instance);

        let mut agent = Agent::start_under(
            &lab.gateway,
            &instance,
            "",
            &format!("--iface cl0 --dport 80 {mode}"),
        );
        let (later_first, later_last) = (CountingProgram::load(), CountingProgram::load());
        let later_links = attach_where_there_is_tcx(&lab, &later_first, &later_last);
        let mut all = vec![&clsact];
        if bpf::kernel_has_tcx() {
            all.extend([&first, &last, &later_first, &later_last]);
        }
        for family in FAMILIES {
            for port in [80, 81] {
                assert_all_count(&all, || {
                    let exchange = lab.ask(family.near(), port);
                    if port == 80 {
                        exchange.assert_relayed(&agent);
                    } else {
                        exchange.assert_direct(&agent);
                    }
                });
            }
        }
        assert_eq!(agent.stop().len(), 2);

        assert_all_count(&all, || lab.ask(FAMILIES[0].near(), 80).assert_unproxied());
        drop(later_links);
        // Links are detached some time after their last descriptor is closed.
        wait::until("the later programs are gone", || {
            (Snapshot::of(&lab.gateway, &instance) == before).then_some(())
        });
    }
}

/// Checks that each program has seen the same number of packets of `traffic`, and at least those of a handshake, a
/// request and an end.
#[track_caller]
fn assert_all_count(programs: &[&CountingProgram], traffic: impl FnOnce()) {
    let counts = || -> Vec<u64> { programs.iter().map(|program| program.count()).collect() };
    let before = counts();
    traffic();
    wait::until("all programs have seen the same packets", || {
        let seen: Vec<u64> = counts()
            .iter()
            .zip(&before)
            .map(|(now, then)| now - then)
            .collect();
        (seen[0] >= 4 && seen.iter().all(|count| *count == seen[0])).then_some(())
    });
}

/// Attaches one program before and one after all others; nothing where the kernel has no tcx.
fn attach_where_there_is_tcx(
    lab: &Lab,
    first: &CountingProgram,
    last: &CountingProgram,
) -> Vec<OwnedFd> {
    if !bpf::kernel_has_tcx() {
        return Vec::new();
    }
    vec![
        last.attach_tcx(&lab.gateway, "cl0", Place::Last),
        first.attach_tcx(&lab.gateway, "cl0", Place::First),
    ]
}

/// A clsact queueing discipline and a filter that were there before stay as they were.
#[test]
fn a_foreign_clsact_filter_is_left_as_it_was() {
    for mode in ATTACH_MODES {
        let lab = Lab::new();
        let pins = PinDirectory::mount();
        let pin = pins.path().join("clsact");
        let program = CountingProgram::load();
        program.pin(&pin);
        lab.gateway.run("tc qdisc add dev cl0 clsact");
        for side in ["ingress", "egress"] {
            lab.gateway.run(&format!(
                "tc filter add dev cl0 {side} prio 1 bpf direct-action object-pinned {}",
                pin.display()
            ));
        }
        let instance = unique_instance();
        let before = Snapshot::of(&lab.gateway, &instance);
        for end in ["stop", "kill and unload"] {
            let mut agent = Agent::start_under(
                &lab.gateway,
                &instance,
                "",
                &format!("--iface cl0 --dport 80 {mode}"),
            );
            if end == "stop" {
                agent.stop();
            } else {
                agent.kill();
                agent.run("unload");
            }
            Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
        }
    }
}

/// Policy rules and routes of others, and an nft ruleset, stay as they were.
#[test]
fn foreign_policy_rules_and_routes_are_left_as_they_were() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    for family in ["-4", "-6"] {
        for command in [
            "rule add pref 100 fwmark 0x1/0xff lookup 100",
            "rule add pref 40000 iif cl0 lookup main",
            "route add local default dev lo table 100",
        ] {
            lab.gateway.run(&format!("ip {family} {command}"));
        }
    }
    lab.gateway.nft(
        "table inet foreign {\n chain forward {\n type filter hook forward priority 0; policy accept;\n }\n}",
    );
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --dport 80");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    agent.stop();
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// With a forward chain that drops everything, relayed flows still pass: they are not forwarded, they end here.
#[test]
fn relayed_flows_need_no_forwarding() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    lab.gateway.nft(
        "table inet closed {\n chain forward {\n type filter hook forward priority 0; policy drop;\n }\n}",
    );
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}

const README: &str = include_str!("../../README.md");

/// Under policies of drop, for what is forwarded as for what is addressed to the gateway, and with connection tracking,
/// the rules that the README names are enough, and none of them is too much.
#[test]
fn what_the_readme_lets_into_a_closed_firewall_is_enough() {
    let rules = README.lines().map(str::trim_start);
    let rules = rules.filter(|line| line.starts_with("nft add rule inet filter input "));
    let [marked, answers] = rules.collect::<Vec<_>>().try_into().expect("two rules");

    let lab = Lab::new();
    let _witnesses = [80, 81].map(|port| Witness::start(&lab.server, port));
    let _datagrams = DatagramWitness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --proto any --dport 80 --connect-timeout 1");
    close_firewall(&lab);
    let connect = |family: Family, port| lab.connect_at_once((family.near(), port).into());
    let assert_silent = |family, port| {
        let silent = connect(family, port).expect_err("the firewall drops the SYN");
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut, "{silent}");
    };
    for family in FAMILIES {
        assert_silent(family, 80);
    }
    lab.gateway.run(marked);
    for family in FAMILIES {
        let stream = connect(family, 80).expect("the agent is reached");
        let flow = agent.flow_of(stream.local_addr().unwrap());
        assert_eq!(flow.end, "timeout", "the server's answer is dropped");
    }
    lab.gateway.run(answers);
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
        let client = DatagramClient::connected(&lab.client, (family.near(), 80).into());
        for length in [10, 4000] {
            let answer = client.ask(&vec![7; length]);
            answer.assert_relayed_from(family.gateway_upstream());
        }
        assert_silent(family, 81);
    }

    close_firewall(&lab);
    lab.gateway
        .run("nft add rule inet filter input iifname cl0 tcp dport { 80, 443 } accept");
    lab.gateway.run(answers);
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    assert_eq!(agent.stop().len(), 8);
}

/// Drops everything but what IPv6 needs to find its neighbours (RFC 4861, sections 4.3 and 4.4).
fn close_firewall(lab: &Lab) {
    lab.gateway.nft(
        "table inet filter\ndelete table inet filter\n\
         table inet filter {\n\
           chain input {\n type filter hook input priority 0; policy drop;\n\
             icmpv6 type { 135, 136 } accept\n }\n\
           chain forward {\n type filter hook forward priority 0; policy drop;\n }\n\
         }",
    );
}
