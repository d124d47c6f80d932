//! Commands that are killed half-way: the instance is as it was before, or as it would be after.

use tproxy_tests::{
    Agent, Cli, Family, Lab, Snapshot,
    agent::{ATTACH_MODES, unique_instance},
    interruption::{at_every_failure, at_every_step, at_steps_of_life},
    peer::Witness,
    wait,
};

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

/// Whatever the kernel refuses while two interfaces are attached: both are, or neither, and nothing is left of an attempt
/// that failed. No agent is there to tidy up.
#[test]
fn attaching_is_undone_wherever_it_fails_in_the_default_mode() {
    attaching_is_undone_wherever_it_fails(ATTACH_MODES[0]);
}

/// The same for filters in clsact qdiscs.
#[test]
fn attaching_is_undone_wherever_it_fails_with_clsact() {
    attaching_is_undone_wherever_it_fails(ATTACH_MODES[1]);
}

fn attaching_is_undone_wherever_it_fails(mode: &str) {
    let lab = Lab::new();
    lab.gateway
        .ip("link add ex0 type veth peer name ex1\nlink set ex0 up\nlink set ex1 up");
    let mut agent = lab.agent(&format!("--iface cl0 --dport 80 --pin {mode}"));
    let cli = (*agent).clone();
    agent.stop();
    let now = || Snapshot::of(&lab.gateway, cli.instance());
    let mut detached = now();
    cli.run("attach ex0,sv0");
    let attached = now().without_files();
    // Each generation has files of its own.
    let detach = |detached: &Snapshot| {
        cli.run("detach ex0,sv0");
        assert_becomes(&detached.clone().without_files(), || now().without_files());
        now()
    };
    detached = detach(&detached);
    let mut failures = 0;
    at_every_failure(&cli, "attach ex0,sv0", |place, attempt| {
        eprintln!("{place}: {:?}", attempt.stderr);
        if attempt.code == Some(0) {
            now().without_files().assert_same_as(&attached);
            detached = detach(&detached);
        } else {
            assert_eq!(attempt.code, Some(1), "{place}: {attempt:#?}");
            // A warning may come before it: what is done by netlink cannot be undone over a connection that failed.
            let explanation = attempt.stderr.last().map_or("", String::as_str);
            assert!(explanation.starts_with("tproxy: "), "{place}: {attempt:#?}");
            assert_becomes(&detached, now);
            failures += 1;
        }
    });
    assert!(failures > 20, "{failures} attempts failed");
}

/// Links are detached some time after their last descriptor is closed.
#[track_caller]
fn assert_becomes(expected: &Snapshot, now: impl Fn() -> Snapshot) {
    let reached = wait::within(wait::PATIENCE, || (now() == *expected).then_some(()));
    if reached.is_none() {
        now().assert_same_as(expected);
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

/// `run`, wherever it is killed: `unload` takes away all that it left, or a new agent starts in its place.
#[test]
fn starts_that_are_cut_short_are_cleaned_up_or_followed() {
    for mode in ATTACH_MODES {
        let lab = Lab::new();
        let _witness = Witness::start(&lab.server, 80);
        let instance = unique_instance();
        let cli = Cli::new(&lab.gateway, &instance);
        let nothing = Snapshot::of(&lab.gateway, &instance);
        let arguments = format!("--iface cl0,sv0 --dport 80 {mode}");
        let mut attempts = 0;
        at_steps_of_life(
            &cli,
            &format!("run {arguments}"),
            || {},
            |place, was_killed| {
                eprintln!("{place}");
                attempts += 1;
                if was_killed && attempts % 2 == 0 {
                    let mut agent = Agent::start_under(&lab.gateway, &instance, "", &arguments);
                    lab.ask(Family::V4.near(), 80).assert_relayed(&agent);
                    agent.stop();
                } else {
                    let is_there = Snapshot::of(&lab.gateway, &instance) != nothing;
                    let attempt = cli.attempt("unload");
                    if is_there {
                        attempt.assert_done();
                    } else {
                        attempt.assert_refused(1, &[&instance]);
                    }
                }
                assert_becomes(&nothing, || Snapshot::of(&lab.gateway, &instance));
            },
        );
        assert!(attempts > 10, "{attempts} attempts");
    }
}

/// `unload`, wherever it is killed: the next one takes away the rest.
#[test]
fn unload_goes_on_where_a_killed_one_ended() {
    for mode in ATTACH_MODES {
        let lab = Lab::new();
        let instance = unique_instance();
        let cli = Cli::new(&lab.gateway, &instance);
        let nothing = Snapshot::of(&lab.gateway, &instance);
        let start = || {
            let arguments = format!("--iface cl0 --dport 80 --pin {mode}");
            let mut agent = Agent::start_under(&lab.gateway, &instance, "", &arguments);
            agent.kill();
            // Not unloaded.
            std::mem::forget(agent);
        };
        at_steps_of_life(&cli, "unload", start, |place, _| {
            eprintln!("{place}");
            let is_there = Snapshot::of(&lab.gateway, &instance) != nothing;
            let attempt = cli.attempt("unload");
            if is_there {
                attempt.assert_done();
            } else {
                attempt.assert_refused(1, &[&instance]);
            }
            assert_becomes(&nothing, || Snapshot::of(&lab.gateway, &instance));
        });
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
