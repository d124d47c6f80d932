//! Where an instance keeps its state, and what it does when others interfere with it.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use tempfile::TempDir;
use tproxy_tests::{
    Agent, Cli, Lab, Snapshot, address::FAMILIES, agent::unique_instance, peer::Witness, wait,
};

/// `status` says what is in force, under the keys that scripts rely on.
#[test]
fn status_says_what_is_in_force() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab
        .agent("--iface cl0,sv0 --dport 80 --workers 2 --mark 0x01000000 --table 4711 --port 4712");
    let status = agent.status();
    assert_eq!(status["instance"], agent.instance());
    assert_eq!(status["interfaces"], serde_json::json!(["cl0", "sv0"]));
    assert_eq!(status["rules"], 1);
    assert_eq!(status["workers"], 2);
    assert_eq!(status["flows"], 0);
    assert_eq!(status["agent"]["pid"], agent.id());
    assert_eq!(status["agent"]["port"], 4712);
    assert_eq!(status["mark"], 0x0100_0000);
    assert_eq!(status["table"], 4711);
    assert!(status["counters"].is_object(), "{status}");
    let generation = status["generation"].as_u64().expect("a number");
    agent.run("rule add --dport 81");
    assert_eq!(agent.status()["generation"].as_u64(), Some(generation + 1));

    let stream = lab.client.connect((FAMILIES[0].near(), 80).into()).unwrap();
    wait::until("the flow is live", || {
        (agent.status()["flows"] == 1).then_some(())
    });
    drop(stream);
    wait::until("the flow is over", || {
        (agent.status()["flows"] == 0).then_some(())
    });

    let text = agent.output("status");
    for word in [agent.instance(), "cl0", "sv0"] {
        assert!(text.contains(word), "{word} in\n{text}");
    }
    agent.stop();
}

/// Commands that only read change nothing, not even a generation or a file.
#[test]
fn reading_changes_nothing() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80 --name web");
    let before = (
        Snapshot::of(&lab.gateway, agent.instance()),
        agent.status()["generation"].clone(),
    );
    for command in [
        "status",
        "status --json",
        "rule list",
        "rule list --json",
        "rule show web",
        "--help",
    ] {
        agent.run(command);
    }
    Snapshot::of(&lab.gateway, agent.instance()).assert_same_as(&before.0);
    assert_eq!(agent.status()["generation"], before.1);
}

/// `RUST_LOG` has the last word about what is logged: more than is usual, or less than `-v` asks for.
#[test]
fn rust_log_decides_what_is_logged() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80 --name web");
    for (filter, flags, debug) in [
        ("debug", "", true),
        ("tproxy_user=debug", "", true),
        ("debug", "--quiet ", true),
        ("", "", false),
        ("", "--verbose ", true),
        ("warn", "--verbose ", false),
        ("tproxy_user=warn", "--verbose ", false),
    ] {
        let wrapper = format!("env RUST_LOG={filter}");
        let attempt = agent.attempt_under(&wrapper, &format!("{flags}rule add --dport 81"));
        attempt.assert_done();
        let said = attempt
            .stderr
            .iter()
            .any(|line| line.contains("DEBUG tproxy_user"));
        assert_eq!(said, debug, "{attempt:#?}");
    }
}

/// Policy rules and routes that somebody else removes (as systemd-networkd does) are put back.
#[test]
fn removed_policy_rules_and_routes_are_restored() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0,sv0 --dport 80 --table 4711");
    let before = Snapshot::of(&lab.gateway, agent.instance());
    for family in ["-4", "-6"] {
        let rules = lab.gateway.output(&format!("ip {family} rule"));
        let ours = rules
            .lines()
            .filter(|line| line.ends_with("lookup 4711") || line.contains("lookup 4711 "));
        let ours: Vec<_> = ours.filter_map(|line| line.split(':').next()).collect();
        assert!(!ours.is_empty(), "rules for the table:\n{rules}");
        for preference in ours {
            lab.gateway
                .run(&format!("ip {family} rule del pref {preference}"));
        }
        lab.gateway
            .run(&format!("ip {family} route flush table 4711"));
        assert_restored(&lab, &agent, &before);
        lab.gateway
            .run(&format!("ip {family} route flush table 4711"));
        assert_restored(&lab, &agent, &before);
    }
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    agent.stop();
}

