//! What wrong input gets: one line that names what is wrong, the right exit code, and nothing changed.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use tempfile::TempDir;
use tproxy_tests::{
    Agent, Cli, Family, Lab, Namespace, Snapshot,
    agent::unique_instance,
    cli::{self, Attempt},
    peer::Witness,
};

/// The command line was wrong, or a file that it names.
const USAGE: i32 = 2;
/// The command line was right, but it could not be done.
const FAILED: i32 = 1;

/// Checks that `tproxy run ARGUMENTS` refuses in a gateway without an instance, and that nothing is left of it.
#[track_caller]
fn assert_run_refused(lab: &Lab, wrapper: &str, arguments: &str, code: i32, words: &[&str]) {
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let cli = Cli::new(&lab.gateway, &instance);
    cli.attempt_under(wrapper, &format!("run {arguments}"))
        .assert_refused(code, words);
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// Checks that a command refuses, and that it changes nothing of the running `agent`.
#[track_caller]
fn assert_refused(lab: &Lab, agent: &Agent, arguments: &str, code: i32, words: &[&str]) {
    let before = (
        Snapshot::of(&lab.gateway, agent.instance()),
        agent.rules(),
        agent.status()["generation"].clone(),
    );
    agent.attempt(arguments).assert_refused(code, words);
    let after = (
        Snapshot::of(&lab.gateway, agent.instance()),
        agent.rules(),
        agent.status()["generation"].clone(),
    );
    after.0.assert_same_as(&before.0);
    assert_eq!(
        (after.1, after.2),
        (before.1, before.2),
        "rules and generation after {arguments}"
    );
}

#[test]
fn an_interface_that_does_not_exist() {
    let lab = Lab::new();
    assert_run_refused(&lab, "", "--iface nosuch0 --dport 80", FAILED, &["nosuch0"]);
    assert_run_refused(
        &lab,
        "",
        "--iface cl0,nosuch0 --dport 80",
        FAILED,
        &["nosuch0"],
    );
    let agent = lab.agent("--iface cl0 --dport 80");
    assert_refused(&lab, &agent, "attach nosuch0", FAILED, &["nosuch0"]);
    assert_refused(&lab, &agent, "attach sv0,nosuch0", FAILED, &["nosuch0"]);
    assert_refused(&lab, &agent, "detach nosuch0", FAILED, &["nosuch0"]);
    assert_refused(&lab, &agent, "detach sv0", FAILED, &["sv0"]);
}

/// One interface twice in a list is a mistake wherever it is typed.
#[test]
fn an_interface_that_is_named_twice() {
    let lab = Lab::new();
    let words = ["sv0", "twice"];
    assert_run_refused(&lab, "", "--iface sv0,sv0 --dport 80", USAGE, &words);
    let agent = lab.agent("--iface cl0 --dport 80");
    assert_refused(&lab, &agent, "attach sv0,sv0", USAGE, &words);
    let none = Cli::new(&lab.gateway, &unique_instance());
    for command in ["attach sv0,sv0", "detach sv0,sv0"] {
        none.attempt(command).assert_refused(USAGE, &words);
    }
}

/// Names that no rule can have are mistakes, whatever rules there are.
#[test]
fn rule_names_that_cannot_be_any() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80 --name web");
    for command in [
        "rule show a/b",
        "rule del web a/b",
        "rule add --dport 81 --before a/b",
        "rule add --dport 81 --after a/b",
    ] {
        assert_refused(&lab, &agent, command, USAGE, &["a/b"]);
    }
}

/// Files that rules name have to be there, whoever reads them.
#[test]
fn a_file_of_a_rule_that_is_not_there() {
    let lab = Lab::new();
    let directory = TempDir::new().unwrap();
    let missing = format!("{}/missing", directory.path().display());
    let directory = directory.path().display().to_string();
    let agent = lab.agent("--iface cl0 --dport 80");
    for path in [missing.as_str(), directory.as_str()] {
        let run = format!("--iface sv0 --dst @{path}");
        assert_run_refused(&lab, "", &run, USAGE, &[path]);
        let add = format!("rule add --dst @{path}");
        assert_refused(&lab, &agent, &add, USAGE, &[path]);
        let cli = Cli::new(&lab.gateway, &unique_instance());
        cli.attempt(&format!("exec --dst @{path} -- true"))
            .assert_refused(USAGE, &[path]);
    }
}

