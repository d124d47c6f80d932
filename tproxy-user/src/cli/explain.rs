//! `tproxy explain`.

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use serde::Serialize;
use tproxy_common::{
    address::Address,
    classifier::classify,
    flow::{Flow, Protocol, Scope},
};

use super::{
    interface_name,
    output::{print_json, print_line},
};
use crate::{
    instance::{Instance, State},
    requirements,
    rule::{Condition, NamedFlow},
};

#[derive(Args)]
#[command(after_help = "Examples:
  tproxy explain tcp 10.1.0.2 192.0.2.9:443
  tproxy explain --iface eth1 tcp '[fd01::2]:50000' '[2001:db8::1]:80'")]
pub(super) struct Arguments {
    /// Interface that the flow arrives on [default: the first attached]
    #[arg(long, value_name = "IF", value_parser = interface_name)]
    iface: Option<String>,
    /// tcp or udp
    #[arg(value_parser = protocol)]
    proto: Protocol,
    /// Client; without a port, one that it could have been given (49152)
    #[arg(value_name = "SRC[:PORT]", value_parser = source)]
    source: Source,
    /// Where the client wants to go
    #[arg(value_name = "DST:PORT")]
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

    fn end(self) -> SocketAddr {
        (self.address, self.port.unwrap_or(Self::EPHEMERAL)).into()
    }
}

#[derive(Serialize)]
struct Answer {
    rule: Option<String>,
    action: String,
    reason: String,
    /// The rules up to the one that takes the flow, each with what was asked of the flow.
    rules: Vec<Considered>,
}

impl Answer {
    fn asks_for_client_port(&self) -> bool {
        let mut conditions = self.rules.iter().flat_map(|rule| &rule.conditions);
        conditions.any(|asked| asked.key == "sport")
    }
}

#[derive(Serialize)]
struct Considered {
    name: String,
    action: String,
    takes: bool,
    conditions: Vec<Asked>,
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
    requirements::check()?;
    if arguments.source.address.is_ipv4() != arguments.destination.is_ipv4() {
        return Err(super::Usage("source and destination are of different families".into()).into());
    }
    let mut answer = explain(instance, arguments)?;
    if arguments.source.port.is_none() && answer.asks_for_client_port() {
        let assumed = format!(" (assuming client port {})", Source::EPHEMERAL);
        answer.reason.push_str(&assumed);
    }
    if json {
        return print_json(&answer);
    }
    for (number, rule) in (1..).zip(&answer.rules) {
        let verdict = if rule.takes { "takes it" } else { "no" };
        let shown = rule
            .conditions
            .iter()
            .filter(|asked| rule.takes || !asked.met);
        let reasons: Vec<String> = shown
            .map(|asked| format!("{} {}", asked.key, asked.text))
            .collect();
        print_line(&format!(
            "{number:>4}  {:<16}{:<8}{verdict}: {}",
            rule.name,
            rule.action,
            reasons.join("; ")
        ))?;
    }
    print_line(&format!("{}: {}", answer.action, answer.reason))
}

fn explain(instance: &Instance, arguments: &Arguments) -> anyhow::Result<Answer> {
    let (state, tables) = instance.in_force()?;
    let (interface, index) = interface(instance, &state, arguments.iface.as_deref())?;
    let named = NamedFlow {
        scope: Scope::Forward,
        owner: None,
        protocol: arguments.proto,
        interface,
        source: arguments.source.end(),
        destination: arguments.destination,
    };
    let rules = considered(&state, &named)?;
    let maps = instance.maps()?;
    if !Address::from(named.destination.ip()).is_forwardable() {
        let reason = format!(
            "{} is no address that is forwarded to",
            named.destination.ip()
        );
        return Ok(Answer {
            rule: None,
            action: "pass".into(),
            reason,
            rules: Vec::new(),
        });
    }
    for (end, role) in [(named.destination, "to"), (named.source, "from")] {
        if maps.is_local(end.ip())? {
            let reason = format!(
                "{} is an address of this host, and traffic {role} it is not forwarded",
                end.ip()
            );
            return Ok(Answer {
                rule: None,
                action: "pass".into(),
                reason,
                rules: Vec::new(),
            });
        }
    }
    let flow = Flow {
        scope: Scope::Forward,
        protocol: named.protocol,
        interface: index,
        source: named.source.ip().into(),
        source_port: named.source.port(),
        destination: named.destination.ip().into(),
        destination_port: named.destination.port(),
    };
    // The tables in force have the last word; what was typed only explains it.
    let Some(found) = classify(&tables, &flow) else {
        return Ok(Answer {
            rule: None,
            action: "pass".into(),
            reason: "no rule takes this flow".into(),
            rules,
        });
    };
    let name = state
        .rules
        .get(found.rule as usize)
        .map(|rule| rule.name().to_owned());
    let rules: Vec<Considered> = rules.into_iter().take(found.rule as usize + 1).collect();
    let action = rules
        .last()
        .map_or_else(|| "relay".into(), |rule| rule.action.clone());
    Ok(Answer {
        reason: format!("by rule {}", name.as_deref().unwrap_or("-")),
        rule: name,
        action,
        rules,
    })
}

fn considered(state: &State, flow: &NamedFlow) -> anyhow::Result<Vec<Considered>> {
    state
        .rules
        .iter()
        .map(|stored| {
            let conditions = stored.spec.validate()?.conditions(flow);
            Ok(Considered {
                name: stored.name().to_owned(),
                action: stored.spec.action_word().to_owned(),
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
    with_port
        .or_else(|_| {
            word.parse().map(|address| Source {
                address,
                port: None,
            })
        })
        .map_err(|_| "not an address, with or without a port".to_owned())
}
