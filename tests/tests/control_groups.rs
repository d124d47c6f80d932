//! Control groups that rules name come, go and come again while the agent runs.

use std::{fs, mem, net::SocketAddr, time::Duration};

use tempfile::TempDir;
use tproxy_tests::{
    Agent, Cli, ControlGroup, Exchange, Family, Lab, address::FAMILIES, agent::unique_instance,
    control_group::unique_name, peer::Witness, wait,
};

/// How long a rule may take to match the processes of a group that is made, on a machine that is busy with other tests:
/// half of the time after which the agent looks at groups of which nothing was told.
const AT_ONCE: Duration = Duration::from_secs(5);

fn by(lab: &Lab, group: &ControlGroup, family: Family) -> Exchange {
    let target = SocketAddr::new(family.near(), 80);
    Exchange::by_program(target, |line| group.command_line(&lab.gateway, line))
}

/// Checks that flows of processes in `group` are taken, from a moment after this is called.
#[track_caller]
fn assert_taken_soon(lab: &Lab, agent: &Agent, group: &ControlGroup) {
    let is_taken = || {
        let exchange = by(lab, group, Family::V4);
        (exchange.seen_client != exchange.client).then_some(())
    };
    let taken = wait::within(AT_ONCE, is_taken);
    assert_eq!(taken, Some(()), "taken soon:\n{}", agent.log());
    for family in FAMILIES {
        by(lab, group, family).assert_relayed_locally(agent);
    }
}

#[track_caller]
fn assert_never_taken(lab: &Lab, agent: &Agent, group: &ControlGroup) {
    for family in FAMILIES {
        by(lab, group, family).assert_direct(agent);
        Exchange::of(&lab.gateway, (family.near(), 80).into()).assert_direct(agent);
    }
}

/// A rule matches the processes of a group that was made after it, and those of one that was removed and made again,
/// as with a restart of a unit. Others are never taken.
#[test]
fn a_group_that_is_made_later_or_again_is_followed() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let other = ControlGroup::create();
    let name = unique_name();
    let agent = lab.agent(&format!(
        "--scope local --dport 80 --name group --cgroup {name}"
    ));
    assert_never_taken(&lab, &agent, &other);
    for _ in 0..3 {
        let group = ControlGroup::named(&name);
        assert_taken_soon(&lab, &agent, &group);
        assert_never_taken(&lab, &agent, &other);
    }
    agent.wait_for_log(&format!("control group {name} is gone"));
    assert_never_taken(&lab, &agent, &other);
    let flows = agent.flows();
    assert!(flows.len() >= 9, "{flows:#?}");
    assert!(flows.iter().all(|flow| flow.rule == "group"), "{flows:#?}");
}

/// The way to a group may come step by step, and go from its middle on. Groups above it and beside it are not taken.
#[test]
fn a_group_whose_way_is_made_step_by_step_is_followed() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let name = unique_name();
    let agent = lab.agent("--scope local --dport 81");
    agent.run(&format!(
        "rule add --name deep --scope local --dport 80 --cgroup {name}/b/c"
    ));
    let outer = ControlGroup::named(&name);
    assert_never_taken(&lab, &agent, &outer);
    for _ in 0..2 {
        let middle = outer.child("b");
        let beside = middle.child("d");
        assert_never_taken(&lab, &agent, &middle);
        let inner = middle.child("c");
        let below = inner.child("below");
        assert_taken_soon(&lab, &agent, &inner);
        assert_taken_soon(&lab, &agent, &below);
        for group in [&outer, &middle, &beside] {
            assert_never_taken(&lab, &agent, group);
        }
        drop((below, inner, beside, middle));
    }
    // All at once, and as soon as it is gone.
    let middle = outer.child("b");
    let inner = middle.child("c");
    assert_taken_soon(&lab, &agent, &inner);
    assert_never_taken(&lab, &agent, &middle);
}

