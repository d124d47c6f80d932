//! `tproxy exec`: one command with a rule about its own flows.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, mpsc},
};

use nix::{
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};
use tempfile::TempDir;
use tproxy_tests::{
    Cli, Exchange, Family, FlowLine, Lab, Snapshot,
    address::FAMILIES,
    agent::unique_instance,
    cli::{Attempt, program},
    control_group,
    exchange::command_line,
    peer::{DatagramWitness, Server, Witness},
    process::Process,
    wait,
};

/// Scripts of a test, since command lines are split at spaces.
struct Scripts(TempDir);

impl Scripts {
    fn new() -> Self {
        Self(TempDir::new().expect("make a directory"))
    }

    /// The path of a script for sh(1).
    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).expect("write a script");
        path.display().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Starts `tproxy --instance INSTANCE exec ARGUMENTS`, which logs flows.
fn start(lab: &Lab, instance: &str, arguments: &str) -> Process {
    Cli::new(&lab.gateway, instance).start_under("env RUST_LOG=info", &format!("exec {arguments}"))
}

#[track_caller]
fn finished(lab: &Lab, arguments: &str) -> Attempt {
    Attempt::end_of(arguments, &mut start(lab, &unique_instance(), arguments))
}

fn flows(attempt: &Attempt) -> Vec<FlowLine> {
    let lines = attempt.stderr.iter();
    lines.filter_map(|line| FlowLine::parse(line)).collect()
}

/// The command's connections and datagrams go through the agent, those of others do not, and standard output is the
/// command's alone.
#[test]
fn flows_of_the_command_go_through_the_agent() {
    let lab = Lab::new();
    let _witnesses = [80, 81].map(|port| Witness::start(&lab.server, port));
    let datagrams = DatagramWitness::start(&lab.server, 53);
    let scripts = Scripts::new();
    for family in FAMILIES {
        let near = |port| SocketAddr::new(family.near(), port);
        let asked = finished(&lab, &format!("--dport 80 -- {}", command_line(near(80))));
        assert_eq!(asked.code, Some(0), "{asked:?}");
        assert_eq!(asked.stdout.lines().count(), 3, "{asked:?}");
        let exchange = Exchange::told(&asked.stdout, near(80)).expect("the answer of a witness");
        assert_eq!(exchange.client.ip(), family.gateway_upstream());
        assert_ne!(
            exchange.seen_client, exchange.client,
            "somebody was between"
        );
        assert_eq!(exchange.seen_target, near(80));
        let [flow] = flows(&asked).try_into().expect("a line of the one flow");
        assert_eq!((flow.client, flow.server), (exchange.client, near(80)));

        let asked = finished(&lab, &format!("--dport 80 -- {}", command_line(near(81))));
        let exchange = Exchange::told(&asked.stdout, near(81)).expect("the answer of a witness");
        exchange.assert_unproxied();
        assert_eq!(flows(&asked), []);

        let host: IpAddr = family.near();
        let script = scripts.write(
            "datagram",
            &format!(
                "exec 3<>/dev/udp/{host}/53; printf hello >&3; timeout 15 dd bs=2048 count=1 status=none <&3"
            ),
        );
        let asked = finished(&lab, &format!("--proto udp -- bash {script}"));
        assert_eq!(asked.code, Some(0), "{asked:?}");
        let peer = datagrams.next().peer;
        assert!(asked.stdout.contains(&format!("peer {peer}")), "{asked:?}");
        let [flow] = flows(&asked).try_into().expect("a line of the one flow");
        assert_ne!(flow.client.port(), peer.port());
        assert_eq!(flow.protocol, "udp");
    }
}

/// While a command runs, only it and what it starts are taken.
#[test]
fn processes_that_the_command_did_not_start_go_direct() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let scripts = Scripts::new();
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 80);
        let curl = quoted(&command_line(target));
        let go = scripts.path("go");
        mkfifo(&go, Mode::S_IRWXU).unwrap();
        let script = scripts.write(
            "waits",
            &format!("echo ready; read word < {}; {curl}", go.display()),
        );
        let mut running = start(&lab, &unique_instance(), &format!("-- sh {script}"));
        assert!(
            running
                .stdout
                .find(|line| (line == "ready").then_some(()))
                .is_some()
        );
        Exchange::of(&lab.gateway, target).assert_unproxied();
        fs::write(&go, "go\n").unwrap();
        let asked = Attempt::end_of("", &mut running);
        let exchange = Exchange::told(&asked.stdout, target).expect("the answer of a witness");
        assert_ne!(exchange.seen_client, exchange.client, "{asked:?}");
        assert_eq!(flows(&asked).len(), 1);
        fs::remove_file(&go).unwrap();
    }
}

