//! The file: loading it, checking it, starting with it, reading it again, and rules that expire.

use std::{fmt::Write as _, fs, os::unix::fs::PermissionsExt, path::PathBuf};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tproxy_tests::{
    Agent, Cli, Family, Lab, Snapshot, address::FAMILIES, agent::unique_instance, cli,
    cli::Attempt, interruption::at_every_step, peer::Witness, process::Process, wait,
};

/// A directory with files, all of which anybody can read.
struct Files(TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().expect("a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let files_of = Self(directory);
        for (name, text) in files {
            files_of.write(name, text);
        }
        files_of
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join(name), text).expect("a file is written");
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

/// What is in force: names of rules, and sets with their sizes.
#[track_caller]
fn in_force(agent: &Agent) -> (Vec<String>, Vec<(String, u64)>) {
    let sets = agent.json("set list");
    let sets = sets.as_array().expect("an array of sets").iter();
    let set = |set: &Value| {
        let name = set["name"].as_str().expect("a name");
        (name.to_owned(), set["count"].as_u64().expect("a number"))
    };
    (agent.rule_names(), sets.map(set).collect())
}

#[track_caller]
fn rule(agent: &Agent, name: &str) -> Value {
    let rules = agent.rules().into_iter();
    let mut named = rules.filter(|rule| rule["name"] == name);
    named.next().unwrap_or_else(|| panic!("no rule {name}"))
}

fn warnings(attempt: &Attempt) -> Vec<&str> {
    let lines = attempt.stderr.iter();
    lines
        .filter(|line| line.contains(" WARN "))
        .filter_map(|line| line.split_once("] "))
        .map(|(_, text)| text)
        .collect()
}

/// A file takes the place of all rules and sets that were there. Rules whose name stays go on counting.
#[test]
fn loading_replaces_everything_in_one_step() {
    let lab = Lab::new();
    let _witnesses = [80, 81, 82].map(|port| Witness::start(&lab.server, port));
    let files = Files::new(&[
        ("near.txt", "192.0.2.0/24\n2001:db8:1::/48\n"),
        (
            "first.toml",
            "[set.near]\nfile = 'near.txt'\n[[rule]]\nname = 'web'\ndport = 80\ndst = 'set:near'\n[[rule]]\nname = 'more'\ndport = 81\n",
        ),
        (
            "second.toml",
            "[[rule]]\nname = 'other'\ndport = 82\n[[rule]]\nname = 'web'\ndport = [80]\n",
        ),
    ]);
    let mut agent = lab.agent("--iface cl0 --dport 82 --name web");
    agent.run("set add old 198.51.100.0/24");
    lab.ask(Family::V4.near(), 82).assert_relayed(&agent);
    let generation = agent.status()["generation"].as_u64().unwrap();

    let said = agent.output(&format!("rule load {}", files.path("first.toml")));
    let summary = format!(
        "loaded {}: 2 rules, 1 set, 2 CIDRs\n",
        files.path("first.toml")
    );
    assert_eq!(said.trim_end(), summary.trim_end());
    let loaded = (vec!["web".into(), "more".into()], vec![("near".into(), 2)]);
    assert_eq!(in_force(&agent), loaded);
    assert_eq!(agent.status()["generation"].as_u64(), Some(generation + 1));
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
        lab.ask(family.far(), 80).assert_direct(&agent);
        lab.ask(family.near(), 81).assert_relayed(&agent);
        lab.ask(family.near(), 82).assert_direct(&agent);
    }
    assert_eq!(rule(&agent, "web")["flows"], 3, "one before and two after");

    agent.run(&format!("rule load {}", files.path("second.toml")));
    assert_eq!(
        in_force(&agent),
        (vec!["other".into(), "web".into()], vec![])
    );
    assert_eq!(rule(&agent, "web")["flows"], 3);
    assert_eq!(
        rule(&agent, "other")["flows"],
        0,
        "no counters of another rule"
    );
    for family in FAMILIES {
        lab.ask(family.far(), 80).assert_relayed(&agent);
        lab.ask(family.near(), 81).assert_direct(&agent);
    }
    assert_eq!(agent.stop().len(), 7);
}

