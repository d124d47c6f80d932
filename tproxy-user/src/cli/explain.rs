//! `tproxy explain`.

mod effect;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::Serialize;
use tproxy_common::{
    address::Address,
    classifier::{Match, classify, classify_local, group_class},
    explanation::Explanation,
    flow::{Flow, Protocol, Scope},
};

use super::{
    go_there, interface_name,
    listing::{in_words, seconds_left},
    output::{print_json, print_line, print_lines},
};
use effect::Effect;

use crate::{
    instance::{Instance, State},
    kernel::{self, Generation},
    requirements,
    rule::{Condition, NamedFlow, Owner, scope_name},
    set::Sets,
};

#[derive(Args)]
#[command(after_help = "Examples:
  tproxy explain tcp 10.1.0.2 192.0.2.9:443
  tproxy explain --iface eth1 tcp '[fd01::2]:50000' '[2001:db8::1]:80'")]
pub(super) struct Arguments {
    /// Interface that the flow arrives on [default: the first attached]
    #[arg(long, value_name = "IF", value_parser = interface_name)]
    iface: Option<String>,
    /// Where the flow is caught: forward, inbound or local (as if this command had opened it)
    #[arg(long, value_name = "SCOPE", default_value = "forward", value_parser = scope)]
    scope: Scope,
    /// tcp or udp
    #[arg(value_parser = protocol)]
    proto: Protocol,
    /// Client; without a port, one that it could have been given (49152). With --scope local what the
    /// socket is bound to; 0.0.0.0 and :: stand for one that is not
    #[arg(value_name = "SRC[:PORT]", value_parser = source)]
    source: Source,
    /// Where the client wants to go
    #[arg(value_name = "DST:PORT", value_parser = destination)]
    destination: SocketAddr,
}

/// The client's end, as far as it was typed.
#[derive(Clone, Copy)]
struct Source {
    address: IpAddr,
    port: Option<u16>,
}

impl Source {
    /// The first of the ports that are for clients (RFC 6335, 6).
    const EPHEMERAL: u16 = 49152;

    /// What a flow of this scope is asked about. Who opens one without having bound the socket gets
    /// address and port only when it is decided about.
    fn end(self, scope: Scope) -> SocketAddr {
        let is_unbound = scope == Scope::Local && self.address.is_unspecified();
        let assumed = if is_unbound { 0 } else { Self::EPHEMERAL };
        (self.address, self.port.unwrap_or(assumed)).into()
    }

    /// What is taken for granted of it, as far as rules ask.
    fn assumption(self, scope: Scope, asks: impl Fn(&str) -> bool) -> Option<String> {
        let end = self.end(scope);
        if scope != Scope::Local {
            let is_assumed = self.port.is_none() && asks("sport");
            return is_assumed.then(|| format!("assuming client port {}", end.port()));
        }
        match (asks("src"), asks("sport")) {
            (false, false) => None,
            _ if end.ip().is_unspecified() && end.port() == 0 => {
                Some("for a socket that is not bound".to_owned())
            }
            (_, true) => Some(format!("for a socket that is bound to {end}")),
            (true, false) => Some(format!("for a socket that is bound to {}", end.ip())),
        }
    }
}

#[derive(Serialize)]
struct Answer {
    rule: Option<String>,
    action: String,
    reason: String,
    /// What becomes of the flow now.
    #[serde(flatten)]
    effect: Effect,
    /// The rules up to the one that takes the flow, each with what was asked of the flow.
    rules: Vec<Considered>,
    /// The same question, answered by the kernel.
    kernel: KernelAnswer,
}

#[derive(Serialize)]
#[serde(untagged)]
enum KernelAnswer {
    /// The rule by which it would take the flow.
    Rule { rule: Option<String>, agrees: bool },
    /// It could not be asked.
    Unasked { error: String },
}

impl Answer {
    fn asks(&self, key: &str) -> bool {
        let mut conditions = self.rules.iter().flat_map(|rule| &rule.conditions);
        conditions.any(|asked| asked.key == key)
    }
}

#[derive(Serialize)]
struct Considered {
    name: String,
    action: String,
    takes: bool,
    /// Seconds that are left of its life; 0 when it is over, and the next change deletes the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in: Option<u64>,
    conditions: Vec<Asked>,
}

impl Considered {
    /// Its line, but for its number.
    fn line(&self) -> String {
        let verdict = if self.takes { "takes it" } else { "no" };
        let conditions = self.conditions.iter();
        let shown = conditions.filter(|asked| self.takes || !asked.met);
        let mut reasons: Vec<String> = shown
            .map(|asked| format!("{} {}", asked.key, asked.text))
            .collect();
        reasons.extend(self.expires_in.map(|left| match left {
            0 => "expired, and in force until the next change".to_owned(),
            left => format!("expires in {}", in_words(left)),
        }));
        format!(
            "{:<16}{:<9}{verdict}: {}",
            self.name,
            self.action,
            reasons.join("; ")
        )
    }
}

