//! `explain`: what it says is what happens, in the kernel too, and asking changes nothing.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use tproxy_tests::{
    Agent, Cli, ControlGroup, Exchange, Family, Lab, Snapshot,
    address::FAMILIES,
    peer::{Witness, listen_prepared},
    wait,
};

/// What `explain` says of a TCP flow from the client.
fn explained(cli: &Cli<'_>, family: Family, protocol: &str, target: SocketAddr) -> Value {
    cli.json(&format!("explain {protocol} {} {target}", family.client()))
}

fn agent_with_rules(lab: &Lab) -> Agent<'_> {
    let agent = lab.agent("--iface cl0 --dport 80 --name web");
    agent.run("rule add --name closed --proto any --dport 81 --action reject");
    agent.run("rule add --name open --proto any --dport 82 --action pass");
    agent.run("rule add --name dark --proto udp --dport 83 --action drop");
    agent
}

/// For each action and for none, over both families: the answer and the kernel's are one, and those that let a flow
/// through are true.
#[test]
fn the_kernel_agrees() {
    let lab = Lab::new();
    let _witnesses = [80, 82, 83].map(|port| Witness::start(&lab.server, port));
    let agent = agent_with_rules(&lab);
    for family in FAMILIES {
        for (protocol, port, rule, action) in [
            ("tcp", 80, Some("web"), "relay"),
            ("tcp", 81, Some("closed"), "reject"),
            ("udp", 81, Some("closed"), "reject"),
            ("tcp", 82, Some("open"), "pass"),
            ("udp", 83, Some("dark"), "drop"),
            ("tcp", 83, None, "pass"),
            ("udp", 80, None, "pass"),
        ] {
            let target = SocketAddr::new(family.server(), port);
            let answer = explained(&agent, family, protocol, target);
            assert_eq!(answer["rule"], json!(rule), "{answer}");
            assert_eq!(answer["action"], action, "{answer}");
            assert_eq!(
                answer["kernel"],
                json!({"rule": rule, "agrees": true}),
                "{protocol} {target}"
            );
        }
        lab.ask(family.server(), 80).assert_relayed(&agent);
        lab.ask(family.server(), 82).assert_direct(&agent);
        lab.ask(family.server(), 83).assert_direct(&agent);
        // To this host itself, and to nowhere that is routed to.
        let nowhere = match family {
            Family::V4 => "127.0.0.1:80",
            Family::V6 => "[fe80::1]:80",
        };
        let own = SocketAddr::new(family.gateway(), 80);
        for target in [own, nowhere.parse().unwrap()] {
            let answer = explained(&agent, family, "tcp", target);
            assert_eq!(answer["rule"], Value::Null, "{answer}");
            assert_eq!(answer["kernel"], json!({"rule": null, "agrees": true}));
        }
    }
}

/// The question is asked about the interface that is named, from whatever network namespace.
#[test]
fn the_kernel_is_asked_about_an_interface() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0,sv0");
    agent.run("rule add --name left --dport 80 --iface cl0");
    agent.run("rule add --name right --dport 80 --iface sv0");
    let elsewhere = Cli::new(&lab.server, agent.instance());
    for cli in [&*agent, &elsewhere] {
        for (interface, rule) in [("cl0", "left"), ("sv0", "right")] {
            let question = format!("explain --iface {interface} tcp 10.77.1.2 192.0.2.1:80");
            let answer = cli.json(&question);
            assert_eq!(answer["rule"], rule);
            assert_eq!(answer["kernel"], json!({"rule": rule, "agrees": true}));
            let text = cli.output(&question);
            assert!(!text.contains("kernel"), "nothing to remark: {text}");
        }
    }
}

/// Neither a counter nor anything else that can be seen is different afterwards.
#[test]
fn asking_changes_nothing() {
    let lab = Lab::new();
    let agent = agent_with_rules(&lab);
    let seen = || {
        let snapshot = Snapshot::of(&lab.gateway, agent.instance());
        (snapshot, agent.rules(), counters(&agent))
    };
    let before = seen();
    for family in FAMILIES {
        for (protocol, port) in [
            ("tcp", 80),
            ("udp", 81),
            ("tcp", 82),
            ("udp", 83),
            ("tcp", 84),
        ] {
            let target = SocketAddr::new(family.server(), port);
            let _ = explained(&agent, family, protocol, target);
        }
    }
    assert_eq!(seen(), before);
}

