//! Changes of an instance: one at a time, each whole or not at all.

use std::{collections::HashSet, mem};

use tproxy_common::limits::UNATTRIBUTED_SLOT;

use super::{ChangeLock, Error, Instance, Interface, NamespaceId, State, StoredRule};
use crate::{
    compiler::{Source, compile},
    delivery::{Delivery, Framing, Link, Netlink, link_by_name, remove_unused_clsact},
    kernel::{
        Attachment, Counters, Generation, Maps, RelayCounters, attach_interface, detach_interface,
        pinned_links,
    },
    rule::{Cgroup, Rule, RuleSpec},
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
        change.remove_strays()?;
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
                cgroups: rule.cgroups.iter().filter_map(present).collect(),
            })
            .collect();
        let tables = compile(&sources, state.generation)?;
        let directory = self.instance.run_directory();
        state.write(directory)?;
        Generation::install(&self.maps, &tables)?;
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

    /// Attaches interfaces, all or none. The caller is in the instance's network namespace.
    ///
    /// # Errors
    ///
    /// When one does not exist, is taken or cannot be attached; what was done is undone.
    pub async fn attach(mut self, netlink: &Netlink, names: &[String]) -> Result<State, Error> {
        let _turn = ChangeLock::wait_to_attach()?;
        let before = self.state.interface_names();
        let links = self.attachable(netlink, names).await?;
        let delivery = Delivery::new(netlink.clone(), self.state.assignment());
        let mut attached = Vec::new();
        let result = async {
            let wanted: Vec<String> = before.iter().chain(names).cloned().collect();
            delivery.apply(&wanted).await?;
            for link in &links {
                let interface = self.attach_link(link)?;
                attached.push(interface);
            }
            self.state.interfaces.extend(attached.iter().cloned());
            self.state.generation += 1;
            self.put_in_force()
        }
        .await;
        if let Err(error) = result {
            for interface in &attached {
                let undone = self.detach_link(interface);
                let undone = undone.and(release_qdisc(netlink, interface).await);
                undone.unwrap_or_else(|error| log::warn!("while undoing: {error}"));
            }
            let undone = if before.is_empty() {
                delivery.remove().await
            } else {
                delivery.apply(&before).await
            };
            undone.unwrap_or_else(|error| log::warn!("while undoing: {error}"));
            return Err(error);
        }
        Ok(self.state)
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
        let (gone, kept) = mem::take(&mut self.state.interfaces)
            .into_iter()
            .partition(|interface| names.contains(&interface.name));
        self.state.interfaces = kept;
        self.state.generation += 1;
        self.put_in_force()?;
        for interface in &gone {
            self.detach_link(interface)?;
            release_qdisc(netlink, interface).await?;
        }
        let delivery = Delivery::new(netlink.clone(), self.state.assignment());
        delivery.apply(&self.state.interface_names()).await?;
        Ok(self.state)
    }

    /// An interface of this instance was deleted.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn interface_gone(mut self, index: u32) -> Result<State, Error> {
        let Some(place) = self.place_of_interface(index) else {
            return Ok(self.state);
        };
        let interface = self.state.interfaces[place].clone();
        self.detach_link(&interface)?;
        self.state.interfaces[place].attached = None;
        self.commit()
    }

    /// An interface of a name that was asked for is there, perhaps again.
    ///
    /// # Errors
    ///
    /// When it cannot be attached.
    pub fn interface_back(mut self, link: &Link) -> Result<State, Error> {
        let asked_for = |interface: &Interface| interface.name == link.name;
        let place = self.state.interfaces.iter().position(asked_for);
        let (Some(place), None) = (place, self.place_of_interface(link.index)) else {
            return Ok(self.state);
        };
        let _turn = ChangeLock::wait_to_attach()?;
        self.check_attachable(link)?;
        let old = self.state.interfaces[place].clone();
        self.detach_link(&old)?;
        self.state.interfaces[place] = self.attach_link(link)?;
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
        let interface = link.name.clone();
        if let Framing::Other(kind) = link.framing {
            return Err(Error::LinkType { interface, kind });
        }
        match holder_of(&self.instance, link.index, self.state.namespace) {
            Some(instance) => Err(Error::InterfaceTaken {
                interface,
                instance,
            }),
            None => Ok(()),
        }
    }

    fn attach_link(&self, link: &Link) -> Result<Interface, Error> {
        let pins = self.pins()?;
        self.maps.add_interface(link.index)?;
        let attachment = attach_interface(&pins, link, self.state.tcx).inspect_err(|_| {
            let _ = self.maps.remove_interface(link.index);
        })?;
        Ok(Interface {
            name: link.name.clone(),
            attached: Some((link.index, attachment)),
        })
    }

    fn detach_link(&self, interface: &Interface) -> Result<(), Error> {
        let Some((index, attachment)) = interface.attached else {
            return Ok(());
        };
        detach_interface(&self.pins()?, &interface.name, index, attachment)?;
        self.maps.remove_interface(index)?;
        Ok(())
    }

    /// Detaches what a killed command attached and never put in the state, or took out of the state
    /// and never detached.
    fn remove_strays(&self) -> Result<(), Error> {
        for index in pinned_links(&self.pins()?)? {
            if self.place_of_interface(index).is_none() {
                log::warn!("detaching a stray program from the interface with index {index}");
                detach_interface(&self.pins()?, "", index, Attachment::Tcx)?;
                self.maps.remove_interface(index)?;
            }
        }
        Ok(())
    }

    fn pins(&self) -> Result<std::path::PathBuf, Error> {
        self.instance
            .pins()
            .ok_or_else(|| Error::NotThere(self.instance.name().to_owned()))
    }

    fn place_of_interface(&self, index: u32) -> Option<usize> {
        self.state
            .interfaces
            .iter()
            .position(|interface| interface.attached.is_some_and(|(of, _)| of == index))
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

/// Takes away the qdisc that was made for an interface.
pub(super) async fn release_qdisc(netlink: &Netlink, interface: &Interface) -> Result<(), Error> {
    if let Some((
        index,
        Attachment::Clsact {
            made_qdisc: true, ..
        },
    )) = interface.attached
    {
        remove_unused_clsact(netlink, &interface.name, index).await?;
    }
    Ok(())
}

fn indexes(interfaces: &[Interface], names: &[String]) -> Vec<u32> {
    interfaces
        .iter()
        .filter(|interface| names.contains(&interface.name))
        .filter_map(|interface| Some(interface.attached?.0))
        .collect()
}

/// The id of a control group that is there. Its rule matches nothing until it is, as with an
/// interface.
fn present(group: &Cgroup) -> Option<u64> {
    let id = group.id();
    id.inspect_err(|error| log::warn!("control group {group}: {error}"))
        .unwrap_or_default()
}

/// The other instance that is attached to this interface.
fn holder_of(own: &Instance, index: u32, namespace: NamespaceId) -> Option<String> {
    Instance::all()
        .into_iter()
        .filter(|other| other.name() != own.name())
        .find(|other| {
            other.state().is_ok_and(|state| {
                state.namespace == namespace
                    && state
                        .interfaces
                        .iter()
                        .any(|interface| interface.attached.is_some_and(|(of, _)| of == index))
            })
        })
        .map(|other| other.name().to_owned())
}
