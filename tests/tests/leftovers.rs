//! What an agent leaves that was killed, or told to leave it: what it does meanwhile, who takes it over, who removes it.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use nix::net::if_::if_nametoindex;
use tproxy_tests::{
    Agent, Family, Lab, Snapshot,
    address::FAMILIES,
    agent::{ATTACH_MODES as MODES, unique_instance},
    blast,
    bpf::{self, Hook},
    crafted::tcp_ports,
    peer::{Server, Witness},
    process::Process,
    snapshot::files_below,
    wait,
    wire::{Direction, Wire, ip_addresses},
};

/// After `kill -9`, `unload` takes away everything that the agent left.
#[test]
fn unload_cleans_up_after_a_killed_agent() {
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
        lab.ask(Family::V4.near(), 80).assert_relayed(&agent);
        agent.kill();
        agent.run("unload");
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_unproxied();
        }
    }
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
        let pins = files_below(&Path::new("/sys/fs/bpf/tproxy").join(&instance));
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

/// A new agent takes over or clears away what a killed one of the same instance left, and leaves nothing itself.
#[test]
fn a_new_agent_follows_a_killed_one() {
    for mode in MODES {
        let lab = Lab::new();
        let _witness = Witness::start(&lab.server, 80);
        let instance = unique_instance();
        let before = Snapshot::of(&lab.gateway, &instance);
        for _ in 0..3 {
            let mut agent = Agent::start_under(
                &lab.gateway,
                &instance,
                "",
                &format!("--iface cl0 --dport 80 --name web {mode}"),
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
            &format!("--iface cl0 --dport 80 --name web {mode}"),
        );
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_relayed(&agent);
        }
        assert_eq!(agent.rule_names(), ["web"]);
        agent.stop();
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    }
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
    let wire = Wire::open(&lab.server, "eth0");
    let mut agent = lab.agent(&format!("--iface cl0 --dport 80 {flags}"));
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    assert_eq!(guarded.clients().len(), 2);
    end(&mut agent);
    for family in FAMILIES {
        let attempt = lab.connect_at_once((family.near(), 80).into());
        attempt.expect_err("nobody is there to take the flow");
        lab.ask(family.near(), 81).assert_unproxied();
    }
    assert_eq!(guarded.clients(), [], "the server saw nothing");
    assert_eq!(from_the_client_to(80, &wire), 0);
    agent.run("unload");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_unproxied();
    }
}

/// The packets that the server has got from the client itself for a port, of which the wire has seen others too.
fn from_the_client_to(port: u16, wire: &Wire) -> usize {
    let frames = wire.frames();
    let sent_to = |port| {
        frames.iter().filter(move |frame| {
            let source = frame.bytes.get(14..).and_then(ip_addresses);
            frame.direction == Direction::In
                && source.is_some_and(|(source, _)| FAMILIES.map(Family::client).contains(&source))
                && tcp_ports(frame).is_some_and(|ports| ports.1 == port)
        })
    };
    assert!(sent_to(81).count() > 0, "what no rule takes is on the wire");
    sent_to(port).count()
}

