//! What sets are called.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::rule::valid_name;

/// The name of a set: one that somebody gave it, or `@` and the path of the file that it was read
/// from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SetName(String);

impl SetName {
    /// The name that somebody gives a set.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn new(name: &str) -> Result<Self, String> {
        if valid_name(name) {
            Ok(Self(name.to_owned()))
        } else {
            Err(format!(
                "\"{name}\" is not a name of a set: use 1 to 63 letters, digits, '.', '_' or '-'"
            ))
        }
    }

    /// The name of the set that a word of a rule means: `set:NAME` or `@FILE`. `None` for other
    /// words.
    ///
    /// # Errors
    ///
    /// When the name is none.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Result<Self, String>> {
        if let Some(name) = word.strip_prefix("set:") {
            return Some(Self::new(name));
        }
        match word.strip_prefix('@')? {
            "" => Some(Err("\"@\" names no file".to_owned())),
            _ => Some(Ok(Self(word.to_owned()))),
        }
    }

    /// The file that the set is read from, if it is one of a file.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.0.strip_prefix('@').map(Path::new)
    }

    /// The name as it is shown and stored.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The word by which a rule means it.
    #[must_use]
    pub fn to_word(&self) -> String {
        match self.file() {
            Some(_) => self.0.clone(),
            None => format!("set:{}", self.0),
        }
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A word of a rule with the path in it made absolute, seen from `directory`; `None` for words
/// without one.
///
/// # Errors
///
/// When there is no working directory to look from.
pub fn absolute_word(word: &str, directory: &Path) -> io::Result<Option<String>> {
    let (exclusion, named) = match word.strip_prefix('!') {
        Some(named) => ("!", named),
        None => ("", word),
    };
    let Some(path) = named.strip_prefix('@').filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let path: PathBuf = std::path::absolute(directory.join(path))?;
    Ok(Some(format!("{exclusion}@{}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_sets_by_name_and_by_file() {
        let named = SetName::of_word("set:blocked").unwrap().unwrap();
        assert_eq!((named.as_str(), named.file()), ("blocked", None));
        assert_eq!(named.to_word(), "set:blocked");
        let file = SetName::of_word("@/etc/list").unwrap().unwrap();
        assert_eq!(file.as_str(), "@/etc/list");
        assert_eq!(file.file(), Some(Path::new("/etc/list")));
        assert_eq!(file.to_word(), "@/etc/list");
        for word in ["10.0.0.0/8", "::1", "", "blocked", "sets:x"] {
            assert_eq!(SetName::of_word(word), None, "{word}");
        }
        for word in ["set:", "set:a b", "set:@x", "set:../x", "@"] {
            assert!(SetName::of_word(word).unwrap().is_err(), "{word}");
        }
    }

    #[test]
    fn paths_become_absolute() {
        let seen_from = |word: &str| absolute_word(word, Path::new("/etc/tproxy")).unwrap();
        assert_eq!(seen_from("@list").as_deref(), Some("@/etc/tproxy/list"));
        assert_eq!(seen_from("!@./list").as_deref(), Some("!@/etc/tproxy/list"));
        assert_eq!(seen_from("@/srv/list").as_deref(), Some("@/srv/list"));
        for word in ["@", "set:list", "10.0.0.0/8", ""] {
            assert_eq!(seen_from(word), None, "{word}");
        }
    }
}
