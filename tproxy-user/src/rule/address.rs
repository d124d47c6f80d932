//! Addresses and CIDRs of a rule.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::IpAddr;

/// Prefixes that a rule asks for. An exclusion wins over any inclusion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressMatch {
    /// Any of these; all addresses when empty.
    pub include: Vec<IpNet>,
    /// None of these.
    pub exclude: Vec<IpNet>,
}

impl AddressMatch {
    /// Reads a list of CIDRs and addresses, excluded when `!` stands before.
    ///
    /// # Errors
    ///
    /// The first word that is neither, and why.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        let mut parsed = Self::default();
        for word in words {
            match word.strip_prefix('!') {
                Some(excluded) => parsed.exclude.push(parse_prefix(excluded, word)?),
                None => parsed.include.push(parse_prefix(word, word)?),
            }
        }
        Ok(parsed)
    }

    /// Whether it holds for every address.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }
}

/// A CIDR or an address; host bits are masked off, IPv4-mapped IPv6 becomes IPv4 (RFC 4291,
/// 2.5.5.2), because that is how such flows look on the wire.
/// Errors quote the whole `word`.
fn parse_prefix(text: &str, word: &str) -> Result<IpNet, String> {
    let prefix = match text.parse::<IpNet>() {
        Ok(prefix) => prefix,
        Err(_) => match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => return Err(format!("\"{word}\" is not a CIDR or an IP address")),
        },
    };
    Ok(unmapped(prefix.trunc()))
}

/// A CIDR without its host bits; `None` for every other word.
pub(super) fn masked(word: &str) -> Option<String> {
    let (exclusion, text) = match word.strip_prefix('!') {
        Some(text) => ("!", text),
        None => ("", word),
    };
    let prefix: IpNet = text.parse().ok()?;
    (prefix != prefix.trunc()).then(|| format!("{exclusion}{}", prefix.trunc()))
}

fn unmapped(prefix: IpNet) -> IpNet {
    let IpNet::V6(v6) = prefix else { return prefix };
    v4_of(v6).map_or(prefix, IpNet::V4)
}

fn v4_of(prefix: Ipv6Net) -> Option<Ipv4Net> {
    let length = prefix.prefix_len().checked_sub(96)?;
    Ipv4Net::new(prefix.network().to_ipv4_mapped()?, length).ok()
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
        ] {
            let error = parse(&[word]).unwrap_err();
            assert!(error.contains(&format!("\"{word}\"")), "{error}");
        }
    }
}