/// Killed while flows move bytes both ways as fast as they can, the agent leaves segments on their way: none of the
/// client's, whose place in the stream means nothing to the server, gets there.
#[test]
fn nothing_leaks_of_flows_that_are_cut_in_mid_stream() {
    for flags in ["", "--pin"] {
        let lab = Lab::new();
        let [v4, v6] = FAMILIES.map(Family::client);
        // Longer than headers with all options: segments with payload.
        lab.server.nft(&format!(
            "table inet leaks {{\n counter segments {{ }}\n chain input {{\n \
             type filter hook prerouting priority -300; policy accept;\n \
             ip saddr {v4} tcp dport 80 meta length > 140 counter name segments\n \
             ip6 saddr {v6} tcp dport 80 meta length > 140 counter name segments\n }}\n}}"
        ));
        let server = Server::start(&lab.server, 80, |stream| {
            blast::both_ways(stream, &AtomicU64::new(0))
        });
        let mut agent = lab.agent(&format!("--iface cl0,sv0 --dport 80 {flags}"));
        let streams =
            FAMILIES.map(|family| lab.client.connect((family.near(), 80).into()).unwrap());
        let received = [AtomicU64::new(0), AtomicU64::new(0)];
        thread::scope(|scope| {
            let clients = streams
                .into_iter()
                .zip(&received)
                .map(|(stream, received)| scope.spawn(move || blast::both_ways(stream, received)));
            let clients: Vec<_> = clients.collect();
            wait::until("bytes move", || {
                let enough = |received: &AtomicU64| received.load(Ordering::Relaxed) > 4 << 20;
                received.iter().all(enough).then_some(())
            });
            agent.kill();
            for client in clients {
                let error = client.join().unwrap().expect_err("no end of the data");
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            }
        });
        for _ in FAMILIES {
            let error = server.outcome().expect_err("no end of the data");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        let counted = || lab.server.output("nft list counter inet leaks segments");
        assert!(counted().contains("packets 0 "), "{flags}: {}", counted());
        // It does count what gets there.
        agent.run("unload");
        let mut direct = lab.client.connect((Family::V4.near(), 80).into()).unwrap();
        direct.write_all(&[0x55; 1000]).unwrap();
        wait::until("a segment is counted", || {
            (!counted().contains("packets 0 ")).then_some(())
        });
    }
}

/// Killed while it waits for running flows to end, an agent is missing like any other that was killed.
#[test]
fn nothing_leaks_when_a_draining_agent_is_killed() {
    let lab = Lab::new();
    let _guarded = Server::start(&lab.server, 80, |mut stream| {
        io::copy(&mut stream, &mut io::sink())
    });
    let _other = Witness::start(&lab.server, 81);
    let wire = Wire::open(&lab.server, "eth0");
    let mut agent = lab.agent("--iface cl0 --dport 80 --drain 60");
    let held = lab.client.connect((Family::V4.near(), 80).into()).unwrap();
    wait::until("the flow is live", || {
        (agent.status()["flows"] == 1).then_some(())
    });
    agent.terminate();
    agent.wait_for_log("waiting up to 60 s");
    agent.kill();
    for family in FAMILIES {
        let attempt = lab.connect_at_once((family.near(), 80).into());
        let error = attempt.expect_err("nobody is there to take the flow");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        lab.ask(family.near(), 81).assert_unproxied();
    }
    assert_eq!(from_the_client_to(80, &wire), 0);
    drop(held);
}

/// A client whose flow nobody is there to take is refused with a reset, at once, in both families.
#[test]
fn clients_of_a_missing_agent_are_refused_at_once() {
    let lab = Lab::new();
    let mut agent = lab.agent("--iface cl0 --dport 80 --pin");
    agent.kill();
    let refused = FAMILIES.map(|family| {
        let attempt = lab.connect_at_once((family.near(), 80).into());
        attempt.map(drop).map_err(|error| error.kind())
    });
    assert_eq!(
        refused,
        [Err(io::ErrorKind::ConnectionRefused); 2],
        "IPv4 and IPv6"
    );
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

/// With `on_missing` pass, flows go their own way while nobody is there to take them.
#[test]
fn flows_may_pass_while_the_agent_is_missing() {
    for mode in MODES {
        let lab = Lab::new();
        let _witness = Witness::start(&lab.server, 80);
        let mut agent = lab.agent(&format!("--iface cl0 --dport 80 --on-missing pass {mode}"));
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_relayed(&agent);
        }
        agent.kill();
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_unproxied();
        }
        assert_eq!(agent.counter("passed_missing"), 2);
    }
}

