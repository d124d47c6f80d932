//! A rule as it is typed: flags of the command line, keys of a file, fields of JSON.

use clap::Args;
use serde::{Deserialize, Serialize};
use tproxy_common::{
    flow::Protocol,
    tables::{Action, OnMissing},
};

use super::{AddressMatch, PortRange, Rule, address::masked};
use crate::delivery::valid_interface_name;

/// The words of a rule, before they are checked.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    /// Unique name; made up (rule-7) when left out
    #[arg(long, value_name = "NAME", help_heading = "Rule")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,

    /// Where flows are caught: forward
    #[arg(long, value_name = "SCOPE", help_heading = "Rule")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,

    /// tcp, udp or any; relay takes tcp only [default: tcp]
    #[arg(long, value_name = "PROTO", help_heading = "Rule")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,

    /// Source CIDRs or addresses; ! before one excludes it
    #[arg(
        long,
        value_name = "CIDR,...",
        value_delimiter = ',',
        help_heading = "Rule"
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub src: Vec<String>,

    /// Destination CIDRs or addresses; ! before one excludes it
    #[arg(
        long,
        value_name = "CIDR,...",
        value_delimiter = ',',
        help_heading = "Rule"
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dst: Vec<String>,

    /// Source ports and ranges: 1024-65535
    #[arg(
        long,
        value_name = "PORT,...",
        value_delimiter = ',',
        help_heading = "Rule"
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sport: Vec<String>,

    /// Destination ports and ranges: 80,443,8000-8999
    #[arg(
        long,
        value_name = "PORT,...",
        value_delimiter = ',',
        help_heading = "Rule"
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dport: Vec<String>,

    /// Interfaces that it holds for
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub iface: Vec<String>,

    /// relay, pass or drop [default: relay]
    #[arg(long, value_name = "ACTION", help_heading = "Rule")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,

    /// When nobody is there to take a flow: drop (TCP gets RST) or pass [default: drop]
    #[arg(long, value_name = "WHAT", help_heading = "Rule")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_missing: Option<String>,

    /// A text that is shown with the rule
    #[arg(long, value_name = "TEXT", help_heading = "Rule")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// A word of a rule that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct SpecError {
    /// The key of a file, which is the flag without its dashes (and `_` for `-`).
    pub key: &'static str,
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

impl RuleSpec {
    /// Whether nothing at all was typed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes the host bits out of CIDRs, and says of each what became of it.
    pub fn mask_host_bits(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        for word in self.src.iter_mut().chain(&mut self.dst) {
            if let Some(masked) = masked(word) {
                said.push(format!("\"{word}\" has host bits set: taken as {masked}"));
                *word = masked;
            }
        }
        said
    }

    /// Checks every word, as far as that goes without knowing its instance.
    ///
    /// # Errors
    ///
    /// The first word that makes no sense.
    pub fn check(&self) -> Result<(), SpecError> {
        let named = Self {
            name: Some(self.name.clone().unwrap_or_else(|| "rule".into())),
            ..self.clone()
        };
        named.validate().map(|_| ())
    }

    /// Checks every word.
    ///
    /// # Errors
    ///
    /// The first word that makes no sense. A missing name is the caller's to make up, before.
    pub fn validate(&self) -> Result<Rule, SpecError> {
        let name = self.name.clone().unwrap_or_default();
        if !valid_name(&name) {
            return Err(refuse(
                "name",
                format!("\"{name}\" is not a name: use 1 to 63 letters, digits, '.', '_' or '-'"),
            ));
        }
        if let Some(scope) = self.scope.as_deref().filter(|scope| *scope != "forward") {
            return Err(refuse(
                "scope",
                format!("\"{scope}\" is not a scope: only forward is there"),
            ));
        }
        let action = match self.action.as_deref().unwrap_or("relay") {
            "relay" => Action::Relay,
            "pass" => Action::Pass,
            "drop" => Action::Drop,
            word => {
                return Err(refuse(
                    "action",
                    format!("\"{word}\" is not relay, pass or drop"),
                ));
            }
        };
        let protocols = match self.proto.as_deref().unwrap_or("tcp") {
            "tcp" => vec![Protocol::Tcp],
            "udp" => vec![Protocol::Udp],
            "any" => vec![Protocol::Tcp, Protocol::Udp],
            word => {
                return Err(refuse(
                    "proto",
                    format!("\"{word}\" is not tcp, udp or any"),
                ));
            }
        };
        if action == Action::Relay && protocols.contains(&Protocol::Udp) {
            return Err(refuse(
                "proto",
                "relay takes tcp only: use pass or drop for udp and any".to_owned(),
            ));
        }
        let on_missing = match self.on_missing.as_deref().unwrap_or("drop") {
            "drop" => OnMissing::Drop,
            "pass" => OnMissing::Pass,
            word => {
                return Err(refuse(
                    "on_missing",
                    format!("\"{word}\" is not pass or drop"),
                ));
            }
        };
        if let Some(name) = self.iface.iter().find(|name| !valid_interface_name(name)) {
            return Err(refuse(
                "iface",
                format!("\"{name}\" is not an interface name"),
            ));
        }
        Ok(Rule {
            name,
            protocols,
            source: addresses("src", &self.src)?,
            destination: addresses("dst", &self.dst)?,
            source_ports: ports("sport", &self.sport)?,
            destination_ports: ports("dport", &self.dport)?,
            interfaces: self.iface.clone(),
            action,
            on_missing,
        })
    }
}

