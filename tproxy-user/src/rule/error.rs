//! What is wrong with a rule.

use std::fmt;

/// A word of a rule that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct SpecError {
    /// The key of a file, which is the flag without its dashes (and `_` for `-`).
    pub key: &'static str,
    /// Which word of a list, from 0; `None` when it is about the key as a whole.
    pub word: Option<usize>,
    /// What is wrong, quoting the word.
    pub problem: String,
}

impl SpecError {
    /// The error in the words of the command line.
    #[must_use]
    pub fn as_flag(&self) -> String {
        format!("--{}: {}", self.key.replace('_', "-"), self.problem)
    }
}

/// Everything that is wrong with a rule: at least one error, in the order of the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecErrors(pub(super) Vec<SpecError>);

impl SpecErrors {
    /// The errors.
    pub fn iter(&self) -> impl Iterator<Item = &SpecError> {
        self.0.iter()
    }
}

impl fmt::Display for SpecErrors {
    /// In the words of the command line, on one line.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, error) in self.0.iter().enumerate() {
            if place > 0 {
                formatter.write_str("; ")?;
            }
            formatter.write_str(&error.as_flag())?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecErrors {}