/// A pinned instance is loaded without an agent.
#[test]
fn a_file_is_loaded_without_an_agent() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let files = Files::new(&[(
        "pass.toml",
        "[[rule]]\nname = 'web'\ndport = 80\non_missing = 'pass'\n",
    )]);
    let mut agent = lab.agent("--iface cl0 --dport 80 --pin");
    agent.stop();
    agent.run(&format!("rule load {}", files.path("pass.toml")));
    assert_eq!(agent.rule_names(), ["web"]);
    lab.ask(Family::V4.near(), 80).assert_unproxied();
    agent.run("unload");
}

/// `-` is standard input.
#[test]
fn a_file_is_loaded_from_standard_input() {
    let lab = Lab::new();
    let files = Files::new(&[
        (
            "fed",
            "#!/bin/sh\ninput=$1\nshift\nexec \"$@\" < \"$input\"\n",
        ),
        ("rules.toml", "[[rule]]\nname = 'web'\n"),
        ("bad.toml", "[[rule]]\n\nport = 80\n"),
    ]);
    let script = files.path("fed");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let agent = lab.agent("--iface cl0");
    let good = format!("{script} {}", files.path("rules.toml"));
    agent.attempt_under(&good, "rule check -").assert_done();
    assert_eq!(agent.rule_names(), Vec::<String>::new());
    let loaded = agent.attempt_under(&good, "rule load -");
    loaded.assert_done();
    assert!(
        loaded
            .stdout
            .contains("standard input: 1 rule, 0 sets, 0 CIDRs"),
        "{loaded:?}"
    );
    assert_eq!(agent.rule_names(), ["web"]);
    let bad = format!("{script} {}", files.path("bad.toml"));
    let words = ["standard input:3: port: ", "did you mean sport?"];
    agent
        .attempt_under(&bad, "rule load -")
        .assert_refused(2, &words);
    assert_eq!(agent.rule_names(), ["web"]);
}

/// Whatever is wrong in a file is said, all of it with its line, and nothing changes.
#[test]
fn a_bad_file_changes_nothing() {
    let lab = Lab::new();
    let files = Files::new(&[
        (
            "bad.toml",
            "[[rule]]\nname = 'a'\ndst = '10.0.0/8'\ndport = [80, 'x']\n[[rule]]\nname = 'a'\ndst = 'set:none'\ncolor = 1\n[set.s]\nfile = 'bad.txt'\n",
        ),
        ("bad.txt", "10.0.0.0/8\nhost\n"),
        (
            "iface.toml",
            "[[rule]]\niface = 'cl0'\n[[rule]]\niface = ['cl0', 'sv0', 'no0']\n",
        ),
        ("empty", ""),
    ]);
    let agent = lab.agent("--iface cl0 --dport 80 --name web");
    let state = || {
        let snapshot = Snapshot::of(&lab.gateway, agent.instance());
        (
            snapshot,
            agent.rules(),
            agent.status()["generation"].clone(),
        )
    };
    let before = state();
    let lines = |command: &str, file: &str, code| {
        let attempt = agent.attempt(&format!("{command} {}", files.path(file)));
        assert_eq!(attempt.code, Some(code), "{attempt:#?}");
        assert_eq!(attempt.stdout, "");
        attempt.stderr
    };
    let (bad, list) = (files.path("bad.toml"), files.path("bad.txt"));
    let expected = [
        format!(
            "tproxy: {bad}:3: dst: \"10.0.0/8\" is not a CIDR, an IP address, set:NAME or @FILE"
        ),
        format!("tproxy: {bad}:4: dport: \"x\" is not a port or range (1 to 65535)"),
        format!("tproxy: {bad}:6: name: line 2 has a rule a already"),
        format!("tproxy: {bad}:7: dst: there is no set none: add [set.none]"),
        format!(
            "tproxy: {bad}:8: color: is no key of a rule: there are name, scope, proto, src, dst, sport, dport, iface, uid, cgroup, action, to, source, on_missing, expires, comment"
        ),
        format!("tproxy: {list}:2: \"host\" is not a CIDR or an IP address"),
    ];
    for command in ["rule check", "rule load"] {
        assert_eq!(lines(command, "bad.toml", 2), expected);
        for (file, problem) in [("missing", "No such file"), ("", "is a directory")] {
            let lines = lines(command, file, 2);
            assert!(lines.len() == 1 && lines[0].contains(problem), "{lines:?}");
        }
    }
    let unattached = lines("rule load", "iface.toml", 1);
    assert_eq!(lines("rule check", "iface.toml", 1), unattached);
    let [sv0, no0] = unattached.as_slice() else {
        panic!("{unattached:?}");
    };
    assert!(
        sv0.contains(":4: iface: sv0 is not attached") && sv0.contains("attached: cl0"),
        "{sv0}"
    );
    assert!(no0.contains(":4: iface: no0 is not attached"), "{no0}");
    let after = state();
    after.0.assert_same_as(&before.0);
    assert_eq!((after.1, after.2), (before.1, before.2));
}

