//! Changes of an instance: one at a time, each whole or not at all.

use std::{collections::HashSet, mem};

use tproxy_common::limits::UNATTRIBUTED_SLOT;

use super::{
    ChangeLock, Error, Instance, Interface, NamespaceId, State, StoredRule,
    attachments::Attachments,
};
use crate::{
    compiler::{Source, compile},
    delivery::{Delivery, Framing, Link, Netlink, link_by_name},
    kernel::{Counters, Generation, Maps, RelayCounters},
    rule::{Rule, RuleSpec},
};

/// No rule of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no rule {0}: `tproxy rule list` shows them")]
pub struct RuleNotFound(pub String);

/// The right to change an instance, held until dropped. Edits show in [`Change::state`] and take
/// effect with [`Change::commit`].
pub struct Change {
    instance: Instance,
    maps: Maps,
    state: State,
    _lock: ChangeLock,
}

impl Change {
    /// Waits for its turn.
    ///
    /// # Errors
    ///
    /// When the instance is not there.
    pub fn begin(instance: &Instance) -> Result<Self, Error> {
        let maps = instance.maps()?;
        let lock = ChangeLock::wait(instance)?;
        // Only now: whoever had the lock may have changed or removed everything.
        let state = instance.state()?;
        let change = Self {
            instance: instance.clone(),
            maps,
            state,
            _lock: lock,
        };
        change.remove_stray_links()?;
        Ok(change)
    }

    /// The first change of an instance whose programs are loaded and pinned. Nothing is in force
    /// before it is committed.
    pub(crate) fn establish(instance: &Instance, state: State) -> Result<Self, Error> {
        Ok(Self {
            instance: instance.clone(),
            maps: instance.maps()?,
            state,
            _lock: ChangeLock::wait(instance)?,
        })
    }

    /// The state as edited so far.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The maps of the instance.
    #[must_use]
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Puts the edits in force with one write.
    ///
    /// # Errors
    ///
    /// When the rules do not fit or the kernel refuses; the old state stays in force.
    pub fn commit(mut self) -> Result<State, Error> {
        self.state.generation += 1;
        self.put_in_force()?;
        Ok(self.state)
    }

    fn put_in_force(&mut self) -> Result<(), Error> {
        let state = &self.state;
        let rules: Vec<Rule> = state
            .rules
            .iter()
            .map(|stored| stored.spec.validate())
            .collect::<Result<_, _>>()?;
        let sources: Vec<Source<'_>> = rules
            .iter()
            .zip(&state.rules)
            .map(|(rule, stored)| Source {
                rule,
                slot: stored.slot,
                interfaces: indexes(&state.interfaces, &rule.interfaces),
            })
            .collect();
        let tables = compile(&sources, state.generation)?;
        let directory = self.instance.run_directory();
        state.write(directory)?;
        Generation::install(&self.maps, &tables).inspect_err(|_| state.withdraw(directory))?;
        state.remove_others(directory);
        Ok(())
    }

    /// Adds a rule at a place from 0, and says its name.
    ///
    /// # Errors
    ///
    /// When the rule makes no sense, its name is taken or names an interface that is not attached.
    pub fn add_rule(&mut self, mut spec: RuleSpec, place: usize) -> Result<String, Error> {
        let name = match spec.name.take() {
            Some(name) if self.place_of(&name).is_ok() => return Err(Error::RuleExists(name)),
            Some(name) => name,
            None => self.made_up_name(),
        };
        spec.name = Some(name.clone());
        let rule = spec.validate()?;
        if let Some(missing) = self.first_unattached(&rule.interfaces) {
            return Err(missing);
        }
        let slot = self.free_slot()?;
        Counters::new(&self.maps).reset(slot)?;
        self.state
            .rules
            .insert(place.min(self.state.rules.len()), StoredRule { slot, spec });
        Ok(name)
    }

    /// Adds rules behind all others.
    ///
    /// # Errors
    ///
    /// As [`Change::add_rule`]; the rules before the one that is refused are added.
    pub fn append_rules(&mut self, rules: &[RuleSpec]) -> Result<(), Error> {
        for spec in rules {
            let place = self.state.rules.len();
            self.add_rule(spec.clone(), place)?;
        }
        Ok(())
    }