/// What the tc program and sk_lookup counted of flows. Neighbour discovery goes on meanwhile.
fn counters(agent: &Agent<'_>) -> Vec<u64> {
    let names = [
        "taken",
        "rejected",
        "passed",
        "dropped",
        "no_rule",
        "established",
        "foreign",
    ];
    names.map(|name| agent.counter(name)).to_vec()
}

/// What `explain` says of a flow of some scope.
fn explained_in(cli: &Cli<'_>, scope: &str, from: IpAddr, to: SocketAddr) -> Value {
    cli.json(&format!("explain --scope {scope} tcp {from} {to}"))
}

/// Of the other scopes the tables are asked: local flows are those of whoever asks.
#[test]
fn every_scope_can_be_asked_about() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80 --name web");
    agent.run("rule add --name mine --scope local --uid 0 --dport 80 --action pass");
    agent.run("rule add --name others --scope local --uid 1-4294967294 --dport 80");
    agent.run("rule add --name here --scope inbound --dport 80 --action pass");
    for family in FAMILIES {
        let (client, own, server) = (family.client(), family.gateway(), family.server());
        for (scope, from, to, rule) in [
            ("forward", client, server, Some("web")),
            ("local", own, server, Some("mine")),
            ("inbound", client, own, Some("here")),
            // Where no flow of the scope goes.
            ("forward", client, own, None),
            ("forward", own, server, None),
            ("local", own, own, None),
            ("inbound", client, server, None),
            ("inbound", own, own, None),
        ] {
            let answer = explained_in(&agent, scope, from, SocketAddr::new(to, 80));
            assert_eq!(answer["rule"], json!(rule), "{scope} {from} {to}: {answer}");
        }
    }
    let unknown = agent.attempt("explain --scope elsewhere tcp 10.0.0.1 10.0.0.2:80");
    unknown.assert_refused(2, &["elsewhere", "--scope"]);
}

/// What the rules ask of the source of a local flow is what its socket is bound to, and the answer says what was asked
/// about. It is what happens.
#[test]
fn the_source_of_a_local_flow_is_what_its_socket_is_bound_to() {
    let lab = Lab::new();
    let _server = Witness::start(&lab.server, 80);
    let agent = lab.agent("--scope local --dport 81 --name other");
    for family in FAMILIES {
        let own = family.gateway_upstream();
        let target = SocketAddr::new(family.server(), 80);
        let ask = |from: &str| agent.json(&format!("explain --scope local tcp {from} {target}"));
        let assert_answer = |from: &str, rule: Value, assumption: Option<&str>| {
            let answer = ask(from);
            assert_eq!(answer["rule"], rule, "{from}: {answer}");
            let reason = answer["reason"].as_str().unwrap();
            let said = reason.split_once(" (for a socket that is ");
            let said = said.map(|(_, said)| said.trim_end_matches(')'));
            assert_eq!(said, assumption, "{from}: {answer}");
        };
        let (any, own_text) = (family.any().to_string(), own.to_string());
        assert_answer(&own_text, Value::Null, None);
        agent.run(&format!(
            "rule add --name bound --scope local --src {own} --dport 80"
        ));
        let bound = format!("bound to {own}");
        assert_answer(&own_text, json!("bound"), Some(&bound));
        assert_answer(&any, Value::Null, Some("not bound"));
        Exchange::from(&lab.gateway, own, target).assert_relayed(&agent);
        Exchange::of(&lab.gateway, target).assert_direct(&agent);
        agent.run("rule del bound");
        agent.run("rule add --name port --scope local --sport 1-65535");
        let at_port = SocketAddr::new(own, 49152);
        assert_answer(
            &own_text,
            json!("port"),
            Some(&format!("bound to {at_port}")),
        );
        let any_at_port = SocketAddr::new(family.any(), 5000);
        let said = format!("bound to {any_at_port}");
        assert_answer(&any_at_port.to_string(), json!("port"), Some(&said));
        assert_answer(&any, Value::Null, Some("not bound"));
        Exchange::of(&lab.gateway, target).assert_direct(&agent);
        agent.run("rule del port");
    }
}

