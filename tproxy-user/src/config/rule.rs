//! The sections `[[rule]]`.

use std::collections::HashMap;

use tproxy_common::limits::RULES;

use super::{
    document::{Document, Table, Value},
    set::FileLists,
};
use crate::rule::{Rule, RuleSpec};

const KEYS: [&str; 16] = [
    "name",
    "scope",
    "proto",
    "src",
    "dst",
    "sport",
    "dport",
    "iface",
    "uid",
    "cgroup",
    "action",
    "to",
    "source",
    "on_missing",
    "expires",
    "comment",
];

/// A rule of a file: valid, and with the lines that it stands on.
#[derive(Clone, Debug)]
pub struct FileRule {
    /// As it is typed: users by their ids, CIDRs without host bits, files by absolute paths.
    pub spec: RuleSpec,
    /// As it is valid. One without a name has none that counts.
    pub rule: Rule,
    /// Where it stands.
    pub(super) lines: Lines,
}

impl FileRule {
    /// What messages call it.
    pub(super) fn title(&self) -> String {
        match &self.spec.name {
            Some(name) => name.clone(),
            None => format!("in line {}", self.lines.header),
        }
    }
}

/// Lines of a rule, from 1.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines {
    /// Of `[[rule]]`.
    pub(super) header: usize,
    /// Of each word of each key.
    words: HashMap<&'static str, Vec<usize>>,
}

impl Lines {
    /// The line of a word, or of the key that it should have, or of the rule.
    pub(super) fn of(&self, key: &str, word: Option<usize>) -> usize {
        let lines = self.words.get(key);
        let line = lines.and_then(|lines| lines.get(word.unwrap_or(0)).or(lines.first()));
        line.copied().unwrap_or(self.header)
    }
}

/// A rule as it stands there, before it is checked.
struct Typed {
    spec: RuleSpec,
    header: usize,
    /// Where each word of each key begins.
    offsets: HashMap<&'static str, Vec<usize>>,
}

/// Reads all rules.
pub(super) fn read_all(
    document: &mut Document<'_>,
    rules: &[(Table<'_, '_>, usize)],
    lists: &mut FileLists<'_>,
) -> Vec<FileRule> {
    let typed: Vec<Typed> = rules
        .iter()
        .map(|(table, header)| Typed::read(document, table, *header))
        .collect();
    refuse_repeated_names(document, &typed);
    if let Some(first) = typed.get(RULES) {
        let problem = format!(
            "rule: {} rules are more than the limit of {RULES}",
            typed.len()
        );
        document.refuse(first.header, problem);
    }
    typed
        .into_iter()
        .filter_map(|typed| typed.finish(document, lists))
        .collect()
}

fn refuse_repeated_names(document: &mut Document<'_>, rules: &[Typed]) {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for typed in rules {
        let Some(name) = typed.spec.name.as_deref() else {
            continue;
        };
        let offset = typed.offset("name", None);
        if let Some(before) = seen.get(name) {
            let line = document.line(*before);
            document.refuse(
                offset,
                format!("name: line {line} has a rule {name} already"),
            );
        } else {
            seen.insert(name, offset);
        }
    }
}

impl Typed {
    fn read(document: &mut Document<'_>, table: Table<'_, '_>, header: usize) -> Self {
        document.known_keys(table, "a rule", &KEYS);
        let mut typed = Self {
            spec: RuleSpec::default(),
            header,
            offsets: HashMap::new(),
        };
        for (key, value) in table {
            let known = KEYS.iter().find(|known| **known == key.get_ref().as_ref());
            if let Some(key) = known {
                typed.take(document, key, value);
            }
        }
        typed
    }

    fn take(&mut self, document: &mut Document<'_>, key: &'static str, value: Value<'_, '_>) {
        let mut words = Vec::new();
        if let Some(list) = list_of(&mut self.spec, key) {
            words = document.list(key, value, false);
            *list = words.iter().map(|word| word.text.clone()).collect();
        } else if let Some(single) = word_of(&mut self.spec, key) {
            words.extend(document.word(key, value));
            *single = words.first().map(|word| word.text.clone());
        }
        let offsets = words.iter().map(|word| word.offset).collect();
        self.offsets.insert(key, offsets);
    }

    /// Checks the rule, the sets and the files that it names.
    fn finish(
        mut self,
        document: &mut Document<'_>,
        lists: &mut FileLists<'_>,
    ) -> Option<FileRule> {
        self.spec.resolve_users();
        self.find_lists(document, lists);
        let checked = self.spec.check();
        for masked in self.spec.mask_host_bits() {
            let offset = self.offset(masked.key, Some(masked.word));
            document.warn(offset, format!("{}: {}", masked.key, masked.text));
        }
        match checked {
            Ok(rule) => Some(FileRule {
                rule,
                lines: self.lines(document),
                spec: self.spec,
            }),
            Err(errors) => {
                for error in errors.iter() {
                    let offset = self.offset(error.key, error.word);
                    document.refuse(offset, error.to_string());
                }
                None
            }
        }
    }

    /// Looks up the sets that addresses name, and reads the files, whose paths become absolute.
    fn find_lists(&mut self, document: &mut Document<'_>, lists: &mut FileLists<'_>) {
        for (key, words) in [("src", &mut self.spec.src), ("dst", &mut self.spec.dst)] {
            let offsets = self.offsets.get(key).into_iter().flatten();
            for (word, offset) in words.iter_mut().zip(offsets) {
                lists.find(document, key, word, *offset);
            }
        }
    }

    fn offset(&self, key: &str, word: Option<usize>) -> usize {
        let offsets = self.offsets.get(key);
        let offset = offsets.and_then(|offsets| offsets.get(word.unwrap_or(0)).or(offsets.first()));
        offset.copied().unwrap_or(self.header)
    }

    fn lines(&self, document: &Document<'_>) -> Lines {
        let words = self.offsets.iter().map(|(key, offsets)| {
            let lines = offsets.iter().map(|offset| document.line(*offset));
            (*key, lines.collect())
        });
        Lines {
            header: document.line(self.header),
            words: words.collect(),
        }
    }
}

/// The words of a key that takes a list.
fn list_of<'s>(spec: &'s mut RuleSpec, key: &str) -> Option<&'s mut Vec<String>> {
    match key {
        "src" => Some(&mut spec.src),
        "dst" => Some(&mut spec.dst),
        "sport" => Some(&mut spec.sport),
        "dport" => Some(&mut spec.dport),
        "iface" => Some(&mut spec.iface),
        "uid" => Some(&mut spec.uid),
        "cgroup" => Some(&mut spec.cgroup),
        _ => None,
    }
}

/// The word of a key that takes one.
fn word_of<'s>(spec: &'s mut RuleSpec, key: &str) -> Option<&'s mut Option<String>> {
    match key {
        "name" => Some(&mut spec.name),
        "scope" => Some(&mut spec.scope),
        "proto" => Some(&mut spec.proto),
        "action" => Some(&mut spec.action),
        "to" => Some(&mut spec.to),
        "source" => Some(&mut spec.source),
        "on_missing" => Some(&mut spec.on_missing),
        "expires" => Some(&mut spec.expires),
        "comment" => Some(&mut spec.comment),
        _ => None,
    }
}
