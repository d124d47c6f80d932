//! What is wrong in a file, and where.

use std::fmt;

/// One thing that is wrong, or worth a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named.
    pub file: String,
    /// Its line, from 1; `None` when it is about the file as a whole.
    pub line: Option<usize>,
    /// What is wrong: the key and the word.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(formatter, "{}:{line}: {}", self.file, self.text),
            None => write!(formatter, "{}: {}", self.file, self.text),
        }
    }
}

/// Everything that is wrong: at least one thing. Those of the file itself come first, by line, and
/// then those of the lists that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The problems, unless there are none. `file` is the one whose problems come first.
    pub(super) fn of(file: &str, mut problems: Vec<Problem>) -> Option<Self> {
        sort(file, &mut problems);
        (!problems.is_empty()).then_some(Self(problems))
    }

    /// One problem with a file as a whole.
    pub(super) fn of_file(file: &str, text: impl Into<String>) -> Self {
        Self(vec![Problem {
            file: file.to_owned(),
            line: None,
            text: text.into(),
        }])
    }

    /// One problem with a line of a file.
    pub(super) fn at_line(file: &str, line: usize, text: impl Into<String>) -> Self {
        Self(vec![Problem {
            file: file.to_owned(),
            line: Some(line),
            text: text.into(),
        }])
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    /// A line each.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, problem) in self.0.iter().enumerate() {
            if place > 0 {
                formatter.write_str("\n")?;
            }
            problem.fmt(formatter)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Puts the problems of `file` first, each file's by line, and says nothing twice. On a line they stay
/// in the order in which they were found.
pub(super) fn sort(file: &str, problems: &mut Vec<Problem>) {
    problems.sort_by(|one, other| {
        let place = |problem: &Problem| (problem.file != file, problem.file.clone(), problem.line);
        place(one).cmp(&place(other))
    });
    problems.dedup();
}
