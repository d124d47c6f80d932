//! What somebody meant who wrote something else.

/// The word of `words` that is close to `word`, if one is: one letter in three may be wrong.
pub(super) fn closest<'w>(word: &str, words: &[&'w str]) -> Option<&'w str> {
    let distance = |other: &str| strsim::damerau_levenshtein(word, other);
    let (far, close) = words
        .iter()
        .map(|other| (distance(other), *other))
        .min_by_key(|(far, _)| *far)?;
    (far <= word.chars().count().div_ceil(3)).then_some(close)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_close_is_found_and_nothing_else() {
        let words = ["dport", "sport", "on_missing", "to"];
        for (word, meant) in [
            ("dports", Some("dport")),
            ("dprot", Some("dport")),
            ("on-missing", Some("on_missing")),
            ("too", Some("to")),
            ("comment", None),
            ("x", None),
        ] {
            assert_eq!(closest(word, &words), meant, "{word}");
        }
        assert_eq!(closest("x", &[]), None);
    }
}