/// Commands that run at once in one network namespace have an agent each, and each has its own command's flows.
#[test]
fn commands_that_run_at_once_keep_apart() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let scripts = Scripts::new();
    let target = |family: Family| SocketAddr::new(family.near(), 80);
    let [v4, v6] = FAMILIES.map(|family| quoted(&command_line(target(family))));
    let running: Vec<_> = (0..3)
        .map(|number| {
            let go = scripts.path(&format!("go-{number}"));
            mkfifo(&go, Mode::S_IRWXU).unwrap();
            let script = scripts.write(
                &format!("asks-{number}"),
                &format!("echo ready; read word < {}; {v4}; {v6}", go.display()),
            );
            let process = start(&lab, &unique_instance(), &format!("-- sh {script}"));
            let ready = process.stdout.find(|line| (line == "ready").then_some(()));
            assert!(ready.is_some(), "{}", process.stderr.text());
            (process, go)
        })
        .collect();
    for (_, go) in &running {
        fs::write(go, "go\n").unwrap();
    }
    for (mut process, _) in running {
        let asked = Attempt::end_of("", &mut process);
        assert_eq!(asked.code, Some(0), "{asked:?}");
        let flows = flows(&asked);
        assert_eq!(flows.len(), 2, "{asked:?}");
        let text = &asked.stdout["ready\n".len()..];
        let middle = text.match_indices("peer ").nth(1).expect("two answers").0;
        let (first, second) = text.split_at(middle);
        for (family, answer) in FAMILIES.into_iter().zip([first, second]) {
            let exchange = Exchange::told(answer, target(family)).expect("the words of a witness");
            assert_ne!(exchange.seen_client, exchange.client, "{asked:?}");
            let is_own = |flow: &FlowLine| flow.client == exchange.client;
            assert!(flows.iter().any(is_own), "{asked:?}");
        }
    }
    for family in FAMILIES {
        Exchange::of(&lab.gateway, target(family)).assert_unproxied();
    }
}

/// A command line for sh(1).
fn quoted(command_line: &str) -> String {
    let words = command_line.split(' ').map(|word| format!("'{word}'"));
    words.collect::<Vec<_>>().join(" ")
}

/// The exit code is the command's, or what a shell says of one that cannot run or was killed. Nothing is left.
#[test]
fn the_exit_code_is_that_of_the_command() {
    let lab = Lab::new();
    let scripts = Scripts::new();
    let seven = scripts.write("seven", "echo out; echo err >&2; exit 7");
    let killed = scripts.write("killed", "kill -9 $$");
    let plain = scripts.write("plain", "not a program");
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).unwrap();
    let instance = unique_instance();
    let cli = Cli::new(&lab.gateway, &instance);
    let before = Snapshot::of(&lab.gateway, &instance);
    for (command, code, stdout) in [
        ("true".to_owned(), 0, ""),
        (format!("sh {seven}"), 7, "out"),
        (format!("sh {killed}"), 137, ""),
    ] {
        let mut process = cli.start_under("", &format!("exec -- {command}"));
        let attempt = Attempt::end_of(&command, &mut process);
        assert_eq!(attempt.code, Some(code), "{attempt:?}");
        assert_eq!(group_of(process.id()), None);
        assert_eq!(attempt.stdout, stdout, "{attempt:?}");
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    }
    for (command, code) in [("no-such-program".to_owned(), 127), (plain, 126)] {
        let mut process = cli.start_under("", &format!("exec -- {command}"));
        Attempt::end_of(&command, &mut process).assert_refused(code, &["cannot run", &command]);
        assert_eq!(group_of(process.id()), None);
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    }
    for rule in ["--scope forward", "--cgroup x", "--iface cl0", "--dport x"] {
        let attempt = cli.attempt(&format!("exec {rule} -- true"));
        assert_eq!(attempt.code, Some(2), "{attempt:?}");
    }
}

/// The control groups that commands have.
fn exec_groups() -> Vec<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let own = control_group::root().join(own.unwrap_or("/").trim_start_matches('/'));
    let entries = fs::read_dir(own).unwrap().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("tproxy-exec-")
        })
        .collect()
}

