//! Starting, stopping, dying, and what is left behind.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tproxy_tests::{
    Agent, Cli, Exchange, Family, Lab, Snapshot,
    address::FAMILIES,
    agent::unique_instance,
    pattern,
    peer::{Server, Witness},
    wait,
};

/// A stopped agent leaves nothing: no policy rule, route, queueing discipline, program, pin or file.
#[test]
fn stopping_leaves_nothing() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0,sv0 --dport 80");
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

/// After `kill -9`, `unload` takes away everything that the agent left.
#[test]
fn unload_cleans_up_after_a_killed_agent() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0,sv0 --dport 80");
    lab.ask(Family::V4.near(), 80).assert_relayed(&agent);
    agent.kill();
    agent.run("unload");
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_unproxied();
    }
}

/// A new agent takes over or clears away what a killed one of the same instance left, and leaves nothing itself.
#[test]
fn a_new_agent_follows_a_killed_one() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    for _ in 0..3 {
        let mut agent = Agent::start_under(
            &lab.gateway,
            &instance,
            "",
            "--iface cl0 --dport 80 --name web",
        );
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_relayed(&agent);
        }
        agent.kill();
        // Not unloaded: the next one finds what this one left.
        std::mem::forget(agent);
    }
    let mut agent = Agent::start_under(
        &lab.gateway,
        &instance,
        "",
        "--iface cl0 --dport 80 --name web",
    );
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    assert_eq!(agent.rule_names(), ["web"]);
    agent.stop();
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// Whatever of the pins has vanished, `unload` still takes away the rest.
#[test]
fn unload_cleans_up_whichever_pin_is_missing() {
    let lab = Lab::new();
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let mut index = 0;
    loop {
        let mut agent = Agent::start_under(
            &lab.gateway,
            &instance,
            "",
            "--iface cl0,sv0 --dport 80 --pin",
        );
        agent.kill();
        let pins = pins_below(&Path::new("/sys/fs/bpf/tproxy").join(&instance));
        assert!(!pins.is_empty(), "a pinned instance has pins");
        let Some(pin) = pins.get(index) else { break };
        fs::remove_file(pin).expect("remove a pin");
        let attempt = agent.attempt("unload");
        assert_eq!(
            attempt.code,
            Some(0),
            "without {}: {attempt:?}",
            pin.display()
        );
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
        index += 1;
    }
}

fn pins_below(directory: &Path) -> Vec<PathBuf> {
    let mut pins = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            pins.extend(pins_below(&entry.path()));
        } else {
            pins.push(entry.path());
        }
    }
    pins.sort();
    pins
}

/// With the agent killed, what its rules take reaches nobody, as their `on_missing` says by default. What no rule takes
/// passes as before.
#[test]
fn nothing_leaks_when_the_agent_is_killed() {
    nothing_leaks("", |agent| agent.kill());
}

/// The same for an agent that leaves its programs in force.
#[test]
fn nothing_leaks_when_a_pinned_agent_is_killed() {
    nothing_leaks("--pin", |agent| agent.kill());
}

/// The same for an agent that was stopped in order and left its programs in force.
#[test]
fn nothing_leaks_when_a_pinned_agent_is_stopped() {
    nothing_leaks("--pin", |agent| {
        agent.stop();
    });
}

fn nothing_leaks(flags: &str, end: impl FnOnce(&mut Agent)) {
    let lab = Lab::new();
    let guarded = Witness::start(&lab.server, 80);
    let _other = Witness::start(&lab.server, 81);
    let mut agent = lab.agent(&format!("--iface cl0 --dport 80 {flags}"));
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    assert_eq!(guarded.clients().len(), 2);
    end(&mut agent);
    for family in FAMILIES {
        let attempt = connect_at_once(&lab, (family.near(), 80).into());
        attempt.expect_err("nobody is there to take the flow");
        lab.ask(family.near(), 81).assert_unproxied();
    }
    assert_eq!(guarded.clients(), [], "the server saw nothing");
    agent.run("unload");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_unproxied();
    }
}

/// Connects from the client, within less time than a SYN that is lost would need to be sent again.
fn connect_at_once(lab: &Lab, target: SocketAddr) -> io::Result<TcpStream> {
    let bound = Duration::from_millis(700);
    lab.client
        .enter(|| TcpStream::connect_timeout(&target, bound))
}