/// A start that cannot succeed leaves a pinned instance as it was: its rules, and what they do.
#[test]
fn a_failing_start_leaves_a_pinned_instance_as_it_was() {
    for mode in MODES {
        let lab = Lab::new();
        let _witness = Witness::start(&lab.server, 80);
        let holder = lab.agent("--iface sv0 --dport 80");
        let mut first = lab.agent(&format!("--iface cl0 --dport 80 --name web --pin {mode}"));
        first.stop();
        let before = Snapshot::of(&lab.gateway, first.instance());
        let held = holder.status();
        let [mark, table] = ["mark", "table"].map(|key| format!("--{key} {}", held[key]));
        for (arguments, code, culprit) in [
            ("--iface nosuch0", 1, "nosuch0"),
            ("--iface cl0,sv0", 1, "sv0"),
            ("--iface lo,nosuch0 --dport 81", 1, "nosuch0"),
            (&mark, 1, "is taken by instance"),
            (&table, 1, "is taken: instance"),
            ("--mark 0", 2, "mark"),
            ("--table 254", 2, "254"),
        ] {
            let attempt = first.attempt(&format!("run {arguments} {mode}"));
            attempt.assert_refused(code, &[culprit]);
            Snapshot::of(&lab.gateway, first.instance()).assert_same_as(&before);
            assert_eq!(first.rule_names(), ["web"]);
        }
        drop(holder);
        let again = Agent::start_under(&lab.gateway, first.instance(), "", mode);
        lab.ask(Family::V4.near(), 80).assert_relayed(&again);
    }
}

/// An agent that takes over an instance of its own build leaves programs and links as they are, so that there is no
/// moment without them.
#[test]
fn what_fits_is_taken_over_as_it_is() {
    if !bpf::kernel_has_tcx() {
        // Filters in a clsact qdisc are always made anew.
        return;
    }
    let lab = Lab::new();
    let _witnesses = [80, 81].map(|port| Witness::start(&lab.server, port));
    let programs = || {
        ["cl0", "sv0"]
            .map(|interface| bpf::attached(&lab.gateway, Hook::TcxIngress(interface)).unwrap())
    };
    let mut first = lab.agent("--iface cl0,sv0 --dport 80 --name web");
    first.kill();
    let [at_client, at_server] = programs();
    assert_eq!((at_client.len(), at_server.len()), (1, 1));

    // With other rules, and one interface less.
    let mut second = Agent::start_under(
        &lab.gateway,
        first.instance(),
        "",
        "--iface cl0 --dport 81 --name other --pin",
    );
    assert_eq!(programs(), [at_client.clone(), vec![]]);
    assert_eq!(second.rule_names(), ["other"]);
    for family in FAMILIES {
        lab.ask(family.near(), 81).assert_relayed(&second);
        lab.ask(family.near(), 80).assert_direct(&second);
    }
    second.stop();

    // As it is.
    let third = Agent::start_under(&lab.gateway, first.instance(), "", "--pin");
    assert_eq!(programs(), [at_client.clone(), vec![]]);
    assert_eq!(third.rule_names(), ["other"]);
    for family in FAMILIES {
        lab.ask(family.near(), 81).assert_relayed(&third);
    }
    drop(third);

    // What does not fit is made anew.
    let other_mark = Agent::start_under(
        &lab.gateway,
        first.instance(),
        "",
        "--iface cl0 --dport 80 --mark 0x00100000",
    );
    assert_ne!(programs(), [at_client, vec![]]);
    lab.ask(Family::V4.near(), 80).assert_relayed(&other_mark);
}

/// Links that something else detached are not taken over: the new agent makes them anew.
#[test]
fn what_was_detached_behind_our_back_is_made_anew() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let instance = unique_instance();
    let mut pins = vec!["link-lookup"];
    if bpf::kernel_has_tcx() {
        pins.push("link-of-cl0");
    }
    for pin in pins {
        let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --dport 80");
        agent.kill();
        let index = lab.gateway.enter(|| if_nametoindex("cl0")).unwrap();
        let pin = pin.replace("of-cl0", &index.to_string());
        lab.gateway.run(&format!(
            "bpftool link detach pinned /sys/fs/bpf/tproxy/{instance}/{pin}"
        ));
        std::mem::forget(agent);
        let again = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --dport 80");
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_relayed(&again);
        }
    }
}

