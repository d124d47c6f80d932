//! What an agent does beside relaying: it follows changes of rules, interfaces, addresses and
//! control groups, and keeps the filter of flows young.

use std::pin::pin;

use anyhow::Context as _;
use log::{debug, info, warn};
use tokio::runtime::Handle;

use super::{
    directories::{Directories, News},
    flow_filter::keep_young,
    reload::Reload,
    removals::Removals,
    shutdown::Hangup,
    start::Parts,
};
use crate::{
    delivery::{Delivery, Link, LinkEvent, LinkWatch, LocalAddresses, Netlink, Watch},
    instance::{Change, ChangeLock, Error, Instance, State, warn_of_port},
    kernel::FlowFilter,
};

/// What tells of changes.
pub(super) struct Watches {
    links: LinkWatch,
    local: LocalAddresses,
    directories: Directories,
    /// Restores policy rules and routes for as long as it is held.
    _restores: Watch,
}

impl Watches {
    /// Begins to watch. Nothing after this is missed.
    pub(super) async fn open(
        instance: &Instance,
        netlink: &Netlink,
        delivery: &Delivery,
        local: LocalAddresses,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            links: LinkWatch::open(netlink).await?,
            local,
            directories: Directories::watch(instance)?,
            _restores: delivery.watch()?,
        })
    }
}