/// A client whose flow nobody is there to take is refused with a reset, at once, in both families.
#[test]
fn clients_of_a_missing_agent_are_refused_at_once() {
    let lab = Lab::new();
    let mut agent = lab.agent("--iface cl0 --dport 80 --pin");
    agent.kill();
    let refused = FAMILIES.map(|family| {
        let attempt = connect_at_once(&lab, (family.near(), 80).into());
        attempt.map(drop).map_err(|error| error.kind())
    });
    assert_eq!(
        refused,
        [Err(io::ErrorKind::ConnectionRefused); 2],
        "IPv4 and IPv6"
    );
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
        drop(connect_at_once(&lab, target).expect("the server answers"));
        lab.ask(family.near(), 81).assert_direct(&agent);
    }
    pattern::write_from(&mut running, 1_000, 2_000_000).unwrap();
    running.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.outcome().unwrap(), 2_000_000);
    assert_eq!(agent.wait().len(), 2);
}

/// A pinned instance can be looked at and changed without its agent, and a new agent takes it over with its rules.
#[test]
fn a_pinned_instance_is_taken_over_with_its_rules() {
    let lab = Lab::new();
    let _witnesses = [80, 81].map(|port| Witness::start(&lab.server, port));
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let mut first = Agent::start_under(
        &lab.gateway,
        &instance,
        "",
        "--iface cl0 --dport 80 --name web --pin",
    );
    first.stop();
    assert_eq!(first.rule_names(), ["web"]);
    let status = first.status();
    assert!(status["agent"].is_null(), "{status}");
    assert_eq!(status["interfaces"], serde_json::json!(["cl0"]));
    first.run("rule add --name more --dport 81");
    std::mem::forget(first);
    let mut second = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0");
    assert_eq!(second.rule_names(), ["web", "more"]);
    for family in FAMILIES {
        for port in [80, 81] {
            lab.ask(family.near(), port).assert_relayed(&second);
        }
    }
    assert_eq!(second.stop().len(), 4);
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
}

/// A second agent of the same instance refuses, and the first is unharmed.
#[test]
fn a_second_agent_of_the_same_instance_refuses() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut first = lab.agent("--iface cl0 --dport 80");
    let before = Snapshot::of(&lab.gateway, first.instance());
    for interface in ["cl0", "sv0"] {
        let second = first.attempt(&format!("run --iface {interface} --dport 80"));
        second.assert_refused(1, &[first.instance()]);
        Snapshot::of(&lab.gateway, first.instance()).assert_same_as(&before);
    }
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&first);
    }
    assert_eq!(first.stop().len(), 2);
}

/// A second agent at the same interface refuses, naming the interface and who holds it, and the first is unharmed.
#[test]
fn a_second_agent_at_the_same_interface_refuses() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut first = lab.agent("--iface cl0 --dport 80");
    let instance = unique_instance();
    let before = [first.instance(), &instance].map(|name| Snapshot::of(&lab.gateway, name));
    for interfaces in ["cl0", "sv0,cl0"] {
        let second = Cli::new(&lab.gateway, &instance)
            .attempt(&format!("run --iface {interfaces} --dport 80"));
        second.assert_refused(1, &["cl0", first.instance()]);
        let after = [first.instance(), &instance].map(|name| Snapshot::of(&lab.gateway, name));
        for (after, before) in after.iter().zip(&before) {
            after.assert_same_as(before);
        }
    }
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&first);
    }
    assert_eq!(first.stop().len(), 2);
}

/// Two instances at two interfaces of one host do not disturb each other, and each leaves only its own behind.
#[test]
fn two_instances_work_side_by_side() {
    let lab = Lab::new();
    let _at_the_server = Witness::start(&lab.server, 80);
    let _at_the_client = Witness::start(&lab.client, 80);
    let mut one = lab.agent("--iface cl0 --dport 80");
    let before = Snapshot::of(&lab.gateway, "no-such-instance");
    let mut other = lab.agent("--iface sv0 --dport 80");
    for family in FAMILIES {
        lab.ask(family.server(), 80).assert_relayed(&one);
        let exchange = Exchange::of(&lab.server, (family.client(), 80).into());
        exchange.assert_relayed_from(&other, family.gateway());
    }
    assert_eq!(other.stop().len(), 2);
    Snapshot::of(&lab.gateway, "no-such-instance").assert_same_as(&before);
    for family in FAMILIES {
        lab.ask(family.server(), 80).assert_relayed(&one);
    }
    assert_eq!(one.stop().len(), 4);
}