/// `rule check` asks neither for privileges nor for an instance, and touches nothing.
#[test]
fn checking_needs_no_privileges() {
    let lab = Lab::new();
    let files = Files::new(&[
        (
            "good.toml",
            "[set.a]\nfile = 'a.txt'\n[[rule]]\ndst = 'set:a'\n[[rule]]\nname = 'b'\n[[rule]]\nname = 'c'\ndport = 80\n",
        ),
        ("bad.toml", "[[rule]]\ndport = 0\n"),
        ("a.txt", "10.0.0.0/8\n"),
    ]);
    // The program where anybody can execute it.
    let copy = PathBuf::from(files.path("tproxy"));
    fs::copy(cli::program(), &copy).expect("copy the program");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let check = |file: &str| {
        let command_line = format!(
            "setpriv --reuid=65534 --regid=65534 --clear-groups {} --instance {instance} rule check {}",
            copy.display(),
            files.path(file)
        );
        let mut process = Process::start(&mut lab.gateway.command_line(&command_line));
        Attempt::end_of(&command_line, &mut process)
    };
    let good = check("good.toml");
    good.assert_done();
    assert!(
        good.stdout.contains("would load") && good.stdout.contains("3 rules, 1 set, 1 CIDR"),
        "{good:?}"
    );
    let hidden = format!(
        "{}:7: rule c can never match: rule b before it takes all its flows",
        files.path("good.toml")
    );
    assert_eq!(warnings(&good), [hidden]);
    check("bad.toml").assert_refused(2, &["bad.toml:2: dport: \"0\""]);
    fs::set_permissions(files.path("a.txt"), fs::Permissions::from_mode(0o000)).unwrap();
    check("good.toml").assert_refused(2, &["good.toml:2: file: cannot read", "Permission denied"]);
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// `run --config` takes interfaces, options, rules and sets from the file; options of the command line come first.
#[test]
fn an_agent_starts_with_a_file() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let files = Files::new(&[(
        "run.toml",
        "[agent]\ninterfaces = ['cl0']\ntable = 4711\nworkers = 2\ndrain = 1\n[set.near]\ncidrs = ['192.0.2.0/24', '2001:db8:1::/48']\n[[rule]]\nname = 'web'\niface = 'cl0'\ndst = 'set:near'\ndport = 80\n",
    )]);
    let mut agent = lab.agent(&format!("--config {} --workers 1", files.path("run.toml")));
    assert!(
        agent
            .ready_line()
            .contains("interfaces cl0, 1 rule, 1 worker"),
        "{}",
        agent.ready_line()
    );
    assert_eq!(agent.status()["table"], 4711);
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
        lab.ask(family.far(), 80).assert_direct(&agent);
    }
    assert_eq!(agent.stop().len(), 2);
}

