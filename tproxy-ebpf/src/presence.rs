//! Whether somebody is there to take a flow.

use tproxy_common::{
    explanation::Presence,
    flow::worker_of,
    handover::{Ends, Taken},
};

use crate::{
    agent,
    sockets::{self, Target},
};

/// What there is for a flow between these ends.
#[inline(always)]
pub fn of(ends: &Ends, taken: Taken) -> Presence {
    let state = agent::state();
    // An agent that was killed while it drained is missing like any other.
    if !state.is_accepting() && (state.workers() == 0 || sockets::agent_lives()) {
        return Presence::LeftAlone;
    }
    let family = ends.destination.family();
    // Which worker it will be may hang on what is not known yet; where one has a listener, all have.
    let worker = worker_of(&ends.source, ends.source_port, state.workers());
    if Target::of(taken, ends.protocol, family, worker).is_there(family) {
        Presence::There
    } else {
        Presence::Missing
    }
}