/// An interface that is deleted and made again is attached again within a second, and by itself.
#[test]
fn an_interface_made_again_is_attached_again() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0,sv0 --dport 80");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    lab.unlink_client();
    lab.link_client();
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 80);
        let start = Instant::now();
        let exchange = wait::until("flows are relayed again", || {
            Exchange::attempt(&lab.client, target)
                .ok()
                .filter(|exchange| exchange.seen_client != exchange.client)
        });
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "attached again after {:?}",
            start.elapsed()
        );
        exchange.assert_relayed(&agent);
    }
    assert_eq!(
        agent.status()["interfaces"],
        serde_json::json!(["cl0", "sv0"])
    );
    agent.stop();
}

/// A renamed interface stays attached, and nothing of it is left behind.
#[test]
fn a_renamed_interface_stays_attached() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let instance = unique_instance();
    let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --dport 80");
    lab.gateway.run("ip link set cl0 name renamed0");
    for family in FAMILIES {
        let target = SocketAddr::new(family.near(), 80);
        let exchange = wait::within(Duration::from_secs(2), || {
            Exchange::attempt(&lab.client, target)
                .ok()
                .filter(|exchange| exchange.seen_client != exchange.client)
        });
        exchange
            .expect("relayed within a second of the renaming")
            .assert_relayed(&agent);
    }
    agent.stop();
    let after = Snapshot::of(&lab.gateway, &instance);
    lab.gateway.run("ip link set renamed0 name cl0");
    let renamed_back = Snapshot::of(&lab.gateway, &instance);
    let mut again = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --dport 80");
    again.stop();
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&renamed_back);
    assert_ne!(after, renamed_back, "the name shows in a snapshot");
}

/// Of three interfaces the second cannot be attached: the first is released again and nothing is left.
#[test]
fn a_failing_attachment_undoes_those_before_it() {
    let lab = Lab::new();
    lab.gateway
        .ip("link add ex0 type veth peer name ex1\nlink set ex0 up\nlink set ex1 up");
    let instance = unique_instance();
    let cli = Cli::new(&lab.gateway, &instance);
    let holder = lab.agent("--iface sv0 --dport 80");
    let before = Snapshot::of(&lab.gateway, &instance);
    // One that is not there, and one that another instance holds, which shows only when it is tried.
    for (list, culprit) in [("cl0,nosuch0,ex0", "nosuch0"), ("cl0,sv0,ex0", "sv0")] {
        let attempt = cli.attempt(&format!("run --iface {list} --dport 80"));
        attempt.assert_refused(1, &[culprit]);
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    }
    drop(holder);

    let _witness = Witness::start(&lab.server, 80);
    let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --dport 80");
    let before = Snapshot::of(&lab.gateway, &instance);
    agent
        .attempt("attach ex0,nosuch0,ex1")
        .assert_refused(1, &["nosuch0"]);
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    assert_eq!(agent.status()["interfaces"], serde_json::json!(["cl0"]));
    lab.ask(Family::V4.near(), 80).assert_relayed(&agent);
    agent.stop();
}

/// Interfaces come and go while the agent runs.
#[test]
fn interfaces_are_attached_and_detached_live() {
    let lab = Lab::new();
    let _at_the_server = Witness::start(&lab.server, 80);
    let _at_the_client = Witness::start(&lab.client, 80);
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        let from_the_server = || Exchange::of(&lab.server, (family.client(), 80).into());
        from_the_server().assert_direct(&agent);
        agent.run("attach sv0");
        assert_eq!(
            agent.status()["interfaces"],
            serde_json::json!(["cl0", "sv0"])
        );
        from_the_server().assert_relayed_from(&agent, family.gateway());
        agent.run("detach sv0");
        assert_eq!(agent.status()["interfaces"], serde_json::json!(["cl0"]));
        from_the_server().assert_direct(&agent);
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    assert_eq!(agent.stop().len(), 4);
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
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "a clean end");
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
    let error = stream
        .read(&mut [0])
        .expect_err("the client sees no end of data");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(agent.wait().len(), 1);
    let took = start.elapsed();
    assert!(
        took > Duration::from_millis(900) && took < Duration::from_secs(5),
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
        start.elapsed() < Duration::from_secs(3),
        "ended after {:?}",
        start.elapsed()
    );
    stream
        .read(&mut [0])
        .expect_err("the client sees no end of data");
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
        for file in pins_below(&directory) {
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
