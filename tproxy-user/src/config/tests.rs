use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tproxy_common::limits::RULES;

use super::*;
use crate::set::{LoadError, Reading, read};

/// Files that a text of the tests may name.
fn files(path: &Path) -> Result<Reading, LoadError> {
    let files = HashMap::from([
        ("conf/good.txt", "10.0.0.0/8\n2001:db8::/32 # ours\n"),
        ("conf/bad.txt", "10.0.0.0/8\nx\n@good.txt\n"),
        ("conf/empty.txt", "# nothing\n"),
        ("conf/masked.txt", "10.1.2.3/8\n"),
    ]);
    let name = path.display().to_string();
    match files.get(name.as_str()) {
        Some(text) => Ok(read(&name, text.as_bytes())?),
        None => Err(LoadError::File {
            name,
            cause: io::ErrorKind::NotFound.into(),
        }),
    }
}

fn parse(text: &str) -> Result<Config, Problems> {
    Config::parse("conf/r.toml", text, Path::new("conf"), &mut files)
}

#[track_caller]
fn taken(text: &str) -> Config {
    parse(text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The problems of a text, each without the name of the file.
#[track_caller]
fn refused(text: &str) -> Vec<String> {
    let problems = match parse(text) {
        Ok(config) => panic!("taken: {config:?}"),
        Err(problems) => problems,
    };
    let line = |problem: &Problem| {
        let text = problem.to_string();
        text.strip_prefix("conf/r.toml:")
            .unwrap_or(&text)
            .to_owned()
    };
    problems.iter().map(line).collect()
}

/// Checks that a text has one problem.
#[track_caller]
fn assert_refused(text: &str, problem: &str) {
    assert_eq!(refused(text), [problem], "{text}");
}

#[test]
fn the_example_of_the_readme_is_taken() {
    let config = taken(
        r#"
        [agent]
        interfaces = ["eth1"]
        mark = 0x74700000
        table = 7470

        [set.internal]
        cidrs = ["10.0.0.0/8", "fd00::/8"]

        [set.blocked]
        file = "good.txt"           # a CIDR a line, # begins a comment

        [[rule]]
        name = "internal"
        dst = ["set:internal"]
        action = "pass"

        [[rule]]
        name = "web"
        dport = ["80", "443", "8000-8999"]
        action = "relay"
        "#,
    );
    assert_eq!(
        config.agent,
        AgentSection {
            interfaces: vec!["eth1".into()],
            mark: Some(0x7470_0000),
            table: Some(7470),
            ..AgentSection::default()
        }
    );
    assert_eq!(config.sets.len(), 2);
    let names: Vec<&str> = config
        .rules
        .iter()
        .map(|rule| rule.rule.name.as_str())
        .collect();
    assert_eq!(names, ["internal", "web"]);
    assert_eq!(config.rules[1].rule.destination_ports.len(), 3);
    assert_eq!(config.summary(), "conf/r.toml: 2 rules, 2 sets, 4 CIDRs");
    assert_eq!(config.warnings, []);
    assert_eq!(config.fit(), Ok(Vec::new()));
}

#[test]
fn every_option_of_the_agent_is_taken() {
    let config = taken(
        r#"
        agent.interfaces = "eth0, eth1"
        agent.mark = "0x100"
        agent.table = 0x10
        agent.port = 4711
        agent.workers = 4
        agent.clsact = true
        agent.connect_timeout = 2.5
        agent.drain = 30
        agent.pin = false
        agent.flows_per_source = 500
        agent.udp_idle = 300
        agent.dns_idle = 5
        agent.udp_sessions = 100
        agent.udp_sessions_per_source = "10"
        "#,
    );
    assert_eq!(
        config.agent,
        AgentSection {
            interfaces: vec!["eth0".into(), "eth1".into()],
            mark: Some(256),
            table: Some(16),
            port: Some(4711),
            workers: Some(4),
            clsact: Some(true),
            connect_timeout: Some(Duration::from_millis(2500)),
            drain: Some(Duration::from_secs(30)),
            pin: Some(false),
            flows_per_source: Some(500),
            udp_idle: Some(Duration::from_mins(5)),
            dns_idle: Some(Duration::from_secs(5)),
            udp_sessions: Some(100),
            udp_sessions_per_source: Some(10),
        }
    );
}

#[test]
fn every_key_of_a_rule_is_taken() {
    let config = taken(
        r#"
        [[rule]]
        name = "all"
        scope = "local"
        proto = "any"
        src = "10.0.0.0/8"
        dst = ["!10.0.0.1", "10.0.0.0/16"]
        sport = "1024-65535"
        dport = 53
        uid = ["root", 1000, "2000-2999"]
        cgroup = "/system.slice/x.service"
        action = "redirect"
        to = "127.0.0.1:5353"
        on_missing = "pass"
        expires = "2h"
        comment = "one, two"

        [[rule]]
        iface = ["eth0", "eth1"]
        to = "direct"
        source = "agent"
        "#,
    );
    let spec = &config.rules[0].spec;
    assert_eq!(spec.uid, ["0", "1000", "2000-2999"], "users by their ids");
    assert_eq!(
        spec.comment.as_deref(),
        Some("one, two"),
        "a text is no list"
    );
    assert_eq!(config.rules[0].rule.life, Some(Duration::from_hours(2)));
    assert_eq!(config.rules[1].rule.interfaces, ["eth0", "eth1"]);
    assert_eq!(config.warnings, []);
}

/// What people write for the same ports.
#[test]
fn lists_are_taken_as_they_are_written() {
    for ports in [
        r#"["80", "443", "8000-8999"]"#,
        r#"[80, 443, "8000-8999"]"#,
        r#""80,443,8000-8999""#,
        r#""80, 443, 8000-8999""#,
        r#"["80,443", "8000-8999"]"#,
        "[\n80, # web\n443,\n'8000-8999',\n]",
    ] {
        let config = taken(&format!("[[rule]]\ndport = {ports}"));
        assert_eq!(
            config.rules[0].spec.dport,
            ["80", "443", "8000-8999"],
            "{ports}"
        );
    }
}

#[test]
fn nothing_is_a_file_without_rules() {
    for text in [
        "",
        "\n",
        "# only a comment",
        "\u{feff}",
        "[agent]",
        "rule = []",
    ] {
        let config = taken(text);
        assert!(config.rules.is_empty() && config.sets.is_empty(), "{text}");
    }
    assert_eq!(taken("").summary(), "conf/r.toml: 0 rules, 0 sets, 0 CIDRs");
}

#[test]
fn digits_are_in_groups() {
    let numbers = [1, 999, 1203, 1_000_000].map(grouped);
    assert_eq!(numbers, ["1", "999", "1,203", "1,000,000"]);
}

#[test]
fn everything_that_is_wrong_is_told_by_line() {
    let problems = refused(
        r#"[agent]
interfaces = ["eth0", "a/b", "eth0"]
mark = "x"
[set.a]
[set.b]
cidrs = ["10.0.0/8", "10.0.0.0/8", "host"]
[[rule]]
name = "web"
dport = ["80", "http", 70000]
dst = [
  "10.0.0.0/8",
  "10.0.0/8",
]
[[rule]]
name = "web"
acton = "drop"
scope = "lokal"
"#,
    );
    assert_eq!(
        problems,
        [
            "2: interfaces: \"a/b\" is not an interface name",
            "2: interfaces: eth0 is named twice",
            "3: mark: \"x\" is not a number from 0 to 4294967295 (0xffffffff)",
            "4: set: it has neither cidrs nor file",
            "6: cidrs: \"10.0.0/8\" is not a CIDR or an IP address",
            "6: cidrs: \"host\" is not a CIDR or an IP address",
            "9: dport: \"http\" is not a port or range (1 to 65535)",
            "9: dport: \"70000\" is not a port or range (1 to 65535)",
            "12: dst: \"10.0.0/8\" is not a CIDR, an IP address, set:NAME or @FILE",
            "15: name: line 8 has a rule web already",
            "16: acton: is no key of a rule: did you mean action?",
            "17: scope: \"lokal\" is not forward, inbound or local",
        ]
    );
}

#[test]
fn keys_that_are_none_are_told_with_what_was_meant() {
    assert_refused(
        "[agents]",
        "1: agents: is no key of the file: did you mean agent?",
    );
    assert_refused(
        "color = 1",
        "1: color: is no key of the file: there are agent, set, rule",
    );
    assert_refused(
        "[agent]\nmarc = 1",
        "2: marc: is no key of [agent]: did you mean mark?",
    );
    assert_refused(
        "[set.a]\ncidr = []\ncidrs = []",
        "2: cidr: is no key of a set: did you mean cidrs?",
    );
    assert_refused(
        "[[rule]]\n\non-missing = 'pass'",
        "3: on-missing: is no key of a rule: did you mean on_missing?",
    );
}

#[test]
fn sections_of_the_wrong_kind_are_told_with_how_to_write_them() {
    assert_refused("agent = 1", "1: agent: is an integer: write [agent]");
    assert_refused("[[agent]]", "1: agent: is a list: write [agent]");
    assert_refused("set = []", "1: set: is a list: write [set.NAME]");
    assert_refused(
        "[set]\na = true",
        "2: set: is a truth value: write [set.NAME]",
    );
    assert_refused(
        "[rule]\ndport = 80",
        "1: rule: is not a list of tables: write [[rule]], with two brackets",
    );
    assert_refused(
        "rule = [1]",
        "1: rule: is an integer: write [[rule]], with two brackets",
    );
}

#[test]
fn values_of_the_wrong_kind_are_told() {
    assert_refused(
        "[[rule]]\naction = ['drop']",
        "2: action: is a list, and one word is wanted",
    );
    assert_refused(
        "[[rule]]\ndport = [[80]]",
        "2: dport: is a list, and one word is wanted",
    );
    assert_refused(
        "[[rule]]\ndst = { a = 1 }",
        "2: dst: is a table, and one word is wanted",
    );
    assert_refused(
        "[[rule]]\ndport = true",
        "2: dport: \"true\" is not a port or range (1 to 65535)",
    );
    assert_refused(
        "[[rule]]\ndport = 80.5",
        "2: dport: \"80.5\" is not a port or range (1 to 65535)",
    );
    assert_refused(
        "[[rule]]\ndport = -80",
        "2: dport: \"-80\" is not a port or range (1 to 65535)",
    );
    assert_refused(
        "[[rule]]\ndport = []",
        "2: dport: is an empty list: leave the key out",
    );
    assert_refused(
        "[[rule]]\ndport = ''",
        "2: dport: \"\" is not a port or range (1 to 65535)",
    );
    assert_refused(
        "[[rule]]\nexpires = 30",
        "2: expires: \"30\" has no unit: write \"30s\" for seconds",
    );
    assert_refused(
        "[[rule]]\ncomment = '''a\nb'''",
        "2: comment: '\\n' in it is a control character: use one line of text",
    );
    assert_refused(
        "[agent]\nclsact = 'yes'",
        "2: clsact: is a string, and true or false is wanted",
    );
    for (value, problem) in [
        (
            "mark = 0",
            "mark: \"0\" is no mark: leave it out for one that is free",
        ),
        (
            "table = 0",
            "table: \"0\" is reserved by the kernel: leave it out for one that is free",
        ),
        (
            "table = 254",
            "table: \"254\" is reserved by the kernel: leave it out for one that is free",
        ),
        (
            "table = -1",
            "table: \"-1\" is not a number from 0 to 4294967295 (0xffffffff)",
        ),
        (
            "port = 65536",
            "port: \"65536\" is not a port from 0 (one that is free) to 65535",
        ),
        (
            "workers = 65",
            "workers: \"65\" is not a number of workers from 1 to 64",
        ),
        (
            "workers = 0",
            "workers: \"0\" is not a number of workers from 1 to 64",
        ),
        (
            "flows_per_source = 0",
            "flows_per_source: \"0\" is not a number of flows from 1 to 4294967295",
        ),
        (
            "flows_per_source = -1",
            "flows_per_source: \"-1\" is not a number of flows from 1 to 4294967295",
        ),
        (
            "flows_per_source = 'many'",
            "flows_per_source: \"many\" is not a number of flows from 1 to 4294967295",
        ),
        (
            "udp_sessions_per_source = 4294967296",
            "udp_sessions_per_source: \"4294967296\" is not a number of sessions from 1 to 4294967295",
        ),
        (
            "drain = '10s'",
            "drain: \"10s\" is not a number of seconds from 0 to 86400",
        ),
        ("drain = []", "drain: is a list, and one word is wanted"),
    ] {
        assert_refused(&format!("[agent]\n{value}"), &format!("2: {problem}"));
    }
}

/// What is quoted cannot break a line or speak to a terminal, nor fill a screen.
#[test]
fn whatever_is_quoted_stays_on_a_line() {
    assert_refused(
        "[[rule]]\naction = \"a\\nb\\u001b[0m\"",
        "2: action: \"a\\nb\\u{1b}[0m\" is not relay, redirect, pass, drop or reject",
    );
    let long = refused(&format!("[[rule]]\ndport = '{}'", "x".repeat(10_000)));
    assert!(long[0].len() < 310 && long[0].ends_with("..."), "{long:?}");
}

/// A combination is told where the key stands that does not fit.
#[test]
fn combinations_that_make_no_sense_are_told_by_line() {
    assert_refused(
        "[[rule]]\naction = 'pass'\n\nto = 'direct'",
        "4: to: action pass hands flows to nobody: leave to out",
    );
    assert_refused(
        "\n[[rule]]\naction = 'redirect'",
        "2: to: action redirect needs the ADDR:PORT of a listener on this host",
    );
    assert_refused(
        "[[rule]]\nuid = 0",
        "2: uid: only scope local knows whose process opened a flow, and scope is forward",
    );
}

#[test]
fn syntax_errors_are_told_with_the_rest() {
    let problems = refused("[[rule]]\nname = \"web\ndport = x\n[[rule]]\ndst = \"y\"\n[[rule]\n");
    let lines: Vec<&str> = problems
        .iter()
        .filter_map(|problem| problem.split(':').next())
        .collect();
    assert_eq!(lines, ["2", "3", "5", "6"], "{problems:#?}");
    assert_eq!(
        problems[2],
        "5: dst: \"y\" is not a CIDR, an IP address, set:NAME or @FILE"
    );
    assert_refused("[agent]\nmark = 1\nmark = 2\n", "3: duplicate key");
}

#[test]
fn sets_are_one_of_two_things() {
    assert_refused("[set.a]", "1: set: it has neither cidrs nor file");
    assert_refused(
        "[set.a]\ncidrs = []\nfile = 'good.txt'",
        "3: file: the set has cidrs already: keep one of the two",
    );
    assert_eq!(
        refused("[set.a]\ncidrs = ['x']\nfile = 'good.txt'"),
        [
            "2: cidrs: \"x\" is not a CIDR or an IP address",
            "3: file: the set has cidrs already: keep one of the two",
        ]
    );
    assert_refused(
        "[set.'a b']\ncidrs = []",
        "1: set: \"a b\" is not a name of a set: use 1 to 63 letters, digits, '.', '_' or '-'",
    );
    assert!(
        taken("[set.a]\ncidrs = []")
            .sets
            .values()
            .all(Set::is_empty)
    );
}

/// Sets and files hold CIDRs alone: what includes another is a word that is no CIDR.
#[test]
fn lists_do_not_include_others() {
    for word in ["@good.txt", "set:a", "!10.0.0.1"] {
        assert_refused(
            &format!("[set.a]\ncidrs = ['{word}']"),
            &format!("2: cidrs: \"{word}\" is not a CIDR or an IP address"),
        );
    }
    let expected = [
        "conf/bad.txt:2: \"x\" is not a CIDR or an IP address",
        "conf/bad.txt:3: \"@good.txt\" is not a CIDR or an IP address",
    ];
    assert_eq!(refused("[set.a]\nfile = 'bad.txt'"), expected);
    assert_eq!(refused("[[rule]]\ndst = '@bad.txt'"), expected);
    assert_eq!(
        refused("[[rule]]\ndst = ['@bad.txt', '!@bad.txt']\nsrc = '@bad.txt'\ndport = 0"),
        [
            "4: dport: \"0\" is not a port or range (1 to 65535)",
            expected[0],
            expected[1],
        ],
        "a file is read once, and told of last"
    );
}

#[test]
fn files_are_seen_from_the_directory_of_the_file() {
    let config = taken("[set.a]\nfile = 'good.txt'\n[[rule]]\ndst = ['@good.txt', '!set:a']");
    let word = &config.rules[0].spec.dst[0];
    let path = PathBuf::from(word.strip_prefix('@').unwrap());
    assert!(
        path.is_absolute() && path.ends_with("conf/good.txt"),
        "{word}"
    );
    let names: Vec<String> = config.sets.keys().map(ToString::to_string).collect();
    assert_eq!(names, [word.clone(), "a".to_owned()]);
    assert_eq!(config.summary(), "conf/r.toml: 1 rule, 2 sets, 4 CIDRs");
}

#[test]
fn files_that_cannot_be_read_are_told_where_they_are_named() {
    assert_refused(
        "[set.a]\nfile = 'missing.txt'",
        "2: file: cannot read conf/missing.txt: entity not found",
    );
    assert_refused(
        "[[rule]]\nsrc = ['10.0.0.0/8',\n'@missing.txt']",
        "3: src: cannot read conf/missing.txt: entity not found",
    );
    assert_refused(
        "[set.a]\nfile = '-'",
        "2: file: \"-\" is not the name of a file",
    );
    assert_refused("[[rule]]\nsrc = '@'", "2: src: \"@\" names no file");
    assert_refused(
        "[[rule]]\nsrc = '@-'",
        "2: src: \"-\" is not the name of a file",
    );
}

#[test]
fn sets_that_are_not_there_are_told_with_what_was_meant() {
    assert_refused(
        "[set.internal]\ncidrs = []\n[[rule]]\ndst = 'set:intrenal'",
        "4: dst: there is no set intrenal: did you mean set:internal?",
    );
    assert_refused(
        "[[rule]]\nsrc = '!set:blocked'",
        "2: src: there is no set blocked: add [set.blocked]",
    );
    // A set with a mistake is there: one mistake is told of once.
    assert_refused(
        "[set.a]\ncidrs = 'x'\n[[rule]]\ndst = 'set:a'",
        "2: cidrs: \"x\" is not a CIDR or an IP address",
    );
}

#[test]
fn what_may_not_be_meant_is_warned_of() {
    let config = taken(
        "[set.a]\ncidrs = '10.1.2.3/8'\n[set.b]\nfile = 'empty.txt'\n[set.c]\nfile = 'masked.txt'\n[[rule]]\ndst = ['10.0.0.1', '192.0.2.1/24']",
    );
    let said: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "conf/r.toml:2: cidrs: \"10.1.2.3/8\" has host bits set: taken as 10.0.0.0/8",
            "conf/r.toml:4: file: empty.txt has no CIDRs",
            "conf/r.toml:6: file: masked.txt:1: \"10.1.2.3/8\" has host bits set: taken as 10.0.0.0/8",
            "conf/r.toml:8: dst: \"192.0.2.1/24\" has host bits set: taken as 192.0.2.0/24",
        ]
    );
    assert_eq!(config.rules[0].spec.dst, ["10.0.0.1", "192.0.2.0/24"]);
}

