//! Sets of CIDRs: what they do to flows, changed while traffic flows, and what is refused.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tproxy_tests::{
    Agent, Cli, Family, Lab, Snapshot, address::FAMILIES, agent::unique_instance,
    interruption::at_every_step, peer::Witness,
};

const USAGE: i32 = 2;
const FAILED: i32 = 1;

/// The CIDRs of a set, as `set show` has them.
#[track_caller]
fn cidrs(agent: &Agent, name: &str) -> Vec<String> {
    let set = agent.json(&format!("set show {name}"));
    let cidrs: Vec<String> = serde_json::from_value(set["cidrs"].clone()).expect("a list");
    assert_eq!(set["count"], cidrs.len());
    cidrs
}

/// `set list --json` by name: how many CIDRs, and the rules.
#[track_caller]
fn sets(agent: &Agent) -> Vec<(String, u64, Vec<String>)> {
    let sets = agent.json("set list");
    let sets = sets.as_array().expect("an array").clone();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    sets.iter()
        .map(|set| {
            let rules = set["rules"].as_array().expect("rules").iter().map(text);
            let count = set["count"].as_u64().expect("a number");
            (text(&set["name"]), count, rules.collect())
        })
        .collect()
}

/// A file of a test, and its path as words of a command have it.
fn file(directory: &TempDir, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    path.to_str().expect("UTF-8").to_owned()
}

/// From the moment that the command is done, an added CIDR takes flows and a deleted one does not.
#[test]
fn cidrs_take_effect_when_they_are_added_and_deleted() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0");
    agent.run("set add wanted 203.0.113.0/24");
    agent.run("rule add --name wanted --dst set:wanted");
    for family in FAMILIES {
        let (near, far) = (family.near(), family.far());
        lab.ask(near, 80).assert_direct(&agent);
        for (command, taken) in [
            (format!("set add wanted {near}"), true),
            (format!("set add wanted {}", family.near_prefix()), true),
            (format!("set del wanted {near}"), true),
            (format!("set del wanted {}", family.near_prefix()), false),
            (format!("set add wanted {near} {far}"), true),
            ("set flush wanted".to_owned(), false),
        ] {
            agent.run(&command);
            let exchange = lab.ask(near, 80);
            if taken {
                exchange.assert_relayed(&agent);
            } else {
                exchange.assert_direct(&agent);
            }
        }
        lab.ask(far, 80).assert_direct(&agent);
    }
    agent.stop();
}

/// Sources and destinations, wanted and excluded, by one set in several rules at once.
#[test]
fn one_set_serves_many_rules() {
    let lab = Lab::new();
    let _witnesses = [80, 81, 82].map(|port| Witness::start(&lab.server, port));
    let mut agent = lab.agent("--iface cl0");
    agent.run("set add some 203.0.113.1");
    agent.run("rule add --dport 80 --dst set:some");
    agent.run("rule add --dport 81 --dst !set:some");
    agent.run("rule add --dport 82 --src set:some --dst 0.0.0.0/0,::/0,!203.0.113.9");
    let rules = agent.rule_names();
    assert_eq!(sets(&agent), [("some".to_owned(), 1, rules.clone())]);
    for (server, rule, reason) in [
        (
            "203.0.113.1:80",
            &json!(rules[0]),
            "203.0.113.1 is in set:some by 203.0.113.1/32",
        ),
        (
            "203.0.113.1:81",
            &Value::Null,
            "203.0.113.1 is excluded by !set:some",
        ),
        (
            "203.0.113.2:81",
            &json!(rules[1]),
            "203.0.113.2 is not excluded",
        ),
        (
            "203.0.113.2:82",
            &Value::Null,
            "10.77.1.2 is not in set:some",
        ),
    ] {
        let answer = agent.json(&format!("explain tcp 10.77.1.2 {server}"));
        assert_eq!(&answer["rule"], rule, "{answer}");
        assert!(answer.to_string().contains(reason), "{reason} in {answer}");
    }
    let ports_taken = |family: Family, taken: [bool; 3]| {
        for (port, taken) in (80..).zip(taken) {
            let exchange = lab.ask(family.near(), port);
            if taken {
                exchange.assert_relayed(&agent);
            } else {
                exchange.assert_direct(&agent);
            }
        }
    };
    for family in FAMILIES {
        ports_taken(family, [false, true, false]);
        agent.run(&format!("set add some {}", family.near_prefix()));
        ports_taken(family, [true, false, false]);
        agent.run(&format!("set add some {}", family.client()));
        ports_taken(family, [true, false, true]);
        agent.run(&format!(
            "set del some {} {}",
            family.client(),
            family.near_prefix()
        ));
        ports_taken(family, [false, true, false]);
    }
    agent.stop();
}