/// The group of the command that the process `id` runs.
fn group_of(id: u32) -> Option<PathBuf> {
    let name = format!("tproxy-exec-{id}");
    exec_groups()
        .into_iter()
        .find(|group| group.ends_with(&name))
}

/// SIGTERM is passed on, and what the command makes of it is its own affair.
#[test]
fn the_command_is_told_to_terminate() {
    let lab = Lab::new();
    let scripts = Scripts::new();
    let script = scripts.write(
        "told",
        "trap 'echo told; kill $!; exit 9' TERM; sleep 1000 & echo ready; wait",
    );
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let mut running = start(&lab, &instance, &format!("-- sh {script}"));
    assert!(
        running
            .stdout
            .find(|line| (line == "ready").then_some(()))
            .is_some()
    );
    assert!(group_of(running.id()).is_some());
    running.signal(Signal::SIGTERM);
    let attempt = Attempt::end_of("", &mut running);
    assert_eq!(attempt.code, Some(9), "{attempt:?}");
    assert_eq!(attempt.stdout, "ready\ntold");
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// A flow that the command leaves running in the background goes on to its end, and the command's exit code is told
/// then.
#[test]
fn flows_of_the_background_go_on_to_their_end() {
    let lab = Lab::new();
    let (go, waits) = mpsc::channel::<()>();
    let waits = Mutex::new(waits);
    let _server = Server::start(&lab.server, 80, move |mut stream| -> io::Result<()> {
        // To its end, so that closing is no reset.
        BufReader::new(&stream)
            .lines()
            .find(|line| !line.as_ref().is_ok_and(|line| !line.is_empty()));
        waits.lock().unwrap().recv().map_err(io::Error::other)?;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nat last\n")
    });
    let scripts = Scripts::new();
    for family in FAMILIES {
        let (target, out) = (SocketAddr::new(family.near(), 80), scripts.path("out"));
        let script = scripts.write(
            "leaves",
            &format!("curl -sS -g http://{target}/ > {} & exit 3", out.display()),
        );
        let instance = unique_instance();
        let before = Snapshot::of(&lab.gateway, &instance);
        let mut running = start(&lab, &instance, &format!("--dport 80 -- sh {script}"));
        let draining = running
            .stderr
            .find(|line| line.contains("for running flows to finish").then_some(()));
        assert!(draining.is_some(), "{}", running.stderr.text());
        go.send(()).unwrap();
        let agent = running.id();
        let attempt = Attempt::end_of("", &mut running);
        assert_eq!(attempt.code, Some(3), "{attempt:?}");
        wait::until("the end of the background", || {
            (fs::read_to_string(&out).unwrap() == "at last\n").then_some(())
        });
        fs::remove_file(&out).unwrap();
        assert_eq!(group_of(agent), None, "{attempt:?}");
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    }
}

/// What is left when the agent of a command is killed is removed by the next one.
#[test]
fn the_next_one_removes_what_a_killed_one_left() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let scripts = Scripts::new();
    let script = scripts.write("waits", "echo $$; exec sleep 1000");
    let mut command = lab.gateway.command(program());
    let mut killed = Process::start(command.args(["exec", "--dport", "80", "--", "sh", &script]));
    let instance = format!("exec-{}", killed.id());
    let pid = killed.stdout.find(|line| line.parse().ok());
    let pid = nix::unistd::Pid::from_raw(pid.expect("the command runs"));
    let during = Snapshot::of(&lab.gateway, &instance);
    let group = group_of(killed.id()).expect("the control group");
    killed.signal(Signal::SIGKILL);
    // It has the outputs open as well.
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    let _ = killed.wait();
    wait::until("the end of the command", || {
        let events = fs::read_to_string(group.join("cgroup.events")).unwrap();
        events.contains("populated 0").then_some(())
    });

    let target = SocketAddr::new(Family::V4.near(), 80);
    let next = lab
        .gateway
        .command(program())
        .args(["exec", "--dport", "80", "--"])
        .args(command_line(target).split_whitespace())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&next.stdout).into_owned();
    let exchange = Exchange::told(&told, target).unwrap_or_else(|| panic!("{next:?}"));
    assert_ne!(exchange.seen_client, exchange.client);
    let after = Snapshot::of(&lab.gateway, &instance);
    assert_ne!(after, during);
    assert!(!Path::new("/run/tproxy").join(&instance).exists());
    assert!(!Path::new("/sys/fs/bpf/tproxy").join(&instance).exists());
    assert!(!group.exists(), "{} is left", group.display());
    Exchange::of(&lab.gateway, target).assert_unproxied();
}