#[test]
fn one_rule_more_than_the_limit_is_told() {
    let text = "[[rule]]\n".repeat(RULES);
    assert_eq!(taken(&text).rules.len(), RULES);
    let problem = "1025: rule: 1025 rules are more than the limit of 1024";
    assert_refused(&format!("{text}[[rule]]\n"), problem);
}

#[test]
fn one_cidr_more_than_the_limit_does_not_fit() {
    let mut lists = |path: &Path| -> Result<Reading, LoadError> {
        let count = if path.ends_with("million") {
            1_000_000
        } else {
            1
        };
        let lines = (0..count).map(|index: u32| format!("{}\n", std::net::Ipv4Addr::from(index)));
        Ok(read("list", lines.collect::<String>().as_bytes())?)
    };
    let mut parse = |text: &str| Config::parse("r.toml", text, Path::new(""), &mut lists).unwrap();
    let full = parse("[set.a]\nfile = 'million'\n[[rule]]\ndst = 'set:a'\n[[rule]]\nsrc = 'set:a'");
    assert_eq!(full.summary(), "r.toml: 2 rules, 1 set, 1,000,000 CIDRs");
    assert_eq!(full.fit(), Ok(Vec::new()));
    let over = parse("[set.a]\nfile = 'million'\n[[rule]]\ndst = '@one'");
    assert_eq!(
        over.fit().unwrap_err().to_string(),
        "r.toml: 1000001 CIDRs are more than the limit of 1000000: aggregate or remove some"
    );
}

