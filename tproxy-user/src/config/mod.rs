//! The file: rules and sets of an instance and options of its agent, as TOML.
//!
//! A file is read to its end whatever is wrong in it, and everything that is wrong is told at once,
//! each with its line. What comes out is valid but for what depends on the instance: whether the
//! interfaces that rules name are attached, and whether all of it fits the tables ([`Config::fit`]).

mod agent;
mod document;
mod fit;
mod problem;
mod rule;
mod set;
mod source;
mod suggestion;

pub use agent::{AgentSection, flows, idle, mark, seconds, sessions, table};
pub use problem::{Problem, Problems};
pub use rule::FileRule;
pub use set::LoadList;
pub use source::Source;

use std::path::Path;

use toml::de::DeTable;

use crate::{
    plural::plural,
    rule::RuleSpec,
    set::{Set, Sets},
};
use document::{Document, Value};
use set::FileLists;

/// What a file says.
#[derive(Debug)]
pub struct Config {
    name: String,
    /// Options of `run`.
    pub agent: AgentSection,
    /// The sets that it names, and the lists in files that rules name.
    pub sets: Sets,
    /// The rules in their order.
    pub rules: Vec<FileRule>,
    /// What is right and may still not be what was meant.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// Reads a file. `load` reads the lists that it names.
    ///
    /// # Errors
    ///
    /// Everything that is wrong in it.
    pub fn read(source: &Source, load: &mut LoadList<'_>) -> Result<Self, Problems> {
        let text = source.text()?;
        Self::parse(source.name(), &text, source.directory(), load)
    }

    /// Reads a text that messages call `name`. Paths in it are seen from `directory`.
    ///
    /// # Errors
    ///
    /// Everything that is wrong in it.
    pub fn parse(
        name: &str,
        text: &str,
        directory: &Path,
        load: &mut LoadList<'_>,
    ) -> Result<Self, Problems> {
        let (mut document, table) = Document::parse(name, text);
        let syntax = document.problems();
        let mut lists = FileLists::new(load, directory);
        document.known_keys(&table, "the file", &["agent", "set", "rule"]);
        let agent = match table.get("agent") {
            Some(value) => document
                .table("agent", value, "[agent]")
                .map(|table| AgentSection::read(&mut document, table)),
            None => None,
        };
        if let Some(value) = table.get("set")
            && let Some(sets) = document.table("set", value, "[set.NAME]")
        {
            lists.read_sets(&mut document, sets);
        }
        let tables = rule_tables(&mut document, table.get("rule"));
        let rules = rule::read_all(&mut document, &tables, &mut lists);
        let (problems, warnings) = document.finish(syntax);
        match Problems::of(name, problems) {
            Some(problems) => Err(problems),
            None => Ok(Self {
                name: name.to_owned(),
                agent: agent.unwrap_or_default(),
                sets: lists.into_sets(),
                rules,
                warnings,
            }),
        }
    }

    /// What it is made of, in a line: `rules.toml: 12 rules, 3 sets, 1,203 CIDRs`.
    #[must_use]
    pub fn summary(&self) -> String {
        let own = self
            .rules
            .iter()
            .map(|rule| crate::compiler::cidrs(&rule.rule));
        let cidrs = own.sum::<usize>() + self.sets.values().map(Set::len).sum::<usize>();
        let count = |number, noun| format!("{} {}", grouped(number), plural(number, noun));
        format!(
            "{}: {}, {}, {}",
            self.name,
            count(self.rules.len(), "rule"),
            count(self.sets.len(), "set"),
            count(cidrs, "CIDR")
        )
    }

    /// Its rules and sets, to be put in force.
    #[must_use]
    pub fn into_parts(self) -> (Vec<RuleSpec>, Sets) {
        let rules = self.rules.into_iter().map(|rule| rule.spec);
        (rules.collect(), self.sets)
    }

    /// The rules that name interfaces other than these.
    #[must_use]
    pub fn unattached(&self, instance: &str, attached: &[String]) -> Option<Problems> {
        let there = match attached {
            [] => "none is".to_owned(),
            names => format!("attached: {}", names.join(", ")),
        };
        let mut problems = Vec::new();
        for rule in &self.rules {
            for (place, name) in rule.spec.iface.iter().enumerate() {
                if !attached.contains(name) {
                    problems.push(Problem {
                        file: self.name.clone(),
                        line: Some(rule.lines.of("iface", Some(place))),
                        text: format!(
                            "iface: {name} is not attached to instance {instance}; {there}"
                        ),
                    });
                }
            }
        }
        Problems::of(&self.name, problems)
    }
}

/// The tables of rules, each with where it begins.
fn rule_tables<'t, 'i>(
    document: &mut Document<'_>,
    value: Option<Value<'t, 'i>>,
) -> Vec<(&'t DeTable<'i>, usize)> {
    const WRITTEN: &str = "[[rule]], with two brackets";
    let Some(value) = value else {
        return Vec::new();
    };
    let Some(array) = value.get_ref().as_array() else {
        let offset = value.span().start;
        document.refuse(
            offset,
            format!("rule: is not a list of tables: write {WRITTEN}"),
        );
        return Vec::new();
    };
    let mut tables = Vec::with_capacity(array.len());
    for value in array {
        if let Some(table) = document.table("rule", value, WRITTEN) {
            tables.push((table, value.span().start));
        }
    }
    tables
}

/// A number whose digits are in groups: `1,203`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests;
