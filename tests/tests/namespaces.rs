//! Agents in network namespaces that they are told of by name.

use std::{collections::HashSet, fs, net::SocketAddr};

use tproxy_tests::{
    Agent, Cli, DatagramClient, Exchange, Family, Lab, Snapshot,
    address::FAMILIES,
    agent::unique_instance,
    peer::{DatagramWitness, Witness},
    process::Process,
    wait,
};

/// An agent that is started elsewhere works in the namespace that is named, by its name or its path, and so do the
/// commands on its instance, wherever they are given.
#[test]
fn an_agent_works_in_the_namespace_that_is_named() {
    let lab = Lab::new();
    let _witnesses = [80, 81].map(|port| Witness::start(&lab.server, port));
    let _datagrams = DatagramWitness::start(&lab.server, 53);
    for namespace in [
        lab.gateway.name().to_owned(),
        lab.gateway.path().display().to_string(),
    ] {
        let instance = unique_instance();
        let before = Snapshot::of(&lab.gateway, &instance);
        let elsewhere = Snapshot::of(&lab.server, &instance).without_files();
        let run = format!("--netns {namespace} --iface cl0 --dport 80 --name web");
        let mut agent = Agent::start_under(&lab.server, &instance, "", &run);
        agent.run("rule add --scope local --proto any --dport 53,81 --name local");
        Snapshot::of(&lab.server, &instance)
            .without_files()
            .assert_same_as(&elsewhere);
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_relayed(&agent);
            lab.ask(family.near(), 81).assert_direct(&agent);
            let of_process = |port| Exchange::of(&lab.gateway, (family.near(), port).into());
            of_process(81).assert_relayed_locally(&agent);
            of_process(80).assert_direct(&agent);
            DatagramClient::connected(&lab.gateway, (family.near(), 53).into())
                .ask(b"local")
                .assert_relayed_from(family.gateway_upstream());
        }
        assert_eq!(agent.status()["rules"], 2);
        assert_eq!(agent.stop().len(), 6);
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    }
}

/// Instances in two namespaces and two in one, all at once: each takes what its own rules name, and the end of one is
/// nothing to the others.
#[test]
fn several_instances_work_at_once() {
    let (one, other) = (Lab::new(), Lab::new());
    let labs = [&one, &other];
    let _witnesses = labs.map(|lab| [80, 81].map(|port| Witness::start(&lab.server, port)));
    let routed = labs.map(|lab| {
        let namespace = lab.gateway.name();
        Agent::start(
            &lab.server,
            &format!("--netns {namespace} --iface cl0 --dport 80 --name routed"),
        )
    });
    let local = labs.map(|lab| lab.agent("--scope local --dport 81 --name local"));
    let inbound =
        labs.map(|lab| lab.agent("--iface sv0 --scope inbound --dport 82 --name inbound"));
    let _services = labs.map(|lab| Witness::start(&lab.gateway, 82));
    let check = |lab: &Lab, routed: &Agent, local: Option<&Agent>, inbound: &Agent| {
        for family in FAMILIES {
            let near = |port| SocketAddr::new(family.near(), port);
            Exchange::of(&lab.client, near(80)).assert_relayed(routed);
            Exchange::of(&lab.client, near(81)).assert_unproxied();
            Exchange::of(&lab.gateway, near(80)).assert_unproxied();
            match local {
                Some(local) => Exchange::of(&lab.gateway, near(81)).assert_relayed_locally(local),
                None => Exchange::of(&lab.gateway, near(81)).assert_unproxied(),
            }
            let own = SocketAddr::new(family.gateway_upstream(), 82);
            Exchange::of(&lab.server, own).assert_relayed_from(inbound, own.ip());
        }
    };
    for index in 0..2 {
        check(
            labs[index],
            &routed[index],
            Some(&local[index]),
            &inbound[index],
        );
    }
    let [mut ended, remaining] = local;
    assert_eq!(ended.stop().len(), 2);
    check(&one, &routed[0], None, &inbound[0]);
    check(&other, &routed[1], Some(&remaining), &inbound[1]);
    for mut agent in routed.into_iter().chain(inbound) {
        assert_eq!(agent.stop().len(), 4);
    }
}