/// What `show` prints, `load` takes. A list may come from standard input.
#[test]
fn sets_are_listed_shown_loaded_emptied_and_removed() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0");
    assert_eq!(agent.output("set list"), "no sets");
    assert_eq!(agent.json("set list"), json!([]));
    agent.run("set add b 10.1.2.3 2001:db8::/32 10.0.0.0/8 ::ffff:192.0.2.0/120 10.0.0.0/8");
    let all = ["10.0.0.0/8", "10.1.2.3/32", "192.0.2.0/24", "2001:db8::/32"];
    assert_eq!(cidrs(&agent, "b"), all);
    // What is there already is no mistake.
    agent.run("set add b 10.0.0.0/8");
    assert_eq!(cidrs(&agent, "b"), all);

    let directory = TempDir::new().unwrap();
    let shown = file(&directory, "shown", agent.output("set show b"));
    agent.run(&format!("set load a {shown}"));
    assert_eq!(cidrs(&agent, "a"), all);
    let messy = "\u{feff}# comment\r\n\r\n 10.0.0.0/8 # all of it\r\n10.0.0.0/8\r\n::1";
    let messy = file(&directory, "messy", messy);
    agent.run(&format!("set load a {messy}"));
    assert_eq!(cidrs(&agent, "a"), ["10.0.0.0/8", "::1/128"]);
    let script = format!("#!/bin/sh\nexec \"$@\" < {shown}\n");
    let script = file(&directory, "from-shown", script);
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    agent.attempt_under(&script, "set load a -").assert_done();
    assert_eq!(cidrs(&agent, "a"), all);

    agent.run("rule add --name web --src !set:a --dst set:b");
    let listed = agent.output("set list");
    let mut lines = listed
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(lines.next(), Some(vec!["NAME", "CIDRS", "RULES"]));
    assert_eq!(lines.next(), Some(vec!["a", "4", "web"]));
    assert_eq!(lines.next(), Some(vec!["b", "4", "web"]));
    assert_eq!(agent.rules()[0]["dst"], json!(["set:b"]));
    assert_eq!(agent.rules()[0]["src"], json!(["!set:a"]));

    let empty = file(&directory, "empty", "");
    agent.run(&format!("set load a {empty}"));
    agent.run("set flush b");
    assert!(cidrs(&agent, "a").is_empty() && cidrs(&agent, "b").is_empty());
    agent.run("rule del web");
    agent.run("set remove a b");
    assert_eq!(sets(&agent), []);
}

/// A file is read when a rule that names it is added, for all rules that name it, and not otherwise.
#[test]
fn files_of_rules_are_kept_as_they_were_read() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0");
    let directory = TempDir::new().unwrap();
    let [near, far] =
        [Family::near_prefix, Family::far_prefix].map(|prefix| FAMILIES.map(prefix).join("\n"));
    let list = file(&directory, "list", &near);
    agent.run(&format!("rule add --name one --dport 80 --dst @{list}"));
    let name = format!("@{list}");
    assert_eq!(sets(&agent), [(name.clone(), 2, vec!["one".to_owned()])]);
    assert_eq!(cidrs(&agent, &name), near.lines().collect::<Vec<_>>());
    fs::write(&list, &far).unwrap();
    agent.run("rule add --name unrelated --dport 81");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
        lab.ask(family.far(), 80).assert_direct(&agent);
    }
    // Seen from the directory of the command.
    let here = format!("env --chdir={} --", directory.path().display());
    let again = agent.attempt_under(&here, "rule add --name two --dport 82 --dst !@./list");
    again.assert_done();
    assert_eq!(
        sets(&agent),
        [(name.clone(), 2, vec!["one".to_owned(), "two".to_owned()])]
    );
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_direct(&agent);
        lab.ask(family.far(), 80).assert_relayed(&agent);
    }
    fs::remove_file(&list).unwrap();
    agent.run("rule del one");
    assert_eq!(sets(&agent), [(name, 2, vec!["two".to_owned()])]);
    agent.run("rule del two");
    assert_eq!(sets(&agent), []);
    agent.stop();
}

/// The files of the instance's state and of its sets.
fn files(agent: &Agent) -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new("/run/tproxy").join(agent.instance())).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("state-") || name.starts_with("set-")
    });
    files.sort();
    files
}