/// An interface that was deleted and made again while there was no agent is shown as what it is, and can be attached.
#[test]
fn a_dead_attachment_is_shown_and_replaced() {
    for mode in MODES {
        let lab = Lab::new();
        let _witness = Witness::start(&lab.server, 80);
        let mut agent = lab.agent(&format!("--iface cl0,sv0 --dport 80 --pin {mode}"));
        agent.stop();
        lab.unlink_client();
        lab.link_client();
        if mode.is_empty() && bpf::kernel_has_tcx() {
            assert_eq!(agent.status()["absent"], serde_json::json!(["cl0"]));
        }
        agent.run("attach cl0");
        assert_eq!(agent.status()["absent"], serde_json::json!([]));
        let again = Agent::start_under(&lab.gateway, agent.instance(), "", mode);
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_relayed(&again);
        }
    }
}

/// However damaged its state is, `unload` removes an instance.
#[test]
fn unload_removes_an_instance_with_a_damaged_state() {
    let lab = Lab::new();
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    let directory = Path::new("/run/tproxy").join(&instance);
    for content in ["", "{", "{\"generation\":2}"] {
        let mut agent = Agent::start_under(&lab.gateway, &instance, "", "--iface cl0 --dport 80");
        agent.kill();
        for file in files_below(&directory) {
            if file.to_string_lossy().contains("state-") {
                fs::write(&file, content).unwrap();
            }
        }
        let list = agent.attempt("rule list");
        list.assert_refused(1, &["damaged", "unload"]);
        agent.run("unload");
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    }
}

/// What is left of another instance on an interface is not ours to remove.
#[test]
fn unload_leaves_the_filters_of_other_instances() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut first = lab.agent("--iface cl0 --dport 80 --pin --clsact");
    first.kill();
    // Killed as soon as it has committed, before it takes the filter off.
    for number in 1.. {
        let wrapper = format!(
            "strace -f -qq -o /dev/null -e trace=sendto -e inject=sendto:signal=SIGKILL:when={number}"
        );
        let attempt = first.attempt_under(&wrapper, "detach cl0");
        assert_eq!(attempt.code, None, "{attempt:#?}");
        if first.status()["interfaces"] == serde_json::json!([]) {
            break;
        }
    }
    let second = lab.agent("--iface cl0 --dport 80 --clsact");
    first.run("unload");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&second);
    }
}

/// An agent that cannot raise what it needs leaves a pinned instance as it was.
#[test]
fn a_start_without_descriptors_leaves_a_pinned_instance_as_it_was() {
    let lab = Lab::new();
    let mut first = lab.agent("--iface cl0 --dport 80 --name web --pin");
    first.stop();
    let before = Snapshot::of(&lab.gateway, first.instance());
    for mark in ["", "--mark 0x00100000"] {
        let attempt = first.attempt_under(
            "prlimit --nofile=200",
            &format!("run --dport 81 --name other {mark}"),
        );
        attempt.assert_refused(1, &["200", "LimitNOFILE"]);
        Snapshot::of(&lab.gateway, first.instance()).assert_same_as(&before);
        assert_eq!(first.rule_names(), ["web"]);
    }
}

/// An agent that breaks leaves its programs, so that what its rules take goes nowhere, as after `kill -9`.
#[test]
fn nothing_leaks_when_the_agent_breaks() {
    let lab = Lab::new();
    let witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --dport 80");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_relayed(&agent);
    }
    assert_eq!(witness.clients().len(), 2);
    let worker = agent.thread("relay-0");
    let mut strace = lab.gateway.command("strace");
    strace.args(["-qq", "-o", "/dev/null", "-p", &worker.to_string()]);
    strace.args([
        "-e",
        "trace=epoll_wait",
        "-e",
        "inject=epoll_wait:error=EBADF",
    ]);
    let _strace = Process::start(&mut strace);
    let status = agent.wait_for_end();
    assert_eq!(status.code(), Some(1), "{}", agent.log());
    agent.wait_for_log("tproxy unload");
    for family in FAMILIES {
        lab.connect_at_once((family.near(), 80).into())
            .expect_err("nobody is there to take the flow");
    }
    assert_eq!(witness.clients(), []);
}

