//! The tables for people.

use comfy_table::{CellAlignment, Table, presets::NOTHING};

use super::{
    live::Live,
    measured::{Costs, Measured, Packet},
};
use crate::{bench::grouped::grouped, terminal};

/// Most that a new flow may cost with the largest rules, as a ratio to the smallest.
const GOAL_RATIO: f64 = 2.5;

/// Most that a segment of another flow may cost, in nanoseconds.
const GOAL_FOREIGN: f64 = 150.0;

/// Most memory of the kernel for a CIDR, in bytes.
const GOAL_BYTES: f64 = 250.0;

/// Most that a million CIDRs may take from a file to in force, in milliseconds.
const GOAL_LOAD: f64 = 4_000.0;

/// Most that one CIDR more may take, in milliseconds.
const GOAL_ADDITION: f64 = 20.0;

/// Most that a connection may take while a million CIDRs are loaded, in milliseconds.
const GOAL_CONNECTION: f64 = 5.0;

pub(super) fn print(measured: &Measured) {
    let Measured {
        machine,
        costs,
        live,
    } = measured;
    println!("\nLinux {}, {} cores", machine.kernel, machine.cores);
    machine.print_if_busy();
    let program = &costs.program;
    println!(
        "tc program: {} instructions, {} verified; all programs loaded in {:.0} ms",
        grouped(program.instructions),
        grouped(program.verified),
        program.loaded_in
    );
    print_packets(costs);
    print_loads(costs);
    print_forwarding(costs);
    print_live(live);
    print_goals(costs, live);
}

fn print_packets(costs: &Costs) {
    heading(
        "tc program, by size of the rules",
        "ns a packet, IPv4 / IPv6, fastest round; x: to 1 rule with 1 CIDR, the larger of both; CIDRs are half of each \
         family, 1 is one of each",
    );
    let mut names: Vec<&str> = Vec::new();
    for packet in &costs.packets {
        if packet.rules == 0 {
            println!("{}, whatever the rules: {}", packet.name, pair(packet.ns));
        } else if !names.contains(&packet.name.as_str()) {
            names.push(&packet.name);
        }
    }
    for name in names {
        let packets = || {
            costs
                .packets
                .iter()
                .filter(move |packet| packet.name == name)
        };
        let outcome = packets()
            .next()
            .map_or("", |packet| packet.outcome.as_str());
        println!("\n{name} ({outcome})");
        println!("{}", table_of(&packets().collect::<Vec<_>>()));
    }
}

/// A row for each number of CIDRs, columns for each number of rules.
fn table_of(packets: &[&Packet]) -> Table {
    let mut rules: Vec<u32> = packets.iter().map(|packet| packet.rules).collect();
    rules.sort_unstable();
    rules.dedup();
    let mut cidrs: Vec<u32> = packets.iter().map(|packet| packet.cidrs).collect();
    cidrs.dedup();
    let mut header = vec!["CIDRs".to_owned()];
    for rules in &rules {
        let plural = if *rules == 1 { "" } else { "s" };
        header.extend([format!("{} rule{plural}", grouped(*rules)), "x".to_owned()]);
    }
    let rows = cidrs.iter().map(|cidrs| {
        let mut row = vec![grouped(*cidrs)];
        for rules in &rules {
            let of_size = |packet: &&&Packet| (packet.cidrs, packet.rules) == (*cidrs, *rules);
            row.extend(packets.iter().find(of_size).map_or_else(
                || [String::new(), String::new()],
                |packet| [pair(packet.ns), format!("{:.2}", larger(packet.ratio))],
            ));
        }
        row
    });
    table(header, rows)
}

fn print_loads(costs: &Costs) {
    heading(
        "loading",
        "from rules in memory to tables in force, fastest round; bytes are those of the kernel's map",
    );
    let header = [
        "",
        "CIDRs",
        "rules",
        "compiled ms",
        "installed ms",
        "bytes a CIDR",
    ];
    let rows = costs.loads.iter().map(|load| {
        vec![
            load.prefixes.clone(),
            grouped(load.cidrs),
            grouped(load.rules),
            format!("{:.0}", load.compiled_in),
            format!("{:.0}", load.installed_in),
            format!("{:.1}", bytes_each(load.bytes, load.cidrs)),
        ]
    });
    println!("{}", table(header.map(str::to_owned).to_vec(), rows));
}

