//! The sections `[[rule]]`.

use std::{collections::HashMap, path::Path};

use tproxy_common::limits::RULES;

use super::{
    document::{Document, Table, Value},
    set::FileLists,
};
use crate::{
    rule::{Rule, RuleSpec},
    set::{SetName, absolute_word},
};

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
    directory: &Path,
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
        .filter_map(|typed| typed.finish(document, directory, lists))
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
        let words = if is_list(key) {
            document.list(key, value, false)
        } else {
            document.word(key, value).into_iter().collect()
        };
        let offsets = words.iter().map(|word| word.offset).collect();
        self.offsets.insert(key, offsets);
        let words: Vec<String> = words.into_iter().map(|word| word.text).collect();
        let spec = &mut self.spec;
        match key {
            "src" => spec.src = words,
            "dst" => spec.dst = words,
            "sport" => spec.sport = words,
            "dport" => spec.dport = words,
            "iface" => spec.iface = words,
            "uid" => spec.uid = words,
            "cgroup" => spec.cgroup = words,
            _ => {
                let word = words.into_iter().next();
                match key {
                    "name" => spec.name = word,
                    "scope" => spec.scope = word,
                    "proto" => spec.proto = word,
                    "action" => spec.action = word,
                    "to" => spec.to = word,
                    "source" => spec.source = word,
                    "on_missing" => spec.on_missing = word,
                    "expires" => spec.expires = word,
                    _ => spec.comment = word,
                }
            }
        }
    }

    /// Checks the rule, the sets and the files that it names.
    fn finish(
        mut self,
        document: &mut Document<'_>,
        directory: &Path,
        lists: &mut FileLists<'_>,
    ) -> Option<FileRule> {
        self.spec.resolve_users();
        self.find_lists(document, directory, lists);
        let checked = self.spec.check();
        for masked in self.spec.mask_host_bits() {
            let offset = self.offset(masked.key, Some(masked.word));
            document.warn(offset, format!("{}: {}", masked.key, masked.text));
        }
        match checked {
            Ok(rule) => {
                let reason = rule.without_effect();
                let read = FileRule {
                    rule,
                    lines: self.lines(document),
                    spec: self.spec,
                };
                if let Some(reason) = reason {
                    document.warn(self.header, format!("rule {} {reason}", read.title()));
                }
                Some(read)
            }
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
    fn find_lists(
        &mut self,
        document: &mut Document<'_>,
        directory: &Path,
        lists: &mut FileLists<'_>,
    ) {
        for key in ["src", "dst"] {
            let words = if key == "src" {
                &mut self.spec.src
            } else {
                &mut self.spec.dst
            };
            let offsets = &self.offsets;
            for (place, word) in words.iter_mut().enumerate() {
                let offset = offsets.get(key).and_then(|offsets| offsets.get(place));
                let offset = *offset.unwrap_or(&self.header);
                let named = word.strip_prefix('!').unwrap_or(word);
                let Some(Ok(name)) = SetName::of_word(named) else {
                    continue;
                };
                if name.file().is_none() {
                    lists.expect_set(document, key, &name, offset);
                    continue;
                }
                match absolute_word(word, directory) {
                    Ok(Some(absolute)) => *word = absolute,
                    Ok(None) => {}
                    Err(error) => {
                        let problem = format!("{key}: \"{word}\" cannot be made absolute: {error}");
                        document.refuse(offset, problem);
                        continue;
                    }
                }
                let absolute = word.strip_prefix('!').unwrap_or(word);
                if let Some(Ok(stored)) = SetName::of_word(absolute) {
                    lists.read_file(document, key, &name, stored, directory, offset);
                }
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

fn is_list(key: &str) -> bool {
    matches!(
        key,
        "src" | "dst" | "sport" | "dport" | "iface" | "uid" | "cgroup"
    )
}
