//! What sets cost at a million CIDRs: to read a list, to compile it, to add one more, and the memory
//! of the tables. Needs neither root nor the kernel: `cargo run --release -p tproxy-user --example
//! set_cost`.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use ipnet::IpNet;
use tproxy_common::limits::{CIDRS, RULES};
use tproxy_user::{
    compiler::{SetEdit, Source, compile, edit},
    rule::{Rule, RuleSpec},
    set::{CidrList, Set, SetName, Sets, read},
};

fn main() {
    let text = random_list(CIDRS);
    let (reading, seconds) = timed(|| read("list", text.as_bytes()).expect("a list"));
    println!(
        "read: {CIDRS} lines, {} bytes, in {:.0} ms: {:.1} million lines a second",
        text.len(),
        seconds * 1e3,
        number(CIDRS) / seconds / 1e6
    );
    let nets: Vec<IpNet> = reading.list.iter().collect();
    println!(
        "\nrules  sets  wants each   compiled  classes    blocks  bytes a CIDR   one more  blocks"
    );
    for (rules, sets, wants) in [
        (1, 1, 1),
        (RULES, 1, 1),
        (32, 32, 1),
        (RULES, RULES, 1),
        (RULES, RULES, 16),
    ] {
        measure(rules, sets, wants, &nets);
    }
}

/// Rules that each want some of the sets, among which the CIDRs are dealt out.
fn measure(rules: usize, sets: usize, wants: usize, nets: &[IpNet]) {
    let name = |set: usize| SetName::new(&format!("set-{set}")).expect("a name");
    let rules: Vec<Rule> = (0..rules)
        .map(|rule| {
            let named = (0..wants).map(|more| name((rule + more) % sets));
            let words: BTreeSet<String> = named.map(|name| name.to_word()).collect();
            let spec = RuleSpec {
                name: Some(format!("rule-{rule}")),
                dst: words.into_iter().collect(),
                ..RuleSpec::default()
            };
            spec.validate().expect("a rule")
        })
        .collect();
    let sources: Vec<Source<'_>> = rules
        .iter()
        .zip(0..)
        .map(|(rule, slot)| Source {
            rule,
            slot,
            interfaces: Vec::new(),
            cgroups: Vec::new(),
        })
        .collect();
    let mut contents: Sets = (0..sets)
        .map(|set| {
            let dealt = nets.iter().skip(set).step_by(sets).copied();
            (name(set), Set::new(CidrList::new(dealt)))
        })
        .collect();
    let (compiled, seconds) = timed(|| compile(&sources, &contents, 1).expect("the rules fit"));
    let one_more: IpNet = "192.0.2.77/32".parse().expect("a CIDR");
    let set = contents.get_mut(&name(0)).expect("a set");
    set.remove(&nets[0]);
    set.insert(&one_more);
    let edits = [SetEdit {
        set: name(0),
        net: one_more,
    }];
    let tables = compiled.blocks.as_slice();
    let (edited, edit_seconds) = timed(|| edit(tables, &sources, &contents, &edits, 2, 1 << 20));
    println!(
        "{:>5} {sets:>5} {wants:>11} {:>7.0} ms {:>8} {:>9} {:>13.1} {:>7.0} us {:>7}",
        rules.len(),
        seconds * 1e3,
        compiled.classes,
        tables.len(),
        number(size_of_val(tables)) / number(nets.len()),
        edit_seconds * 1e6,
        edited.map_or(0, |edited| edited.blocks.len()),
    );
}

/// Seven lines of ten are IPv4; lengths are those of routing tables and of lists of hosts.
fn random_list(lines: usize) -> String {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = move || {
        // xorshift64 (G. Marsaglia, 2003): the same list in each run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut nets = BTreeSet::new();
    while nets.len() < lines {
        let (high, low, choice) = (draw(), draw(), draw());
        let net = if choice % 10 < 7 {
            let length = [16, 20, 22, 24, 24, 24, 28, 32][(choice >> 8) as usize % 8];
            IpNet::new(Ipv4Addr::from((high >> 32) as u32).into(), length)
        } else {
            let length = [32, 40, 48, 48, 56, 64, 64, 128][(choice >> 8) as usize % 8];
            let address = (u128::from(high) << 64 | u128::from(low)) >> 3 | 1 << 125;
            IpNet::new(Ipv6Addr::from(address).into(), length)
        };
        nets.insert(net.expect("a length of its family").trunc());
    }
    let mut lines: Vec<String> = nets.iter().map(ToString::to_string).collect();
    // Lists are seldom sorted.
    for place in (1..lines.len()).rev() {
        let other = usize::try_from(draw()).expect("64 bits") % (place + 1);
        lines.swap(place, other);
    }
    lines.join("\n")
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).expect("a count of this example"))
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let begun = Instant::now();
    let result = work();
    (result, begun.elapsed().as_secs_f64())
}