/// What cannot be started with is refused, and leaves nothing.
#[test]
fn an_agent_does_not_start_with_a_bad_file() {
    let lab = Lab::new();
    let files = Files::new(&[
        ("bad.toml", "[[rule]]\ndport = 'x'\n"),
        ("good.toml", "[agent]\ninterfaces = ['cl0']\n"),
        (
            "iface.toml",
            "[agent]\ninterfaces = ['cl0']\n[[rule]]\niface = 'sv0'\n",
        ),
        ("missing.toml", "[agent]\ninterfaces = ['no0']\n"),
    ]);
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    for (arguments, code, words) in [
        ("bad.toml", 2, &["bad.toml:2: dport: \"x\""][..]),
        ("nowhere.toml", 2, &["nowhere.toml: cannot be read"]),
        (
            "good.toml --dport 80",
            2,
            &["--config", "the file has all rules"],
        ),
        (
            "iface.toml",
            1,
            &["iface.toml:4: iface: sv0 is not attached"],
        ),
        ("missing.toml", 1, &["no0"]),
    ] {
        let cli = Cli::new(&lab.gateway, &instance);
        let attempt = cli.attempt(&format!("run --config {}", files.path(arguments)));
        attempt.assert_refused(code, words);
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    }
    let cli = Cli::new(&lab.gateway, &instance);
    cli.attempt("run --config -")
        .assert_refused(2, &["--config", "read again"]);
}

/// SIGHUP reads the file again, and what it names. With anything wrong in it, the rules in force stay.
#[test]
fn a_hangup_reads_the_file_again() {
    let lab = Lab::new();
    let _witnesses = [80, 81].map(|port| Witness::start(&lab.server, port));
    let files = Files::new(&[
        (
            "run.toml",
            "[agent]\ninterfaces = ['cl0']\n[[rule]]\nname = 'web'\ndst = '@near.txt'\ndport = 80\n",
        ),
        ("near.txt", "192.0.2.0/24\n"),
    ]);
    let path = files.path("run.toml");
    let mut agent = lab.agent(&format!("--config {path}"));
    lab.ask(Family::V4.near(), 80).assert_relayed(&agent);
    lab.ask(Family::V6.near(), 80).assert_direct(&agent);

    files.write("near.txt", "192.0.2.0/24\n2001:db8:1::/48\n");
    agent.signal(Signal::SIGHUP);
    agent.wait_for_log(&format!("loaded {path}: 1 rule, 1 set, 2 CIDRs"));
    lab.ask(Family::V6.near(), 80).assert_relayed(&agent);
    assert_eq!(rule(&agent, "web")["flows"], 2);

    let before = (agent.rules(), agent.status()["generation"].clone());
    files.write("run.toml", "[[rule]]\ndport = 'x'\n[[rule]]\ndst = 'y'\n");
    agent.signal(Signal::SIGHUP);
    agent.wait_for_log(&format!("{path} was not loaded: the rules in force stay"));
    let log = agent.log();
    for problem in [":2: dport: \"x\"", ":4: dst: \"y\""] {
        assert!(
            log.contains(&format!("{path}{problem}")),
            "{problem} in\n{log}"
        );
    }
    assert_eq!(
        (agent.rules(), agent.status()["generation"].clone()),
        before
    );
    files.write("run.toml", "[[rule]]\niface = 'sv0'\n");
    agent.signal(Signal::SIGHUP);
    agent.wait_for_log(&format!("{path}:2: iface: sv0 is not attached"));
    assert_eq!(
        (agent.rules(), agent.status()["generation"].clone()),
        before
    );

    files.write("run.toml", "[agent]\ninterfaces = ['sv0']\n[[rule]]\nname = 'all'\n[[rule]]\nname = 'other'\ndport = 81\n");
    agent.signal(Signal::SIGHUP);
    agent.wait_for_log("rule other can never match: rule all before it takes all its flows");
    assert!(
        agent.log().contains("[agent] is not what it was"),
        "{}",
        agent.log()
    );
    assert_eq!(agent.rule_names(), ["all", "other"]);
    lab.ask(Family::V4.near(), 81).assert_relayed(&agent);
    assert_eq!(agent.stop().len(), 3);
}

