//! Whether the interfaces that lead to servers are to be followed.

use tokio::sync::watch;

use crate::{
    delivery::{Netlink, WaysOut},
    instance::State,
};

/// Begins and ends to follow routes as rules come and go that connect from clients' addresses.
pub(super) struct Following(watch::Sender<bool>);

impl Following {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Takes up the state in force.
    pub(super) fn follow(&self, state: &State) {
        let wanted = state.uses_client_addresses();
        self.0
            .send_if_modified(|current| std::mem::replace(current, wanted) != wanted);
    }

    /// What is followed.
    pub(super) fn ways_out(&self, netlink: &Netlink) -> WaysOut {
        WaysOut::new(netlink, self.0.subscribe())
    }
}
