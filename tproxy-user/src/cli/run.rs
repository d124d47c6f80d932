//! `tproxy run`.

use std::{collections::HashSet, time::Duration};

use clap::Args;

use super::{Usage, accept, interface_name};
use crate::{
    agent::{self, Options},
    instance::Instance,
    rule::RuleSpec,
};

#[derive(Args)]
#[command(after_help = "Examples:
  tproxy run --iface eth1 --dport 80,443
  tproxy run --iface eth1,wg0 --dst '0.0.0.0/0,!10.0.0.0/8' --dport 443
  tproxy --instance lab run --iface veth0    # no rules yet: add them with `tproxy rule add`")]
pub(super) struct Arguments {
    /// Interfaces to attach to
    #[arg(long, value_name = "IF,...", value_delimiter = ',', value_parser = interface_name)]
    iface: Vec<String>,
    #[command(flatten)]
    rule: RuleSpec,
    /// Mark of packets that are delivered to the agent [default: one that is free]
    #[arg(long, value_name = "N", value_parser = number)]
    mark: Option<u32>,
    /// Routing table for the local routes [default: one that is free]
    #[arg(long, value_name = "N", value_parser = number)]
    table: Option<u32>,
    /// Port that the agent listens on [default: one that is free]
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 0,
        hide_default_value = true
    )]
    port: u16,
    /// Attach in a clsact qdisc, although the kernel has tcx
    #[arg(long)]
    clsact: bool,
    /// Worker threads [default: one for each CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: Option<u32>,
    /// How long an upstream connection may take
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    connect_timeout: Duration,
    /// How long running flows may take to finish at the end
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    drain: Duration,
    /// Leave programs, maps and rules in the kernel at the end
    #[arg(long)]
    pin: bool,
}

pub(super) fn execute(instance: &Instance, mut arguments: Arguments) -> anyhow::Result<()> {
    if let Some(name) = first_repeated(&arguments.iface) {
        return Err(Usage(format!("--iface: {name} is named twice")).into());
    }
    let rules = if arguments.rule.is_empty() {
        Vec::new()
    } else {
        accept(&mut arguments.rule)?;
        vec![arguments.rule]
    };
    let options = Options {
        interfaces: arguments.iface,
        rules,
        mark: arguments.mark,
        table: arguments.table,
        clsact: arguments.clsact,
        port: arguments.port,
        workers: arguments.workers,
        connect_timeout: arguments.connect_timeout,
        drain: arguments.drain,
        pin: arguments.pin,
    };
    agent::run(instance, &options)
}

fn first_repeated(names: &[String]) -> Option<&String> {
    let mut seen = HashSet::new();
    names.iter().find(|name| !seen.insert(*name))
}

/// Decimal, or hexadecimal after `0x`, as `ip rule` takes marks.
fn number(word: &str) -> Result<u32, String> {
    let parsed = match word.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => word.parse(),
    };
    parsed.map_err(|_| "not a number from 0 to 4294967295 (0xffffffff)".to_owned())
}

fn seconds(word: &str) -> Result<Duration, String> {
    const LONGEST: f64 = 86_400.0;
    match word.parse::<f64>() {
        Ok(seconds) if (0.0..=LONGEST).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("not a number of seconds from 0 to 86400".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("7470"), Ok(7470));
        assert_eq!(number("0x74700000"), Ok(0x7470_0000));
        for word in ["", "0x", "x", "-1", "4294967296", "0x100000000", "1.5"] {
            assert!(number(word).is_err(), "{word}");
        }
    }

    #[test]
    fn durations_are_bounded() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for word in ["-1", "nan", "inf", "1e9", "10s", ""] {
            assert!(seconds(word).is_err(), "{word}");
        }
    }
}
