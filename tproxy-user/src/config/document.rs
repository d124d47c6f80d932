//! A TOML document, read value by value: what does not fit is noted with its line, and reading goes
//! on.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue, Error},
};

use super::{Problem, problem::sort, suggestion::closest};

/// A table of the document and where it begins.
pub(super) type Table<'t, 'i> = &'t DeTable<'i>;

/// A value and where it is.
pub(super) type Value<'t, 'i> = &'t Spanned<DeValue<'i>>;

/// A word and where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) offset: usize,
}

/// A text that is being read, and what was found wrong with it so far.
pub(super) struct Document<'a> {
    name: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl<'a> Document<'a> {
    /// Parses a text that messages call `name`. What can be read of a text with mistakes is read.
    pub(super) fn parse(name: &'a str, text: &'a str) -> (Self, DeTable<'a>) {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let mut document = Self {
            name,
            lines: [0].into_iter().chain(ends.map(|(at, _)| at + 1)).collect(),
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            document.syntax(error);
        }
        (document, table.into_inner())
    }

    /// What was found. On a line that could not be read, nothing else counts.
    pub(super) fn finish(mut self, syntax: usize) -> (Vec<Problem>, Vec<Problem>) {
        let rest = self.problems.split_off(syntax);
        let unread: Vec<Option<usize>> = self.problems.iter().map(|problem| problem.line).collect();
        let readable =
            |problem: &Problem| problem.file != self.name || !unread.contains(&problem.line);
        self.problems.extend(rest.into_iter().filter(readable));
        sort(self.name, &mut self.warnings);
        (self.problems, self.warnings)
    }

    /// How much was found wrong so far.
    pub(super) fn problems(&self) -> usize {
        self.problems.len()
    }

    /// The number of the line at an offset, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset)
    }

    /// Notes that something is wrong.
    pub(super) fn refuse(&mut self, offset: usize, text: impl Into<String>) {
        let problem = self.problem(offset, text);
        self.problems.push(problem);
    }

    /// Notes something wrong in another file.
    pub(super) fn refuse_elsewhere(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Notes a warning.
    pub(super) fn warn(&mut self, offset: usize, text: impl Into<String>) {
        let warning = self.problem(offset, text);
        self.warnings.push(warning);
    }

    /// Notes keys that `what` does not have.
    pub(super) fn known_keys(&mut self, table: Table<'_, '_>, what: &str, keys: &[&str]) {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if keys.contains(&name) {
                continue;
            }
            let advice = match closest(name, keys) {
                Some(close) => format!("did you mean {close}?"),
                None => format!("there are {}", keys.join(", ")),
            };
            self.refuse(
                key.span().start,
                format!("{name}: is no key of {what}: {advice}"),
            );
        }
    }

    /// The value as a table.
    pub(super) fn table<'t, 'i>(
        &mut self,
        key: &str,
        value: Value<'t, 'i>,
        written: &str,
    ) -> Option<Table<'t, 'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let kind = kind(value.get_ref());
            self.refuse(
                value.span().start,
                format!("{key}: is {kind}: write {written}"),
            );
        }
        table
    }

    /// The value as one word. Numbers and truth values are words, too.
    pub(super) fn word(&mut self, key: &str, value: Value<'_, '_>) -> Option<Word> {
        let text = scalar(value.get_ref());
        if text.is_none() {
            let kind = kind(value.get_ref());
            self.refuse(
                value.span().start,
                format!("{key}: is {kind}, and one word is wanted"),
            );
        }
        Some(Word {
            text: text?,
            offset: value.span().start,
        })
    }

    /// The value as a list of words: a TOML list, one word, or several with commas in between, as on
    /// the command line. A list of nothing is refused unless `empty` is `true`: what it should match
    /// is not clear.
    pub(super) fn list(&mut self, key: &str, value: Value<'_, '_>, empty: bool) -> Vec<Word> {
        let Some(array) = value.get_ref().as_array() else {
            return self.word(key, value).map(split).unwrap_or_default();
        };
        if array.is_empty() && !empty {
            let text = format!("{key}: is an empty list: leave the key out");
            self.refuse(value.span().start, text);
        }
        let mut words = Vec::with_capacity(array.len());
        for value in array {
            words.extend(self.word(key, value).map(split).unwrap_or_default());
        }
        words
    }

    /// The value as `true` or `false`.
    pub(super) fn flag(&mut self, key: &str, value: Value<'_, '_>) -> Option<bool> {
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            let kind = kind(value.get_ref());
            self.refuse(
                value.span().start,
                format!("{key}: is {kind}, and true or false is wanted"),
            );
        }
        flag
    }

    fn syntax(&mut self, error: &Error) {
        let Range { start, .. } = error.span().unwrap_or_default();
        let message: Vec<&str> = error.message().lines().map(str::trim).collect();
        self.refuse(start, message.join(", "));
    }

    fn problem(&self, offset: usize, text: impl Into<String>) -> Problem {
        Problem {
            file: self.name.to_owned(),
            line: Some(self.line(offset)),
            text: on_one_line(&text.into()),
        }
    }
}

/// What quotes a file may quote anything: line ends, escape sequences of terminals, whole files.
fn on_one_line(text: &str) -> String {
    const LONGEST: usize = 300;
    let mut line = String::with_capacity(text.len().min(LONGEST));
    for (place, character) in text.chars().enumerate() {
        if place == LONGEST {
            line.push_str("...");
            break;
        }
        if character.is_control() {
            line.extend(character.escape_debug());
        } else {
            line.push(character);
        }
    }
    line
}

/// A word with commas is several.
fn split(word: Word) -> Vec<Word> {
    let Word { text, offset } = word;
    text.split(',')
        .map(|part| Word {
            text: part.trim().to_owned(),
            offset,
        })
        .collect()
}

/// What is not made of other values, as a word.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(integer) => {
            let number = i128::from_str_radix(integer.as_str(), integer.radix());
            Some(number.map_or_else(|_| integer.as_str().to_owned(), |number| number.to_string()))
        }
        DeValue::Float(float) => Some(float.as_str().to_owned()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Datetime(time) => Some(time.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "a truth value",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