fn print_forwarding(costs: &Costs) {
    heading(
        "a segment of another flow through a gateway",
        "ns a packet, IPv4 / IPv6, sending, receiving on one veth, routing and sending on another included, one frame \
         again and again; nft drops port 443 to its sets at prerouting, half of the CIDRs in each",
    );
    let header = ["", "fastest round", "more than routing alone, median"];
    let rows = costs
        .forwarding
        .iter()
        .map(|cost| vec![cost.name.clone(), pair(cost.ns), pair(cost.added)]);
    println!("{}", table(header.map(str::to_owned).to_vec(), rows));
}

fn print_live(live: &Live) {
    heading(
        &format!("a set of {} CIDRs of a running agent", grouped(live.cidrs)),
        "whole commands; `set load` replaces the whole set, `set add` adds one CIDR",
    );
    let header = ["ms", "median", "worst"];
    let rows = [("set load", &live.loads), ("set add", &live.additions)];
    let rows = rows.map(|(command, took)| {
        let took = [median(took), worst(took)].map(|took| format!("{took:.1}"));
        [vec![command.to_owned()], took.to_vec()].concat()
    });
    println!(
        "{}",
        table(header.map(str::to_owned).to_vec(), rows.into_iter())
    );
    heading(
        "connections through the agent",
        "from connect(2) to its end, a new one every 5 ms, all on the same CPUs",
    );
    let header = ["µs", "connections", "median", "p99", "p99.9", "worst"];
    let rows = [
        ("at rest", &live.connects_at_rest),
        ("while the set is loaded", &live.connects_while_loading),
    ];
    let rows = rows.map(|(when, connects)| {
        let of = |per_mille| grouped(quantile(connects, per_mille));
        vec![
            when.to_owned(),
            connects.len().to_string(),
            of(500),
            of(990),
            of(999),
            of(1000),
        ]
    });
    println!(
        "{}",
        table(header.map(str::to_owned).to_vec(), rows.into_iter())
    );
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn worst(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

/// Of ascending values, the one that so many of a thousand do not exceed.
fn quantile(values: &[u32], per_mille: usize) -> u32 {
    let place = (values.len() * per_mille).div_ceil(1000).saturating_sub(1);
    values.get(place).copied().unwrap_or(0)
}

fn print_goals(costs: &Costs, live: &Live) {
    heading("goals", "");
    let worst = |names: &str, value: fn(&Packet) -> f64| {
        let packets = costs.packets.iter();
        let named = packets.filter(|packet| packet.name.starts_with(names) && packet.rules > 0);
        named.map(value).fold(0.0, f64::max)
    };
    let bytes = costs
        .loads
        .iter()
        .map(|load| bytes_each(load.bytes, load.cidrs))
        .fold(0.0, f64::max);
    for (what, value, goal, unit) in [
        (
            "a new flow, any rules to the smallest",
            worst("SYN", |packet| larger(packet.ratio)),
            GOAL_RATIO,
            "x",
        ),
        (
            "a segment of another flow, any rules",
            worst("foreign", |packet| larger(packet.ns)),
            GOAL_FOREIGN,
            "ns",
        ),
        (
            "memory of the kernel for a CIDR",
            bytes,
            GOAL_BYTES,
            "bytes",
        ),
        (
            "`set load` of a million CIDRs, worst",
            self::worst(&live.loads),
            GOAL_LOAD,
            "ms",
        ),
        (
            "`set add` of one more, worst",
            self::worst(&live.additions),
            GOAL_ADDITION,
            "ms",
        ),
        (
            "a connection meanwhile, worst",
            f64::from(quantile(&live.connects_while_loading, 1000)) / 1e3,
            GOAL_CONNECTION,
            "ms",
        ),
    ] {
        let said = format!("{what}: {value:.1} {unit} of at most {goal:.1}");
        println!(
            "{}",
            if value > goal {
                terminal::red(&said)
            } else {
                said
            }
        );
    }
}

fn heading(what: &str, how: &str) {
    println!("\n{}", terminal::bold(what));
    if !how.is_empty() {
        println!("{}", terminal::dim(how));
    }
}

fn table(header: Vec<String>, rows: impl Iterator<Item = Vec<String>>) -> Table {
    let columns = header.len();
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header).add_rows(rows);
    for column in 1..columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn pair([v4, v6]: [f64; 2]) -> String {
    format!("{v4:.0} / {v6:.0}")
}

fn larger([one, other]: [f64; 2]) -> f64 {
    one.max(other)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "sizes of maps are far below 2^52"
)]
fn bytes_each(bytes: u64, cidrs: u32) -> f64 {
    bytes as f64 / f64::from(cidrs)
}