fn refuse(key: &'static str, problem: String) -> SpecError {
    SpecError { key, problem }
}

fn addresses(key: &'static str, words: &[String]) -> Result<AddressMatch, SpecError> {
    AddressMatch::parse(words).map_err(|problem| refuse(key, problem))
}

fn ports(key: &'static str, words: &[String]) -> Result<Vec<PortRange>, SpecError> {
    words
        .iter()
        .map(|word| word.parse().map_err(|problem| refuse(key, problem)))
        .collect()
}

/// Whether a rule or an instance can be called so: the name is part of paths and of log lines.
#[must_use]
pub fn valid_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(edit: impl FnOnce(&mut RuleSpec)) -> RuleSpec {
        let mut spec = RuleSpec {
            name: Some("web".into()),
            ..RuleSpec::default()
        };
        edit(&mut spec);
        spec
    }

    #[test]
    fn defaults_are_tcp_and_relay_that_fails_closed() {
        let rule = spec(|_| ()).validate().unwrap();
        assert_eq!(rule.protocols, [Protocol::Tcp]);
        assert_eq!(rule.action, Action::Relay);
        assert_eq!(rule.on_missing, OnMissing::Drop);
        assert!(rule.source.is_any() && rule.destination.is_any());
    }

    #[test]
    fn host_bits_are_taken_out_and_told_of() {
        let mut spec = spec(|spec| {
            spec.dst = vec!["10.1.2.3/8".into(), "10.1.2.3".into(), "x".into()];
            spec.src = vec!["!2001:db8::1/32".into(), "10.0.0.0/8".into()];
        });
        let said = spec.mask_host_bits();
        assert_eq!(spec.dst, ["10.0.0.0/8", "10.1.2.3", "x"]);
        assert_eq!(spec.src, ["!2001:db8::/32", "10.0.0.0/8"]);
        assert_eq!(said.len(), 2);
        assert!(said[1].contains("10.1.2.3/8") && said[1].contains("10.0.0.0/8"));
    }

    #[test]
    fn each_bad_word_is_named_with_its_flag() {
        type Edit = fn(&mut RuleSpec);
        let cases: &[(Edit, &str, &str)] = &[
            (|spec| spec.name = Some("a b".into()), "--name", "\"a b\""),
            (|spec| spec.name = Some("../x".into()), "--name", "\"../x\""),
            (
                |spec| spec.scope = Some("here".into()),
                "--scope",
                "\"here\"",
            ),
            (
                |spec| spec.proto = Some("sctp".into()),
                "--proto",
                "\"sctp\"",
            ),
            (
                |spec| spec.proto = Some("udp".into()),
                "--proto",
                "relay takes tcp only",
            ),
            (
                |spec| spec.action = Some("deny".into()),
                "--action",
                "\"deny\"",
            ),
            (
                |spec| spec.on_missing = Some("fail".into()),
                "--on-missing",
                "\"fail\"",
            ),
            (
                |spec| spec.src = vec!["10.0.0/8".into()],
                "--src",
                "\"10.0.0/8\"",
            ),
            (|spec| spec.dst = vec!["x".into()], "--dst", "\"x\""),
            (|spec| spec.sport = vec!["0".into()], "--sport", "\"0\""),
            (|spec| spec.dport = vec!["9-1".into()], "--dport", "\"9-1\""),
            (
                |spec| spec.iface = vec!["much-too-long-name".into()],
                "--iface",
                "\"much-too-long-name\"",
            ),
        ];
        for (edit, flag, word) in cases {
            let error = spec(edit).validate().unwrap_err().as_flag();
            assert!(
                error.starts_with(&format!("{flag}: ")) && error.contains(word),
                "{error}"
            );
        }
    }
}
