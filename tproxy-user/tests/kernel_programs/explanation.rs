//! The program that explains: it says what the attached ones would do, and leaves no trace.

use std::net::SocketAddr;

use tproxy_common::{
    counters::RuleCounter, explanation::Explanation, flow::Protocol, outcome::Outcome,
};
use tproxy_user::kernel::{Counters, ask};

use crate::{
    frame::{Frame, SYN},
    sandbox::{FIRST_SLOT, Metadata, Sandbox, in_sandbox, index_of, ip, rule, words},
};

fn asked(
    sandbox: &Sandbox,
    protocol: Protocol,
    (source, destination): (&str, &str),
    interface: u32,
) -> Explanation {
    let end = |text: &str| -> SocketAddr { text.parse().expect("an address") };
    let (source, destination) = (end(source), end(destination));
    ask(sandbox.directory, protocol, source, destination, interface).expect("an answer")
}

#[test]
fn the_kernel_is_asked_over_the_maps_in_force() {
    in_sandbox(|sandbox| {
        ip("link add d0 type veth peer name d1");
        let index = |name| index_of(name).expect("the interface");
        let (d0, d1) = (index("d0"), index("d1"));
        sandbox.install(&[
            rule(|spec| {
                spec.dport = words(&["443"]);
                spec.dst = words(&["192.0.2.0/24", "2001:db8:9::/48"]);
                spec.action = Some("drop".into());
            }),
            {
                let mut rule = rule(|spec| {
                    spec.proto = Some("udp".into());
                    spec.action = Some("reject".into());
                });
                rule.interfaces = words(&["d1"]);
                rule
            },
        ]);
        let prefixes = ["192.0.2.200/32", "2001:db8:9::c8/128"];
        let prefixes: Vec<_> = prefixes.iter().map(|text| text.parse().unwrap()).collect();
        let set = sandbox.maps.set_local_prefixes(&prefixes);
        set.expect("local prefixes");
        let before = sandbox.outcomes();
        for (client, server, other, own) in [
            (
                "10.1.0.2:0",
                "192.0.2.9:443",
                "192.0.3.9:443",
                "192.0.2.200:443",
            ),
            (
                "[2001:db8:1::2]:0",
                "[2001:db8:9::9]:443",
                "[2001:db8:a::9]:443",
                "[2001:db8:9::c8]:443",
            ),
        ] {
            let tcp = |ends, interface| asked(sandbox, Protocol::Tcp, ends, interface);
            let udp = |ends, interface| asked(sandbox, Protocol::Udp, ends, interface);
            assert_eq!(tcp((client, server), d0), Explanation::Rule(0));
            assert_eq!(tcp((client, other), d0), Explanation::NoRule);
            assert_eq!(tcp((client, own), d0), Explanation::NotForwarded);
            assert_eq!(tcp((own, server), d0), Explanation::NotForwarded);
            assert_eq!(udp((client, server), d0), Explanation::NoRule);
            assert_eq!(udp((client, server), d1), Explanation::Rule(1));
        }
        assert_eq!(sandbox.moved_since(&before), []);
        let slots = [FIRST_SLOT, FIRST_SLOT + 1];
        let totals = Counters::new(&sandbox.maps).rules(slots.into_iter());
        for rule in totals.expect("the counters") {
            assert_eq!(rule.kernel, RuleCounter::default());
        }

        // What is attached decides alike, and counts.
        let metadata = Metadata {
            interface: d0,
            ..Metadata::default()
        };
        let frame = Frame {
            link: hardware_address("d0"),
            ..Frame::tcp("10.1.0.2:40000", "192.0.2.9:443", SYN)
        };
        let outcome = sandbox.outcome_with(&frame.bytes(), metadata);
        assert_eq!(outcome, Outcome::Dropped);
    });
}

#[test]
fn an_interface_that_is_not_there_is_an_error() {
    in_sandbox(|sandbox| {
        let end = |text: &str| -> SocketAddr { text.parse().expect("an address") };
        let (client, server) = (end("10.1.0.2:0"), end("192.0.2.9:443"));
        let refused = ask(sandbox.directory, Protocol::Tcp, client, server, 4_000_000);
        let error = refused.expect_err("no such interface").to_string();
        assert!(error.contains("tproxy_explain"), "{error}");
    });
}

fn hardware_address(interface: &str) -> [u8; 6] {
    let interfaces = nix::ifaddrs::getifaddrs().expect("a list of interfaces");
    let of_interface = interfaces
        .filter(|found| found.interface_name == interface)
        .find_map(|found| found.address?.as_link_addr()?.addr());
    of_interface.expect("its address")
}