/// Longer than any interface name can be (IFNAMSIZ is 16, with the final zero).
#[test]
fn an_interface_name_that_cannot_be_one() {
    let lab = Lab::new();
    let name = "a-name-longer-than-fifteen";
    assert_run_refused(
        &lab,
        "",
        &format!("--iface {name} --dport 80"),
        USAGE,
        &[name, "--iface"],
    );
}

/// Another user than root: the message names a capability that is missing.
#[test]
fn a_user_without_capabilities() {
    let lab = Lab::new();
    let program = TempDir::new().unwrap();
    // The program where anybody can execute it.
    let copy = program.path().join("tproxy");
    fs::copy(cli::program(), &copy).expect("copy the program");
    for path in [program.path(), &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let command_line = format!(
        "setpriv --reuid=65534 --regid=65534 --clear-groups {} --instance {instance} run --iface cl0 --dport 80",
        copy.display()
    );
    let mut process =
        tproxy_tests::process::Process::start(&mut lab.gateway.command_line(&command_line));
    Attempt::end_of(&command_line, &mut process).assert_refused(FAILED, &["CAP_"]);
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// Root in a container that lacks one capability: the message names that one.
#[test]
fn a_root_without_one_capability() {
    let lab = Lab::new();
    for (dropped, named) in [
        ("-net_admin", "CAP_NET_ADMIN"),
        ("-bpf,-sys_admin", "CAP_BPF"),
    ] {
        let wrapper = format!("setpriv --bounding-set={dropped} --inh-caps={dropped}");
        assert_run_refused(&lab, &wrapper, "--iface cl0 --dport 80", FAILED, &[named]);
    }
}

/// A kernel that is too old (its version as programs of the 2.6 times want to see it): the message says which it is and
/// what it lacks.
#[test]
fn a_kernel_that_is_too_old() {
    let lab = Lab::new();
    let words = ["Linux 2.6", "connect(2)"];
    assert_run_refused(
        &lab,
        "setarch --uname-2.6",
        "--iface cl0 --dport 80",
        FAILED,
        &words,
    );
}

/// A kernel without bpf(2): the message names it.
#[test]
fn a_kernel_without_bpf() {
    let lab = Lab::new();
    let attempt = with_bpf_failing(&lab.gateway, None, libc::ENOSYS);
    attempt.assert_refused(FAILED, &["bpf", "kernel"]);
}

/// A kernel that knows no BPF links for `sk_lookup` (before 5.9): the message names the feature.
#[test]
fn a_kernel_without_sk_lookup_links() {
    const BPF_LINK_CREATE: u32 = 28;
    let lab = Lab::new();
    let attempt = with_bpf_failing(&lab.gateway, Some(BPF_LINK_CREATE), libc::EINVAL);
    attempt.assert_refused(FAILED, &["sk_lookup", "kernel"]);
}

/// `tproxy run` where bpf(2), or one command of it, fails with `error`; nothing is left of it.
#[track_caller]
fn with_bpf_failing(namespace: &Namespace, command: Option<u32>, error: i32) -> Attempt {
    let instance = unique_instance();
    let before = Snapshot::of(namespace, &instance);
    let mut run = namespace.command(cli::program());
    run.args([
        "--instance",
        &instance,
        "run",
        "--iface",
        "cl0",
        "--dport",
        "80",
    ]);
    tproxy_tests::process::fail_bpf(&mut run, command, error);
    let mut process = tproxy_tests::process::Process::start(&mut run);
    let attempt = Attempt::end_of("run without bpf", &mut process);
    Snapshot::of(namespace, &instance).assert_same_as(&before);
    attempt
}

/// Every flag of a rule with a word that it cannot take, both for `run` and for `rule add`: the message names the word
/// and the flag.
#[test]
fn words_that_do_not_parse() {
    const WORDS: [(&str, &str); 21] = [
        ("--dst", "10.0.0.0/33"),
        ("--dst", "300.1.1.1"),
        ("--dst", "192.0.2.0/24,nonsense"),
        ("--dst", "2001:db8::/129"),
        ("--dst", "!"),
        ("--dst", "192.0.2.9:80"),
        ("--src", "10.0.0"),
        ("--src", "::ffff:/96"),
        ("--dport", "99999"),
        ("--dport", "80,65536"),
        ("--dport", "http"),
        ("--dport", "80-"),
        ("--dport", "-80"),
        ("--dport", "80--90"),
        ("--sport", "1-2-3"),
        ("--sport", "0x50"),
        ("--proto", "tpc"),
        ("--action", "realy"),
        ("--scope", "outbound"),
        ("--name", "a/b"),
        ("--on-missing", "panic"),
    ];
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80");
    let instance = unique_instance();
    let fresh = Cli::new(&lab.gateway, &instance);
    let before = [&instance, agent.instance()].map(|name| Snapshot::of(&lab.gateway, name));
    let (rules, generation) = (agent.rules(), agent.status()["generation"].clone());
    let mut accepted = Vec::new();
    for (flag, words) in WORDS {
        // Of a list, the message names the member that is wrong.
        let word = words.rsplit(',').next().expect("at least one word");
        for attempt in [
            fresh.attempt(&format!("run --iface cl0 {flag}={words}")),
            agent.attempt(&format!("rule add {flag}={words}")),
        ] {
            accepted.extend(attempt.refusal(USAGE, &[word, flag]).err());
        }
    }
    assert!(accepted.is_empty(), "{}", accepted.join("\n\n"));
    let after = [&instance, agent.instance()].map(|name| Snapshot::of(&lab.gateway, name));
    for (after, before) in after.iter().zip(&before) {
        after.assert_same_as(before);
    }
    assert_eq!(
        (agent.rules(), agent.status()["generation"].clone()),
        (rules, generation)
    );
}

/// The settings of the agent with words that they cannot take.
#[test]
fn settings_that_do_not_parse() {
    let lab = Lab::new();
    let instance = unique_instance();
    let cli = Cli::new(&lab.gateway, &instance);
    let before = Snapshot::of(&lab.gateway, &instance);
    let mut accepted = Vec::new();
    for (flag, word) in [
        ("--mark", "red"),
        ("--mark", "0x1ffffffff"),
        ("--mark", "0"),
        ("--table", "main-table"),
        ("--table", "4294967296"),
        ("--table", "0"),
        ("--table", "253"),
        ("--table", "254"),
        ("--table", "255"),
        ("--table", "0xff"),
        ("--port", "65536"),
        ("--workers", "0"),
        ("--workers", "two"),
        ("--flows-per-source", "0"),
        ("--flows-per-source", "-1"),
        ("--flows-per-source", "many"),
        ("--flows-per-source", "4294967296"),
        ("--udp-sessions-per-source", "0"),
        ("--connect-timeout", "soon"),
        ("--drain", "-1"),
        ("--no-such-flag", "7"),
    ] {
        let attempt = cli.attempt(&format!("run --iface cl0 {flag}={word}"));
        accepted.extend(attempt.refusal(USAGE, &[flag]).err());
    }
    assert!(accepted.is_empty(), "{}", accepted.join("\n\n"));
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

#[test]
fn a_port_range_upside_down() {
    let lab = Lab::new();
    assert_run_refused(
        &lab,
        "",
        "--iface cl0 --dport 90-80",
        USAGE,
        &["90-80", "--dport"],
    );
    let agent = lab.agent("--iface cl0 --dport 80");
    assert_refused(
        &lab,
        &agent,
        "rule add --sport 443,90-80",
        USAGE,
        &["90-80", "--sport"],
    );
}

#[test]
fn an_unknown_rule() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80 --name web");
    assert_refused(&lab, &agent, "rule del nosuch", FAILED, &["nosuch"]);
    // All or nothing: the one that exists stays.
    assert_refused(&lab, &agent, "rule del web nosuch", FAILED, &["nosuch"]);
    assert_refused(&lab, &agent, "rule show nosuch", FAILED, &["nosuch"]);
    assert_refused(
        &lab,
        &agent,
        "rule add --dport 81 --before nosuch",
        FAILED,
        &["nosuch"],
    );
    assert_refused(
        &lab,
        &agent,
        "rule add --dport 81 --after nosuch",
        FAILED,
        &["nosuch"],
    );
}

#[test]
fn a_rule_name_twice() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80 --name web");
    assert_refused(
        &lab,
        &agent,
        "rule add --dport 81 --name web",
        FAILED,
        &["web"],
    );
}

/// Commands for an instance that does not exist name it.
#[test]
fn no_running_instance() {
    let lab = Lab::new();
    let instance = unique_instance();
    let cli = Cli::new(&lab.gateway, &instance);
    let before = Snapshot::of(&lab.gateway, &instance);
    for command in [
        "status",
        "status --json",
        "rule list",
        "rule list --json",
        "rule show web",
        "rule add --dport 80",
        "rule del web",
        "rule flush",
        "attach cl0",
        "detach cl0",
    ] {
        cli.attempt(command).assert_refused(FAILED, &[&instance]);
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    }
}

/// A name that would lead out of the directory of instances.
#[test]
fn an_instance_name_that_is_a_path() {
    let lab = Lab::new();
    for name in ["../escape", "a/b", "..", "."] {
        let attempt = Cli::new(&lab.gateway, name).attempt("run --iface cl0 --dport 80");
        attempt.assert_refused(USAGE, &[name, "--instance"]);
    }
}

#[test]
fn commands_that_do_not_exist() {
    let lab = Lab::new();
    let cli = Cli::new(&lab.gateway, &unique_instance());
    cli.attempt("frobnicate")
        .assert_refused(USAGE, &["frobnicate"]);
    cli.attempt("rule frobnicate")
        .assert_refused(USAGE, &["frobnicate"]);
    cli.attempt("rule del").assert_refused(USAGE, &[]);
    cli.attempt("attach").assert_refused(USAGE, &[]);
}

/// Where there is no bpffs and no place to mount one, the message says so.
#[test]
fn a_bpffs_that_cannot_be_mounted() {
    let lab = Lab::new();
    let script = Script::new("mount -t tmpfs -o ro none /sys/fs && exec \"$@\"");
    let wrapper = script.path.display();
    // A process without ancestors finds no other mount namespace to look in.
    let wrapper =
        format!("unshare --mount --propagation private --pid --fork --mount-proc {wrapper}");
    let words = ["/sys/fs/bpf", "mount"];
    assert_run_refused(&lab, &wrapper, "--iface cl0 --dport 80", FAILED, &words);
}

/// An executable shell script.
struct Script {
    path: PathBuf,
    _directory: TempDir,
}

impl Script {
    fn new(body: &str) -> Self {
        let directory = TempDir::new().expect("make a directory");
        let path = directory.path().join("script");
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("write a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
        Self {
            path,
            _directory: directory,
        }
    }
}

/// A mark that a policy rule of somebody else uses: the message names the mark and the rule.
#[test]
fn a_mark_that_is_taken() {
    let lab = Lab::new();
    for family in ["-4", "-6"] {
        let holder =
            format!("ip {family} rule add pref 4711 fwmark 0x74000000/0x74000000 lookup main");
        lab.gateway.run(&holder);
        assert_run_refused(
            &lab,
            "",
            "--iface cl0 --dport 80 --mark 0x74000000",
            FAILED,
            &["0x74000000", "4711"],
        );
        lab.gateway.run(&format!("ip {family} rule del pref 4711"));
    }
}

/// A table in which somebody else has a route, or that a policy rule looks up.
#[test]
fn a_table_that_is_taken() {
    let lab = Lab::new();
    let taken = ["203.0.113.0/24", "2001:db8:3::/48"];
    for prefix in taken {
        lab.gateway
            .ip(&format!("route add blackhole {prefix} table 4712"));
        assert_run_refused(
            &lab,
            "",
            "--iface cl0 --dport 80 --table 4712",
            FAILED,
            &["4712", prefix],
        );
        lab.gateway
            .ip(&format!("route del blackhole {prefix} table 4712"));
    }
}

/// A port at which another program listens.
#[test]
fn a_port_that_is_taken() {
    let lab = Lab::new();
    let _holder = Witness::start(&lab.gateway, 4713);
    assert_run_refused(
        &lab,
        "",
        "--iface cl0 --dport 80 --port 4713",
        FAILED,
        &["4713"],
    );
}

/// When nothing is asked for, a mark and a table are chosen that nobody uses.
#[test]
fn marks_and_tables_in_use_are_avoided() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let first = lab.agent("--iface cl0 --dport 80");
    let status = first.status();
    let (mark, table) = (
        status["mark"].as_u64().unwrap(),
        status["table"].as_u64().unwrap(),
    );
    drop(first);
    lab.gateway
        .ip(&format!("rule add pref 4711 fwmark {mark} lookup main"));
    lab.gateway
        .ip(&format!("route add blackhole 203.0.113.0/24 table {table}"));
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let mut second = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --dport 80");
    let status = second.status();
    assert_ne!(status["mark"].as_u64(), Some(mark));
    assert_ne!(status["table"].as_u64(), Some(table));
    lab.ask(Family::V4.near(), 80).assert_relayed(&second);
    second.stop();
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}