/// However often a set changes, there are one file of the state and one for each set.
#[test]
fn nothing_is_left_of_sets_that_were() {
    let lab = Lab::new();
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --dport 80");
    let many = |from: u32, to: u32| {
        let words =
            (from..to).map(|host| std::net::Ipv4Addr::from(0x0a00_0000 + 2 * host).to_string());
        words.collect::<Vec<_>>().join(" ")
    };
    agent.run(&format!("set add some {}", many(0, 700)));
    let first = files(&agent);
    agent.run(&format!("set add some {}", many(700, 1000)));
    assert_eq!(
        files(&agent)[0],
        first[0],
        "the list stays as it was written"
    );
    agent.run(&format!("set add some {}", many(1000, 1800)));
    agent.run(&format!("set add other {}", many(0, 700)));
    agent.run(&format!("set del other {}", many(0, 700)));
    assert_eq!(cidrs(&agent, "some").len(), 1800);
    assert!(cidrs(&agent, "other").is_empty());
    assert_eq!(files(&agent).len(), 3, "{:?}", files(&agent));
    assert!(
        files(&agent).iter().all(|file| !first.contains(file)),
        "the overlay was folded"
    );
    for file in files(&agent) {
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
    agent.run("set remove some other");
    assert_eq!(files(&agent).len(), 1);
    agent.stop();
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// Sets stay with a pinned instance, also when all of its programs have to be loaded again.
#[test]
fn sets_of_a_pinned_instance_go_on() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let instance = unique_instance();
    let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --pin");
    let [v4, v6] = FAMILIES.map(Family::near_prefix);
    agent.run(&format!("set add near {v4}"));
    agent.run(&format!("set add near {v6}"));
    agent.run("rule add --name near --dst set:near");
    agent.stop();
    // One that goes out of scope unloads what it left.
    let mut stopped = vec![agent];
    for arguments in ["--pin", "--pin --clsact", "--pin"] {
        let mut agent = Agent::start_under(&lab.gateway, &instance, "", arguments);
        assert_eq!(cidrs(&agent, "near"), [v4, v6]);
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_relayed(&agent);
            lab.ask(family.far(), 80).assert_direct(&agent);
        }
        agent.stop();
        stopped.push(agent);
    }
    let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --dport 80");
    // Other rules: the sets of those before go with them.
    assert_eq!(sets(&agent), []);
    agent.stop();
}

/// Readers see a set before a change or after it, while it is replaced again and again.
#[test]
fn readers_see_one_state_whole() {
    let lab = Lab::new();
    let mut agent = lab.agent("--iface cl0 --dport 80");
    let directory = TempDir::new().unwrap();
    let lists = [10_u32, 3000].map(|size| {
        let lines = (0..size).map(|host| std::net::Ipv4Addr::from(0x0a00_0000 + host).to_string());
        let lines: Vec<String> = lines.collect();
        file(&directory, &size.to_string(), lines.join("\n"))
    });
    agent.run(&format!("set load some {}", lists[0]));
    agent.run("rule add --dst set:some");
    thread::scope(|scope| {
        let cli = (*agent).clone();
        let changes = scope.spawn(move || {
            for list in lists.iter().cycle().take(40) {
                cli.run(&format!("set load some {list}"));
            }
        });
        while !changes.is_finished() {
            let seen = cidrs(&agent, "some").len();
            assert!([10, 3000].contains(&seen), "{seen}");
        }
    });
    agent.stop();
}

/// Checks that a command refuses and changes nothing.
#[track_caller]
fn assert_refused(lab: &Lab, agent: &Agent, arguments: &str, code: i32, words: &[&str]) {
    let state = || {
        let snapshot = Snapshot::of(&lab.gateway, agent.instance());
        (snapshot, agent.status()["generation"].clone())
    };
    let before = state();
    agent.attempt(arguments).assert_refused(code, words);
    let after = state();
    after.0.assert_same_as(&before.0);
    assert_eq!(after.1, before.1, "generation after {arguments}");
}