#[derive(Serialize)]
struct Asked {
    key: &'static str,
    met: bool,
    text: String,
}

pub(super) fn execute(
    instance: &Instance,
    arguments: &Arguments,
    json: bool,
) -> anyhow::Result<()> {
    if arguments.source.address.is_ipv4() != arguments.destination.is_ipv4() {
        return Err(super::Usage("source and destination are of different families".into()).into());
    }
    requirements::check()?;
    let mut answer = explain_one_generation(instance, arguments)?;
    let source = arguments.source;
    if let Some(assumption) = source.assumption(arguments.scope, |key| answer.asks(key)) {
        answer.reason = format!("{} ({assumption})", answer.reason);
    }
    if json {
        return print_json(&answer);
    }
    for (number, rule) in (1..).zip(&answer.rules) {
        print_line(&format!("{number:>4}  {}", rule.line()))?;
    }
    print_line(&format!("{}: {}", answer.action, answer.reason))?;
    print_lines(
        [answer.effect.remark(), answer.kernel.remark()]
            .iter()
            .flatten(),
    )
}

impl KernelAnswer {
    /// What is to be said of it: nothing when it agrees.
    fn remark(&self) -> Option<String> {
        match self {
            Self::Rule { agrees: true, .. } => None,
            Self::Rule { rule: None, .. } => Some("kernel: differs, no rule takes it".to_owned()),
            Self::Rule {
                rule: Some(rule), ..
            } => Some(format!("kernel: differs, rule {rule} takes it")),
            Self::Unasked { error } => Some(format!("kernel: not asked: {error}")),
        }
    }
}

/// The rules may change between the two answers, which is no difference.
fn explain_one_generation(instance: &Instance, arguments: &Arguments) -> anyhow::Result<Answer> {
    const ATTEMPTS: usize = 5;
    for _ in 1..ATTEMPTS {
        let (answer, generation) = explain(instance, arguments)?;
        let differs = matches!(answer.kernel, KernelAnswer::Rule { agrees: false, .. });
        if !differs || instance.in_force()?.1.number() == generation {
            return Ok(answer);
        }
    }
    explain(instance, arguments).map(|(answer, _)| answer)
}

fn explain(instance: &Instance, arguments: &Arguments) -> anyhow::Result<(Answer, u64)> {
    let (state, tables, sets) = instance.in_force_with_sets(|_| true)?;
    let (interface, index) = interface(instance, &state, arguments.iface.as_deref())?;
    let flow = NamedFlow {
        scope: arguments.scope,
        owner: (arguments.scope == Scope::Local).then(Owner::of_this_process),
        protocol: arguments.proto,
        interface,
        source: arguments.source.end(arguments.scope),
        destination: arguments.destination,
    };
    let verdict = judge(instance, &state, &sets, &tables, &flow, index)?;
    let kernel = match ask_kernel(instance, &state, &flow, index) {
        Ok(rule) => KernelAnswer::Rule {
            agrees: rule == verdict.rule,
            rule,
        },
        Err(error) => KernelAnswer::Unasked {
            error: format!("{error:#}"),
        },
    };
    let taking = verdict
        .taking
        .and_then(|found| Some((state.rules.get(found.rule as usize)?, found.entry)));
    let effect = match taking {
        Some((stored, entry)) => Effect::of_rule(instance, &state, stored, entry, &flow),
        None => Effect::of_action(&verdict.action),
    };
    let answer = Answer {
        rule: verdict.rule,
        action: verdict.action,
        effect,
        reason: verdict.reason,
        rules: verdict.rules,
        kernel,
    };
    Ok((answer, tables.number()))
}

/// The rule by which the kernel would take the flow.
fn ask_kernel(
    instance: &Instance,
    state: &State,
    flow: &NamedFlow,
    interface: u32,
) -> anyhow::Result<Option<String>> {
    ensure!(
        flow.scope == Scope::Forward,
        "it can be asked about forwarded flows only"
    );
    let pins = instance.pins().context("there are no pins")?;
    ensure!(
        state.loaded.is_whole_and_current(&pins),
        "the programs are of another build than this command"
    );
    go_there(instance, state)?;
    let said = kernel::ask(
        &pins,
        flow.protocol,
        flow.source,
        flow.destination,
        interface,
    )?;
    Ok(match said {
        Explanation::Rule(rule) => {
            let rule = state.rules.get(rule as usize);
            Some(
                rule.context("of a rule that is not there")?
                    .name()
                    .to_owned(),
            )
        }
        _ => None,
    })
}

