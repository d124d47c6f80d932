//! Changes of the interfaces of an instance.

use std::mem;

use tproxy_common::attachment::FULL;

use super::{
    Change, ChangeLock, Error, Instance, Interface, NamespaceId, State, attachments::Attachments,
};
use crate::delivery::{
    Delivery, Framing, Link, Netlink, controllers, destroy_lingering, link_by_name, local_addresses,
};

impl Change {
    /// Attaches interfaces, all or none. The caller is in the instance's network namespace.
    ///
    /// # Errors
    ///
    /// When one does not exist, is taken or cannot be attached; what was done is undone.
    pub async fn attach(mut self, netlink: &Netlink, names: &[String]) -> Result<State, Error> {
        let _turn = ChangeLock::wait_to_attach()?;
        let before = self.state.clone();
        self.forget_dead_interfaces(netlink).await?;
        self.remove_stray_links()?;
        self.remove_stray_filters(netlink).await?;
        let links = self.attachable(netlink, names).await?;
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
        self.declare_interfaces()?;
        let names = self.state.delivering();
        let delivery_undone = if names.is_empty() && !self.state.local {
            delivery.remove().await
        } else {
            delivery.apply(&self.state.flows(&names)).await
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
        let mut wanted = self.state.delivering();
        wanted.extend(links.iter().map(|link| link.name.clone()));
        delivery.apply(&self.state.flows(&wanted)).await?;
        for link in links {
            let interface = self.attach_link(netlink, link).await?;
            // An absent one of that name has come.
            self.state.interfaces.retain(|one| one.name != link.name);
            self.state.interfaces.push(interface);
        }
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
        let local = local_addresses(netlink, self.state.assignment().table).await?;
        // As in `clear`. Those of other interfaces go as well, since none says where it came from.
        destroy_lingering(&local);
        let (detached, others) = mem::take(&mut self.state.interfaces)
            .into_iter()
            .partition(|interface| names.contains(&interface.name));
        self.state.interfaces = others;
        self.keep_for_answers(netlink, detached).await?;
        self.put_in_force()?;
        self.declare_interfaces()?;
        self.remove_stray_links()?;
        self.remove_stray_filters(netlink).await?;
        destroy_lingering(&local);
        let delivery = Delivery::new(netlink.clone(), self.state.assignment());
        let names = self.state.delivering();
        delivery.apply(&self.state.flows(&names)).await?;
        Ok(self.state)
    }

    /// An interface of this instance was deleted.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn interface_gone(mut self, netlink: &Netlink, index: u32) -> Result<State, Error> {
        match self.place_of_interface(index) {
            Some(place) => self.state.interfaces[place].attached = None,
            None if self.is_carrying(index) => self.forget_answering(index),
            None => return Ok(self.state),
        }
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
        self.check_attachable(netlink, link).await?;
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
            return self.answering_renamed(link);
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

    /// Makes interfaces absent that something else detached, or that were deleted while there was no
    /// agent.
    async fn forget_dead_interfaces(&mut self, netlink: &Netlink) -> Result<(), Error> {
        let attachments = self.attachments()?;
        for interface in &mut self.state.interfaces {
            if let Some(index) = interface.attached
                && !attachments.holds(netlink, index).await?
            {
                interface.attached = None;
            }
        }
        let mut held = Vec::new();
        for interface in mem::take(&mut self.state.answering) {
            if let Some(index) = interface.attached
                && attachments.holds(netlink, index).await?
            {
                held.push(interface);
            }
        }
        self.state.answering = held;
        Ok(())
    }

    async fn attachable(&self, netlink: &Netlink, names: &[String]) -> Result<Vec<Link>, Error> {
        let mut links: Vec<Link> = Vec::new();
        for name in names {
            let known = self
                .state
                .interfaces
                .iter()
                .any(|interface| interface.name == *name && interface.attached.is_some());
            if known {
                return Err(Error::AttachedAlready(name.clone()));
            }
            if links.iter().any(|link| link.name == *name) {
                return Err(Error::NamedTwice(name.clone()));
            }
            let link = link_by_name(netlink, name).await?;
            self.check_attachable(netlink, &link).await?;
            links.push(link);
        }
        Ok(links)
    }

    async fn check_attachable(&self, netlink: &Netlink, link: &Link) -> Result<(), Error> {
        check_attachable(&self.instance, netlink, link, self.state.namespace).await
    }

    async fn attach_link(&mut self, netlink: &Netlink, link: &Link) -> Result<Interface, Error> {
        warn_of_port(netlink, link).await?;
        if self.is_carrying(link.index) {
            // It has the program already, for answers.
            self.maps.set_interface(link.index, FULL)?;
            self.forget_answering(link.index);
            return Ok(Interface::from(link));
        }
        self.attach_for(netlink, link, FULL).await
    }

    /// Attaches an interface that has no program of ours.
    pub(super) async fn attach_for(
        &self,
        netlink: &Netlink,
        link: &Link,
        attachment: u32,
    ) -> Result<Interface, Error> {
        let attachments = self.attachments()?;
        attachments.load_program_for(link, &self.state)?;
        self.maps.set_interface(link.index, attachment)?;
        let attached = attachments.attach(netlink, link, self.state.tcx).await;
        attached.inspect_err(|_| {
            let _ = self.maps.remove_interface(link.index);
        })?;
        Ok(Interface::from(link))
    }

    /// Takes off the tcx links of interfaces that the state does not name: a killed command put
    /// them on and never put them in the state, or took them out of it and never took them off.
    pub(super) fn remove_stray_links(&self) -> Result<(), Error> {
        let attachments = self.attachments()?;
        for index in attachments.links()? {
            if !self.is_carrying(index) {
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
            if !self.is_carrying(index) {
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

    pub(super) fn is_carrying(&self, index: u32) -> bool {
        self.state.carrying().any(|carrying| carrying == index)
    }

    fn place_of_interface(&self, index: u32) -> Option<usize> {
        self.state
            .interfaces
            .iter()
            .position(|interface| interface.attached == Some(index))
    }
}

/// Checks that an instance can be attached to an interface of this network namespace, which
/// `netlink` and the caller are in.
///
/// # Errors
///
/// [`Error::LinkType`] and [`Error::InterfaceTaken`].
pub async fn check_attachable(
    instance: &Instance,
    netlink: &Netlink,
    link: &Link,
    namespace: NamespaceId,
) -> Result<(), Error> {
    let interface = link.name.clone();
    if let Framing::Other(kind) = link.framing {
        return Err(Error::LinkType { interface, kind });
    }
    match holder_of(instance, netlink, link.index, namespace).await? {
        Some(instance) => Err(Error::InterfaceTaken {
            interface,
            instance,
        }),
        None => Ok(()),
    }
}

/// Warns of an interface that is a port: what it hands to its bridge, bond or VRF is routed as arriving
/// there, where no policy rule of ours looks at it.
///
/// # Errors
///
/// When the interfaces cannot be listed.
pub async fn warn_of_port(netlink: &Netlink, link: &Link) -> Result<(), Error> {
    if link.controller.is_none() {
        return Ok(());
    }
    let controllers = controllers(netlink).await?;
    let Some(controller) = controllers.get(&link.index) else {
        return Ok(());
    };
    log::warn!(
        "interface {} is a port of {controller}, and flows routed there are not taken: attach {controller} in its place",
        link.name
    );
    Ok(())
}

/// The other instance that is attached to this interface.
async fn holder_of(
    own: &Instance,
    netlink: &Netlink,
    index: u32,
    namespace: NamespaceId,
) -> Result<Option<String>, Error> {
    for other in Instance::all() {
        let (Ok(state), Some(pins)) = (other.state(), other.pins()) else {
            continue;
        };
        let named = other.name() != own.name()
            && state.namespace == namespace
            && state.attached().any(|of| of == index);
        if named
            && Attachments::new(&other, &pins)
                .holds(netlink, index)
                .await?
        {
            return Ok(Some(other.name().to_owned()));
        }
    }
    Ok(None)
}
