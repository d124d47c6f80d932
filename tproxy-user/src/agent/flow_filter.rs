//! Keeps the filter of flows young, so that segments of other people's flows cost no socket lookup.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use log::{info, warn};
use tokio::time::{Instant, MissedTickBehavior};
use tproxy_common::flow_filter::GRACE;

use crate::{
    delivery::{self, for_each_flow},
    kernel::FlowFilter,
};

/// How long an epoch lasts at least. A SYN cookie, the longest that a handshake goes on without a
/// socket, is good for two minutes (`MAX_SYNCOOKIE_AGE`, include/net/tcp.h), and the stamp of its
/// SYN counts for three epochs at least.
pub const EPOCH: Duration = Duration::from_mins(1);

const _: () = assert!(EPOCH.as_secs() * GRACE as u64 > 120);

/// Stamps the flows of all sockets of the calling thread's network namespace, and begins the next
/// epoch. Blocks.
///
/// # Errors
///
/// When the sockets cannot be listed; the epoch goes on then, and no flow is forgotten.
pub fn turn(filter: &FlowFilter) -> Result<(), delivery::Error> {
    for_each_flow(|ends| filter.stamp(ends))?;
    filter.turn();
    Ok(())
}

/// Turns the epoch as long as the agent lives.
pub(super) async fn keep_young(filter: FlowFilter) -> std::convert::Infallible {
    let filter = Arc::new(filter);
    // Not at once: an agent before this one may have turned it a moment ago.
    let mut epochs = tokio::time::interval_at(Instant::now() + EPOCH, EPOCH);
    epochs.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        epochs.tick().await;
        let filter = Arc::clone(&filter);
        let turned = tokio::task::spawn_blocking(move || turn(&filter)).await;
        let turned = turned
            .context("the list of sockets ended")
            .and_then(|turned| Ok(turned?));
        match &turned {
            Ok(()) if failing => info!("the filter of flows ages again"),
            Err(error) if !failing => warn!(
                "the filter of flows does not age, so packets of other flows cost more: {error:#}"
            ),
            _ => {}
        }
        failing = turned.is_err();
    }
}