/// What the rules of the state and the tables say.
struct Verdict {
    rule: Option<String>,
    action: String,
    reason: String,
    /// The rule that takes the flow, as the tables have it.
    taking: Option<Match>,
    rules: Vec<Considered>,
}

fn judge(
    instance: &Instance,
    state: &State,
    sets: &Sets,
    tables: &Generation,
    named: &NamedFlow,
    index: u32,
) -> anyhow::Result<Verdict> {
    let rules = considered(state, sets, named)?;
    if let Some(reason) = out_of_scope(instance, named)? {
        return Ok(Verdict {
            rule: None,
            action: "pass".into(),
            reason,
            taking: None,
            rules: Vec::new(),
        });
    }
    let flow = Flow {
        scope: named.scope,
        protocol: named.protocol,
        interface: index,
        source: named.source.ip().into(),
        source_port: named.source.port(),
        destination: named.destination.ip().into(),
        destination_port: named.destination.port(),
    };
    // The tables in force have the last word; what was typed only explains it.
    let found = match &named.owner {
        Some(owner) => {
            let groups = owner.groups()?;
            classify_local(tables, &flow, owner.uid, |header, level| {
                let group = groups.get(level as usize - 1)?;
                group_class(tables, header, *group)
            })
        }
        None => classify(tables, &flow),
    };
    let Some(found) = found else {
        return Ok(Verdict {
            rule: None,
            action: "pass".into(),
            reason: "no rule takes this flow".into(),
            taking: None,
            rules,
        });
    };
    let name = state
        .rules
        .get(found.rule as usize)
        .map(|rule| rule.name().to_owned());
    let mut rules: Vec<Considered> = rules.into_iter().take(found.rule as usize + 1).collect();
    if found.entry.shuns(&flow.destination) {
        let text = format!("{} is link-local and not named", named.destination.ip());
        let reason = format!(
            "{}: rule {} takes such addresses only if a CIDR of its dst, or of a set there, lies within 169.254.0.0/16",
            text,
            name.as_deref().unwrap_or("-")
        );
        if let Some(rule) = rules.last_mut() {
            rule.takes = false;
            rule.conditions.push(Asked {
                key: "dst",
                met: false,
                text,
            });
        }
        return Ok(Verdict {
            rule: None,
            action: "pass".into(),
            reason,
            taking: None,
            rules,
        });
    }
    let action = rules
        .last()
        .map_or_else(|| "relay".into(), |rule| rule.action.clone());
    Ok(Verdict {
        reason: format!("by rule {}", name.as_deref().unwrap_or("-")),
        rule: name,
        action,
        taking: Some(found),
        rules,
    })
}

/// Why a flow between these ends is no rule's of this scope to decide about.
fn out_of_scope(instance: &Instance, flow: &NamedFlow) -> anyhow::Result<Option<String>> {
    let (source, destination) = (flow.source.ip(), flow.destination.ip());
    let maps = instance.maps()?;
    let is_forwardable = Address::from(destination).is_forwardable();
    let reason = match flow.scope {
        Scope::Forward if !is_forwardable => {
            format!("{destination} is no address that is forwarded to")
        }
        Scope::Forward if maps.is_local(destination)? => {
            format!("{destination} is an address of this host, and traffic to it is not forwarded")
        }
        Scope::Forward if maps.is_local(source)? => {
            format!("{source} is an address of this host, and traffic from it is not forwarded")
        }
        Scope::Local if !is_forwardable => {
            format!("{destination} is no address of a host beyond this one's links")
        }
        Scope::Local if maps.is_local(destination)? => format!(
            "{destination} is an address of this host, and what it says to itself is left alone"
        ),
        Scope::Inbound if !maps.is_local(destination)? => {
            format!("{destination} is no address of this host, and traffic to it is not inbound")
        }
        Scope::Inbound if maps.is_local(source)? => {
            format!("{source} is an address of this host, and what it says to itself is left alone")
        }
        _ => return Ok(None),
    };
    Ok(Some(reason))
}

fn considered(state: &State, sets: &Sets, flow: &NamedFlow) -> anyhow::Result<Vec<Considered>> {
    state
        .rules
        .iter()
        .map(|stored| {
            let conditions = stored.spec.validate()?.conditions(flow, sets);
            Ok(Considered {
                name: stored.name().to_owned(),
                action: stored.spec.action_word().to_owned(),
                expires_in: seconds_left(stored)?,
                takes: conditions.iter().all(|condition| condition.met),
                conditions: conditions
                    .into_iter()
                    .map(|Condition { key, met, text }| Asked { key, met, text })
                    .collect(),
            })
        })
        .collect()
}

