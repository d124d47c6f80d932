//! What becomes of a flow right now: a rule that hands flows over needs somebody who is there.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use serde::Serialize;
use tproxy_common::{
    explanation::Presence,
    tables::{Action, OnMissing, RuleEntry},
};

use crate::{
    instance::{AgentLock, Instance, State, StoredRule},
    kernel,
    rule::NamedFlow,
};

/// What becomes of a flow.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Effect {
    /// The action that is taken, `pass` for a flow that is left alone; `None` when that is not known.
    effect: Option<String>,
    /// Why it is another one than the rule's.
    #[serde(skip_serializing_if = "Option::is_none")]
    because: Option<String>,
}

impl Effect {
    /// That of an action, or of no rule, which needs nobody.
    pub(super) fn of_action(action: &str) -> Self {
        Self {
            effect: Some(action.to_owned()),
            because: None,
        }
    }

    /// That of the rule in force that takes a flow.
    pub(super) fn of_rule(
        instance: &Instance,
        state: &State,
        stored: &StoredRule,
        entry: RuleEntry,
        flow: &NamedFlow,
    ) -> Self {
        let action = stored.spec.action_word();
        if !matches!(entry.action(), Action::Relay | Action::Redirect) {
            return Self::of_action(action);
        }
        match presence(instance, state, entry, flow) {
            Ok(presence) => Self::with_presence(
                presence,
                action,
                entry.on_missing(),
                &Absence {
                    has_agent: AgentLock::holder(instance).is_some(),
                    listener: stored
                        .spec
                        .to
                        .as_deref()
                        .filter(|_| entry.taken().redirected),
                    family: family(flow.destination),
                },
            ),
            Err(error) => Self {
                effect: None,
                because: Some(format!("{error:#}")),
            },
        }
    }

    fn with_presence(
        presence: Presence,
        action: &str,
        on_missing: OnMissing,
        absence: &Absence<'_>,
    ) -> Self {
        let on_missing = match on_missing {
            OnMissing::Drop => "drop",
            OnMissing::Pass => "pass",
        };
        match presence {
            Presence::There => Self::of_action(action),
            Presence::Missing => Self {
                effect: Some(on_missing.to_owned()),
                because: Some(format!("{absence}; on_missing is {on_missing}")),
            },
            Presence::LeftAlone => Self {
                effect: Some("pass".to_owned()),
                because: Some("the agent takes no new flows and leaves them alone".to_owned()),
            },
        }
    }

    /// What is to be said of it: nothing when the rule's action is taken.
    pub(super) fn remark(&self) -> Option<String> {
        let because = self.because.as_ref()?;
        Some(match &self.effect {
            Some(effect) => format!("but now {effect}: {because}"),
            None => format!("whether somebody takes it now is not known: {because}"),
        })
    }
}

/// Who is not there.
struct Absence<'a> {
    has_agent: bool,
    /// What the rule redirects to.
    listener: Option<&'a str>,
    family: &'static str,
}

impl std::fmt::Display for Absence<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.listener, self.has_agent) {
            (Some(to), true) => write!(formatter, "nobody takes {} flows at {to}", self.family),
            (Some(to), false) => write!(
                formatter,
                "nobody takes {} flows at {to}, and no agent is there to look for a listener",
                self.family
            ),
            (None, true) => formatter.write_str("the agent takes no new flows"),
            (None, false) => formatter.write_str("no agent is there: `tproxy run` starts one"),
        }
    }
}

fn presence(
    instance: &Instance,
    state: &State,
    entry: RuleEntry,
    flow: &NamedFlow,
) -> anyhow::Result<Presence> {
    let pins = instance.pins().context("there are no pins")?;
    ensure!(
        state.loaded.is_whole_and_current(&pins),
        "the programs are of another build than this command"
    );
    Ok(kernel::ask_presence(
        &pins,
        entry.taken(),
        flow.protocol,
        flow.source,
        flow.destination,
    )?)
}

fn family(destination: SocketAddr) -> &'static str {
    match destination {
        SocketAddr::V4(_) => "IPv4",
        SocketAddr::V6(_) => "IPv6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remark(presence: Presence, on_missing: OnMissing, absence: &Absence<'_>) -> Option<String> {
        Effect::with_presence(presence, "relay", on_missing, absence).remark()
    }

    #[test]
    fn an_action_that_is_not_taken_is_spoken_of() {
        let absence = |has_agent, listener| Absence {
            has_agent,
            listener,
            family: "IPv6",
        };
        let (drop, pass) = (OnMissing::Drop, OnMissing::Pass);
        let there = absence(true, None);
        assert_eq!(remark(Presence::There, drop, &there), None);
        for (presence, on_missing, absence, said) in [
            (
                Presence::Missing,
                drop,
                absence(false, None),
                "but now drop: no agent is there: `tproxy run` starts one; on_missing is drop",
            ),
            (
                Presence::Missing,
                pass,
                absence(true, Some("[::1]:80")),
                "but now pass: nobody takes IPv6 flows at [::1]:80; on_missing is pass",
            ),
            (
                Presence::LeftAlone,
                drop,
                there,
                "but now pass: the agent takes no new flows and leaves them alone",
            ),
        ] {
            assert_eq!(
                remark(presence, on_missing, &absence).as_deref(),
                Some(said)
            );
        }
        let unknown = Effect {
            effect: None,
            because: Some("it sleeps".into()),
        };
        let said = "whether somebody takes it now is not known: it sleeps";
        assert_eq!(unknown.remark().as_deref(), Some(said));
        let value = serde_json::to_value(&unknown).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"effect": null, "because": "it sleeps"})
        );
        let value = serde_json::to_value(Effect::of_action("reject")).unwrap();
        assert_eq!(value, serde_json::json!({"effect": "reject"}));
    }
}
