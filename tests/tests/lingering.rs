//! What the gateway's sockets leave when they close first, TIME_WAIT, is not in the way of flows that nobody takes any
//! more: clients use their ports again.

use std::net::{IpAddr, SocketAddr};

use tproxy_tests::{
    Agent, Exchange, Family, Lab,
    address::FAMILIES,
    agent::ATTACH_MODES as MODES,
    peer::{Witness, listen_prepared},
    wait,
};

/// The ports that the client uses of each family, again and again.
const PORTS: std::ops::Range<u16> = 20_000..20_005;

/// Where a service of the gateway itself is.
const SERVICE: u16 = 82;

/// After a normal stop.
#[test]
fn ports_can_be_used_again_after_a_stop() {
    for mode in MODES {
        ports_can_be_used_again(&format!("--iface cl0 --dport 80 {mode}"), |agent| {
            agent.stop();
        });
    }
}

/// After a stop that leaves programs and rules, and `unload`.
#[test]
fn ports_can_be_used_again_after_unload() {
    ports_can_be_used_again("--iface cl0,sv0 --dport 80 --pin", |agent| {
        agent.stop();
        agent.run("unload");
    });
}

/// After `kill -9` and `unload`.
#[test]
fn ports_can_be_used_again_after_unload_of_what_was_killed() {
    for mode in MODES {
        ports_can_be_used_again(&format!("--iface cl0 --dport 80 --pin {mode}"), |agent| {
            agent.kill();
            agent.run("unload");
        });
    }
}

/// After `unload` of an agent that runs.
#[test]
fn ports_can_be_used_again_after_unload_of_what_runs() {
    ports_can_be_used_again("--iface cl0 --dport 80", |agent| {
        agent.run("unload");
        agent.wait_for_end();
    });
}

/// After `detach`, whether another interface stays or none.
#[test]
fn ports_can_be_used_again_after_detach() {
    for interfaces in ["cl0", "cl0,sv0"] {
        for mode in MODES {
            let arguments = format!("--iface {interfaces} --dport 80 {mode}");
            ports_can_be_used_again(&arguments, |agent| agent.run("detach cl0"));
        }
    }
}

/// What another program accepted that flows were redirected to is not in the way either.
#[test]
fn ports_of_redirected_flows_can_be_used_again() {
    const PORT: u16 = 3129;
    let arguments = format!("--iface cl0 --dport 80 --action redirect --to [::]:{PORT}");
    let ends: [fn(&mut Agent); 2] = [|agent| drop(agent.stop()), |agent| agent.run("detach cl0")];
    for end in ends {
        let lab = Lab::new();
        let server = Witness::start(&lab.server, 80);
        let address = SocketAddr::new(Family::V6.any(), PORT);
        let listener = lab
            .gateway
            .enter(|| listen_prepared(address, |socket| socket.set_ip_transparent_v4(true)));
        let listener = Witness::over(listener.unwrap());
        let mut agent = lab.agent(&arguments);
        let flows = ask_from_each_port(&lab).len();
        assert_eq!(listener.clients().len(), flows);
        assert_eq!(server.clients(), []);
        wait_for_time_wait_of_others(&lab, flows);
        end(&mut agent);
        assert_eq!(time_wait_of_others(&lab), 0);
        ask_from_each_port(&lab);
        assert_eq!(listener.clients(), []);
        assert_eq!(server.clients().len(), flows);
    }
}

fn ports_can_be_used_again(arguments: &str, end: impl FnOnce(&mut Agent)) {
    let lab = Lab::new();
    let _server = Witness::start(&lab.server, 80);
    let _service = Witness::start(&lab.gateway, SERVICE);
    let mut agent = lab.agent(arguments);
    let relayed = ask_from_each_port(&lab);
    for exchange in &relayed {
        exchange.assert_relayed(&agent);
    }
    wait_for_time_wait_of_others(&lab, relayed.len());
    let own = FAMILIES.map(|family| {
        lab.ask(family.gateway(), SERVICE).assert_unproxied();
        family.gateway()
    });
    wait::until("the service's sockets are in TIME_WAIT", || {
        own.iter()
            .all(|own| time_wait(&lab).contains(own))
            .then_some(())
    });
    end(&mut agent);
    assert_eq!(time_wait_of_others(&lab), 0, "{arguments}");
    for own in own {
        assert!(time_wait(&lab).contains(&own), "{own} is the gateway's");
    }
    for exchange in ask_from_each_port(&lab) {
        exchange.assert_unproxied();
    }
}

/// Lets the client ask from each of its ports in both families, each of which has to be answered at once: with no SYN
/// sent again.
#[track_caller]
fn ask_from_each_port(lab: &Lab) -> Vec<Exchange> {
    let sent_again = || lab.client.counter("TcpExt", "TCPSynRetrans");
    let before = sent_again();
    let mut exchanges = Vec::new();
    for family in FAMILIES {
        for port in PORTS {
            let source = SocketAddr::new(family.client(), port);
            let target = SocketAddr::new(family.near(), 80);
            exchanges.push(Exchange::from_port(&lab.client, source, target));
        }
    }
    assert_eq!(sent_again(), before, "SYNs that were sent again");
    exchanges
}

/// A server closes first here, and so does the gateway towards the client.
#[track_caller]
fn wait_for_time_wait_of_others(lab: &Lab, count: usize) {
    wait::until("the gateway's sockets are in TIME_WAIT", || {
        (time_wait_of_others(lab) == count).then_some(())
    });
}

/// How many sockets in TIME_WAIT the gateway has that have the server's address as their own.
fn time_wait_of_others(lab: &Lab) -> usize {
    let addresses = time_wait(lab).into_iter();
    let others = FAMILIES.map(Family::near);
    addresses.filter(|address| others.contains(address)).count()
}

/// The own addresses of the gateway's sockets in TIME_WAIT.
fn time_wait(lab: &Lab) -> Vec<IpAddr> {
    let listed = lab.gateway.output("ss -Htn state time-wait");
    let own = listed.lines().map(|line| {
        let end = line.split_whitespace().nth(2);
        let (address, _) = end.and_then(|end| end.rsplit_once(':')).expect("an end");
        let address = address.trim_matches(['[', ']']);
        let address: IpAddr = address.parse().expect("an address");
        address.to_canonical()
    });
    own.collect()
}
