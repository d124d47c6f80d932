//! What is to be said of rules that take nothing.

use tproxy_common::flow::Scope;

use super::State;
use crate::{compiler::shadowed, kernel::Generation, rule::Rule};

/// What is to be said when no interface is attached and there are rules about forwarded flows; with a
/// place, only if the rule there is one.
#[must_use]
pub fn want_of_interfaces(state: &State, concerning: Option<usize>) -> Option<String> {
    if !state.interfaces.is_empty() {
        return None;
    }
    let mut rules = state.rules.iter().enumerate();
    let (_, rule) = rules.find(|(place, rule)| {
        let rule = rule.spec.validate();
        concerning.is_none_or(|concerning| concerning == *place)
            && rule.is_ok_and(|rule| rule.scope == Scope::Forward)
    })?;
    Some(format!(
        "no interface is attached: rules of scope forward, as {}, take nothing until `tproxy attach IF`",
        rule.name()
    ))
}

/// A line for each rule of this state that can never match or whose addresses no flow has; with a
/// place, for each that the rule there hides or that is it.
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
    let is_concerned = |place: usize| concerning.is_none_or(|concerning| concerning == place);
    let rules: Vec<&Rule> = rules.iter().collect();
    let of_addresses = rules.iter().enumerate();
    let of_addresses = of_addresses
        .filter(|(place, _)| is_concerned(*place))
        .filter_map(|(_, rule)| rule.want_of_flows(&rule.name));
    let hidden = shadowed(tables, &rules, lasting)
        .into_iter()
        .filter(|found| is_concerned(found.rule) || found.by.iter().any(|by| is_concerned(*by)))
        .map(|found| found.text(name));
    of_addresses.chain(hidden).collect()
}
