//! `tproxy rule`.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    accept, interface_name,
    output::{print_json, print_line, table},
};
use crate::{
    instance::{Change, Error, Instance, State, StoredRule},
    kernel::{Counters, RuleTotals},
    requirements,
    rule::RuleSpec,
};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Add a rule, at the end unless told otherwise
    #[command(after_help = "Examples:
  tproxy rule add --dport 80,443
  tproxy rule add --name internal --dst 10.0.0.0/8,fd00::/8 --action pass --at 1
  tproxy rule add --src '192.0.2.0/24,!192.0.2.1' --dport 25 --action drop --before web")]
    Add(Box<Add>),
    /// List the rules in their order
    List,
    /// Show one rule
    Show {
        /// Its name
        name: String,
    },
    /// Delete rules
    Del {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Delete all rules
    Flush,
}

#[derive(Args)]
struct Add {
    #[command(flatten)]
    rule: RuleSpec,
    /// Interfaces that it holds for [default: all attached]
    #[arg(long, value_name = "IF,...", value_delimiter = ',', value_parser = interface_name, help_heading = "Rule")]
    iface: Vec<String>,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
#[group(multiple = false)]
struct Place {
    /// Make it the N-th rule, from 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Place")]
    at: Option<u16>,
    /// Put it before this rule
    #[arg(long, value_name = "NAME", help_heading = "Place")]
    before: Option<String>,
    /// Put it after this rule
    #[arg(long, value_name = "NAME", help_heading = "Place")]
    after: Option<String>,
}

pub(super) fn execute(instance: &Instance, arguments: Arguments, json: bool) -> anyhow::Result<()> {
    match arguments.command {
        Command::Add(arguments) => add(instance, *arguments),
        Command::List => list(instance, json),
        Command::Show { name } => show(instance, &name, json),
        Command::Del { names } => {
            requirements::check()?;
            let mut change = Change::begin(instance)?;
            change.delete_rules(&names).map_err(Error::from)?;
            change.commit()?;
            Ok(())
        }
        Command::Flush => {
            requirements::check()?;
            let mut change = Change::begin(instance)?;
            if change.flush_rules() > 0 {
                change.commit()?;
            }
            Ok(())
        }
    }
}

fn add(instance: &Instance, arguments: Add) -> anyhow::Result<()> {
    let Add {
        mut rule,
        iface,
        place,
    } = arguments;
    rule.iface = iface;
    // Before the instance is asked for anything: a mistake is a mistake wherever it is made.
    accept(&mut rule)?;
    requirements::check()?;
    let mut change = Change::begin(instance)?;
    let place = match (place.at, place.before, place.after) {
        (Some(at), _, _) => usize::from(at) - 1,
        (_, Some(name), _) => change.place_of(&name).map_err(Error::from)?,
        (_, _, Some(name)) => change.place_of(&name).map_err(Error::from)? + 1,
        _ => change.state().rules.len(),
    };
    let made_up = rule.name.is_none();
    let name = change.add_rule(rule, place)?;
    change.commit()?;
    if made_up {
        print_line(&name)?;
    }
    Ok(())
}

/// A rule with its counters, as JSON has it.
#[derive(Serialize)]
struct Counted<'a> {
    #[serde(flatten)]
    rule: &'a RuleSpec,
    flows: u64,
    packets: u64,
    bytes: u64,
    bytes_to_upstream: u64,
    bytes_to_client: u64,
    live: u64,
}

impl<'a> Counted<'a> {
    fn new(stored: &'a StoredRule, totals: RuleTotals) -> Self {
        Self {
            rule: &stored.spec,
            flows: totals.kernel.flows,
            packets: totals.kernel.packets,
            bytes: totals.kernel.bytes + totals.relay.to_upstream + totals.relay.to_client,
            bytes_to_upstream: totals.relay.to_upstream,
            bytes_to_client: totals.relay.to_client,
            live: totals.relay.live,
        }
    }
}

fn counted<'a>(instance: &Instance, state: &'a State) -> anyhow::Result<Vec<Counted<'a>>> {
    let slots = state.rules.iter().map(|rule| rule.slot);
    let totals = Counters::new(&instance.maps()?).rules(slots)?;
    let rules = state.rules.iter().zip(totals);
    Ok(rules
        .map(|(rule, totals)| Counted::new(rule, totals))
        .collect())
}

fn list(instance: &Instance, json: bool) -> anyhow::Result<()> {
    requirements::check()?;
    let state = instance.state()?;
    let rules = counted(instance, &state)?;
    if json {
        return print_json(&rules);
    }
    if rules.is_empty() {
        return print_line("no rules: every flow is left alone");
    }
    let mut table = table(&[
        "#", "NAME", "ACTION", "PROTO", "SRC", "DST", "SPORT", "DPORT", "IFACE", "FLOWS",
        "PACKETS", "BYTES",
    ]);
    for (number, rule) in (1..).zip(&rules) {
        let spec = rule.rule;
        table.add_row([
            number.to_string(),
            spec.name.clone().unwrap_or_default(),
            spec.action_word().to_owned(),
            spec.proto.clone().unwrap_or_else(|| "tcp".into()),
            shortened(&spec.src),
            shortened(&spec.dst),
            shortened(&spec.sport),
            shortened(&spec.dport),
            shortened(&spec.iface),
            rule.flows.to_string(),
            rule.packets.to_string(),
            rule.bytes.to_string(),
        ]);
    }
    print_line(&table.to_string())
}

/// A list that fits a column: `rule show` has the whole.
fn shortened(words: &[String]) -> String {
    const SHOWN: usize = 3;
    match words.len() {
        0 => "any".to_owned(),
        1..=SHOWN => words.join(","),
        more => format!("{},+{}", words[..SHOWN].join(","), more - SHOWN),
    }
}

fn show(instance: &Instance, name: &str, json: bool) -> anyhow::Result<()> {
    requirements::check()?;
    let state = instance.state()?;
    let rules = counted(instance, &state)?;
    let rule = rules
        .iter()
        .find(|rule| rule.rule.name.as_deref() == Some(name))
        .ok_or_else(|| Error::from(crate::instance::RuleNotFound(name.to_owned())))?;
    if json {
        return print_json(rule);
    }
    let serde_json::Value::Object(fields) = serde_json::to_value(rule)? else {
        unreachable!("a struct serializes to an object");
    };
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    for (key, value) in fields {
        let value = match value {
            serde_json::Value::String(text) => text,
            serde_json::Value::Array(words) => {
                let words: Vec<&str> = words.iter().filter_map(|word| word.as_str()).collect();
                words.join(", ")
            }
            other => other.to_string(),
        };
        print_line(&format!("{key:width$}  {value}"))?;
    }
    Ok(())
}
