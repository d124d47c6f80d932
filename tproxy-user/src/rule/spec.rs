//! A rule as it is typed: flags of the command line, keys of a file, fields of JSON.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{address::masked, owner::user_id};

/// The words of a rule, before they are checked.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[command(next_help_heading = "Rule")]
pub struct RuleSpec {
    /// Unique name; made up (rule-7) when left out
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,

    /// Where flows are caught: forward (routed through this host), inbound (addressed to it) or
    /// local (opened by its processes) [default: forward]
    #[arg(long, value_name = "SCOPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,

    /// tcp, udp or any [default: tcp]
    #[arg(long, value_name = "PROTO")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,

    /// Source CIDRs, addresses, set:NAME or @FILE; ! before one excludes it
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub src: Vec<String>,

    /// Destination CIDRs, addresses, set:NAME or @FILE; ! before one excludes it
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dst: Vec<String>,

    /// Source ports and ranges: 1024-65535
    #[arg(long, value_name = "PORT,...", value_delimiter = ',')]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sport: Vec<String>,

    /// Destination ports and ranges: 80,443,8000-8999
    #[arg(long, value_name = "PORT,...", value_delimiter = ',')]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dport: Vec<String>,

    /// Interfaces that it holds for
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub iface: Vec<String>,

    /// Users, user ids and ranges of ids whose processes open flows; with --scope local
    #[arg(long, value_name = "USER,...", value_delimiter = ',')]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uid: Vec<String>,

    /// Control groups whose processes open flows, below /sys/fs/cgroup; with --scope local
    #[arg(long, value_name = "PATH,...", value_delimiter = ',')]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cgroup: Vec<String>,

    /// relay, redirect, pass, drop or reject [default: relay]
    #[arg(long, value_name = "ACTION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,

    /// For redirect: ADDR:PORT of a listener on this host; for relay: direct
    #[arg(long, value_name = "WHERE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,

    /// For relay, whose address the server sees: agent or client; client with --scope forward
    /// [default: agent]
    #[arg(long, value_name = "WHOSE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,

    /// When nobody is there to take a flow: drop (TCP gets RST) or pass [default: drop]
    #[arg(long, value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_missing: Option<String>,

    /// After how long the rule is gone: 30s, 2h
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,

    /// A text that is shown with the rule
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// A CIDR whose host bits were taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masked {
    /// The key.
    pub key: &'static str,
    /// Which of its words, from 0.
    pub word: usize,
    /// What became of it.
    pub text: String,
}

impl RuleSpec {
    /// Whether nothing at all was typed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether servers are to see the client's address.
    #[must_use]
    pub fn uses_client_address(&self) -> bool {
        self.source.as_deref() == Some("client")
    }

    /// Where it takes flows, as it is typed.
    #[must_use]
    pub fn scope_word(&self) -> &str {
        self.scope.as_deref().unwrap_or("forward")
    }

    /// What it does, as it is typed.
    #[must_use]
    pub fn action_word(&self) -> &str {
        self.action.as_deref().unwrap_or("relay")
    }

    /// Takes the host bits out of CIDRs, and says of each what became of it.
    pub fn mask_host_bits(&mut self) -> Vec<Masked> {
        let mut said = Vec::new();
        for (key, words) in [("src", &mut self.src), ("dst", &mut self.dst)] {
            for (place, word) in words.iter_mut().enumerate() {
                if let Some(masked) = masked(word) {
                    said.push(Masked {
                        key,
                        word: place,
                        text: format!("\"{word}\" has host bits set: taken as {masked}"),
                    });
                    *word = masked;
                }
            }
        }
        said
    }

    /// Writes the ids of users in place of their names: what is stored does not change its meaning
    /// with the list of users. Names that nobody has are left for the check to refuse.
    pub fn resolve_users(&mut self) {
        for word in &mut self.uid {
            if let Some(id) = user_id(word) {
                *word = id.to_string();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_taken_out_and_told_of() {
        let mut spec = RuleSpec {
            dst: vec!["10.1.2.3/8".into(), "10.1.2.3".into(), "x".into()],
            src: vec!["!2001:db8::1/32".into(), "10.0.0.0/8".into()],
            ..RuleSpec::default()
        };
        let said = spec.mask_host_bits();
        assert_eq!(spec.dst, ["10.0.0.0/8", "10.1.2.3", "x"]);
        assert_eq!(spec.src, ["!2001:db8::/32", "10.0.0.0/8"]);
        let places: Vec<_> = said
            .iter()
            .map(|masked| (masked.key, masked.word))
            .collect();
        assert_eq!(places, [("src", 0), ("dst", 0)]);
        assert_eq!(
            said[1].text,
            "\"10.1.2.3/8\" has host bits set: taken as 10.0.0.0/8"
        );
    }

    #[test]
    fn users_become_their_ids() {
        let mut spec = RuleSpec {
            uid: ["root", "1000", "nosuchuser", "5-7"].map(Into::into).into(),
            ..RuleSpec::default()
        };
        spec.resolve_users();
        assert_eq!(spec.uid, ["0", "1000", "nosuchuser", "5-7"]);
    }
}
