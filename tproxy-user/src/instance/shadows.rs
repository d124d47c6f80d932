//! What is to be said of rules that can never match.

use super::State;
use crate::{compiler::shadowed, kernel::Generation, rule::Rule};

/// A line for each rule of this state that can never match; with a place, for each that the rule
/// there hides or that is it.
#[must_use]
pub fn shadows(state: &State, tables: &Generation, concerning: Option<usize>) -> Vec<String> {
    let lasting = |place: usize| {
        let rule = state.rules.get(place);
        rule.is_some_and(|rule| rule.deadline.is_none())
    };
    let name = |place: usize| state.rules.get(place).map_or("-", |rule| rule.name());
    let rules = state.rules.iter().map(|rule| rule.spec.validate());
    let Ok(rules) = rules.collect::<Result<Vec<Rule>, _>>() else {
        return Vec::new();
    };
    let rules: Vec<&Rule> = rules.iter().collect();
    shadowed(tables, &rules, lasting)
        .into_iter()
        .filter(|found| {
            concerning.is_none_or(|place| found.rule == place || found.by.contains(&place))
        })
        .map(|found| found.text(name))
        .collect()
}
