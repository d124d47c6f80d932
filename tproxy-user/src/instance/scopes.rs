//! What rules need beside the tables: hooks for the flows of this host's processes, and the listeners
//! of other programs.

use std::thread;

use log::warn;
use tproxy_common::{
    address::Family,
    flow::{Protocol, Scope},
    tables::Action,
};

use super::{AgentLock, Change, Error, Interface, StoredRule};
use crate::{
    delivery::{Delivery, Flows, Netlink},
    kernel::{self, Maps, Settings},
    listener::{self, Absence},
    rule::{Cgroup, Rule},
};

impl Change {
    /// Brings what the rules need into being, before they are in force. Nothing of it does anything
    /// without them.
    pub(super) fn prepare(&mut self, rules: &[Rule]) -> Result<(), Error> {
        let new = self.new_rules(rules);
        for (rule, _) in new.iter().filter(|(rule, _)| rule.takes_answers()) {
            warn!(
                "rule {}: it also takes answers that come to this host's own UDP sockets, those of DNS for instance: give it the dport of a service",
                rule.name
            );
        }
        for (rule, _) in &new {
            self.warn_of_absent_groups(rule);
        }
        let redirects: Vec<_> = new
            .into_iter()
            .filter(|(rule, _)| rule.action == Action::Redirect)
            .collect();
        let opens_local = rules.iter().any(|rule| rule.scope == Scope::Local)
            && !kernel::process_hooks_are_attached(&self.pins()?);
        let opens_answering = self.opens_answering(rules);
        if redirects.is_empty() && !opens_local && !opens_answering {
            return Ok(());
        }
        let agent = AgentLock::holder(&self.instance).and_then(|agent| agent.process());
        let prepare = || -> Result<Vec<Interface>, Error> {
            if !self.state.namespace.enter(agent).map_err(Error::Entering)? {
                return Err(Error::Namespace(self.instance.name().to_owned()));
            }
            for (rule, stored) in &redirects {
                take_listeners(&self.maps, rule, stored)?;
            }
            if opens_local {
                self.open_local()?;
            }
            if opens_answering {
                return block_on(async { self.open_answering(&Netlink::open()?).await })?;
            }
            Ok(Vec::new())
        };
        // A network namespace belongs to a thread, and the caller's is to stay where it is.
        let prepared = thread::scope(|scope| scope.spawn(prepare).join());
        let answering = prepared.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        self.state.answering.extend(answering);
        self.state.local |= opens_local;
        Ok(())
    }

    fn warn_of_absent_groups(&self, rule: &Rule) {
        for group in &rule.cgroups {
            if !self.state.cgroups.contains_key(group) {
                warn!(
                    "rule {}: there is no control group {group}: the rule matches its processes once it is there",
                    rule.name
                );
            }
        }
    }

    /// Takes away what no rule needs any more. Rules and routes of local flows stay to the end of the
    /// instance: running flows need them.
    pub(super) fn tidy(&self, rules: &[Rule]) {
        if rules.iter().any(|rule| rule.scope == Scope::Local) {
            return;
        }
        let detached = self
            .pins()
            .and_then(|pins| Ok(kernel::detach_process_hooks(&pins)?));
        if let Err(error) = detached {
            warn!("hooks of scope local stay, without effect: {error}");
        }
    }

    /// Rules that were not in force before.
    fn new_rules<'r>(&'r self, rules: &'r [Rule]) -> Vec<(&'r Rule, &'r StoredRule)> {
        let is_new = |stored: &StoredRule| {
            let before = self.before.iter().flat_map(|state| &state.rules);
            before.into_iter().all(|known| known != stored)
        };
        let pairs = rules.iter().zip(&self.state.rules);
        pairs.filter(|(_, stored)| is_new(stored)).collect()
    }

    fn pins(&self) -> Result<std::path::PathBuf, Error> {
        let pins = self.instance.pins();
        pins.ok_or_else(|| Error::NotThere(self.instance.name().to_owned()))
    }

    /// Attaches the hooks, and writes the policy rules and routes that bring their flows here. Runs in
    /// the instance's network namespace.
    fn open_local(&self) -> Result<(), Error> {
        let assignment = self.state.assignment();
        let interfaces = self.state.delivering();
        block_on(async {
            let delivery = Delivery::new(Netlink::open()?, assignment);
            let flows = Flows {
                interfaces: &interfaces,
                local: true,
            };
            delivery.apply(&flows).await
        })??;
        let settings = Settings::of_this_namespace(assignment).map_err(Error::Entering)?;
        let root = Cgroup::root().map_err(Error::Cgroups)?;
        kernel::attach_process_hooks(&self.pins()?, &root, &settings)?;
        Ok(())
    }
}

fn block_on<T>(action: impl Future<Output = T>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    Ok(runtime.block_on(action))
}

/// Puts the sockets of a rule's listener where its flows find them. Nobody being there is for
/// `on_missing` to deal with.
fn take_listeners(maps: &Maps, rule: &Rule, stored: &StoredRule) -> Result<(), Error> {
    let Some(address) = rule.listener else {
        return Ok(());
    };
    for protocol in &rule.protocols {
        let found = listener::find(*protocol, address)?;
        if rule.needs_transparent_listener() {
            for socket in &found {
                socket.check_transparent()?;
            }
        }
        if found.is_empty() {
            let absence = listener::absence(*protocol, address)?;
            // One of another network namespace will never do. But containers listen at many a port,
            // so that who has thought of a listener that is not there yet is not refused.
            if absence.elsewhere.is_some() && stored.spec.on_missing.is_none() {
                return Err(Error::ListenerElsewhere(absence));
            }
            warn_of_absence(rule, *protocol, &absence);
        }
        for family in [Family::V4, Family::V6] {
            let serving = found.iter().filter(|found| found.serves(family));
            let sockets = serving.map(|found| &found.socket);
            maps.set_redirect(*protocol, family, stored.slot, sockets)?;
        }
    }
    Ok(())
}

fn warn_of_absence(rule: &Rule, protocol: Protocol, absence: &Absence) {
    // Where a rule is for both protocols, one of them often has no listener.
    if rule.protocols.len() == 1 || protocol == Protocol::Tcp {
        warn!(
            "rule {}: {absence}; on_missing decides until then",
            rule.name
        );
    }
}