    /// Where the rule of this name stands.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn place_of(&self, name: &str) -> Result<usize, RuleNotFound> {
        self.state
            .rules
            .iter()
            .position(|rule| rule.name() == name)
            .ok_or_else(|| RuleNotFound(name.to_owned()))
    }

    /// Deletes rules by name.
    ///
    /// # Errors
    ///
    /// When one is not there; none is deleted then.
    pub fn delete_rules(&mut self, names: &[String]) -> Result<(), RuleNotFound> {
        for name in names {
            self.place_of(name)?;
        }
        self.state
            .rules
            .retain(|rule| !names.iter().any(|name| name == rule.name()));
        Ok(())
    }

    /// Deletes all rules, and says how many.
    pub fn flush_rules(&mut self) -> usize {
        mem::take(&mut self.state.rules).len()
    }

    /// Says whether the instance stays when its agent ends.
    pub(crate) fn set_pinned(&mut self, pinned: bool) {
        self.state.pinned = pinned;
    }

    /// Attaches interfaces, all or none. The caller is in the instance's network namespace.
    ///
    /// # Errors
    ///
    /// When one does not exist, is taken or cannot be attached; what was done is undone.
    pub async fn attach(mut self, netlink: &Netlink, names: &[String]) -> Result<State, Error> {
        let _turn = ChangeLock::wait_to_attach()?;
        self.remove_stray_filters(netlink).await?;
        let links = self.attachable(netlink, names).await?;
        let before = self.state.clone();
        let delivery = Delivery::new(netlink.clone(), self.state.assignment());
        let attached = self.attach_all(netlink, &delivery, &links).await;
        let Err(error) = attached else {
            return Ok(self.state);
        };
        self.state = before;
        self.undo_attach()
            .await
            .unwrap_or_else(|error| log::warn!("while undoing: {error}"));
        Err(error)
    }

    /// Takes off what the state does not name. On a connection of its own: one that failed stays
    /// closed.
    async fn undo_attach(&self) -> Result<(), Error> {
        let netlink = Netlink::open()?;
        let links_undone = self.remove_stray_links();
        let filters_undone = self.remove_stray_filters(&netlink).await;
        let delivery = Delivery::new(netlink, self.state.assignment());
        let names = self.state.interface_names();
        let delivery_undone = if names.is_empty() {
            delivery.remove().await
        } else {
            delivery.apply(&names).await
        };
        links_undone.and(filters_undone)?;
        Ok(delivery_undone?)
    }

    async fn attach_all(
        &mut self,
        netlink: &Netlink,
        delivery: &Delivery,
        links: &[Link],
    ) -> Result<(), Error> {
        let mut wanted = self.state.interface_names();
        wanted.extend(links.iter().map(|link| link.name.clone()));
        delivery.apply(&wanted).await?;
        for link in links {
            let interface = self.attach_link(netlink, link).await?;
            self.state.interfaces.push(interface);
        }
        self.state.generation += 1;
        self.put_in_force()
    }

    /// Detaches interfaces, all or none. The caller is in the instance's network namespace.
    ///
    /// # Errors
    ///
    /// When one is not attached. Rules that name it stay and match nothing.
    pub async fn detach(mut self, netlink: &Netlink, names: &[String]) -> Result<State, Error> {
        if let Some(missing) = self.first_unattached(names) {
            return Err(missing);
        }
        self.state
            .interfaces
            .retain(|interface| !names.contains(&interface.name));
        self.state.generation += 1;
        self.put_in_force()?;
        self.remove_stray_links()?;
        self.remove_stray_filters(netlink).await?;
        let delivery = Delivery::new(netlink.clone(), self.state.assignment());
        delivery.apply(&self.state.interface_names()).await?;
        Ok(self.state)
    }

    /// An interface of this instance was deleted.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn interface_gone(mut self, netlink: &Netlink, index: u32) -> Result<State, Error> {
        let Some(place) = self.place_of_interface(index) else {
            return Ok(self.state);
        };
        self.state.interfaces[place].attached = None;
        self.remove_stray_links()?;
        self.remove_stray_filters(netlink).await?;
        self.commit()
    }

    /// An interface of a name that was asked for is there, perhaps again.
    ///
    /// # Errors
    ///
    /// When it cannot be attached.
    pub async fn interface_back(mut self, netlink: &Netlink, link: &Link) -> Result<State, Error> {
        let asked_for = |interface: &Interface| interface.name == link.name;
        let place = self.state.interfaces.iter().position(asked_for);
        let (Some(place), None) = (place, self.place_of_interface(link.index)) else {
            return Ok(self.state);
        };
        let _turn = ChangeLock::wait_to_attach()?;
        self.check_attachable(link)?;
        self.state.interfaces[place].attached = None;
        self.remove_stray_links()?;
        self.remove_stray_filters(netlink).await?;
        self.state.interfaces[place] = self.attach_link(netlink, link).await?;
        self.commit()
    }

    /// An interface of this instance has another name: the rules that name it follow.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn interface_renamed(mut self, link: &Link) -> Result<State, Error> {
        let Some(place) = self.place_of_interface(link.index) else {
            return Ok(self.state);
        };
        let old = mem::replace(&mut self.state.interfaces[place].name, link.name.clone());
        // An absent one of that name has come with it.
        self.state
            .interfaces
            .retain(|interface| interface.name != link.name || interface.attached.is_some());
        for rule in &mut self.state.rules {
            for name in rule.spec.iface.iter_mut().filter(|name| **name == old) {
                name.clone_from(&link.name);
            }
        }
        self.commit()
    }

    /// Takes off what a killed command left on interfaces. The caller is in the instance's network
    /// namespace.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn remove_strays(self, netlink: &Netlink) -> Result<State, Error> {
        self.remove_stray_links()?;
        self.remove_stray_filters(netlink).await?;
        Ok(self.state)
    }

    async fn attachable(&self, netlink: &Netlink, names: &[String]) -> Result<Vec<Link>, Error> {
        let mut links: Vec<Link> = Vec::new();
        for name in names {
            let known = self
                .state
                .interfaces
                .iter()
                .any(|interface| interface.name == *name);
            if known || links.iter().any(|link| link.name == *name) {
                return Err(Error::AttachedAlready(name.clone()));
            }
            let link = link_by_name(netlink, name).await?;
            self.check_attachable(&link)?;
            links.push(link);
        }
        Ok(links)
    }

    fn check_attachable(&self, link: &Link) -> Result<(), Error> {
        check_attachable(&self.instance, link, self.state.namespace)
    }

    async fn attach_link(&self, netlink: &Netlink, link: &Link) -> Result<Interface, Error> {
        self.maps.add_interface(link.index)?;
        let attachments = self.attachments()?;
        let attached = attachments.attach(netlink, link, self.state.tcx).await;
        attached.inspect_err(|_| {
            let _ = self.maps.remove_interface(link.index);
        })?;
        Ok(Interface {
            name: link.name.clone(),
            attached: Some(link.index),
        })
    }

    /// Takes off the tcx links of interfaces that the state does not name: a killed command put
    /// them on and never put them in the state, or took them out of it and never took them off.
    fn remove_stray_links(&self) -> Result<(), Error> {
        let attachments = self.attachments()?;
        for index in attachments.links()? {
            if self.place_of_interface(index).is_none() {
                attachments.detach_link(index)?;
                self.maps.remove_interface(index)?;
            }
        }
        Ok(())
    }

    /// Takes off such filters. Unlike links they can only be reached in the instance's network
    /// namespace.
    async fn remove_stray_filters(&self, netlink: &Netlink) -> Result<(), Error> {
        let attachments = self.attachments()?;
        for index in attachments.filters() {
            if self.place_of_interface(index).is_none() {
                attachments.detach_filter(netlink, index).await?;
                self.maps.remove_interface(index)?;
            }
        }
        Ok(())
    }

    fn attachments(&self) -> Result<Attachments, Error> {
        let pins = self.instance.pins();
        let pins = pins.ok_or_else(|| Error::NotThere(self.instance.name().to_owned()))?;
        Ok(Attachments::new(&self.instance, &pins))
    }

    fn place_of_interface(&self, index: u32) -> Option<usize> {
        self.state
            .interfaces
            .iter()
            .position(|interface| interface.attached == Some(index))
    }

    fn first_unattached(&self, names: &[String]) -> Option<Error> {
        let attached = self.state.interface_names();
        let missing = names.iter().find(|name| !attached.contains(name))?;
        Some(Error::NotAttached {
            interface: missing.clone(),
            instance: self.instance.name().to_owned(),
            attached,
        })
    }

    fn made_up_name(&mut self) -> String {
        loop {
            self.state.next_rule += 1;
            let name = format!("rule-{}", self.state.next_rule);
            if self.place_of(&name).is_err() {
                return name;
            }
        }
    }

    /// A slot that no rule has, nor a flow of a rule that is gone. There are twice as many as rules.
    fn free_slot(&self) -> Result<u32, Error> {
        let taken: HashSet<u32> = self.state.rules.iter().map(|rule| rule.slot).collect();
        let relay = RelayCounters::open(&self.maps)?;
        let free = |slot: &u32| !taken.contains(slot) && relay.get(*slot).live == 0;
        Ok((0..UNATTRIBUTED_SLOT)
            .find(free)
            .unwrap_or(UNATTRIBUTED_SLOT))
    }
}

fn indexes(interfaces: &[Interface], names: &[String]) -> Vec<u32> {
    interfaces
        .iter()
        .filter(|interface| names.contains(&interface.name))
        .filter_map(|interface| interface.attached)
        .collect()
}

/// Checks that an instance can be attached to an interface of this network namespace.
///
/// # Errors
///
/// [`Error::LinkType`] and [`Error::InterfaceTaken`].
pub fn check_attachable(
    instance: &Instance,
    link: &Link,
    namespace: NamespaceId,
) -> Result<(), Error> {
    let interface = link.name.clone();
    if let Framing::Other(kind) = link.framing {
        return Err(Error::LinkType { interface, kind });
    }
    match holder_of(instance, link.index, namespace) {
        Some(instance) => Err(Error::InterfaceTaken {
            interface,
            instance,
        }),
        None => Ok(()),
    }
}

/// The other instance that is attached to this interface.
fn holder_of(own: &Instance, index: u32, namespace: NamespaceId) -> Option<String> {
    Instance::all()
        .into_iter()
        .filter(|other| other.name() != own.name())
        .find(|other| {
            other.state().is_ok_and(|state| {
                state.namespace == namespace && state.attached().any(|of| of == index)
            })
        })
        .map(|other| other.name().to_owned())
}
