//! Whether the rules of a file fit the tables, and which of them take nothing.

use std::collections::BTreeMap;

use super::{Config, FileRule, Problem, Problems};
use crate::{compiler, rule::Rule};

impl Config {
    /// Compiles the rules as for an instance that has every interface and every control group that
    /// they name, and says which rules can never match or have addresses that no flow has.
    ///
    /// # Errors
    ///
    /// The limit that is exceeded.
    pub fn fit(&self) -> Result<Vec<Problem>, Problems> {
        let mut interfaces = Numbers(BTreeMap::new());
        let mut cgroups = Numbers(BTreeMap::new());
        let sources: Vec<compiler::Source<'_>> = self
            .rules
            .iter()
            .map(|FileRule { rule, .. }| compiler::Source {
                rule,
                slot: 0,
                interfaces: rule
                    .interfaces
                    .iter()
                    .map(|name| interfaces.of(name))
                    .collect(),
                cgroups: rule
                    .cgroups
                    .iter()
                    .map(|group| cgroups.of(group).into())
                    .collect(),
            })
            .collect();
        let compiled = compiler::compile(&sources, &self.sets, 0)
            .map_err(|error| Problems::of_file(&self.name, error.to_string()))?;
        let lasting = |place: usize| self.rules[place].rule.life.is_none();
        let rules: Vec<&Rule> = sources.iter().map(|source| source.rule).collect();
        let shadowed = compiler::shadowed(compiled.blocks.as_slice(), &rules, lasting);
        let titles: Vec<String> = self.rules.iter().map(FileRule::title).collect();
        let warning = |rule: usize, text| Problem {
            file: self.name.clone(),
            line: Some(self.rules[rule].lines.header),
            text,
        };
        let of_addresses = rules
            .iter()
            .enumerate()
            .filter_map(|(place, rule)| Some(warning(place, rule.want_of_flows(&titles[place])?)));
        let hidden = shadowed.iter().map(|shadowed| {
            let text = shadowed.text(|place| titles[place].as_str());
            warning(shadowed.rule, text)
        });
        Ok(of_addresses.chain(hidden).collect())
    }
}

/// Numbers that stand for names, from 1.
struct Numbers<T>(BTreeMap<T, u32>);

impl<T: Ord + Clone> Numbers<T> {
    fn of(&mut self, name: &T) -> u32 {
        let next = u32::try_from(self.0.len() + 1).unwrap_or(u32::MAX);
        *self.0.entry(name.clone()).or_insert(next)
    }
}
