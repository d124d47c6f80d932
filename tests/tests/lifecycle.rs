//! Starting, and stopping in order.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tproxy_tests::{
    Agent, Family, Lab, Snapshot,
    address::FAMILIES,
    agent::{ATTACH_MODES as MODES, unique_instance},
    pattern,
    peer::{Server, Witness},
    snapshot::files_below,
    wait::{self, uninterrupted},
};

/// The ready line names instance, interfaces, rules and workers, and stands alone on standard output.
#[test]
fn the_ready_line_says_what_is_in_force() {
    let lab = Lab::new();
    let instance = unique_instance();
    let mut agent = Agent::start_under(
        &lab.gateway,
        &instance,
        "",
        "--iface cl0,sv0 --dport 80 --workers 2",
    );
    let expected =
        format!("tproxy ready: instance {instance}, interfaces cl0,sv0, 1 rule, 2 workers");
    let spaced = expected.replace("cl0,sv0", "cl0, sv0");
    assert!(
        [expected, spaced].contains(&agent.ready_line().to_owned()),
        "{}",
        agent.ready_line()
    );
    agent.stop();
    assert_eq!(
        agent.standard_output().len(),
        1,
        "{:?}",
        agent.standard_output()
    );
}

/// The first flow is relayed although it was opened in the moment of the ready line, not later.
#[test]
fn flows_are_taken_from_the_ready_line_on() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    for family in FAMILIES {
        for _ in 0..3 {
            let agent = lab.agent("--iface cl0 --dport 80");
            lab.ask(family.near(), 80).assert_relayed(&agent);
        }
    }
}

/// Directories of an instance are for root alone, pins and files as well: whoever can write a pin can steer traffic.
#[test]
fn pins_and_files_are_for_root_alone() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80 --pin");
    for root in ["/sys/fs/bpf/tproxy", "/run/tproxy"] {
        let directory = Path::new(root).join(agent.instance());
        assert_eq!(mode(&directory), 0o700, "{}", directory.display());
        for file in files_below(&directory) {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
    }
}

fn mode(path: &Path) -> u32 {
    let metadata =
        fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(metadata.uid(), 0, "{} belongs to root", path.display());
    metadata.mode() & 0o7777
}

/// A stopped agent leaves nothing: no policy rule, route, queueing discipline, program, pin or file.
#[test]
fn stopping_leaves_nothing() {
    for mode in MODES {
        let lab = Lab::new();
        let _witness = Witness::start(&lab.server, 80);
        let instance = unique_instance();
        let before = Snapshot::of(&lab.gateway, &instance);
        let mut agent = Agent::start_under(
            &lab.gateway,
            &instance,
            "",
            &format!("--iface cl0,sv0 --dport 80 {mode}"),
        );
        assert_ne!(
            Snapshot::of(&lab.gateway, &instance),
            before,
            "there is something to be left"
        );
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_relayed(&agent);
        }
        assert_eq!(agent.stop().len(), 2);
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_unproxied();
        }
    }
}

/// A stopping agent takes no new flows: they go their own way at once, as they will when it is gone, while those that
/// run are still relayed.
#[test]
fn new_flows_go_direct_while_running_ones_finish() {
    let lab = Lab::new();
    let server = Server::start(&lab.server, 80, |mut stream| {
        pattern::read_to_end(&mut stream)
    });
    let _witness = Witness::start(&lab.server, 81);
    let mut agent = lab.agent("--iface cl0 --dport 80,81 --drain 60");
    let mut running = lab.client.connect((Family::V4.near(), 80).into()).unwrap();
    pattern::write(&mut running, 1_000).unwrap();
    lab.ask(Family::V4.near(), 81).assert_relayed(&agent);
    agent.terminate();
    agent.wait_for_log("to finish");
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 81);
        drop(lab.connect_at_once(target).expect("the server answers"));
        lab.ask(family.near(), 81).assert_direct(&agent);
    }
    pattern::write_from(&mut running, 1_000, 2_000_000).unwrap();
    running.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.outcome().unwrap(), 2_000_000);
    assert_eq!(agent.wait().len(), 2);
}

