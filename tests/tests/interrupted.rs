//! Commands that are killed half-way: the instance is as it was before, or as it would be after.

use tproxy_tests::{Agent, Lab, Snapshot, agent::ATTACH_MODES, interruption::at_every_step, wait};

/// `attach` and `detach`, wherever they are killed. The agent takes off what they left.
#[test]
fn attaching_and_detaching_are_all_or_nothing() {
    for mode in ATTACH_MODES {
        let lab = Lab::new();
        let mut agent = lab.agent(&format!("--iface cl0 --dport 80 {mode}"));
        let state = |agent: &Agent| Snapshot::of(&lab.gateway, agent.instance()).without_files();
        let detached = state(&agent);
        agent.run("attach sv0");
        let attached = state(&agent);
        assert_ne!(attached, detached);
        let settled = |agent: &Agent| {
            wait::until("one of the two states", || {
                let now = state(agent);
                let interfaces = agent.status()["interfaces"].clone();
                let is_attached = interfaces == serde_json::json!(["cl0", "sv0"]);
                let expected = if is_attached { &attached } else { &detached };
                (now == *expected).then_some(is_attached)
            })
        };
        let cli = (*agent).clone();
        at_every_step(&cli, "detach sv0", |place| {
            eprintln!("{place}");
            if !settled(&agent) {
                agent.run("attach sv0");
            }
        });
        agent.run("detach sv0");
        at_every_step(&cli, "attach sv0", |place| {
            eprintln!("{place}");
            if settled(&agent) {
                agent.run("detach sv0");
            }
        });
        agent.stop();
    }
}

/// Without an agent, `unload` finds all that a killed `attach` left.
#[test]
fn unload_finds_what_a_killed_command_left() {
    for mode in ATTACH_MODES {
        let lab = Lab::new();
        let mut agent = lab.agent(&format!("--iface cl0 --dport 80 {mode}"));
        let instance = agent.instance().to_owned();
        let cli = (*agent).clone();
        agent.stop();
        let nothing = Snapshot::of(&lab.gateway, &instance);
        for call in ["rename", "bpf"] {
            let mut agent = Agent::start_under(
                &lab.gateway,
                &instance,
                "",
                &format!("--iface cl0 --dport 80 --pin {mode}"),
            );
            agent.kill();
            let wrapper = format!(
                "strace -f -qq -o /dev/null -e trace={call} -e inject={call}:signal=SIGKILL:when=1+"
            );
            let attempt = cli.attempt_under(&wrapper, "attach sv0");
            assert_eq!(attempt.code, None, "killed before {call}: {attempt:#?}");
            cli.run("unload");
            Snapshot::of(&lab.gateway, &instance).assert_same_as(&nothing);
        }
    }
}

/// `rule add` and `rule del`, wherever they are killed.
#[test]
fn changing_rules_is_all_or_nothing() {
    let lab = Lab::new();
    let mut agent = lab.agent("--iface cl0 --dport 80 --name web");
    let cli = (*agent).clone();
    let has_more = |agent: &Agent| match agent.rule_names().as_slice() {
        [web] => {
            assert_eq!(web, "web");
            false
        }
        [web, more] => {
            assert_eq!((web.as_str(), more.as_str()), ("web", "more"));
            true
        }
        names => panic!("{names:?}"),
    };
    at_every_step(&cli, "rule add --name more --dport 81", |place| {
        eprintln!("{place}");
        if has_more(&agent) {
            agent.run("rule del more");
        }
    });
    agent.run("rule add --name more --dport 81");
    at_every_step(&cli, "rule del more", |place| {
        eprintln!("{place}");
        if !has_more(&agent) {
            agent.run("rule add --name more --dport 81");
        }
    });
    agent.stop();
}