/// Several rules with several groups, one of which is there from the beginning: it is taken all along.
#[test]
fn a_group_that_stays_is_taken_while_others_come_and_go() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let stays = ControlGroup::create();
    let names = [unique_name(), unique_name()];
    let agent = lab.agent(&format!(
        "--scope local --dport 80 --name stays --cgroup {},{}",
        stays.path().display(),
        names[0]
    ));
    agent.run(&format!(
        "rule add --name spared --at 1 --scope local --action pass --cgroup {}",
        names[1]
    ));
    for name in &names {
        let group = ControlGroup::named(name);
        agent.wait_for_log(&format!("control group {name} is there"));
        by(&lab, &stays, Family::V4).assert_relayed_locally(&agent);
        let exchange = by(&lab, &group, Family::V4);
        if *name == names[0] {
            exchange.assert_relayed_locally(&agent);
        } else {
            exchange.assert_direct(&agent);
        }
        drop(group);
        agent.wait_for_log(&format!("control group {name} is gone"));
        by(&lab, &stays, Family::V4).assert_relayed_locally(&agent);
    }
}

/// A group that was made again while no agent was there is known to the next one.
#[test]
fn a_group_that_was_made_again_without_an_agent_is_known_to_the_next() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let instance = unique_instance();
    let name = unique_name();
    let arguments = format!("--pin --scope local --dport 80 --cgroup {name}");
    let mut first = Agent::start_under(&lab.gateway, &instance, "", &arguments);
    let group = ControlGroup::named(&name);
    assert_taken_soon(&lab, &first, &group);
    first.kill();
    // Not unloaded: the next one finds what this one left.
    mem::forget(first);
    drop(group);
    let group = ControlGroup::named(&name);
    let next = Agent::start_under(&lab.gateway, &instance, "", "--pin");
    assert_taken_soon(&lab, &next, &group);
    assert_never_taken(&lab, &next, &ControlGroup::create());
}

/// Without a rule that names a group, nothing is watched.
#[test]
fn nothing_is_watched_where_no_rule_names_a_group() {
    let lab = Lab::new();
    let agent = lab.agent("--scope local --dport 80");
    agent.run("rule add --scope local --dport 81 --name plain");
    let descriptors = agent.open_descriptors();
    let group = ControlGroup::create();
    agent.run(&format!(
        "rule add --scope local --dport 82 --name group --cgroup {}",
        group.path().display()
    ));
    agent.wait_for_descriptors(descriptors + 1);
    agent.run("rule del group");
    agent.wait_for_descriptors(descriptors);
    agent.run("rule del plain");
}

/// Who names a group that is not there is told, by rule and group; who names one that is there is not.
#[test]
fn a_group_that_is_not_there_is_warned_of() {
    let lab = Lab::new();
    let there = ControlGroup::create();
    let absent = unique_name();
    let says = |text: &str, rule: &str| {
        text.contains(&format!("rule {rule}: there is no control group {absent}:"))
    };
    let there = there.path().display();
    let rule = format!("--scope local --cgroup {there},{absent}");
    let agent = lab.agent(&format!("--name first --dport 80 {rule}"));
    assert!(says(&agent.log(), "first"), "{}", agent.log());
    let added = agent.attempt(&format!("rule add --name second --dport 81 {rule}"));
    added.assert_done();
    // Not of the first once more, and not of the group that is there.
    assert!(
        matches!(added.stderr.as_slice(), [line] if says(line, "second")),
        "{added:#?}"
    );
    let added = agent.attempt(&format!(
        "rule add --name third --scope local --dport 82 --cgroup {there}"
    ));
    added.assert_done();
    assert_eq!(added.stderr, Vec::<String>::new());

    let directory = TempDir::new().expect("make a directory");
    let file = directory.path().join("rules.toml");
    let text = format!("[[rule]]\nname = \"loaded\"\nscope = \"local\"\ncgroup = [\"{absent}\"]\n");
    fs::write(&file, text).expect("write a file");
    let loaded = agent.attempt(&format!("rule load {}", file.display()));
    loaded.assert_done();
    assert!(
        loaded.stderr.iter().any(|line| says(line, "loaded")),
        "{loaded:#?}"
    );

    let command = Cli::new(&lab.gateway, &unique_instance()).attempt("exec -- true");
    command.assert_done();
    assert_eq!(command.stderr, Vec::<String>::new());
}