/// Instances that start at the same moment have marks and tables of their own, also one that has nothing in the kernel
/// yet, and the end of one takes nothing from the others.
#[test]
fn instances_that_start_at_once_do_not_share() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let started = [
        "--iface cl0 --dport 80",
        "--iface sv0 --dport 80",
        "--scope local --dport 80 --uid 4711",
        "",
    ]
    .map(|arguments| {
        let cli = Cli::new(&lab.gateway, &unique_instance());
        let process = cli.start_under("env RUST_LOG=info", &format!("run {arguments}"));
        (cli, process)
    });
    let agents = started.map(|(cli, process)| Agent::over(cli, process));
    for key in ["mark", "table"] {
        let numbers = agents.each_ref().map(|agent| agent.status()[key].as_u64());
        let distinct: HashSet<u64> = numbers.iter().flatten().copied().collect();
        assert_eq!(distinct.len(), agents.len(), "{key}: {numbers:?}");
    }
    let [mut first, others @ ..] = agents;
    for mut other in others {
        assert_eq!(other.stop(), []);
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_relayed(&first);
        }
    }
    assert_eq!(first.stop().len(), 6);
}

/// `ip netns del` ends the agent that was told that name, in order, and nothing is left. One in another namespace goes on.
#[test]
fn the_agent_ends_with_its_namespace() {
    for rule in [
        "--iface cl0 --dport 80",
        "--scope local --proto any --dport 80",
    ] {
        let (lab, other) = (Lab::new(), Lab::new());
        let _witness = Witness::start(&other.server, 80);
        let instance = unique_instance();
        let before = Snapshot::of(&lab.gateway, &instance);
        let run = |lab: &Lab| format!("--netns {} {rule}", lab.gateway.name());
        let mut agent = Agent::start_under(&lab.server, &instance, "", &run(&lab));
        let mut beside = Agent::start(&lab.server, &run(&other));
        // This test has the namespace open itself, so it stays and can be looked at.
        lab.server
            .run(&format!("ip netns del {}", lab.gateway.name()));
        assert_eq!(agent.wait(), []);
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
        for family in FAMILIES {
            let target = (family.near(), 80).into();
            if rule.contains("local") {
                Exchange::of(&other.gateway, target).assert_relayed_locally(&beside);
            } else {
                Exchange::of(&other.client, target).assert_relayed(&beside);
            }
        }
        assert_eq!(beside.stop().len(), 2);
    }
}

/// A namespace that is named in the mounts of another process, a container's for instance: the agent works there, and ends
/// when the name goes.
#[test]
fn an_agent_works_in_a_namespace_of_other_mounts() {
    const SETTLE: &str =
        "mount -t tmpfs tmpfs /run && mkdir /run/netns && touch /run/netns/inner &&
                          mount --bind /proc/self/ns/net /run/netns/inner && exec sleep infinity";
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut container = lab.gateway.command("unshare");
    container.args(["--mount", "sh", "-c", SETTLE]);
    let container = Process::start(&mut container);
    let name = format!("/proc/{}/comm", container.id());
    wait::until("the container has its mounts", || {
        (fs::read_to_string(&name).ok()? == "sleep\n").then_some(())
    });
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let path = format!("/proc/{}/root/run/netns/inner", container.id());
    let run = format!("--netns {path} --iface cl0 --dport 80");
    let mut agent = Agent::start_under(&lab.server, &instance, "", &run);
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    lab.server.run(&format!(
        "nsenter --mount --target {} umount /run/netns/inner",
        container.id()
    ));
    assert_eq!(agent.wait().len(), 2);
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// A namespace that is not there is refused, with what to do.
#[test]
fn a_namespace_that_is_not_there_is_refused() {
    let lab = Lab::new();
    let cli = Cli::new(&lab.gateway, &unique_instance());
    for arguments in ["run --iface cl0", "exec -- true"] {
        cli.attempt(&format!("--netns no-such-namespace {arguments}"))
            .assert_refused(1, &["no-such-namespace", "ip netns list"]);
    }
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --dport 80");
    lab.ask(Family::V4.near(), 80).assert_relayed(&agent);
    agent.stop();
}