/// SIGHUP means nothing to an agent without a file, not even its end.
#[test]
fn a_hangup_without_a_file_does_nothing() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --dport 80 --name web");
    agent.signal(Signal::SIGHUP);
    agent.run("rule add --name more --dport 81");
    lab.ask(Family::V4.near(), 80).assert_relayed(&agent);
    assert_eq!(agent.rule_names(), ["web", "more"]);
    assert_eq!(agent.stop().len(), 1);
}

/// A rule is gone when its time is over: the agent deletes it, and flows go their own way.
#[test]
fn a_rule_expires() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0");
    agent.run("rule add --name long --dport 81 --expires 1h");
    agent.run("rule add --name short --dport 80 --expires 3s");
    lab.ask(Family::V4.near(), 80).assert_relayed(&agent);
    let left = |name: &str| rule(&agent, name)["expires_in"].as_u64().expect("a number");
    assert!(left("short") <= 3);
    assert!((3500..=3600).contains(&left("long")));
    assert_eq!(rule(&agent, "long")["expires"], "1h");
    let listed = agent.output("rule list");
    let in_words = listed.contains(" 1h ") || listed.contains(" 59m ");
    assert!(listed.contains("EXPIRES") && in_words, "{listed}");
    agent.wait_for_log("rule short is gone: its time is over");
    wait::until("the rule is gone", || {
        (agent.rule_names() == ["long"]).then_some(())
    });
    lab.ask(Family::V4.near(), 80).assert_direct(&agent);
    let shown = agent.output("rule show long");
    assert!(shown.contains(" 59m "), "{shown}");
    agent.run("rule del long");
    assert!(!agent.output("rule list").contains("EXPIRES"));
    assert_eq!(agent.stop().len(), 1);
}

/// Without an agent a rule that has expired is said to have, and the next change takes it along. A deadline outlives the
/// agent.
#[test]
fn a_rule_expires_without_an_agent() {
    let lab = Lab::new();
    let instance = unique_instance();
    let start = || Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --pin");
    let mut agent = start();
    agent.run("rule add --name long --dport 80 --expires 1h");
    agent.run("rule add --name short --dport 81 --expires 300ms");
    agent.run("rule add --name shorter --dport 82 --expires 200ms");
    let before = rule(&agent, "long")["expires_in"].as_u64().unwrap();
    agent.wait_for_log("rule short is gone");
    agent.stop();
    agent.run("rule add --name gone --dport 83 --expires 3s");
    agent.run("rule add --name done --dport 84 --expires 3s");
    wait::until("the rules have expired", || {
        let over = |name| rule(&agent, name)["expires_in"] == 0;
        (over("gone") && over("done")).then_some(())
    });
    assert!(agent.output("rule list").contains("expired"));
    agent.run("rule del gone");
    assert_eq!(
        agent.rule_names(),
        ["long"],
        "the change took the other one along"
    );
    let mut agent = start();
    assert_eq!(agent.rule_names(), ["long"]);
    assert!(rule(&agent, "long")["expires_in"].as_u64().unwrap() <= before);
    agent.stop();
    agent.run("unload");
}