#[test]
fn names_and_cidrs_that_make_no_sense() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80");
    agent.run("set add some 10.0.0.0/8 192.0.2.0/24");
    agent.run("rule add --name uses --dst set:some");
    let refused = |arguments: &str, code, words: &[&str]| {
        assert_refused(&lab, &agent, arguments, code, words);
    };
    refused(
        "rule add --dst set:none",
        FAILED,
        &["no set none", "set add none"],
    );
    refused("rule add --src !set:none", FAILED, &["no set none"]);
    refused("rule add --dst set:", USAGE, &["--dst", "\"\""]);
    refused("rule add --dst set:../x", USAGE, &["--dst", "\"../x\""]);
    refused("rule add --dst @", USAGE, &["--dst", "names no file"]);
    refused("set show none", FAILED, &["no set none", "set list"]);
    refused("set del none 10.0.0.0/8", FAILED, &["no set none"]);
    refused("set flush none", FAILED, &["no set none"]);
    refused("set remove none", FAILED, &["no set none"]);
    refused("set remove some", FAILED, &["set some", "rule uses"]);
    refused("set del some", USAGE, &["CIDR"]);
    refused("set add some", USAGE, &["CIDR"]);
    for name in ["../some", "@list", "a/b", ".some", "set:some"] {
        refused(
            &format!("set add {name} 10.0.0.1"),
            USAGE,
            &[&format!("\"{name}\"")],
        );
    }
    refused(
        "set add some 10.0.0.0/8 10.0.0/8 ::1/129 host",
        USAGE,
        &["\"10.0.0/8\"", "\"::1/129\"", "\"host\""],
    );
    refused(
        "set del some 10.0.0.0/8 203.0.113.1",
        FAILED,
        &["203.0.113.1/32", "set some"],
    );
    refused(
        "set del some 10.1.0.0/16",
        FAILED,
        &["10.1.0.0/16", "10.0.0.0/8"],
    );
    assert_eq!(cidrs(&agent, "some"), ["10.0.0.0/8", "192.0.2.0/24"]);
}

#[test]
fn files_that_are_no_lists() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80");
    let directory = TempDir::new().unwrap();
    let good = file(&directory, "good", "10.0.0.0/8\n192.0.2.0/24\n");
    agent.run(&format!("set load some {good}"));
    agent.run("rule add --dst set:some");
    let bad = file(
        &directory,
        "bad",
        b"10.0.0.0/8\n10.0.0/8\n::1\nhost # name\n\xff\n1.1.1.1",
    );
    let missing = format!("{}/missing", directory.path().display());
    let hosts = |count: u32| {
        let lines =
            (0..count).map(|host| format!("{}\n", std::net::Ipv4Addr::from(0x0b00_0000 + host)));
        lines.collect::<Vec<_>>().concat()
    };
    let large = file(&directory, "large", hosts(1_000_001));
    let directory = directory.path().display().to_string();
    for (path, code, words) in [
        (&directory, USAGE, &[&directory, "is a directory"]),
        (&missing, USAGE, &[&missing, "No such file"]),
        (&large, USAGE, &[&large, "limit of 1000000"]),
    ] {
        assert_refused(&lab, &agent, &format!("set load some {path}"), code, words);
        assert_refused(&lab, &agent, &format!("set load new {path}"), code, words);
        assert_refused(
            &lab,
            &agent,
            &format!("rule add --dst @{path}"),
            code,
            words,
        );
    }
    let no_cidr = "is not a CIDR or an IP address";
    let wrong = [
        format!("tproxy: {bad}:2: \"10.0.0/8\" {no_cidr}"),
        format!("tproxy: {bad}:4: \"host\" {no_cidr}"),
        format!("tproxy: {bad}:5: \"\u{fffd}\" is not UTF-8 text"),
    ];
    let instance = unique_instance();
    for (cli, command) in [
        (&*agent, format!("set load some {bad}")),
        (&*agent, format!("set load new {bad}")),
        (&*agent, format!("rule add --dst @{bad}")),
        (
            &Cli::new(&lab.gateway, &instance),
            format!("run --iface sv0 --dst @{bad}"),
        ),
    ] {
        let attempt = cli.attempt(&command);
        assert_eq!(attempt.code, Some(USAGE), "{attempt:#?}");
        assert_eq!(attempt.stderr, wrong, "{command}");
    }
    // The first twenty, and how many more.
    fs::write(&bad, "host\n".repeat(1000)).unwrap();
    let attempt = agent.attempt(&format!("set load some {bad}"));
    assert_eq!(attempt.code, Some(USAGE), "{attempt:#?}");
    assert_eq!(attempt.stderr.len(), 21, "{attempt:#?}");
    let last = format!("tproxy: and 980 more lines of {bad}");
    assert_eq!(attempt.stderr.last(), Some(&last));
    assert_eq!(cidrs(&agent, "some"), ["10.0.0.0/8", "192.0.2.0/24"]);

    // The limit is that of all sets and rules together.
    fs::write(&large, hosts(999_997)).unwrap();
    agent.run(&format!("set load most {large}"));
    agent.run("set add most 192.0.2.1");
    for command in [
        "set add most 192.0.2.2",
        "set add new 192.0.2.2",
        "rule add --dst 192.0.2.2",
    ] {
        let limit = "1000001 CIDRs are more than the limit of 1000000";
        assert_refused(&lab, &agent, command, FAILED, &[limit]);
    }
    agent.run("set del most 192.0.2.1");
    agent.run("set add new 192.0.2.2");
}

