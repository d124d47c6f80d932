//! From rules to tables in force: time, and the memory of the kernel.

use std::{
    fs,
    os::fd::AsRawFd as _,
    path::Path,
    time::{Duration, Instant},
};

use aya::maps::{ArrayOfMaps, Map, MapData};
use ipnet::IpNet;
use serde::Serialize;
use tproxy_user::{kernel::Generation, rule::Rule};

use crate::{
    milliseconds, progress,
    rule_sets::{rule_set, rules_with},
    sandbox::{Sandbox, compiled},
};

const MILLION: u32 = 1_000_000;

/// One rule set.
#[derive(Serialize)]
pub(crate) struct Load {
    prefixes: &'static str,
    cidrs: usize,
    rules: usize,
    /// Milliseconds.
    compiled_in: f64,
    /// Milliseconds, from tables in this process to tables in force.
    installed_in: f64,
    /// What the kernel says that the map of the tables takes (`memlock`).
    bytes: u64,
}

pub(crate) fn loads(sandbox: &Sandbox, real: Option<&Path>, rounds: usize) -> Vec<Load> {
    let mut loads = Vec::new();
    for rules in [1, 1_024] {
        loads.push(load(sandbox, "random", &rule_set(rules, MILLION), rounds));
        if let Some(path) = real {
            let rules = rules_with(rules, read(path).into_iter());
            loads.push(load(sandbox, "real", &rules, rounds));
        }
    }
    loads
}

fn load(sandbox: &Sandbox, prefixes: &'static str, rules: &[Rule], rounds: usize) -> Load {
    let cidrs = rules
        .iter()
        .map(|rule| rule.destination.include.len())
        .sum();
    progress(&format!(
        "loading {cidrs} {prefixes} CIDRs in {} rules",
        rules.len()
    ));
    let mut compiled_in = Duration::MAX;
    let mut installed_in = Duration::MAX;
    for _ in 0..rounds {
        let began = Instant::now();
        let tables = compiled(rules);
        compiled_in = compiled_in.min(began.elapsed());
        let began = Instant::now();
        Generation::install(&sandbox.maps, &tables).expect("the rules are installed");
        installed_in = installed_in.min(began.elapsed());
    }
    Load {
        prefixes,
        cidrs,
        rules: rules.len(),
        compiled_in: milliseconds(compiled_in),
        installed_in: milliseconds(installed_in),
        bytes: bytes_in_force(sandbox),
    }
}

/// `memlock` of the map in force, in bytes (`proc_pid_fdinfo(5)`).
fn bytes_in_force(sandbox: &Sandbox) -> u64 {
    let outer = MapData::from_pin(sandbox.directory.join("GENERATION"));
    let outer: ArrayOfMaps<MapData, MapData> = outer
        .and_then(Map::from_map_data)
        .and_then(TryInto::try_into)
        .expect("the map of generations");
    let arena = outer.get(&0, 0).expect("a generation");
    let descriptor = std::os::fd::AsFd::as_fd(arena.fd()).as_raw_fd();
    let properties =
        fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).expect("its properties");
    let memlock = properties
        .lines()
        .find_map(|line| line.strip_prefix("memlock:"));
    memlock.expect("a size").trim().parse().expect("a number")
}

fn read(path: &Path) -> Vec<IpNet> {
    let text = fs::read_to_string(path).expect("the file of prefixes");
    text.lines()
        .map(|line| line.parse().expect("a CIDR a line"))
        .collect()
}