/// A rule of a file that stays keeps its end, and one that is to live longer does not.
#[test]
fn a_deadline_stays_when_a_file_is_loaded_again() {
    let lab = Lab::new();
    let files = Files::new(&[
        (
            "one.toml",
            "[[rule]]\nname = 'a'\nexpires = '1s'\n[[rule]]\nname = 'b'\nexpires = '1s'\ndport = 80\n",
        ),
        (
            "two.toml",
            "[[rule]]\nname = 'a'\nexpires = '1s'\n[[rule]]\nname = 'b'\nexpires = '2h'\ndport = 80\n",
        ),
    ]);
    let mut agent = lab.agent("--iface cl0");
    agent.run(&format!("rule load {}", files.path("one.toml")));
    agent.run(&format!("rule load {}", files.path("two.toml")));
    assert!(rule(&agent, "b")["expires_in"].as_u64().unwrap() > 7000);
    agent.wait_for_log("rule a is gone: its time is over");
    wait::until("the rule is gone", || {
        (agent.rule_names() == ["b"]).then_some(())
    });
    agent.stop();
}

/// Killed anywhere, `rule load` leaves the old rules with the old sets, or the new with the new.
#[test]
fn loading_is_all_or_nothing() {
    let lab = Lab::new();
    let files = Files::new(&[
        (
            "old.toml",
            "[set.old]\ncidrs = ['10.0.0.0/8']\n[set.both]\ncidrs = ['10.1.0.0/16']\n[[rule]]\nname = 'old'\ndst = ['set:old', 'set:both']\n[[rule]]\nname = 'both'\ndport = 80\n",
        ),
        (
            "new.toml",
            "[set.new]\ncidrs = ['10.0.0.0/9', '::/0']\n[set.both]\ncidrs = ['10.1.0.0/16', '10.2.0.0/16']\n[[rule]]\nname = 'both'\ndst = '@list.txt'\n[[rule]]\nname = 'new'\ndst = ['set:new', 'set:both']\n",
        ),
        ("list.txt", "192.0.2.0/24\n"),
    ]);
    let [old, new] = ["old.toml", "new.toml"].map(|file| format!("rule load {}", files.path(file)));
    let mut agent = lab.agent("--iface cl0");
    let cli = (*agent).clone();
    agent.run(&new);
    let after = in_force(&agent);
    agent.run(&old);
    let before = in_force(&agent);
    assert_ne!(before, after);
    at_every_step(&cli, &new, |place| {
        let now = in_force(&agent);
        if now == after {
            agent.run(&old);
        } else {
            assert_eq!(now, before, "{place}");
        }
    });
    agent.stop();
}

/// 1,024 rules are taken, in a file and one by one; one more is refused and changes nothing.
#[test]
fn one_rule_too_many_is_refused() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 1024);
    let mut text = String::new();
    for port in 1..=1024 {
        writeln!(text, "[[rule]]\nname = 'r{port}'\ndport = {port}").unwrap();
    }
    let files = Files::new(&[
        ("full.toml", &text),
        ("over.toml", &format!("{text}[[rule]]\ndport = 1025\n")),
    ]);
    let mut agent = lab.agent("--iface cl0");
    agent.run(&format!("rule load {}", files.path("full.toml")));
    lab.ask(Family::V4.near(), 1024).assert_relayed(&agent);
    assert_eq!(rule(&agent, "r1024")["flows"], 1);
    let generation = agent.status()["generation"].clone();
    let load = format!("rule load {}", files.path("over.toml"));
    let words = ["over.toml:3073: rule: 1025 rules are more than the limit of 1024"];
    agent.attempt(&load).assert_refused(2, &words);
    let add = agent.attempt("rule add --name over --dport 1025");
    add.assert_refused(1, &["1025 rules are more than the limit of 1024"]);
    assert_eq!(agent.status()["generation"], generation);
    assert_eq!(agent.rules().len(), 1024);
    assert_eq!(agent.stop().len(), 1);
}

