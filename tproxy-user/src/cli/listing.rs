//! `tproxy rule list` and `tproxy rule show`.

use std::time::Duration;

use humantime::format_duration;
use serde::Serialize;

use super::output::{print_json, print_line, table};
use crate::{
    instance::{AgentLock, Error, Instance, RuleNotFound, State, StoredRule},
    kernel::{Counters, RuleTotals},
    requirements,
    rule::RuleSpec,
};

/// Prints all rules in their order.
pub(super) fn list(instance: &Instance, json: bool) -> anyhow::Result<()> {
    requirements::check()?;
    let state = instance.state()?;
    let rules = counted(instance, &state)?;
    if json {
        return print_json(&rules);
    }
    if rules.is_empty() {
        return print_line("no rules: every flow is left alone");
    }
    let columns: Vec<&Column> = COLUMNS
        .iter()
        .filter(|column| column.always || rules.iter().any(|rule| (column.cell)(rule).is_some()))
        .collect();
    let mut headings = vec!["#"];
    headings.extend(columns.iter().map(|column| column.heading));
    let mut table = table(&headings);
    for (number, rule) in (1..).zip(&rules) {
        let mut row = vec![number.to_string()];
        row.extend(columns.iter().map(|column| {
            let cell = (column.cell)(rule);
            cell.unwrap_or_else(|| column.otherwise.to_owned())
        }));
        table.add_row(row);
    }
    print_line(&table.to_string())
}

/// Prints one rule.
pub(super) fn show(instance: &Instance, name: &str, json: bool) -> anyhow::Result<()> {
    requirements::check()?;
    let state = instance.state()?;
    let rules = counted(instance, &state)?;
    let rule = rules
        .iter()
        .find(|rule| rule.rule.name.as_deref() == Some(name))
        .ok_or_else(|| Error::from(RuleNotFound(name.to_owned())))?;
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
            // Counted in seconds for scripts.
            _ if key == "expires_in" => expiry(rule).unwrap_or_default(),
            other => other.to_string(),
        };
        print_line(&format!("{key:width$}  {value}"))?;
    }
    Ok(())
}

/// A rule with its counters, as JSON has it.
#[derive(Serialize)]
struct Counted<'a> {
    #[serde(flatten)]
    rule: &'a RuleSpec,
    /// See [`seconds_left`].
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in: Option<u64>,
    flows: u64,
    packets: u64,
    bytes: u64,
    bytes_to_upstream: u64,
    bytes_to_client: u64,
    live: u64,
}

impl<'a> Counted<'a> {
    fn new(stored: &'a StoredRule, totals: RuleTotals, has_agent: bool) -> anyhow::Result<Self> {
        Ok(Self {
            rule: &stored.spec,
            expires_in: seconds_left(stored)?,
            flows: totals.kernel.flows,
            packets: totals.kernel.packets,
            bytes: totals.kernel.bytes + totals.relay.to_upstream + totals.relay.to_client,
            bytes_to_upstream: totals.relay.to_upstream,
            bytes_to_client: totals.relay.to_client,
            // What a killed agent counted as live is not.
            live: if has_agent { totals.relay.live } else { 0 },
        })
    }
}

/// Seconds that are left of the life of a rule, begun ones as whole ones; 0 when it is over.
pub(super) fn seconds_left(stored: &StoredRule) -> anyhow::Result<Option<u64>> {
    let left = stored.left()?;
    Ok(left.map(|left| left.as_secs() + u64::from(left.subsec_nanos() > 0)))
}

/// The same in words.
fn expiry(rule: &Counted<'_>) -> Option<String> {
    match rule.expires_in? {
        // With no agent to delete it, the next change does.
        0 => Some("expired".to_owned()),
        left => Some(in_words(left)),
    }
}

/// A number of seconds in words: `1h 30m`.
pub(super) fn in_words(seconds: u64) -> String {
    format_duration(Duration::from_secs(seconds)).to_string()
}

fn counted<'a>(instance: &Instance, state: &'a State) -> anyhow::Result<Vec<Counted<'a>>> {
    let slots = state.rules.iter().map(|rule| rule.slot);
    let totals = Counters::new(&instance.maps()?).rules(slots)?;
    let has_agent = AgentLock::holder(instance).is_some();
    let rules = state.rules.iter().zip(totals);
    rules
        .map(|(rule, totals)| Counted::new(rule, totals, has_agent))
        .collect()
}

/// A column of the list.
struct Column {
    heading: &'static str,
    /// Whether it is there even when no rule has anything in it.
    always: bool,
    cell: fn(&Counted<'_>) -> Option<String>,
    /// What a rule has that has nothing in it.
    otherwise: &'static str,
}

impl Column {
    const fn new(
        heading: &'static str,
        otherwise: &'static str,
        cell: fn(&Counted<'_>) -> Option<String>,
    ) -> Self {
        Self {
            heading,
            always: true,
            cell,
            otherwise,
        }
    }

    /// One that is there only when a rule has something in it.
    const fn rare(
        heading: &'static str,
        otherwise: &'static str,
        cell: fn(&Counted<'_>) -> Option<String>,
    ) -> Self {
        Self {
            always: false,
            ..Self::new(heading, otherwise, cell)
        }
    }
}

const COLUMNS: [Column; 16] = [
    Column::new("NAME", "", |rule| rule.rule.name.clone()),
    Column::rare("SCOPE", "forward", |rule| rule.rule.scope.clone()),
    Column::new("ACTION", "relay", |rule| rule.rule.action.clone()),
    Column::rare("TO", "-", |rule| rule.rule.to.clone()),
    Column::new("PROTO", "tcp", |rule| rule.rule.proto.clone()),
    Column::new("SRC", "any", |rule| shortened(&rule.rule.src)),
    Column::new("DST", "any", |rule| shortened(&rule.rule.dst)),
    Column::new("SPORT", "any", |rule| shortened(&rule.rule.sport)),
    Column::new("DPORT", "any", |rule| shortened(&rule.rule.dport)),
    Column::new("IFACE", "any", |rule| shortened(&rule.rule.iface)),
    Column::rare("UID", "any", |rule| shortened(&rule.rule.uid)),
    Column::rare("CGROUP", "any", |rule| shortened(&rule.rule.cgroup)),
    Column::rare("EXPIRES", "never", expiry),
    Column::new("FLOWS", "", |rule| Some(rule.flows.to_string())),
    Column::new("PACKETS", "", |rule| Some(rule.packets.to_string())),
    Column::new("BYTES", "", |rule| Some(rule.bytes.to_string())),
];

/// A list that fits a column: `rule show` has the whole.
fn shortened(words: &[String]) -> Option<String> {
    const SHOWN: usize = 3;
    match words.len() {
        0 => None,
        1..=SHOWN => Some(words.join(",")),
        more => Some(format!("{},+{}", words[..SHOWN].join(","), more - SHOWN)),
    }
}