/// The port of SSH of this host is taken only by rules that name it by itself, and the answer says so.
#[test]
fn the_port_of_ssh_of_this_host_is_spared() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80 --name web");
    agent.run("rule add --name all --scope inbound --action pass");
    agent.run("rule add --name some --scope inbound --dport 20-30 --action pass");
    for family in FAMILIES {
        let to = |port| {
            let own = SocketAddr::new(family.gateway(), port);
            explained_in(&agent, "inbound", family.client(), own)
        };
        assert_eq!(to(23)["rule"], "all");
        let answer = to(22);
        assert_eq!(answer["rule"], Value::Null, "{answer}");
        for considered in [1, 2] {
            let conditions = answer["rules"][considered]["conditions"]
                .as_array()
                .unwrap();
            let asked = conditions.iter().find(|asked| asked["key"] == "dport");
            let asked = asked.expect("the port is spoken of");
            assert_eq!(asked["met"], false, "{answer}");
            let text = asked["text"].as_str().unwrap();
            assert!(
                text.contains("22") && text.contains("named by itself"),
                "{text}"
            );
        }
    }
    agent.run("rule add --name ssh --scope inbound --dport 22 --action pass");
    for family in FAMILIES {
        let own = SocketAddr::new(family.gateway(), 22);
        assert_eq!(
            explained_in(&agent, "inbound", family.client(), own)["rule"],
            "ssh"
        );
    }
}

/// Rules that hand flows over leave IPv4 link-local destinations alone unless they name them: no later rule gets them.
#[test]
fn link_local_destinations_are_named() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --proto any --dst 128.0.0.0/1 --name wide");
    agent.run("rule add --name later --proto any --action drop");
    agent.run("rule add --name from-here --scope local --dst 169.0.0.0/8");
    let target: SocketAddr = "169.254.169.254:80".parse().unwrap();
    let family = Family::V4;
    let said = |scope: &str| {
        let from = if scope == "local" {
            family.gateway()
        } else {
            family.client()
        };
        explained_in(&agent, scope, from, target)
    };
    for (scope, rule) in [("forward", "wide"), ("local", "from-here")] {
        let answer = said(scope);
        assert_eq!(answer["rule"], Value::Null, "{answer}");
        assert_eq!(answer["action"], "pass");
        let reason = answer["reason"].as_str().unwrap();
        for word in ["169.254.169.254", "link-local", rule] {
            assert!(reason.contains(word), "{reason}");
        }
        let last = answer["rules"].as_array().unwrap().last().unwrap();
        assert_eq!(
            (&last["name"], &last["takes"]),
            (&json!(rule), &json!(false))
        );
    }
    let agrees = |rule: Value| json!({"rule": rule, "agrees": true});
    assert_eq!(said("forward")["kernel"], agrees(Value::Null));
    agent.run("rule add --at 1 --name metadata --proto any --dst 169.254.169.254");
    agent.run("rule add --at 1 --name mine --scope local --dst 169.254.0.0/16");
    let answer = said("forward");
    assert_eq!(answer["rule"], "metadata");
    assert_eq!(answer["kernel"], agrees(json!("metadata")));
    assert_eq!(said("local")["rule"], "mine");
}

/// A rule for a group holds for those below it.
#[test]
fn groups_above_are_asked_about() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0 --dport 80 --name web");
    let slice = ControlGroup::create();
    let group = slice.child("service");
    let outer = slice.path().display();
    agent.run(&format!(
        "rule add --name other --scope local --cgroup {outer}/servi --action pass"
    ));
    agent.run(&format!(
        "rule add --name outer --scope local --cgroup {outer} --action pass"
    ));
    let question = format!(
        "explain --scope local tcp {} {}:80 --json",
        Family::V4.gateway(),
        Family::V4.server()
    );
    let inside = agent.attempt_under(&group.wrapper(), &question);
    inside.assert_done();
    let answer: Value = serde_json::from_str(&inside.stdout).unwrap();
    assert_eq!(answer["rule"], "outer", "{answer}");
    let outside = agent.json(question.trim_end_matches(" --json"));
    assert_eq!(outside["rule"], Value::Null, "{outside}");
}

