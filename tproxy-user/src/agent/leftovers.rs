//! What an agent that is gone left in the kernel: it goes on under the next one when it fits, and is
//! removed when it does not.

use std::thread;

use anyhow::Context as _;

use super::start::Plan;
use crate::{
    delivery::{Netlink, list_links},
    instance::{Change, ChangeLock, Instance, NamespaceId, State, clear},
};

/// Whether the new agent can go on with what is there as it is: everything is in place, made by the
/// same build, and where and how the new agent would have put it.
pub(super) async fn fit(plan: &Plan<'_>, state: &State) -> anyhow::Result<bool> {
    let alike = state.namespace == plan.namespace
        && state.assignment() == plan.assignment
        // Whether a filter is still in its qdisc cannot be told from its note.
        && state.tcx
        && plan.tcx;
    if !alike || !plan.instance.is_intact(state) {
        return Ok(false);
    }
    let links = list_links(&plan.netlink).await?;
    let carrying = state.interfaces.iter().chain(&state.answering);
    Ok(carrying.into_iter().all(|interface| {
        interface.attached.is_none_or(|index| {
            let there = links.iter().find(|link| link.index == index);
            there.is_some_and(|link| link.name == interface.name)
        })
    }))
}

/// Goes on with what is there, with the rules and interfaces that were asked for. Nothing changes
/// when an interface cannot be attached.
pub(super) async fn take_over(plan: &Plan<'_>) -> anyhow::Result<()> {
    let (instance, options) = (plan.instance, plan.options);
    let attached = instance.state()?.interface_names();
    let wanted = match &plan.kept {
        Some(_) if options.interfaces.is_empty() => &attached,
        _ => &options.interfaces,
    };
    let lacking = without(wanted, &attached);
    if !lacking.is_empty() {
        let change = Change::begin(instance)?;
        change.attach(&plan.netlink, &lacking).await?;
    }
    let mut change = Change::begin(instance)?;
    change.set_pinned(options.pin);
    // Rules of a file take the place of those that are there in one step, a moment later.
    if plan.kept.is_none() && plan.config.is_none() {
        change.flush_rules();
        change.keep_sets(|_| false);
        change.append_rules(&options.rules)?;
    }
    let state = change.commit()?;
    let superfluous = without(&state.interface_names(), wanted);
    if !superfluous.is_empty() {
        let change = Change::begin(instance)?;
        change.detach(&plan.netlink, &superfluous).await?;
    }
    Ok(())
}

fn without(names: &[String], others: &[String]) -> Vec<String> {
    let names = names.iter().filter(|name| !others.contains(name));
    names.cloned().collect()
}

/// Removes what a dead agent left, here or in the network namespace that it lived in.
pub(super) async fn remove(
    instance: &Instance,
    here: NamespaceId,
    netlink: &Netlink,
    changes: &ChangeLock,
) -> anyhow::Result<()> {
    let elsewhere = instance.origin().filter(|origin| origin.namespace != here);
    let cleared = match elsewhere {
        None => clear(instance, Some(netlink), Some(changes)).await,
        Some(origin) => clear_elsewhere(instance, origin.namespace, changes)?,
    };
    cleared.context("cannot remove what a killed agent left")?;
    Ok(())
}

/// A network namespace belongs to a thread, so one goes there, and is gone before anything runs that
/// it could disturb.
fn clear_elsewhere(
    instance: &Instance,
    namespace: NamespaceId,
    changes: &ChangeLock,
) -> anyhow::Result<Result<bool, crate::instance::Error>> {
    let clear_there = || {
        // Not found: it is gone, and took its rules and routes along.
        let reached = namespace.enter(None)?;
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async {
                let netlink = if reached {
                    Some(Netlink::open()?)
                } else {
                    None
                };
                anyhow::Ok(clear(instance, netlink.as_ref(), Some(changes)).await)
            })
    };
    let died = |_| anyhow::anyhow!("the clearing thread died");
    thread::scope(|scope| scope.spawn(clear_there).join()).map_err(died)?
}
