//! Nouns beside numbers.

/// The noun as it goes with a number of things: `rule` with 1, `rules` with any other.
pub(crate) fn plural(number: usize, noun: &str) -> String {
    format!("{noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_alone_is_singular() {
        let nouns = [0, 1, 2, 21].map(|number| plural(number, "rule"));
        assert_eq!(nouns, ["rules", "rule", "rules", "rules"]);
    }
}