#[test]
fn rules_that_can_never_match_are_told_by_line() {
    let config = taken(
        "[[rule]]\nname = 'all'\n[[rule]]\nname = 'web'\ndport = 80\n[[rule]]\nscope = 'inbound'\n",
    );
    let said: Vec<String> = config
        .fit()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        said,
        ["conf/r.toml:3: rule web can never match: rule all before it takes all its flows"]
    );
    let expires = taken("[[rule]]\nexpires = '1h'\n[[rule]]\ndport = 80");
    assert_eq!(expires.fit(), Ok(Vec::new()), "it will be gone");
    let unnamed = taken("[[rule]]\niface = 'a'\n[[rule]]\niface = 'b'\n[[rule]]\niface = ['a']");
    let said: Vec<String> = unnamed
        .fit()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        said,
        [
            "conf/r.toml:5: rule in line 5 can never match: rule in line 1 before it takes all its flows"
        ]
    );
}

#[test]
fn interfaces_that_are_not_attached_are_told_by_line() {
    let config = taken("[[rule]]\niface = 'eth0'\n[[rule]]\niface = [\n'eth0',\n'eth1',\n]");
    let attached = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        config
            .unattached("lab", &names)
            .map(|problems| problems.to_string())
    };
    assert_eq!(attached(&["eth1", "eth0"]), None);
    assert_eq!(
        attached(&["eth0"]).unwrap(),
        "conf/r.toml:6: iface: eth1 is not attached to instance lab; attached: eth0"
    );
    assert_eq!(attached(&[]).unwrap().lines().count(), 3);
}

#[test]
fn files_that_are_none_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |path: &Path| {
        let problems = Config::read(&Source::of_argument(path), &mut files).unwrap_err();
        problems.to_string()
    };
    let path = directory.path().join("r.toml");
    let name = path.display();
    let expected = format!("{name}: cannot be read: No such file or directory (os error 2)");
    assert_eq!(refused(&path), expected);
    assert_eq!(
        refused(directory.path()),
        format!(
            "{}: is a directory: name a file",
            directory.path().display()
        )
    );
    std::fs::write(&path, b"[agent]\n# \xff\n").unwrap();
    assert_eq!(refused(&path), format!("{name}:2: is not UTF-8 text"));
    let endless = refused(Path::new("/dev/zero"));
    assert_eq!(
        endless,
        "/dev/zero: cannot be read: larger than 128 MiB: put CIDRs into files of their own"
    );
    std::fs::write(&path, "[[rule]]\n").unwrap();
    assert_eq!(
        Config::read(&Source::of_argument(&path), &mut files)
            .unwrap()
            .rules
            .len(),
        1
    );
}
