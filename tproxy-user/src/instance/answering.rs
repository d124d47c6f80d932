//! Interfaces on which only answers are looked for: those that lead to servers, while a rule has the
//! relay connect from the addresses of clients.
//!
//! They are in no list that a user made. Whoever puts such a rule in force attaches them before, and
//! the agent keeps up with the routes. They stay until the instance ends, for running flows need
//! them.

use log::{info, warn};
use tproxy_common::attachment::{ANSWERS_ONLY, FULL};

use super::{Change, ChangeLock, Error, Interface, State};
use crate::{
    delivery::{Delivery, Link, Netlink, ways_out},
    rule::Rule,
};

impl Change {
    /// Whether the first rule comes into force that has the relay connect from clients' addresses.
    pub(super) fn opens_answering(&self, rules: &[Rule]) -> bool {
        let had = self
            .before
            .as_ref()
            .is_some_and(State::uses_client_addresses);
        !had && rules.iter().any(|rule| rule.from_client)
    }

    /// Attaches the interfaces that lead to servers and are not attached, and delivers what is marked
    /// there. Gives what is new. Runs in the instance's network namespace.
    pub(super) async fn open_answering(&self, netlink: &Netlink) -> Result<Vec<Interface>, Error> {
        let lacking = self.lacking(&ways_out(netlink).await?);
        self.attach_for_answers(netlink, &lacking).await
    }

    /// Looks for answers on those of these interfaces that are not attached. The caller is in the
    /// instance's network namespace.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn follow_ways_out(
        mut self,
        netlink: &Netlink,
        ways: &[Link],
    ) -> Result<State, Error> {
        let lacking = self.lacking(ways);
        if lacking.is_empty() || !self.state.uses_client_addresses() {
            return Ok(self.state);
        }
        let added = self.attach_for_answers(netlink, &lacking).await?;
        self.state.answering.extend(added);
        self.commit()
    }

    fn lacking(&self, ways: &[Link]) -> Vec<Link> {
        let lacking = ways.iter().filter(|link| !self.is_carrying(link.index));
        lacking.cloned().collect()
    }

    async fn attach_for_answers(
        &self,
        netlink: &Netlink,
        links: &[Link],
    ) -> Result<Vec<Interface>, Error> {
        if links.is_empty() {
            return Ok(Vec::new());
        }
        // Two instances that make one qdisc would each believe that it was made by the other.
        let _turn = if self.state.tcx {
            None
        } else {
            Some(ChangeLock::wait_to_attach()?)
        };
        let mut names = self.state.delivering();
        names.extend(links.iter().map(|link| link.name.clone()));
        let delivery = Delivery::new(netlink.clone(), self.state.assignment());
        delivery.apply(&self.state.flows(&names)).await?;
        let mut added = Vec::new();
        for link in links {
            // One that cannot be attached, or is gone already, is no reason to do without the others.
            match self.attach_for(netlink, link, ANSWERS_ONLY).await {
                Ok(interface) => {
                    info!(
                        "answers to clients' addresses are looked for on {}",
                        link.name
                    );
                    added.push(interface);
                }
                Err(error) => warn!(
                    "servers behind {} do not see clients' addresses: {error}",
                    link.name
                ),
            }
        }
        Ok(added)
    }

    /// Of interfaces that are detached, keeps the programs where answers arrive.
    pub(super) async fn keep_for_answers(
        &mut self,
        netlink: &Netlink,
        mut detached: Vec<Interface>,
    ) -> Result<(), Error> {
        if self.state.uses_client_addresses() || !self.state.answering.is_empty() {
            let ways = ways_out(netlink).await?;
            detached.retain(|interface| {
                let leads_out = |link: &Link| Some(link.index) == interface.attached;
                ways.iter().any(leads_out)
            });
            self.state.answering.append(&mut detached);
        }
        Ok(())
    }

    /// Tells the programs what each interface of the state is attached for.
    pub(super) fn declare_interfaces(&self) -> Result<(), Error> {
        Ok(self.state.declare_interfaces(&self.maps)?)
    }

    pub(super) fn forget_answering(&mut self, index: u32) {
        let is_other = |interface: &Interface| interface.attached != Some(index);
        self.state.answering.retain(is_other);
    }

    /// An interface has another name on which only answers are looked for.
    pub(super) fn answering_renamed(mut self, link: &Link) -> Result<State, Error> {
        let mut answering = self.state.answering.iter_mut();
        match answering.find(|interface| interface.attached == Some(link.index)) {
            None => Ok(self.state),
            Some(interface) => {
                interface.name.clone_from(&link.name);
                self.commit()
            }
        }
    }
}

impl State {
    /// Tells the programs what each interface is attached for. Writes nothing where they know.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn declare_interfaces(
        &self,
        maps: &crate::kernel::Maps,
    ) -> Result<(), crate::kernel::Error> {
        for index in self.attached() {
            maps.set_interface(index, FULL)?;
        }
        let answering = self.answering.iter();
        for index in answering.filter_map(|interface| interface.attached) {
            maps.set_interface(index, ANSWERS_ONLY)?;
        }
        Ok(())
    }
}