#[track_caller]
fn assert_restored(lab: &Lab, agent: &Agent, before: &Snapshot) {
    let restored = wait::within(Duration::from_secs(3), || {
        (Snapshot::of(&lab.gateway, agent.instance()) == *before).then_some(())
    });
    if restored.is_none() {
        Snapshot::of(&lab.gateway, agent.instance()).assert_same_as(before);
    }
}

/// Started through `ip netns exec`, which hides bpffs: flows are relayed, and commands work from inside and from outside.
#[test]
fn an_agent_started_by_ip_netns_exec_works() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let wrapper = format!("ip netns exec {}", lab.gateway.name());
    let mut agent = Agent::start_under(
        &lab.gateway,
        &instance,
        &wrapper,
        "--iface cl0 --dport 80 --name web",
    );
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    for wrapper in ["", &wrapper] {
        let attempt = agent.attempt_under(wrapper, "rule list");
        attempt.assert_done();
        assert!(attempt.stdout.contains("web"), "{attempt:?}");
    }
    assert_eq!(agent.stop().len(), 2);
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// Killed under `ip netns exec`, it is cleaned up from outside as well as from inside.
#[test]
fn an_agent_killed_under_ip_netns_exec_is_cleaned_up() {
    let lab = Lab::new();
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let inside = format!("ip netns exec {}", lab.gateway.name());
    for wrapper in ["", &inside] {
        let mut agent =
            Agent::start_under(&lab.gateway, &instance, &inside, "--iface cl0 --dport 80");
        agent.kill();
        agent.attempt_under(wrapper, "unload").assert_done();
        // What was mounted in the dead process's file systems goes with it, some time later.
        let clean = wait::within(Duration::from_secs(3), || {
            (Snapshot::of(&lab.gateway, &instance) == before).then_some(())
        });
        if clean.is_none() {
            Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
        }
    }
}

/// Where no bpffs is mounted, the agent mounts it.
#[test]
fn a_missing_bpffs_is_mounted() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let directory = TempDir::new().unwrap();
    let script = directory.path().join("without-bpffs");
    fs::write(
        &script,
        "#!/bin/sh\numount --lazy --all-targets /sys/fs/bpf 2>/dev/null\nexec \"$@\"\n",
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    // A process without ancestors finds no other mount namespace to look in.
    let wrapper = format!(
        "unshare --mount --propagation private --pid --fork --kill-child --mount-proc {}",
        script.display()
    );
    let mut agent = Agent::start_under(
        &lab.gateway,
        &unique_instance(),
        &wrapper,
        "--iface cl0 --dport 80",
    );
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", child_of(agent.id()))).unwrap();
    let mounted = mounts
        .lines()
        .any(|mount| mount.contains(" /sys/fs/bpf bpf "));
    assert!(mounted, "a bpffs in\n{mounts}");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    // Its own numbers of processes are not ours: it can be unloaded from here once it has ended.
    agent.kill();
    wait::until("the instance is unloaded", || {
        (agent.attempt("unload").code == Some(0)).then_some(())
    });
}

/// The only child of a process.
fn child_of(process: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    children
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("one child, not {children:?}"))
}

/// `unload` of an instance that runs ends it: its agent stops, and nothing is left.
#[test]
fn unloading_a_running_instance_leaves_nothing() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --dport 80");
    agent.run("unload");
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    agent.wait();
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_unproxied();
    }
}

/// Commands reach the instance that they name and no other.
#[test]
fn instances_do_not_see_each_other() {
    let lab = Lab::new();
    let one = lab.agent("--iface cl0 --dport 80 --name one");
    let other = lab.agent("--iface sv0 --dport 81 --name other");
    assert_eq!(one.rule_names(), ["one"]);
    assert_eq!(other.rule_names(), ["other"]);
    one.run("rule flush");
    assert_eq!(other.rule_names(), ["other"]);
    let nobody = Cli::new(&lab.gateway, "test-of-nobody").attempt("rule list");
    nobody.assert_refused(1, &["test-of-nobody"]);
}