/// Rules that can never match and those whose listener is not there are warned of, and do what they can.
#[test]
fn rules_without_effect_are_warned_of() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0");
    let warned = |command: &str, expected: &[&str]| {
        let attempt = agent.attempt(command);
        attempt.assert_done();
        assert_eq!(warnings(&attempt), expected, "{command}");
    };
    warned("rule add --name low --dport 1-99", &[]);
    warned("rule add --name high --dport 100-65535", &[]);
    warned(
        "rule add --name between --dport 90-110",
        &["rule between can never match: rules low, high before it take all its flows"],
    );
    warned(
        "rule add --name first --dport 1-200 --at 1 --on-missing pass",
        &[
            "rule low can never match: rule first before it takes all its flows",
            "rule between can never match: rule first before it takes all its flows",
        ],
    );
    warned("rule add --name unconcerned --proto udp --action drop", &[]);
    warned("rule flush", &[]);
    warned(
        "rule add --name mine --scope local --uid root --dport 80",
        &[],
    );
    assert_eq!(rule(&agent, "mine")["uid"], json!(["0"]));
    warned(
        "rule add --name there --dport 80 --action redirect --to 127.0.0.1:4713 --on-missing pass",
        &[
            "rule there: nobody listens at tcp 127.0.0.1:4713: start the program that is to take these flows; on_missing decides until then",
        ],
    );
    lab.ask(Family::V4.near(), 80).assert_direct(&agent);
    assert_eq!(agent.stop(), []);
}

/// Rules whose addresses no flow has are warned of, once each, where they are added, checked and loaded. Whole address
/// spaces are not.
#[test]
fn addresses_that_no_flow_has_are_warned_of() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0");
    let said = |command: &str| -> Vec<String> {
        let attempt = agent.attempt(command);
        attempt.assert_done();
        warnings(&attempt).into_iter().map(str::to_owned).collect()
    };
    let of_groups =
        "rule groups takes nothing: what goes to 224.0.0.0/4 is left alone, whatever the rules say";
    let of_nobody = "rule nobody takes nothing: no flow comes from 255.255.255.255/32";
    assert_eq!(
        said("rule add --name groups --dst 224.0.0.0/4"),
        [of_groups]
    );
    assert_eq!(
        said("rule add --name nobody --src 255.255.255.255"),
        [of_nobody]
    );
    for silent in [
        "--dst 224.0.0.0/4 --action pass",
        "--dst 0.0.0.0/1,224.0.0.0/4",
        "--dst 0.0.0.0/0,::/0",
    ] {
        let command = format!("rule add --proto udp --dport 81 {silent}");
        assert_eq!(said(&command), [] as [&str; 0], "{command}");
    }
    let files = Files::new(&[(
        "none.toml",
        "[[rule]]\nname = 'all'\ndst = '0.0.0.0/0'\ndport = 80\n[[rule]]\nname = 'groups'\ndst = '224.0.0.0/4'\n",
    )]);
    let path = files.path("none.toml");
    let checked = said(&format!("rule check {path}"));
    assert_eq!(checked, [format!("{path}:5: {of_groups}")]);
    assert_eq!(said(&format!("rule load {path}")), [of_groups]);
}

/// Places that are none.
#[test]
fn places_that_are_none_are_refused() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80 --name web");
    for (place, code, words) in [
        ("--at 0", 2, &["--at"][..]),
        ("--at -1", 2, &["-1"]),
        ("--at x", 2, &["--at", "x"]),
        ("--at 70000", 2, &["--at", "70000"]),
        ("--at 1025", 2, &["--at", "1025"]),
        ("--at 1024", 1, &["--at", "2 would be the last"]),
        ("--at 3", 1, &["--at", "3", "2 would be the last"]),
        ("--before none", 1, &["none"]),
        ("--after none", 1, &["none"]),
        ("--at 1 --before web", 2, &["--at", "--before"]),
        ("--before web --after web", 2, &["--before", "--after"]),
    ] {
        let attempt = agent.attempt(&format!("rule add --name more {place}"));
        attempt.assert_refused(code, words);
        assert_eq!(agent.rule_names(), ["web"]);
    }
    agent.run("rule add --name last --at 2 --dport 81");
    assert_eq!(agent.rule_names(), ["web", "last"]);
}
