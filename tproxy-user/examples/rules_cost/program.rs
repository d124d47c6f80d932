//! The tc program alone, by the size of the rules and the way that a packet takes.

use std::{fs, net::SocketAddr, time::Instant};

use aya::{TestRun as _, TestRunOptions};
use serde::Serialize;
use tproxy_common::{flow_filter::GRACE, outcome::Outcome};
use tproxy_user::{
    agent::turn,
    kernel::{FlowFilter, Generation, attach_lookup, load},
};

use crate::{
    frame::{ACK, Frame, SYN},
    milliseconds, nanoseconds, progress,
    rule_sets::rule_set,
    sandbox::{Metadata, Sandbox, compiled, connection, make_local, settings},
};

const REPEAT: u32 = 100_000;

const CIDRS: [u32; 4] = [1, 1_000, 100_000, 1_000_000];
const RULES: [u32; 3] = [1, 32, 1_024];

const CLIENT: &str = "10.1.0.2";
const SERVER: &str = "192.0.2.9";
const CLIENT_V6: &str = "2001:db8:1::2";
const SERVER_V6: &str = "2001:db8:9::9";

/// What the verifier has to look at, which decides how long a start takes.
#[derive(Serialize)]
pub(crate) struct Size {
    instructions: u32,
    verified: u32,
    /// All programs, in milliseconds.
    loaded_in: f64,
}

/// One packet with one rule set.
#[derive(Serialize)]
pub(crate) struct Cost {
    name: &'static str,
    outcome: &'static str,
    cidrs: u32,
    rules: u32,
    /// Nanoseconds: IPv4, IPv6.
    ns: [f64; 2],
    /// To one rule and one CIDR, measured in turns with this one.
    ratio: [f64; 2],
}

pub(crate) fn size(sandbox: &Sandbox) -> Size {
    let again = sandbox.directory.join("again");
    fs::create_dir(&again).expect("a directory for pins");
    let began = Instant::now();
    load(settings(), &again).expect("the programs load");
    let took = began.elapsed();
    let program = sandbox.program.info().expect("the program's properties");
    Size {
        instructions: program.size_translated().unwrap_or_default() / 8,
        verified: program.verified_instruction_count().unwrap_or_default(),
        loaded_in: milliseconds(took),
    }
}

pub(crate) fn costs(sandbox: &Sandbox, rounds: usize) -> Vec<Cost> {
    let _listeners = sandbox.start_workers(2);
    attach_lookup(sandbox.directory).expect("the sk_lookup program is attached");
    let _open = [(CLIENT, SERVER), (CLIENT_V6, SERVER_V6)].map(|(client, server)| {
        let end = |address: &str| SocketAddr::new(address.parse().expect("an address"), 5000);
        make_local(end(client).ip());
        make_local(end(server).ip());
        connection(end(client), end(server))
    });
    let mut costs = vec![looked_up(sandbox, rounds)];
    let filter = FlowFilter::open(&sandbox.maps).expect("the filter of flows");
    for _ in 0..=GRACE {
        turn(&filter).expect("the sockets are listed");
    }
    let smallest = compiled(&rule_set(1, 1));
    for cidrs in CIDRS {
        for rules in RULES {
            progress(&format!("packets with {cidrs} CIDRs, {rules} rules"));
            let tables = compiled(&rule_set(rules, cidrs));
            costs.extend(packets().into_iter().map(|packet| {
                let (mut ns, mut with_smallest) = ([f64::MAX; 2], [f64::MAX; 2]);
                for _ in 0..rounds {
                    for (tables, ns) in [(&tables, &mut ns), (&smallest, &mut with_smallest)] {
                        Generation::install(&sandbox.maps, tables).expect("the rules");
                        measure(sandbox, &packet, ns);
                    }
                }
                Generation::install(&sandbox.maps, &tables).expect("the rules");
                Cost {
                    name: packet.name,
                    outcome: outcome_of(sandbox, &packet),
                    cidrs,
                    rules,
                    ns,
                    ratio: [ns[0] / with_smallest[0], ns[1] / with_smallest[1]],
                }
            }));
        }
    }
    costs
}

/// A segment of another flow while the filter is not filled yet: as if there were none.
fn looked_up(sandbox: &Sandbox, rounds: usize) -> Cost {
    let packet = foreign_segment("foreign segment, looked up as before the filter is filled");
    let mut ns = [f64::MAX; 2];
    for _ in 0..rounds {
        measure(sandbox, &packet, &mut ns);
    }
    Cost {
        name: packet.name,
        outcome: outcome_of(sandbox, &packet),
        cidrs: 0,
        rules: 0,
        ns,
        ratio: [1.0; 2],
    }
}

/// Keeps the fastest: what is slower was disturbed.
fn measure(sandbox: &Sandbox, packet: &Packet, ns: &mut [f64; 2]) {
    for (frame, ns) in packet.frames.iter().zip(ns) {
        let bytes = frame.bytes();
        // The first run would pay for cold caches.
        sandbox.run(&bytes, None, Metadata::default());
        let options = TestRunOptions {
            data_in: Some(&bytes),
            repeat: REPEAT,
            ..TestRunOptions::new()
        };
        // The kernel answers with the mean of all repetitions.
        let result = sandbox.program.test_run(options);
        let mean = result.expect("the program runs").duration;
        *ns = ns.min(nanoseconds(mean));
    }
}

fn outcome_of(sandbox: &Sandbox, packet: &Packet) -> &'static str {
    let [v4, v6] = packet.frames.each_ref().map(|frame| sandbox.outcome(frame));
    assert_eq!(v4, v6, "{}", packet.name);
    Outcome::ALL[v4 as usize].1
}

struct Packet {
    name: &'static str,
    frames: [Frame; 2],
}

fn packets() -> [Packet; 5] {
    let syn = packet("not IP", 40_000, 443, SYN);
    let not_ip = Packet {
        frames: syn.frames.map(|frame| Frame {
            ether_type: Some(0x0806),
            ..frame
        }),
        ..syn
    };
    [
        not_ip,
        foreign_segment("foreign segment"),
        packet("segment, a socket has the flow", 5000, 5000, ACK),
        packet("SYN, no rule", 40_000, 22, SYN),
        packet("SYN, last rule", 40_000, 443, SYN),
    ]
}

/// None of the SYNs has its ends.
fn foreign_segment(name: &'static str) -> Packet {
    packet(name, 41_000, 443, ACK)
}

fn packet(name: &'static str, client_port: u16, server_port: u16, flags: u8) -> Packet {
    let frames = [(CLIENT, SERVER), (CLIENT_V6, SERVER_V6)].map(|(client, server)| {
        let end = |address: &str, port| SocketAddr::new(address.parse().expect("an address"), port);
        Frame::tcp_between(end(client, client_port), end(server, server_port), flags)
    });
    Packet { name, frames }
}
