//! Attaching and detaching interfaces, who may, and what happens when they change.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tproxy_tests::{
    Agent, Cli, Exchange, Family, Lab, Snapshot,
    address::FAMILIES,
    agent::{ATTACH_MODES as MODES, unique_instance},
    peer::Witness,
    wait,
};

/// Interfaces come and go while the agent runs.
#[test]
fn interfaces_are_attached_and_detached_live() {
    for mode in MODES {
        let lab = Lab::new();
        let _at_the_server = Witness::start(&lab.server, 80);
        let _at_the_client = Witness::start(&lab.client, 80);
        let mut agent = lab.agent(&format!("--iface cl0 --dport 80 {mode}"));
        for family in FAMILIES {
            let from_the_server = || Exchange::of(&lab.server, (family.client(), 80).into());
            from_the_server().assert_direct(&agent);
            agent.run("attach sv0");
            assert_eq!(
                agent.status()["interfaces"],
                serde_json::json!(["cl0", "sv0"])
            );
            from_the_server().assert_relayed_from(&agent, family.gateway());
            agent.run("detach sv0");
            assert_eq!(agent.status()["interfaces"], serde_json::json!(["cl0"]));
            from_the_server().assert_direct(&agent);
            lab.ask(family.near(), 80).assert_relayed(&agent);
        }
        assert_eq!(agent.stop().len(), 4);
    }
}

/// Of three interfaces the second cannot be attached: the first is released again and nothing is left.
#[test]
fn a_failing_attachment_undoes_those_before_it() {
    let lab = Lab::new();
    lab.gateway
        .ip("link add ex0 type veth peer name ex1\nlink set ex0 up\nlink set ex1 up");
    let instance = unique_instance();
    let cli = Cli::new(&lab.gateway, &instance);
    let holder = lab.agent("--iface sv0 --dport 80");
    let before = Snapshot::of(&lab.gateway, &instance);
    // One that is not there, and one that another instance holds, which shows only when it is tried.
    for (list, culprit) in [("cl0,nosuch0,ex0", "nosuch0"), ("cl0,sv0,ex0", "sv0")] {
        let attempt = cli.attempt(&format!("run --iface {list} --dport 80"));
        attempt.assert_refused(1, &[culprit]);
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    }
    drop(holder);

    let _witness = Witness::start(&lab.server, 80);
    let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --dport 80");
    let before = Snapshot::of(&lab.gateway, &instance);
    agent
        .attempt("attach ex0,nosuch0,ex1")
        .assert_refused(1, &["nosuch0"]);
    agent
        .attempt("attach ex0,ex0")
        .assert_refused(2, &["ex0", "twice"]);
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    assert_eq!(agent.status()["interfaces"], serde_json::json!(["cl0"]));
    lab.ask(Family::V4.near(), 80).assert_relayed(&agent);
    agent.stop();
}

/// A second agent of the same instance refuses, and the first is unharmed.
#[test]
fn a_second_agent_of_the_same_instance_refuses() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut first = lab.agent("--iface cl0 --dport 80");
    let before = Snapshot::of(&lab.gateway, first.instance());
    for interface in ["cl0", "sv0"] {
        let second = first.attempt(&format!("run --iface {interface} --dport 80"));
        second.assert_refused(1, &[first.instance()]);
        Snapshot::of(&lab.gateway, first.instance()).assert_same_as(&before);
    }
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&first);
    }
    assert_eq!(first.stop().len(), 2);
}

/// A second agent at the same interface refuses, naming the interface and who holds it, and the first is unharmed.
#[test]
fn a_second_agent_at_the_same_interface_refuses() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut first = lab.agent("--iface cl0 --dport 80");
    let instance = unique_instance();
    let before = [first.instance(), &instance].map(|name| Snapshot::of(&lab.gateway, name));
    for interfaces in ["cl0", "sv0,cl0"] {
        let second = Cli::new(&lab.gateway, &instance)
            .attempt(&format!("run --iface {interfaces} --dport 80"));
        second.assert_refused(1, &["cl0", first.instance()]);
        let after = [first.instance(), &instance].map(|name| Snapshot::of(&lab.gateway, name));
        for (after, before) in after.iter().zip(&before) {
            after.assert_same_as(before);
        }
    }
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&first);
    }
    assert_eq!(first.stop().len(), 2);
}

/// Two instances at two interfaces of one host do not disturb each other, and each leaves only its own behind.
#[test]
fn two_instances_work_side_by_side() {
    let lab = Lab::new();
    let _at_the_server = Witness::start(&lab.server, 80);
    let _at_the_client = Witness::start(&lab.client, 80);
    let mut one = lab.agent("--iface cl0 --dport 80");
    let before = Snapshot::of(&lab.gateway, "no-such-instance");
    let mut other = lab.agent("--iface sv0 --dport 80");
    for family in FAMILIES {
        lab.ask(family.server(), 80).assert_relayed(&one);
        let exchange = Exchange::of(&lab.server, (family.client(), 80).into());
        exchange.assert_relayed_from(&other, family.gateway());
    }
    assert_eq!(other.stop().len(), 2);
    Snapshot::of(&lab.gateway, "no-such-instance").assert_same_as(&before);
    for family in FAMILIES {
        lab.ask(family.server(), 80).assert_relayed(&one);
    }
    assert_eq!(one.stop().len(), 4);
}