/// The interface that was named, or the first that is attached, with its index; 0, which no
/// interface has, when none is.
fn interface(
    instance: &Instance,
    state: &State,
    name: Option<&str>,
) -> anyhow::Result<(String, u32)> {
    let mut attached = state
        .interfaces
        .iter()
        .filter_map(|interface| Some((interface.name.clone(), interface.attached?)));
    match name {
        None => Ok(attached.next().unwrap_or_else(|| ("-".into(), 0))),
        Some(name) => attached.find(|(of, _)| of == name).ok_or_else(|| {
            crate::instance::Error::NotAttached {
                interface: name.to_owned(),
                instance: instance.name().to_owned(),
                attached: state.interface_names(),
            }
            .into()
        }),
    }
}

fn scope(word: &str) -> Result<Scope, String> {
    [Scope::Forward, Scope::Inbound, Scope::Local]
        .into_iter()
        .find(|scope| scope_name(*scope) == word)
        .ok_or_else(|| "not forward, inbound or local".to_owned())
}

fn protocol(word: &str) -> Result<Protocol, String> {
    match word {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err("not tcp or udp".to_owned()),
    }
}

fn source(word: &str) -> Result<Source, String> {
    let with_port = word.parse().map(|end: SocketAddr| Source {
        address: end.ip(),
        port: Some(end.port()),
    });
    with_port.or_else(|_| {
        let address = address(word).ok_or("not an address, with or without a port")?;
        Ok(Source {
            address,
            port: None,
        })
    })
}

fn destination(word: &str) -> Result<SocketAddr, String> {
    word.parse().map_err(|_| match address(word) {
        Some(IpAddr::V4(v4)) => format!("the port is missing: {v4}:80, for example"),
        Some(IpAddr::V6(v6)) => format!("the port is missing: [{v6}]:80, for example"),
        None => "not an address with a port".to_owned(),
    })
}

/// An address by itself, of IPv6 with or without brackets.
fn address(word: &str) -> Option<IpAddr> {
    let bare = word
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    match bare {
        Some(bare) => bare.parse().map(IpAddr::V6).ok(),
        None => word.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{KernelAnswer, destination, source};

    #[test]
    fn ends_of_a_flow_are_read_with_and_without_brackets() {
        for (word, address, port) in [
            ("192.0.2.1", "192.0.2.1", None),
            ("192.0.2.1:5", "192.0.2.1", Some(5)),
            ("2001:db8::1", "2001:db8::1", None),
            ("[2001:db8::1]", "2001:db8::1", None),
            ("[2001:db8::1]:5", "2001:db8::1", Some(5)),
        ] {
            let read = source(word).unwrap_or_else(|error| panic!("{word}: {error}"));
            assert_eq!(read.address, address.parse::<std::net::IpAddr>().unwrap());
            assert_eq!(read.port, port, "{word}");
        }
        for word in [
            "",
            "[]",
            "[192.0.2.1]",
            "[2001:db8::1",
            "192.0.2.1:x",
            "host",
        ] {
            assert!(source(word).is_err(), "{word}");
        }
    }

    #[test]
    fn a_destination_without_a_port_is_told_how_to_have_one() {
        assert_eq!(
            destination("192.0.2.1:80"),
            Ok("192.0.2.1:80".parse().unwrap())
        );
        let missing = |address| Err(format!("the port is missing: {address}:80, for example"));
        assert_eq!(destination("192.0.2.1"), missing("192.0.2.1"));
        for word in ["2001:db8::1", "[2001:db8::1]"] {
            assert_eq!(destination(word), missing("[2001:db8::1]"));
        }
        assert_eq!(
            destination("host:80"),
            Err("not an address with a port".to_owned())
        );
    }

    #[test]
    fn a_kernel_that_differs_is_spoken_of() {
        let rule = |rule: Option<&str>, agrees| KernelAnswer::Rule {
            rule: rule.map(str::to_owned),
            agrees,
        };
        let unasked = KernelAnswer::Unasked {
            error: "it sleeps".into(),
        };
        for (answer, remark, value) in [
            (
                rule(Some("web"), true),
                None,
                json!({"rule": "web", "agrees": true}),
            ),
            (
                rule(None, true),
                None,
                json!({"rule": null, "agrees": true}),
            ),
            (
                rule(Some("web"), false),
                Some("kernel: differs, rule web takes it"),
                json!({"rule": "web", "agrees": false}),
            ),
            (
                rule(None, false),
                Some("kernel: differs, no rule takes it"),
                json!({"rule": null, "agrees": false}),
            ),
            (
                unasked,
                Some("kernel: not asked: it sleeps"),
                json!({"error": "it sleeps"}),
            ),
        ] {
            assert_eq!(answer.remark().as_deref(), remark);
            assert_eq!(serde_json::to_value(&answer).unwrap(), value);
        }
    }
}
