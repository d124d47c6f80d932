//! From the words of a rule to a rule: every word and every combination is held against what makes
//! sense, and all that does not is told at once.

use std::{
    net::{Ipv6Addr, SocketAddr, SocketAddrV4},
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;
use tproxy_common::{
    flow::{Protocol, Scope},
    tables::{Action, OnMissing},
};

use super::{
    AddressMatch, Rule, RuleSpec, SpecError, SpecErrors, lifetime, scope_name, valid_name,
};
use crate::delivery::valid_interface_name;

/// Longest comment, in bytes: it is stored with every generation, and shown on a line.
const LONGEST_COMMENT: usize = 256;

impl RuleSpec {
    /// Checks every word, as far as that goes without knowing its instance.
    ///
    /// # Errors
    ///
    /// Every word and combination that makes no sense.
    pub fn check(&self) -> Result<Rule, SpecErrors> {
        let named = Self {
            name: Some(self.name.clone().unwrap_or_else(|| "rule".into())),
            ..self.clone()
        };
        named.validate()
    }

    /// Checks every word.
    ///
    /// # Errors
    ///
    /// Every word and combination that makes no sense. A missing name is the caller's to make up,
    /// before.
    pub fn validate(&self) -> Result<Rule, SpecErrors> {
        let mut problems = Problems::default();
        let rule = problems.rule(self);
        problems.whose_address(self);
        problems.comment(self);
        problems.combinations(self, &rule);
        if problems.found.is_empty() {
            Ok(rule)
        } else {
            Err(SpecErrors(problems.found))
        }
    }
}

/// What was found wrong so far. What is wrong leaves a default in its place, and the rule is thrown
/// away in the end.
#[derive(Default)]
struct Problems {
    found: Vec<SpecError>,
}

impl Problems {
    fn rule(&mut self, spec: &RuleSpec) -> Rule {
        let action = self.action(spec);
        Rule {
            name: self.name(spec),
            scope: self.scope(spec),
            protocols: self.protocols(spec),
            source: self.addresses("src", &spec.src),
            destination: self.addresses("dst", &spec.dst),
            source_ports: self.words("sport", &spec.sport),
            destination_ports: self.words("dport", &spec.dport),
            interfaces: self.interfaces(spec),
            users: self.words("uid", &spec.uid),
            cgroups: self.words("cgroup", &spec.cgroup),
            action,
            listener: self.listener(spec, action),
            from_client: spec.uses_client_address(),
            on_missing: self.on_missing(spec),
            life: self.life(spec),
        }
    }

    /// What each word allows, but not beside the other. A word that makes no sense has been told
    /// already, and nothing is concluded from it.
    fn combinations(&mut self, spec: &RuleSpec, rule: &Rule) {
        if !self.has_refused("scope") {
            self.combinations_with_scope(spec, rule.scope);
        }
        if !self.has_refused("action") {
            self.combinations_with_action(spec, rule);
        }
        if let (Some(source), Some(destination)) =
            (only_family(&rule.source), only_family(&rule.destination))
            && source != destination
        {
            let problem = format!(
                "it is {destination} only and src is {source} only: no flow is of both families"
            );
            self.refuse("dst", problem);
        }
    }

    fn combinations_with_scope(&mut self, spec: &RuleSpec, scope: Scope) {
        if scope == Scope::Local && !spec.iface.is_empty() {
            self.refuse(
                "iface",
                "scope local has no interface that flows arrive on: leave iface out",
            );
        }
        match scope {
            Scope::Local if spec.uses_client_address() => self.refuse(
                "source",
                "with scope local the client is this host, whose address servers see anyway: leave source out",
            ),
            Scope::Inbound if spec.uses_client_address() => self.refuse(
                "source",
                "with scope inbound the server is this host, and its answers would go to the client, past the relay: leave source out",
            ),
            _ => {}
        }
        for (key, words) in [("uid", &spec.uid), ("cgroup", &spec.cgroup)] {
            if scope != Scope::Local && !words.is_empty() {
                let problem = format!(
                    "only scope local knows whose process opened a flow, and scope is {}",
                    scope_name(scope)
                );
                self.refuse(key, problem);
            }
        }
    }

    fn combinations_with_action(&mut self, spec: &RuleSpec, rule: &Rule) {
        let action = spec.action_word();
        let takes = matches!(rule.action, Action::Relay | Action::Redirect);
        if !takes && spec.to.is_some() {
            self.refuse(
                "to",
                format!("action {action} hands flows to nobody: leave to out"),
            );
        }
        if !takes && spec.on_missing.is_some() {
            let problem = format!("action {action} needs nobody to be there: leave on_missing out");
            self.refuse("on_missing", problem);
        }
        if rule.action != Action::Relay && spec.source.is_some() {
            let problem = format!("action {action} opens no connection: leave source out");
            self.refuse("source", problem);
        }
    }

    fn name(&mut self, spec: &RuleSpec) -> String {
        let name = spec.name.clone().unwrap_or_default();
        if !valid_name(&name) {
            let problem =
                format!("\"{name}\" is not a name: use 1 to 63 letters, digits, '.', '_' or '-'");
            self.refuse("name", problem);
        }
        name
    }

    fn scope(&mut self, spec: &RuleSpec) -> Scope {
        match spec.scope.as_deref() {
            None | Some("forward") => Scope::Forward,
            Some("inbound") => Scope::Inbound,
            Some("local") => Scope::Local,
            Some(word) => {
                self.refuse(
                    "scope",
                    format!("\"{word}\" is not forward, inbound or local"),
                );
                Scope::Forward
            }
        }
    }

    fn protocols(&mut self, spec: &RuleSpec) -> Vec<Protocol> {
        match spec.proto.as_deref() {
            None | Some("tcp") => vec![Protocol::Tcp],
            Some("udp") => vec![Protocol::Udp],
            Some("any") => vec![Protocol::Tcp, Protocol::Udp],
            Some(word) => {
                self.refuse("proto", format!("\"{word}\" is not tcp, udp or any"));
                Vec::new()
            }
        }
    }

    fn action(&mut self, spec: &RuleSpec) -> Action {
        match spec.action_word() {
            "relay" => Action::Relay,
            "redirect" => Action::Redirect,
            "pass" => Action::Pass,
            "drop" => Action::Drop,
            "reject" => Action::Reject,
            word => {
                let problem = format!("\"{word}\" is not relay, redirect, pass, drop or reject");
                self.refuse("action", problem);
                Action::Relay
            }
        }
    }

    fn listener(&mut self, spec: &RuleSpec, action: Action) -> Option<SocketAddr> {
        let to = spec.to.as_deref();
        match (action, to) {
            _ if self.has_refused("action") => None,
            (Action::Redirect, None) => {
                self.refuse(
                    "to",
                    "action redirect needs the ADDR:PORT of a listener on this host",
                );
                None
            }
            (Action::Redirect, Some(word)) => {
                let listener = listener(word);
                if listener.is_none() {
                    let problem = format!(
                        "\"{word}\" is not the ADDR:PORT of a listener, such as 127.0.0.1:8080 or [::1]:8080"
                    );
                    self.refuse("to", problem);
                }
                listener
            }
            (Action::Relay, Some(word)) if word.parse::<SocketAddr>().is_ok() => {
                let problem = format!(
                    "relay goes to an upstream by its name: for the listener {word} use action redirect"
                );
                self.refuse("to", problem);
                None
            }
            (Action::Relay, Some(word)) if word != "direct" => {
                self.refuse(
                    "to",
                    format!("there is no upstream \"{word}\": only direct is there"),
                );
                None
            }
            _ => None,
        }
    }

    fn on_missing(&mut self, spec: &RuleSpec) -> OnMissing {
        match spec.on_missing.as_deref() {
            None | Some("drop") => OnMissing::Drop,
            Some("pass") => OnMissing::Pass,
            Some(word) => {
                self.refuse("on_missing", format!("\"{word}\" is not pass or drop"));
                OnMissing::Drop
            }
        }
    }

    fn whose_address(&mut self, spec: &RuleSpec) {
        match spec.source.as_deref() {
            None | Some("agent" | "client") => {}
            Some(word) => self.refuse("source", format!("\"{word}\" is not agent or client")),
        }
    }

    fn life(&mut self, spec: &RuleSpec) -> Option<Duration> {
        match lifetime::parse(spec.expires.as_deref()?) {
            Ok(life) => Some(life),
            Err(problem) => {
                self.refuse("expires", problem);
                None
            }
        }
    }

    fn comment(&mut self, spec: &RuleSpec) {
        let comment = spec.comment.as_deref().unwrap_or_default();
        if let Some(strange) = comment.chars().find(|character| character.is_control()) {
            let problem = format!("{strange:?} in it is a control character: use one line of text");
            self.refuse("comment", problem);
        }
        if comment.len() > LONGEST_COMMENT {
            let problem = format!("{} bytes are more than {LONGEST_COMMENT}", comment.len());
            self.refuse("comment", problem);
        }
    }

    fn interfaces(&mut self, spec: &RuleSpec) -> Vec<String> {
        for (place, name) in spec.iface.iter().enumerate() {
            if !valid_interface_name(name) {
                let problem = format!("\"{name}\" is not an interface name");
                self.refuse_word("iface", place, problem);
            }
        }
        spec.iface.clone()
    }

    fn addresses(&mut self, key: &'static str, words: &[String]) -> AddressMatch {
        if let Ok(addresses) = AddressMatch::parse(words) {
            return addresses;
        }
        for (place, word) in words.iter().enumerate() {
            if let Err(problem) = AddressMatch::parse(std::slice::from_ref(word)) {
                self.refuse_word(key, place, problem);
            }
        }
        AddressMatch::default()
    }

    fn words<T: FromStr<Err = String>>(&mut self, key: &'static str, words: &[String]) -> Vec<T> {
        let mut parsed = Vec::with_capacity(words.len());
        for (place, word) in words.iter().enumerate() {
            match word.parse() {
                Ok(value) => parsed.push(value),
                Err(problem) => self.refuse_word(key, place, problem),
            }
        }
        parsed
    }

    fn has_refused(&self, key: &str) -> bool {
        self.found.iter().any(|error| error.key == key)
    }

    fn refuse(&mut self, key: &'static str, problem: impl Into<String>) {
        self.found.push(SpecError {
            key,
            word: None,
            problem: problem.into(),
        });
    }

    fn refuse_word(&mut self, key: &'static str, place: usize, problem: String) {
        self.found.push(SpecError {
            key,
            word: Some(place),
            problem,
        });
    }
}

/// The family that all addresses are of, if they name one. A set may hold either.
fn only_family(addresses: &AddressMatch) -> Option<&'static str> {
    if !addresses.include_sets.is_empty() {
        return None;
    }
    let mut families = addresses.include.iter().map(|net| match net {
        IpNet::V4(_) => "IPv4",
        IpNet::V6(_) => "IPv6",
    });
    let first = families.next()?;
    families.all(|family| family == first).then_some(first)
}

/// A v4-mapped address is that of an IPv4 socket; see RFC 4291, 2.5.5.2.
fn listener(word: &str) -> Option<SocketAddr> {
    let address: SocketAddr = word.parse().ok()?;
    let address = match address {
        SocketAddr::V6(v6) => mapped(v6.ip(), v6.port()).unwrap_or(address),
        SocketAddr::V4(_) => address,
    };
    let usable = address.port() != 0 && !address.ip().is_multicast();
    usable.then_some(address)
}

fn mapped(address: &Ipv6Addr, port: u16) -> Option<SocketAddr> {
    let v4 = address.to_ipv4_mapped()?;
    Some(SocketAddrV4::new(v4, port).into())
}

#[cfg(test)]
mod tests;