/// Follows changes until something breaks that the agent cannot do without.
pub(super) async fn run(
    running: &Parts,
    watches: Watches,
    hangup: Hangup,
    reload: Option<Reload>,
) -> anyhow::Error {
    match follow(running, watches, hangup, reload).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn follow(
    running: &Parts,
    watches: Watches,
    mut hangup: Hangup,
    reload: Option<Reload>,
) -> anyhow::Result<std::convert::Infallible> {
    let Watches {
        mut links,
        mut local,
        mut directories,
        _restores,
    } = watches;
    let mut ways_out = running.following.ways_out(&running.netlink);
    let mut groups = running.groups.watch();
    let mut removals = Removals::default();
    let mut flow_filter = pin!(keep_young(FlowFilter::open(&running.maps)?));
    // Changes that came before the watches began.
    take_up(running).await;
    catch_up(running, &links.links().cloned().collect::<Vec<_>>()).await;
    loop {
        tokio::select! {
            event = links.next() => follow_link(running, event?).await,
            news = directories.next() => match news? {
                News::Change => {
                    take_up(running).await;
                    remove_strays(running).await;
                }
                News::Removal => removals.tell(running),
            },
            never = &mut flow_filter => match never {},
            due = running.expiry.due() => {
                due?;
                remove_expired(running).await;
            }
            () = hangup.next() => match &reload {
                Some(reload) => reload.run(running).await,
                None => debug!("SIGHUP: there is no file to read again"),
            },
            ways = ways_out.changed() => match ways {
                Ok(ways) => follow_ways_out(running, ways).await,
                Err(error) => warn!("servers behind interfaces that come now do not see clients' addresses: {error}"),
            },
            () = groups.changed() => follow_groups(running).await,
            prefixes = local.changed() => {
                let stored = running.maps.set_local_prefixes(prefixes?);
                stored.unwrap_or_else(|error| warn!("the addresses of this host are out of date: {error}"));
            }
        }
    }
}

/// Does what would have been done if these interfaces had been watched all along.
async fn catch_up(running: &Parts, links: &[Link]) {
    let Ok(state) = running.instance.state() else {
        return;
    };
    for interface in state.interfaces.iter().chain(&state.answering) {
        let Some(index) = interface.attached else {
            continue;
        };
        match links.iter().find(|link| link.index == index) {
            None => gone(running, index).await,
            Some(link) if link.name != interface.name => renamed(running, link).await,
            Some(_) => {}
        }
    }
    for link in links {
        appeared(running, link).await;
    }
}

/// Makes names, interfaces and routes those of the state in force. Nobody changes it meanwhile. The
/// file of the lock is closed a moment before the kernel lets go of the lock, so this waits.
async fn take_up(running: &Parts) {
    let instance = running.instance.clone();
    let taken_up: anyhow::Result<()> = async {
        let _lock = tokio::task::spawn_blocking(move || ChangeLock::follow(&instance)).await??;
        let (state, tables) = running.instance.in_force()?;
        running.hold_links(&state);
        running.steering.follow(&state, tables);
        running.expiry.follow(&state)?;
        running.redirects.follow(&state);
        running.following.follow(&state);
        running.groups.follow(&state);
        state.declare_interfaces(&running.maps)?;
        let interfaces = state.delivering();
        running.delivery.apply(&state.flows(&interfaces)).await?;
        Ok(())
    }
    .await;
    taken_up.unwrap_or_else(|error| warn!("a change was not taken up: {error:#}"));
}

/// Deletes the rules whose time is over.
async fn remove_expired(running: &Parts) {
    let edit = async |change: Change, _: &Netlink| {
        if change.has_expired_rules() {
            change.commit()
        } else {
            Ok(change.state().clone())
        }
    };
    change_or_warn(running, edit).await;
}

/// Takes off what a killed command left on interfaces.
async fn remove_strays(running: &Parts) {
    if !running.instance.has_strays() {
        return;
    }
    let edit = async |change: Change, netlink: &Netlink| change.remove_strays(netlink).await;
    if change_or_warn(running, edit).await.is_some() {
        info!("took off programs that a killed command left on interfaces");
    }
}

async fn follow_link(running: &Parts, event: LinkEvent) {
    match event {
        LinkEvent::Added(link) => appeared(running, &link).await,
        LinkEvent::Removed(link) => gone(running, link.index).await,
        LinkEvent::Renamed { link, .. } => {
            renamed(running, &link).await;
            appeared(running, &link).await;
        }
        LinkEvent::BecamePort(link) => became_port(running, &link).await,
        LinkEvent::Up(_) | LinkEvent::Down(_) => {}
    }
}

/// An interface is gone. Most are none of ours.
async fn gone(running: &Parts, index: u32) {
    if is_carrying(running, index) {
        let edit = async move |change: Change, netlink: &Netlink| {
            change.interface_gone(netlink, index).await
        };
        change_or_warn(running, edit).await;
    }
}

async fn renamed(running: &Parts, link: &Link) {
    if !is_carrying(running, link.index) {
        return;
    }
    let renamed = link.clone();
    let edit = async move |change: Change, _: &Netlink| change.interface_renamed(&renamed);
    if change_or_warn(running, edit).await.is_some() {
        info!("following an interface that is called {} now", link.name);
    }
}

/// An interface was put into a bridge, bond or VRF. Most are none of ours.
async fn became_port(running: &Parts, link: &Link) {
    let state = running.instance.state();
    if state.is_ok_and(|state| state.attached().any(|index| index == link.index)) {
        let warned = warn_of_port(&running.netlink, link).await;
        warned.unwrap_or_else(|error| warn!("{error}"));
    }
}

/// Attaches to an interface of a name that was asked for, unless it is attached.
async fn appeared(running: &Parts, link: &Link) {
    let Ok(state) = running.instance.state() else {
        return;
    };
    let waits = state
        .interfaces
        .iter()
        .any(|interface| interface.name == link.name && interface.attached != Some(link.index));
    let link = link.clone();
    let name = link.name.clone();
    let edit =
        async move |change: Change, netlink: &Netlink| change.interface_back(netlink, &link).await;
    if waits && change_or_warn(running, edit).await.is_some() {
        info!("attached to {name} again");
    }
}

/// Looks for answers on interfaces that lead to servers now.
async fn follow_ways_out(running: &Parts, ways: Vec<Link>) {
    let Ok(state) = running.instance.state() else {
        return;
    };
    let is_new = |link: &Link| state.carrying().all(|index| index != link.index);
    if ways.iter().any(is_new) {
        let edit = async move |change: Change, netlink: &Netlink| {
            change.follow_ways_out(netlink, &ways).await
        };
        change_or_warn(running, edit).await;
    }
}

/// Puts the rules in force with the control groups that are there now.
async fn follow_groups(running: &Parts) {
    let before = running.groups.current();
    let edit = async |change: Change, _: &Netlink| change.follow_groups();
    let Some(state) = change_or_warn(running, edit).await else {
        return;
    };
    for (group, number) in state.named_groups().since(&before) {
        match number {
            Some(_) => {
                info!("control group {group} is there: rules that name it match its processes");
            }
            None => info!("control group {group} is gone"),
        }
    }
}

fn is_carrying(running: &Parts, index: u32) -> bool {
    let state = running.instance.state();
    state.is_ok_and(|state| state.carrying().any(|of| of == index))
}

/// Makes one change and takes it up; what fails is logged, because the agent goes on without.
async fn change_or_warn(
    running: &Parts,
    edit: impl AsyncFnOnce(Change, &Netlink) -> Result<State, Error> + Send + 'static,
) -> Option<State> {
    let changed = change(running, edit).await;
    changed.inspect_err(|error| warn!("{error}")).ok()
}

/// Makes one change and takes it up. The wait for the lock blocks, so a thread does it.
pub(super) async fn change(
    running: &Parts,
    edit: impl AsyncFnOnce(Change, &Netlink) -> Result<State, Error> + Send + 'static,
) -> anyhow::Result<State> {
    let instance = running.instance.clone();
    let netlink = running.netlink.clone();
    let runtime = Handle::current();
    let changed = tokio::task::spawn_blocking(move || {
        let change = Change::begin(&instance)?;
        runtime.block_on(edit(change, &netlink))
    });
    let state = changed.await.context("a change was not made")??;
    take_up(running).await;
    Ok(state)
}
