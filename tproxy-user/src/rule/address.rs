//! Addresses, CIDRs and sets of a rule.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::set::{Cidr, SetName};

/// What a rule asks of an address. An exclusion wins over any inclusion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressMatch {
    /// Any of these prefixes or of `include_sets`; all addresses when both are empty.
    pub include: Vec<IpNet>,
    /// None of these prefixes.
    pub exclude: Vec<IpNet>,
    /// Any address of these sets or of `include`. A set that is empty holds no address.
    pub include_sets: BTreeSet<SetName>,
    /// No address of these sets.
    pub exclude_sets: BTreeSet<SetName>,
}

impl AddressMatch {
    /// Reads a list of CIDRs, addresses, `set:NAME` and `@FILE`, each excluded when `!` stands
    /// before.
    ///
    /// # Errors
    ///
    /// The first word that is none, and why.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        let mut parsed = Self::default();
        for word in words {
            let (named, prefixes, sets) = match word.strip_prefix('!') {
                Some(named) => (named, &mut parsed.exclude, &mut parsed.exclude_sets),
                None => (word.as_str(), &mut parsed.include, &mut parsed.include_sets),
            };
            match (SetName::of_word(named), Cidr::parse(named)) {
                (Some(name), _) => {
                    sets.insert(name?);
                }
                (None, Some(cidr)) => prefixes.push(cidr.net),
                (None, None) => {
                    return Err(format!(
                        "\"{word}\" is not a CIDR, an IP address, set:NAME or @FILE"
                    ));
                }
            }
        }
        Ok(parsed)
    }

    /// Whether it holds for every address.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.includes_all() && self.exclude.is_empty() && self.exclude_sets.is_empty()
    }

    /// Whether it holds for every address that is not excluded.
    #[must_use]
    pub fn includes_all(&self) -> bool {
        self.include.is_empty() && self.include_sets.is_empty()
    }

    /// The sets that it names.
    pub fn sets(&self) -> impl Iterator<Item = &SetName> {
        self.include_sets.union(&self.exclude_sets)
    }
}

/// A CIDR without its host bits; `None` for every other word.
pub(super) fn masked(word: &str) -> Option<String> {
    let (exclusion, text) = match word.strip_prefix('!') {
        Some(text) => ("!", text),
        None => ("", word),
    };
    let cidr = Cidr::parse(text)?;
    cidr.masked.then(|| format!("{exclusion}{}", cidr.net))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<AddressMatch, String> {
        AddressMatch::parse(&words.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn takes_addresses_cidrs_and_exclusions_of_both_families() {
        let parsed = parse(&["10.0.0.0/8", "!10.1.2.3", "2001:db8::/32", "!::1"]).unwrap();
        assert_eq!(
            parsed.include,
            [
                "10.0.0.0/8".parse().unwrap(),
                "2001:db8::/32".parse().unwrap()
            ]
        );
        assert_eq!(
            parsed.exclude,
            ["10.1.2.3/32".parse().unwrap(), "::1/128".parse().unwrap()]
        );
        assert!(!parsed.is_any() && !parsed.includes_all() && parsed.sets().next().is_none());
    }

    #[test]
    fn takes_sets_and_files_and_exclusions_of_them() {
        let parsed = parse(&["set:a", "!set:b", "@/etc/c", "!@/etc/d", "set:a", "!set:a"]).unwrap();
        let words = |sets: &BTreeSet<SetName>| -> Vec<String> {
            sets.iter().map(SetName::to_word).collect()
        };
        assert_eq!(words(&parsed.include_sets), ["@/etc/c", "set:a"]);
        assert_eq!(words(&parsed.exclude_sets), ["@/etc/d", "set:a", "set:b"]);
        assert_eq!(parsed.sets().count(), 4);
        assert!(!parsed.is_any() && !parsed.includes_all());
        let exclusion = parse(&["!set:b"]).unwrap();
        assert!(!exclusion.is_any() && exclusion.includes_all());
    }

    #[test]
    fn masks_host_bits_and_unmaps_ipv4() {
        let parsed = parse(&["10.1.2.3/8", "::ffff:192.0.2.0/120", "::ffff:192.0.2.1"]).unwrap();
        assert_eq!(
            parsed.include,
            [
                "10.0.0.0/8".parse().unwrap(),
                "192.0.2.0/24".parse().unwrap(),
                "192.0.2.1/32".parse().unwrap()
            ]
        );
    }

    #[test]
    fn names_the_word_that_is_no_address() {
        for word in [
            "10.0.0/8",
            "10.0.0.0/33",
            "::/129",
            "",
            "!",
            "!!10.0.0.1",
            "fe80::1%eth0",
            "1.2.3.4/",
            "host",
            "blocked",
        ] {
            let error = parse(&[word]).unwrap_err();
            assert!(error.contains(&format!("\"{word}\"")), "{error}");
        }
        for word in ["set:", "set:a b", "!set:", "@", "!@"] {
            assert!(parse(&[word]).is_err(), "{word}");
        }
    }
}