/// A rule that hands flows over needs somebody who is there: the answer says what becomes of them without, and that is
/// what happens.
#[test]
fn without_an_agent_on_missing_decides() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 81);
    let mut agent = lab.agent("--iface cl0 --proto any --dport 80 --name shut");
    agent.run("rule add --name open --proto any --dport 81 --on-missing pass");
    agent.run("rule add --name mine --scope local --proto any --dport 80");
    agent.run("rule add --name here --scope inbound --proto any --dport 80");
    agent.run("rule add --name closed --dport 82 --action reject");
    let said = |agent: &Agent, lives: bool| {
        for family in FAMILIES {
            let (client, own, server) = (family.client(), family.gateway(), family.server());
            for (scope, from, to, port, action, missing) in [
                ("forward", client, server, 80, "relay", "drop"),
                ("forward", client, server, 81, "relay", "pass"),
                ("local", own, server, 80, "relay", "drop"),
                ("inbound", client, own, 80, "relay", "drop"),
                ("forward", client, server, 82, "reject", "reject"),
                ("forward", client, server, 83, "pass", "pass"),
            ] {
                let answer = explained_in(agent, scope, from, SocketAddr::new(to, port));
                assert_eq!(answer["action"], action, "{answer}");
                let effect = if lives { action } else { missing };
                assert_eq!(answer["effect"], effect, "{answer}");
                let because = answer["because"].as_str();
                assert_eq!(because.is_some(), !lives && action == "relay", "{answer}");
                assert!(because.is_none_or(|because| because.contains("no agent")));
            }
        }
        agent.output(&format!(
            "explain tcp {} {}:80",
            Family::V4.client(),
            Family::V4.server()
        ))
    };
    assert!(!said(&agent, true).contains("now"));
    agent.kill();
    let text = said(&agent, false);
    let last = text.lines().last().unwrap();
    assert!(
        last.starts_with("but now drop: no agent is there"),
        "{text}"
    );
    for family in FAMILIES {
        lab.ask(family.server(), 81).assert_unproxied();
        let shut = SocketAddr::new(family.server(), 80);
        assert!(lab.connect_at_once(shut).is_err());
    }
    agent.run("unload");
}

/// While an agent drains, new flows go their own way, whatever `on_missing` says.
#[test]
fn a_draining_agent_leaves_flows_alone() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let mut agent = lab.agent("--iface cl0 --dport 80 --drain 60");
    let running = lab.connect_at_once((Family::V4.server(), 80).into());
    let running = running.expect("the server answers");
    agent.terminate();
    agent.wait_for_log("to finish");
    for family in FAMILIES {
        let target = SocketAddr::new(family.server(), 80);
        let answer = explained(&agent, family, "tcp", target);
        assert_eq!(
            (&answer["action"], &answer["effect"]),
            (&json!("relay"), &json!("pass"))
        );
        let because = answer["because"].as_str().unwrap();
        assert!(because.contains("leaves them alone"), "{because}");
        lab.ask(family.server(), 80).assert_direct(&agent);
    }
    drop(running);
    assert_eq!(agent.wait().len(), 1);
}

/// A listener that is not there, or not for this family, is said not to be.
#[test]
fn a_redirect_without_a_listener_is_told() {
    let lab = Lab::new();
    let agent = lab.agent("--iface cl0");
    let to = "--action redirect --to 127.0.0.1:4714 --on-missing pass";
    agent.run(&format!("rule add --name away --dport 80 {to}"));
    let effect = |family: Family| {
        let answer = explained(&agent, family, "tcp", (family.server(), 80).into());
        assert_eq!(answer["action"], "redirect", "{answer}");
        (answer["effect"].clone(), answer["because"].clone())
    };
    for family in FAMILIES {
        let (effect, because) = effect(family);
        assert_eq!(effect, "pass");
        assert!(
            because.as_str().unwrap().contains("127.0.0.1:4714"),
            "{because}"
        );
    }
    let address = "127.0.0.1:4714".parse().unwrap();
    let _listener = lab
        .gateway
        .enter(|| listen_prepared(address, |socket| socket.set_ip_transparent_v4(true)));
    wait::until("the listener is found", || {
        (effect(Family::V4).0 == "redirect").then_some(())
    });
    let (effect, because) = effect(Family::V6);
    assert_eq!(effect, "pass");
    assert!(because.as_str().unwrap().contains("IPv6"), "{because}");
}

/// Rules that will be gone are said to, and so are those that should be and are still in force.
#[test]
fn the_end_of_a_rule_is_told() {
    let lab = Lab::new();
    let mut agent = lab.agent("--iface cl0 --pin");
    agent.run("rule add --name long --dport 81 --expires 1h");
    agent.stop();
    agent.run("rule add --name short --dport 80 --expires 100ms");
    let family = Family::V4;
    let question = format!("explain tcp {} {}:80", family.client(), family.server());
    wait::until("the rule has expired", || {
        (agent.json(&question)["rules"][1]["expires_in"] == 0).then_some(())
    });
    let answer = agent.json(&question);
    let left = answer["rules"][0]["expires_in"].as_u64().unwrap();
    assert!((3_000..=3_600).contains(&left), "{answer}");
    // It takes flows as long as nothing deletes it.
    assert_eq!(answer["rule"], "short");
    assert_eq!(answer["kernel"]["rule"], "short");
    let text = agent.output(&question);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains("expires in "), "{text}");
    assert!(
        lines[1].ends_with("expired, and in force until the next change"),
        "{text}"
    );
    agent.run("unload");
}