/// Whoever removes the pins of a living agent lets nothing pass by its rules. The log says at once what is gone and
/// what to do, and once the agent ends nothing is left.
#[test]
fn an_agent_whose_pins_are_removed_says_so_and_goes_on() {
    for mode in MODES {
        let lab = Lab::new();
        let guarded = Witness::start(&lab.server, 80);
        let instance = unique_instance();
        let before = Snapshot::of(&lab.gateway, &instance);
        let arguments = format!("--iface cl0,sv0 --dport 80 {mode}");
        let mut agent = Agent::start_under(&lab.gateway, &instance, "", &arguments);
        agent.run("rule add --name own --scope local --dport 82");
        agent.run("detach sv0");
        agent.run("rule del own");
        lab.ask(Family::V4.near(), 80).assert_relayed(&agent);
        let pins = Path::new("/sys/fs/bpf/tproxy").join(&instance);
        let error = format!("{}, or something in it, was removed", pins.display());
        assert!(!agent.log().contains(&error), "{}", agent.log());
        fs::remove_dir_all(&pins).expect("remove the pins");
        agent.wait_for_log(&error);
        agent.wait_for_log("restart the agent");
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_relayed(&agent);
        }
        assert_eq!(agent.log().matches(&error).count(), 1, "{}", agent.log());
        assert_eq!(guarded.clients().len(), 3);
        assert_eq!(agent.stop().len(), 3);
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_unproxied();
        }
        Agent::start_under(&lab.gateway, &instance, "", &arguments).stop();
    }
}

/// An agent whose files are removed while it lives says so, keeps others from its instance, and takes away what it
/// knows of when it ends.
#[test]
fn an_agent_whose_files_are_removed_leaves_nothing() {
    for mode in MODES {
        let lab = Lab::new();
        let _witness = Witness::start(&lab.server, 80);
        let instance = unique_instance();
        let before = Snapshot::of(&lab.gateway, &instance);
        let arguments = format!("--iface cl0 --dport 80 {mode}");
        let mut agent = Agent::start_under(&lab.gateway, &instance, "", &arguments);
        agent.run("rule add --name more --dport 81");
        let files = Path::new("/run/tproxy").join(&instance);
        let error = format!("{}, or something in it, was removed", files.display());
        assert!(!agent.log().contains(&error), "{}", agent.log());
        fs::remove_dir_all(&files).expect("remove the files");
        agent.wait_for_log(&error);
        for command in [&format!("run {arguments}"), "unload"] {
            let words = [&instance, files.to_str().unwrap(), "stop its agent"];
            agent.attempt(command).assert_refused(1, &words);
        }
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_relayed(&agent);
        }
        agent.stop();
        assert!(
            agent.log().contains("which this agent remembers"),
            "{}",
            agent.log()
        );
        if !mode.is_empty() || !bpf::kernel_has_tcx() {
            // Whose it was is not known.
            lab.gateway.run("tc qdisc del dev cl0 clsact");
        }
        Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    }
}

/// Without its files nobody knows the mark of a killed agent: `unload` removes what it can, and says what may be left.
#[test]
fn unload_does_not_claim_what_it_cannot_know() {
    for mode in MODES {
        let lab = Lab::new();
        let _witness = Witness::start(&lab.server, 80);
        let instance = unique_instance();
        let arguments = format!("--iface cl0 --dport 80 {mode}");
        let mut agent = Agent::start_under(&lab.gateway, &instance, "", &arguments);
        let files = Path::new("/run/tproxy").join(&instance);
        let remove_files = || fs::remove_dir_all(&files).expect("remove the files");
        agent.kill();
        remove_files();
        agent
            .attempt("unload")
            .assert_refused(1, &[files.to_str().unwrap(), "priority 74"]);
        assert!(!Path::new("/sys/fs/bpf/tproxy").join(&instance).exists());
        for family in FAMILIES {
            lab.ask(family.near(), 80).assert_unproxied();
        }
        agent
            .attempt("unload")
            .assert_refused(1, &["no instance", &instance]);
        std::mem::forget(agent);
        // The next agent says it, too.
        let mut second = Agent::start_under(&lab.gateway, &instance, "", &arguments);
        second.kill();
        std::mem::forget(second);
        remove_files();
        let mut third = Agent::start_under(&lab.gateway, &instance, "", &arguments);
        assert!(third.log().contains("priority 74"), "{}", third.log());
        lab.ask(Family::V4.near(), 80).assert_relayed(&third);
        third.stop();
    }
}
