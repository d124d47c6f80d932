//! How many TCP flows one client may have at once.

use std::{
    io::{self, Read},
    net::{IpAddr, SocketAddr, TcpStream},
};

use tproxy_tests::{
    Exchange, Family, Lab,
    address::FAMILIES,
    exchange::assert_goes_on,
    peer::{Server, Witness},
    wait::{self, uninterrupted},
};

const LIMIT: usize = 20;
const WORKERS: usize = 2;

/// A second address of the client.
fn other_client(family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 77, 1, 3].into(),
        Family::V6 => [0xfd77, 1, 0, 0, 0, 0, 0, 3].into(),
    }
}

/// What a client opens beyond its limit, at whichever worker, is reset. Other clients, its other flows and what no rule
/// takes go on, and it may open more when some of its flows are over.
#[test]
fn a_client_has_so_many_flows_and_harms_no_other() {
    const TOO_MANY: usize = 6;
    let lab = Lab::new();
    let _echo = Server::start(&lab.server, 80, |mut stream: TcpStream| {
        stream.set_read_timeout(None)?;
        let mut sink = stream.try_clone()?;
        io::copy(&mut stream, &mut sink)
    });
    let _witnesses = [81, 82].map(|port| Witness::start(&lab.server, port));
    lab.client
        .ip("addr add 10.77.1.3/24 dev eth0\naddr add fd77:1::3/64 dev eth0 nodad preferred_lft 0");
    let mut agent = lab.agent(&format!(
        "--iface cl0 --dport 80,81 --flows-per-source {LIMIT} --workers {WORKERS}"
    ));
    for (round, family) in (1..).zip(FAMILIES) {
        let mut held: Vec<_> = (0..LIMIT)
            .map(|_| lab.client.connect((family.near(), 80).into()).unwrap())
            .collect();
        held.iter_mut().for_each(assert_goes_on);
        for _ in 0..TOO_MANY {
            assert_reset(&lab, (family.near(), 81).into());
        }
        assert_eq!(agent.status()["over_limit"], round * TOO_MANY);
        let target = SocketAddr::new(family.near(), 81);
        Exchange::from(&lab.client, other_client(family), target).assert_relayed(&agent);
        lab.ask(family.near(), 82).assert_direct(&agent);
        held.iter_mut().for_each(assert_goes_on);

        drop(held.pop());
        wait::until("a flow less", || {
            (agent.status()["flows"] == LIMIT - 1).then_some(())
        });
        lab.ask(family.near(), 81).assert_relayed(&agent);
    }
    wait::until("no live flow", || {
        (agent.status()["flows"] == 0).then_some(())
    });
    let status = agent.status();
    assert_eq!((&status["shed"], &status["pauses"]), (&0.into(), &0.into()));
    let shown = agent.output("status");
    let counted = format!("{} over their client's limit", 2 * TOO_MANY);
    assert!(shown.contains(&counted), "{shown}");
    let flows = agent.stop();
    assert_eq!(flows.len(), FAMILIES.len() * (LIMIT + 2));
    let log = agent.log();
    let warnings: Vec<_> = log
        .lines()
        .filter(|line| line.contains("--flows-per-source"))
        .collect();
    let named = format!("{} has {LIMIT} flows", Family::V4.client());
    assert!(warnings.iter().any(|line| line.contains(&named)), "{log}");
    assert!(warnings.len() <= WORKERS, "{log}");
}

/// A client that is refused, if it tries again and again, too, costs its server nothing.
#[test]
fn the_server_hears_nothing_of_what_is_reset() {
    const TRIES: usize = 500;
    let lab = Lab::new();
    let _holder = Server::start(&lab.server, 80, |mut stream: TcpStream| {
        io::copy(&mut stream, &mut io::sink())
    });
    let witness = Witness::start(&lab.server, 81);
    let mut agent = lab.agent("--iface cl0 --dport 80,81 --flows-per-source 1");
    let target = SocketAddr::new(Family::V4.near(), 80);
    let held = lab.client.connect(target).unwrap();
    wait::until("a live flow", || {
        (agent.status()["flows"] == 1).then_some(())
    });
    let descriptors = agent.open_descriptors();
    for _ in 0..TRIES {
        assert_reset(&lab, (Family::V4.near(), 81).into());
    }
    assert_eq!(witness.clients(), []);
    assert_eq!(agent.status()["over_limit"], TRIES);
    assert_eq!(agent.status()["flows"], 1);
    agent.wait_for_descriptors(descriptors);
    drop(held);
    wait::until("no live flow", || {
        (agent.status()["flows"] == 0).then_some(())
    });
    lab.ask(Family::V4.near(), 81).assert_relayed(&agent);
    agent.stop();
}

#[track_caller]
fn assert_reset(lab: &Lab, target: SocketAddr) {
    let error = lab
        .client
        .connect(target)
        .and_then(|mut stream| uninterrupted(|| stream.read(&mut [0; 16])))
        .expect_err("the connection is reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}