/// A stopping agent lets running flows finish, then ends with exit code 0 and leaves nothing.
#[test]
fn stopping_lets_running_flows_finish() {
    let lab = Lab::new();
    let server = Server::start(&lab.server, 80, |mut stream| {
        pattern::read_to_end(&mut stream)
    });
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let mut agent = Agent::start_under(
        &lab.gateway,
        &instance,
        "",
        "--iface cl0 --dport 80 --drain 20",
    );
    let mut streams =
        FAMILIES.map(|family| lab.client.connect((family.near(), 80).into()).unwrap());
    for stream in &mut streams {
        pattern::write(stream, 1_000_000).unwrap();
    }
    agent.terminate();
    for stream in &mut streams {
        pattern::write_from(stream, 1_000_000, 5_000_000).unwrap();
        assert!(agent.is_running(), "the agent waits for its flows");
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(
            uninterrupted(|| stream.read(&mut [0])).unwrap(),
            0,
            "a clean end"
        );
        assert_eq!(server.outcome().unwrap(), 5_000_000);
    }
    let flows = agent.wait();
    assert!(
        flows
            .iter()
            .all(|flow| flow.end == "fin" && flow.sent == 5_000_000),
        "{flows:?}"
    );
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// Flows that do not finish within the time to drain are reset, never ended cleanly.
#[test]
fn flows_that_outlast_the_drain_are_reset() {
    let lab = Lab::new();
    let _server = Server::start(&lab.server, 80, |mut stream: TcpStream| {
        io::copy(&mut stream, &mut io::sink())
    });
    let mut agent = lab.agent("--iface cl0 --dport 80 --drain 1");
    let mut stream = lab.client.connect((Family::V4.near(), 80).into()).unwrap();
    stream.write_all(b"first part").unwrap();
    let start = Instant::now();
    agent.terminate();
    let error =
        uninterrupted(|| stream.read(&mut [0])).expect_err("the client sees no end of data");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(agent.wait().len(), 1);
    let took = start.elapsed();
    assert!(
        took > Duration::from_millis(900) && took < wait::scaled(Duration::from_secs(5)),
        "drained for {took:?}"
    );
}

/// A second signal ends the drain at once.
#[test]
fn a_second_signal_ends_at_once() {
    let lab = Lab::new();
    let _server = Server::start(&lab.server, 80, |mut stream: TcpStream| {
        io::copy(&mut stream, &mut io::sink())
    });
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let mut agent = Agent::start_under(
        &lab.gateway,
        &instance,
        "",
        "--iface cl0 --dport 80 --drain 600",
    );
    let mut stream = lab.client.connect((Family::V4.near(), 80).into()).unwrap();
    stream.write_all(b"first part").unwrap();
    agent.terminate();
    agent.wait_for_log("to finish");
    assert!(agent.is_running(), "the running flow holds the agent");
    let start = Instant::now();
    agent.signal(nix::sys::signal::Signal::SIGINT);
    wait::until("the end of the agent", || {
        (!agent.is_running()).then_some(())
    });
    assert!(
        start.elapsed() < wait::scaled(Duration::from_secs(3)),
        "ended after {:?}",
        start.elapsed()
    );
    uninterrupted(|| stream.read(&mut [0])).expect_err("the client sees no end of data");
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// SIGINT stops like SIGTERM.
#[test]
fn an_interrupted_agent_ends_in_order() {
    let lab = Lab::new();
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --dport 80");
    agent.signal(nix::sys::signal::Signal::SIGINT);
    agent.wait();
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// `unload` says what it waits for when the agent does not answer, and goes on when it has ended, by force or by itself.
#[test]
fn unload_says_which_agent_it_waits_for() {
    for remedy in [Signal::SIGKILL, Signal::SIGCONT] {
        let lab = Lab::new();
        let instance = unique_instance();
        let before = Snapshot::of(&lab.gateway, &instance);
        let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --dport 80");
        let pid = agent.id();
        agent.signal(Signal::SIGSTOP);
        let mut unload = agent.start_under("", "unload");
        let said = unload.stderr.find(|line| Some(line.to_owned()));
        let said = said.expect("a word about the wait");
        assert!(said.starts_with("tproxy: waiting"), "{said}");
        assert!(said.contains(&format!("(process {pid})")), "{said}");
        assert!(said.contains(&format!("`kill -9 {pid}`")), "{said}");
        assert!(!unload.has_ended());
        agent.signal(remedy);
        agent.wait_for_end();
        assert!(unload.wait().success());
        assert_eq!(unload.stderr.so_far(), [said]);
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    }
}

/// It has nothing to say of one that answers.
#[test]
fn unload_is_silent_about_an_agent_that_ends() {
    let lab = Lab::new();
    let mut agent = lab.agent("--iface cl0 --dport 80");
    let attempt = agent.attempt("unload");
    assert_eq!(attempt.code, Some(0), "{attempt:?}");
    assert_eq!(attempt.stderr, [""; 0]);
    agent.wait_for_end();
}
