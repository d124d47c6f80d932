//! The sections `[set.NAME]`, and the lists in files.

use std::{collections::HashSet, path::Path};

use super::{
    Problem,
    document::{Document, Table, Value},
    suggestion::closest,
};
use crate::set::{
    Cidr, CidrList, LoadError, ReadError, Reading, Set, SetName, Sets, absolute_word,
};

/// Reads the list in a file.
pub type LoadList<'l> = dyn FnMut(&Path) -> Result<Reading, LoadError> + 'l;

/// The sets of a file, and the lists that its rules name.
pub(super) struct FileLists<'l> {
    load: &'l mut LoadList<'l>,
    /// Where relative paths begin.
    directory: &'l Path,
    sets: Sets,
    /// The sets that the file has, those with mistakes among them.
    names: Vec<String>,
    /// The files that rules name and that were read, with success or without.
    tried: HashSet<SetName>,
}

impl<'l> FileLists<'l> {
    pub(super) fn new(load: &'l mut LoadList<'l>, directory: &'l Path) -> Self {
        Self {
            load,
            directory,
            sets: Sets::new(),
            names: Vec::new(),
            tried: HashSet::new(),
        }
    }

    pub(super) fn into_sets(self) -> Sets {
        self.sets
    }

    /// Reads the table of sets.
    pub(super) fn read_sets(&mut self, document: &mut Document<'_>, sets: Table<'_, '_>) {
        for (key, value) in sets {
            let name = key.get_ref().as_ref();
            let at = key.span().start;
            self.names.push(name.to_owned());
            let name = SetName::new(name)
                .map_err(|problem| document.refuse(at, format!("set: {problem}")))
                .ok();
            let Some(table) = document.table("set", value, "[set.NAME]") else {
                continue;
            };
            let set = self.read_set(document, table, at);
            if let (Some(name), Some(set)) = (name, set) {
                self.sets.insert(name, set);
            }
        }
    }

    /// Looks up the set that a word of a rule means, or reads its file. The path becomes absolute, as
    /// rules keep it.
    pub(super) fn find(
        &mut self,
        document: &mut Document<'_>,
        key: &str,
        word: &mut String,
        offset: usize,
    ) {
        let Some(Ok(name)) = set_of(word) else {
            return;
        };
        let Some(file) = name.file().and_then(Path::to_str) else {
            return self.expect_set(document, key, name.as_str(), offset);
        };
        match absolute_word(word, self.directory) {
            Ok(absolute) => *word = absolute.unwrap_or_else(|| word.clone()),
            Err(error) => {
                let problem = format!("{key}: the path of {file} cannot be found: {error}");
                return document.refuse(offset, problem);
            }
        }
        if let Some(Ok(stored)) = set_of(word)
            && self.tried.insert(stored.clone())
            && let Some(set) = self.load_file(document, key, file, offset)
        {
            self.sets.insert(stored, set);
        }
    }

    /// Notes a set that the file does not have.
    fn expect_set(&self, document: &mut Document<'_>, key: &str, name: &str, offset: usize) {
        if self.names.iter().any(|known| known == name) {
            return;
        }
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let advice = match closest(name, &names) {
            Some(close) => format!(": did you mean set:{close}?"),
            None => format!(": add [set.{name}]"),
        };
        document.refuse(offset, format!("{key}: there is no set {name}{advice}"));
    }

    fn read_set(
        &mut self,
        document: &mut Document<'_>,
        table: Table<'_, '_>,
        at: usize,
    ) -> Option<Set> {
        document.known_keys(table, "a set", &["cidrs", "file"]);
        match (table.get("cidrs"), table.get("file")) {
            (Some(cidrs), None) => Some(inline(document, cidrs)),
            (None, Some(file)) => {
                let file = document.word("file", file)?;
                self.load_file(document, "file", &file.text, file.offset)
            }
            (Some(cidrs), Some(file)) => {
                inline(document, cidrs);
                let problem = "file: the set has cidrs already: keep one of the two";
                document.refuse(file.span().start, problem);
                None
            }
            (None, None) => {
                document.refuse(at, "set: it has neither cidrs nor file");
                None
            }
        }
    }

    fn load_file(
        &mut self,
        document: &mut Document<'_>,
        key: &str,
        file: &str,
        offset: usize,
    ) -> Option<Set> {
        if file == "-" || file.is_empty() {
            document.refuse(
                offset,
                format!("{key}: \"{file}\" is not the name of a file"),
            );
            return None;
        }
        match (self.load)(&self.directory.join(file)) {
            Ok(reading) => {
                if reading.list.is_empty() {
                    document.warn(offset, format!("{key}: {file} has no CIDRs"));
                }
                if reading.masked.count > 0 {
                    let said = reading.masked.of(file);
                    document.warn(offset, format!("{key}: {said}"));
                }
                Some(Set::new(reading.list))
            }
            Err(LoadError::Content(ReadError::Lines { name, lines })) => {
                let shown = lines.first.len();
                for line in lines.first {
                    document.refuse_elsewhere(Problem {
                        file: name.clone(),
                        line: Some(line.number),
                        text: line.text,
                    });
                }
                let more = lines.count - shown;
                if more > 0 {
                    let problem = format!("{key}: {file} has {more} more lines that are no CIDRs");
                    document.refuse(offset, problem);
                }
                None
            }
            Err(error) => {
                document.refuse(offset, format!("{key}: {error}"));
                None
            }
        }
    }
}

/// The set that a word of a rule means, see [`SetName::of_word`].
fn set_of(word: &str) -> Option<Result<SetName, String>> {
    SetName::of_word(word.strip_prefix('!').unwrap_or(word))
}

/// A set whose CIDRs stand in the file itself.
fn inline(document: &mut Document<'_>, value: Value<'_, '_>) -> Set {
    let mut cidrs = Vec::new();
    for word in document.list("cidrs", value, true) {
        let text = &word.text;
        let Some(cidr) = Cidr::parse(text) else {
            let problem = format!("cidrs: \"{text}\" is not a CIDR or an IP address");
            document.refuse(word.offset, problem);
            continue;
        };
        if cidr.masked {
            let said = format!("cidrs: \"{text}\" has host bits set: taken as {}", cidr.net);
            document.warn(word.offset, said);
        }
        cidrs.push(cidr.net);
    }
    Set::new(CidrList::new(cidrs))
}
