//! What the tc program costs a packet, by the way that the packet takes: `BPF_PROG_TEST_RUN` repeats
//! one frame within the kernel. Needs root, and a machine at rest; the profile does not matter, because
//! the kernel programs are always optimized:
//!
//! ```text
//! cargo run -p tproxy-user --example classifier_cost
//! ```

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use aya::{TestRun as _, TestRunOptions};
use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use ipnet::IpNet;
use tproxy_common::{flow_filter::GRACE, outcome::Outcome};
use tproxy_user::{
    agent::turn,
    kernel::{FlowFilter, attach_lookup, load},
    rule::Rule,
};

#[path = "../tests/kernel_programs/answer.rs"]
mod answer;
#[path = "../tests/kernel_programs/frame.rs"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod frame;
#[path = "../tests/kernel_programs/sandbox.rs"]
mod sandbox;

use frame::{ACK, Frame, SYN};
use sandbox::{Metadata, SETTINGS, Sandbox, connection, in_sandbox, make_local, rule, words};

/// Rounds of all rows, of which the fastest counts: the others were disturbed.
const ROUNDS: usize = 9;
const REPEAT: u32 = 100_000;

const CLIENT: &str = "10.1.0.2:40000";
const SERVER: &str = "192.0.2.9:443";
const CLIENT_V6: &str = "[2001:db8:1::2]:40000";
const SERVER_V6: &str = "[2001:db8:9::9]:443";

fn main() {
    in_sandbox(|sandbox| {
        print_program(sandbox);
        let _listeners = sandbox.start_workers(2);
        attach_lookup(sandbox.directory).expect("the sk_lookup program is attached");
        let _open = [(CLIENT, SERVER), (CLIENT_V6, SERVER_V6)].map(|(client, server)| {
            let (client, server) = (client.parse().unwrap(), server.parse().unwrap());
            let beside = |end: std::net::SocketAddr| std::net::SocketAddr::new(end.ip(), 5000);
            make_local(beside(client).ip());
            make_local(beside(server).ip());
            connection(beside(client), beside(server))
        });

        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        table.set_header(["rules", "packet", "outcome", "ns IPv4", "ns IPv6"]);
        for column in [3, 4] {
            let column = table.column_mut(column).expect("a column");
            column.set_cell_alignment(CellAlignment::Right);
        }
        let filter = FlowFilter::open(&sandbox.maps).expect("the filter of flows");
        let [_, unknown, ..] = packets();
        let looked_up = [&unknown.1, &unknown.2].map(|frame| cost(sandbox, frame).as_nanos());
        println!("segment, no socket, looked up: {looked_up:?} ns");
        for _ in 0..=GRACE {
            turn(&filter).expect("the sockets are listed");
        }
        for (name, rules) in rule_sets() {
            let began = Instant::now();
            sandbox.install(&rules);
            let took = began.elapsed();
            for (packet, v4, v6) in packets() {
                let outcome = sandbox.outcome(&v4);
                assert_eq!(outcome, sandbox.outcome(&v6), "{packet}");
                let outcome_name = Outcome::ALL[outcome as usize].1;
                let cost = |frame: &Frame| format!("{}", cost(sandbox, frame).as_nanos());
                table.add_row([name, packet, outcome_name, &cost(&v4), &cost(&v6)]);
            }
            println!("{name}: compiled and installed in {} ms", took.as_millis());
        }
        println!("{table}");
    });
}

/// How long loading takes is decided by what the verifier has to look at.
fn print_program(sandbox: &Sandbox) {
    let again = sandbox.directory.join("again");
    std::fs::create_dir(&again).expect("a directory for pins");
    let began = Instant::now();
    load(SETTINGS, &again).expect("the programs load");
    let took = began.elapsed();
    let program = sandbox.program.info().expect("the program's properties");
    println!(
        "{} instructions, {} verified; all programs loaded in {} ms",
        program.size_translated().unwrap_or_default() / 8,
        program.verified_instruction_count().unwrap_or_default(),
        took.as_millis(),
    );
}