/// The agent does not start with a rule whose set or file is not there, and leaves nothing; it does
/// with a file.
#[test]
fn starting_with_sets_of_rules() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let cli = Cli::new(&lab.gateway, &instance);
    let directory = TempDir::new().unwrap();
    let bad = file(&directory, "bad", "10.0.0.0/8\nhost\n");
    let missing = format!("{}/missing", directory.path().display());
    for (word, code, words) in [
        ("set:none".to_owned(), FAILED, &["no set none"][..]),
        (format!("@{missing}"), USAGE, &[&missing]),
        (format!("@{bad}"), USAGE, &[&format!("{bad}:2: \"host\"")]),
    ] {
        let attempt = cli.attempt(&format!("run --iface cl0 --dst {word}"));
        attempt.assert_refused(code, words);
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    }
    let list = file(
        &directory,
        "list",
        FAMILIES.map(Family::near_prefix).join("\n"),
    );
    let mut agent = lab.agent(&format!("--iface cl0 --dport 80 --dst @{list}"));
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
        lab.ask(family.far(), 80).assert_direct(&agent);
    }
    agent.stop();
}

/// The file of a set that somebody damaged: commands say so, and a new list mends it.
#[test]
fn a_damaged_set_is_named_and_can_be_loaded_again() {
    let lab = Lab::new();
    let mut agent = lab.agent("--iface cl0 --dport 80");
    agent.run("set add some 10.0.0.0/8 192.0.2.0/24");
    let of_set = |agent: &Agent| {
        let files = files(agent).into_iter();
        let mut sets = files.filter(|path| path.to_str().unwrap().contains("/set-"));
        sets.next().unwrap()
    };
    let path = of_set(&agent);
    fs::write(&path, "something else").unwrap();
    let name = path.to_str().unwrap();
    for command in ["set show some", "set add some ::1", "rule add --dport 81"] {
        agent
            .attempt(command)
            .assert_refused(FAILED, &[name, "damaged", "tproxy unload"]);
    }
    let directory = TempDir::new().unwrap();
    let list = file(&directory, "list", "10.0.0.0/8");
    agent.run(&format!("set load some {list}"));
    assert_eq!(cidrs(&agent, "some"), ["10.0.0.0/8"]);
    agent.run("rule add --dst set:some");
    agent.stop();
}

/// `set add`, `del` and `load`, wherever they are killed.
#[test]
fn changing_sets_is_all_or_nothing() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 81);
    let mut agent = lab.agent("--iface cl0 --dport 80");
    let cli = (*agent).clone();
    let near = Family::V4.near_prefix();
    let directory = TempDir::new().unwrap();
    let list = file(&directory, "list", format!("10.0.0.0/8\n{near}\n"));
    agent.run("set add some 10.0.0.0/8");
    agent.run("rule add --dport 81 --dst set:some");
    // What the set says and what the tables do is one thing.
    let has_near = |agent: &Agent| {
        let exchange = lab.ask(Family::V4.near(), 81);
        match cidrs(agent, "some").as_slice() {
            [_] => exchange.assert_direct(agent),
            [_, _] => exchange.assert_relayed(agent),
            cidrs => panic!("{cidrs:?}"),
        }
        cidrs(agent, "some").len() == 2
    };
    for command in [
        format!("set add some {near}"),
        format!("set load some {list}"),
    ] {
        at_every_step(&cli, &command, |place| {
            eprintln!("{place}");
            if has_near(&agent) {
                agent.run(&format!("set del some {near}"));
            }
        });
    }
    agent.run(&format!("set add some {near}"));
    at_every_step(&cli, &format!("set del some {near}"), |place| {
        eprintln!("{place}");
        if !has_near(&agent) {
            agent.run(&format!("set add some {near}"));
        }
    });
    assert_eq!(files(&agent).len(), 2, "{:?}", files(&agent));
    agent.stop();
}