/// An interface that is deleted and made again is attached again by itself, within two seconds on a machine that is
/// busy with other tests.
#[test]
fn an_interface_made_again_is_attached_again() {
    for mode in MODES {
        let lab = Lab::new();
        let _witness = Witness::start(&lab.server, 80);
        let mut agent = lab.agent(&format!("--iface cl0,sv0 --dport 80 {mode}"));
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_relayed(&agent);
        }
        lab.unlink_client();
        lab.link_client();
        for family in FAMILIES {
            let target = SocketAddr::new(family.near(), 80);
            let start = Instant::now();
            let exchange = wait::until("flows are relayed again", || {
                Exchange::attempt(&lab.client, target)
                    .ok()
                    .filter(|exchange| exchange.seen_client != exchange.client)
            });
            assert!(
                start.elapsed() < wait::scaled(Duration::from_secs(2)),
                "attached again after {:?}",
                start.elapsed()
            );
            exchange.assert_relayed(&agent);
        }
        assert_eq!(
            agent.status()["interfaces"],
            serde_json::json!(["cl0", "sv0"])
        );
        agent.stop();
    }
}

/// A renamed interface stays attached, and nothing of it is left behind.
#[test]
fn a_renamed_interface_stays_attached() {
    for mode in MODES {
        let lab = Lab::new();
        let _witness = Witness::start(&lab.server, 80);
        let instance = unique_instance();
        let mut agent = Agent::start_under(
            &lab.gateway,
            &instance,
            "",
            &format!("--iface cl0 --dport 80 {mode}"),
        );
        lab.rename_client_link("cl0", "renamed0");
        for family in FAMILIES {
            let target = SocketAddr::new(family.near(), 80);
            let exchange = wait::within(Duration::from_secs(2), || {
                Exchange::attempt(&lab.client, target)
                    .ok()
                    .filter(|exchange| exchange.seen_client != exchange.client)
            });
            exchange
                .expect("relayed within two seconds of the renaming")
                .assert_relayed(&agent);
        }
        agent.stop();
        let after = Snapshot::of(&lab.gateway, &instance);
        lab.rename_client_link("renamed0", "cl0");
        let renamed_back = Snapshot::of(&lab.gateway, &instance);
        let mut again = Agent::start_under(
            &lab.gateway,
            &instance,
            "",
            &format!("--iface cl0 --dport 80 {mode}"),
        );
        again.stop();
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&renamed_back);
        assert_ne!(after, renamed_back, "the name shows in a snapshot");
    }
}

/// What comes in at an attached interface that is put into a bridge is not taken any more. The log says so each time,
/// and `status` for as long as it is so.
#[test]
fn an_interface_that_becomes_a_port_is_told_of() {
    const WARNING: &str =
        "interface cl0 is a port of br0, and flows routed there are not taken: attach br0";
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0,sv0 --dport 80");
    let warnings = |agent: &Agent| agent.log().matches(WARNING).count();
    let status = |agent: &Agent| agent.output("status");
    assert_eq!(agent.status()["ports"], serde_json::json!({}));
    lab.gateway.ip("link add br0 type bridge\nlink set br0 up");
    for times in 1..=2 {
        lab.gateway.ip("link set cl0 master br0");
        wait::until("a warning", || (warnings(&agent) == times).then_some(()));
        assert_eq!(agent.status()["ports"], serde_json::json!({"cl0": "br0"}));
        let shown = status(&agent);
        assert!(
            shown.contains("cl0 (a port of br0: attach br0 in its place), sv0"),
            "{shown}"
        );
        lab.gateway
            .ip("link set cl0 mtu 1400\nlink set cl0 mtu 1500\nlink set cl0 nomaster");
        assert_eq!(agent.status()["ports"], serde_json::json!({}));
        assert!(!status(&agent).contains("a port of"));
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_relayed(&agent);
        }
    }
    lab.gateway
        .ip("link set cl0 master br0\naddr flush dev cl0");
    for family in FAMILIES {
        let own = family.gateway();
        let length = if own.is_ipv4() { 24 } else { 64 };
        lab.gateway
            .ip(&format!("addr add {own}/{length} dev br0 nodad"));
        lab.ask(family.near(), 80).assert_direct(&agent);
    }
    agent.run("attach br0");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    assert_eq!(warnings(&agent), 3, "{}", agent.log());
    agent.stop();
}
