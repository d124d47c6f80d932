//! The fixtures themselves, without the program: the ways through the lab are what other tests take them for.

use tproxy_tests::{
    Exchange, Lab, Snapshot,
    address::FAMILIES,
    agent::unique_instance,
    bpf::{self, CountingProgram, Hook, Place},
    lab::one_armed_server,
    peer::{Nginx, Witness},
    tun::Tunnel,
    wait,
    wire::{Direction, Wire},
};

/// Without an agent the server sees the client, at each of its addresses and in both families.
#[test]
fn the_lab_routes_between_client_and_server() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    for family in FAMILIES {
        for address in [family.server(), family.near(), family.far()] {
            lab.ask(address, 80).assert_unproxied();
        }
    }
}

#[test]
fn the_one_armed_lab_routes_through_the_gateway() {
    let lab = Lab::one_armed();
    let _witness = Witness::start(&lab.server, 80);
    let wire = Wire::open(&lab.gateway, "cl0");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_unproxied();
        let forwarded = wire.frames().into_iter().any(|frame| {
            frame.direction == Direction::Out
                && frame
                    .routed_packet(family.client(), family.near())
                    .is_some()
        });
        assert!(forwarded, "{family:?} passes the gateway");
        lab.ask(one_armed_server(family), 80).assert_unproxied();
    }
}

#[test]
fn programs_run_inside_a_namespace() {
    let lab = Lab::new();
    let _nginx = Nginx::start(&lab.server, 8080);
    assert_eq!(
        lab.client.output("curl -sS http://192.0.2.9:8080/who"),
        "10.77.1.2 192.0.2.9"
    );
    assert_eq!(
        lab.client
            .output("curl -sS http://[2001:db8:1::9]:8080/who"),
        "fd77:1::2 2001:db8:1::9"
    );
}

#[test]
fn captures_hold_both_directions() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let wire = Wire::open(&lab.client, "eth0");
    for family in FAMILIES {
        lab.ask(family.near(), 80).assert_unproxied();
        let frames = wire.frames();
        for direction in [Direction::In, Direction::Out] {
            let packets = frames.iter().filter(|frame| frame.direction == direction);
            let packets =
                packets.filter_map(|frame| frame.routed_packet(family.client(), family.near()));
            assert!(packets.count() >= 3, "{family:?} {direction:?}");
        }
    }
}

#[test]
fn counting_programs_count_and_pass_on() {
    let lab = Lab::new();
    let _witness = Witness::start(&lab.server, 80);
    let (first, last) = (CountingProgram::load(), CountingProgram::load());
    let _last = last.attach_tcx(&lab.gateway, "cl0", Place::Last);
    let _first = first.attach_tcx(&lab.gateway, "cl0", Place::First);
    assert_eq!(
        bpf::attached(&lab.gateway, Hook::TcxIngress("cl0"))
            .unwrap()
            .len(),
        2
    );
    lab.ask(FAMILIES[0].server(), 80).assert_unproxied();
    assert!(first.count() > 3);
    wait::until("both programs have seen the same", || {
        (first.count() == last.count()).then_some(())
    });
}

#[test]
fn a_tunnel_carries_packets_without_ethernet_header() {
    let lab = Lab::new();
    let _tunnel = Tunnel::between(&lab.client, &lab.gateway, "tun0");
    lab.client.ip("addr add 10.77.3.2/24 dev tun0\nlink set tun0 up\nroute replace 192.0.2.0/24 via 10.77.3.1");
    lab.gateway
        .ip("addr add 10.77.3.1/24 dev tun0\nlink set tun0 up");
    let _witness = Witness::start(&lab.server, 80);
    wait::until("the tunnel is up", || {
        let exchange = Exchange::attempt(&lab.client, "192.0.2.9:80".parse().unwrap()).ok()?;
        (exchange.seen_client.ip().to_string() == "10.77.3.2").then_some(())
    });
}

#[test]
fn snapshots_see_what_changes() {
    let lab = Lab::new();
    let instance = unique_instance();
    let before = Snapshot::of(&lab.gateway, &instance);
    Snapshot::of(&lab.gateway, &instance).assert_same_as(&before);
    let link = CountingProgram::load().attach_tcx(&lab.gateway, "sv0", Place::First);
    assert_ne!(
        Snapshot::of(&lab.gateway, &instance),
        before,
        "an attached program shows"
    );
    drop(link);
    wait::until("the program is gone", || {
        (Snapshot::of(&lab.gateway, &instance) == before).then_some(())
    });
    lab.gateway.run("ip -6 rule add fwmark 0x1 lookup 77");
    assert_ne!(
        Snapshot::of(&lab.gateway, &instance),
        before,
        "a policy rule shows"
    );
}