fn cost(sandbox: &Sandbox, frame: &Frame) -> Duration {
    let bytes = frame.bytes();
    // The context decides nothing here, but the first run would pay for cold caches.
    sandbox.run(&bytes, None, Metadata::default());
    let rounds = (0..ROUNDS).map(|_| {
        let options = TestRunOptions {
            data_in: Some(&bytes),
            repeat: REPEAT,
            ..TestRunOptions::new()
        };
        // The kernel answers with the mean of all repetitions.
        let result = sandbox.program.test_run(options);
        result.expect("the program runs").duration
    });
    rounds.min().expect("a round")
}

type Packets = [(&'static str, Frame, Frame); 6];

fn packets() -> Packets {
    let not_ip = |frame: Frame| Frame {
        ether_type: Some(0x0806),
        ..frame
    };
    let both = |name, v4: (&str, &str), v6: (&str, &str), flags| {
        (
            name,
            Frame::tcp(v4.0, v4.1, flags),
            Frame::tcp(v6.0, v6.1, flags),
        )
    };
    let (_, v4, v6) = both("", (CLIENT, SERVER), (CLIENT_V6, SERVER_V6), SYN);
    [
        ("not IP", not_ip(v4), not_ip(v6)),
        both(
            "segment, no socket",
            ("10.1.0.2:41000", SERVER),
            ("[2001:db8:1::2]:41000", SERVER_V6),
            ACK,
        ),
        both(
            "segment, a socket",
            ("10.1.0.2:5000", "192.0.2.9:5000"),
            ("[2001:db8:1::2]:5000", "[2001:db8:9::9]:5000"),
            ACK,
        ),
        both(
            "SYN, no rule",
            (CLIENT, "192.0.2.9:22"),
            (CLIENT_V6, "[2001:db8:9::9]:22"),
            SYN,
        ),
        both(
            "SYN, last rule",
            (CLIENT, SERVER),
            (CLIENT_V6, SERVER_V6),
            SYN,
        ),
        both(
            "SYN, last rule by CIDR",
            (CLIENT, "203.0.113.9:443"),
            (CLIENT_V6, "[2001:db8:ffff::9]:443"),
            SYN,
        ),
    ]
}

/// In each of them the last rule relays port 443 to a few networks.
fn rule_sets() -> [(&'static str, Vec<Rule>); 3] {
    let last = rule(|spec| {
        spec.dport = words(&["443"]);
        spec.dst = words(&["192.0.2.0/24", "203.0.113.0/24", "2001:db8::/32"]);
    });
    let with = |mut rules: Vec<Rule>| {
        rules.push(last.clone());
        rules
    };
    [
        ("1", with(Vec::new())),
        ("1,000, no CIDRs", with(port_rules(999))),
        ("1,000, 100,000 CIDRs", with(cidr_rules(999, 100_000))),
    ]
}

/// Rules of which each has a port of its own, none of them 22 or 443.
fn port_rules(rules: u16) -> Vec<Rule> {
    (0..rules)
        .map(|number| {
            rule(|spec| {
                spec.action = Some("pass".into());
                spec.dport = vec![(10_000 + number).to_string()];
            })
        })
        .collect()
}

/// Rules of which each has its share of distinct networks, of both families in turn.
fn cidr_rules(rules: u32, cidrs: u32) -> Vec<Rule> {
    let mut made = port_rules(u16::try_from(rules).expect("rules fit"));
    for number in 0..cidrs {
        let address: IpAddr = if number % 2 == 0 {
            Ipv4Addr::from(0x1400_0000 + number * 1024).into()
        } else {
            let bits = (0x2400_u128 << 112) | u128::from(number) << 80;
            std::net::Ipv6Addr::from(bits).into()
        };
        let length = if number % 2 == 0 { 24 } else { 48 };
        let prefix = IpNet::new(address, length).expect("a length that is possible");
        made[(number % rules) as usize]
            .destination
            .include
            .push(prefix);
    }
    made
}
