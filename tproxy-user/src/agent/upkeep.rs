//! What an agent does beside relaying: it follows changes of rules, interfaces and addresses.

use anyhow::Context as _;
use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use log::{info, warn};

use super::start::Running;
use crate::{
    delivery::{Link, LinkEvent, LinkWatch},
    instance::{Change, LOCK_FILE, State},
};

/// Follows changes until something breaks that the agent cannot do without.
pub(super) async fn run(running: &mut Running) -> anyhow::Error {
    match follow(running).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn follow(running: &mut Running) -> anyhow::Result<std::convert::Infallible> {
    let _restores = running.delivery.watch()?;
    let mut links = LinkWatch::open(&running.netlink).await?;
    let mut state_directory = watch_state(running)?;
    // Changes that came before the watches began.
    take_up(running).await?;
    catch_up(running, &links.links().cloned().collect::<Vec<_>>()).await;
    loop {
        tokio::select! {
            event = links.next() => follow_link(running, event?).await,
            event = state_directory.next() => {
                let event = event
                    .context("the watch of the state directory ended")?
                    .context("cannot watch the state directory")?;
                if event.name.is_some_and(|name| name == LOCK_FILE) {
                    take_up(running).await?;
                }
            }
            prefixes = running.local.changed() => {
                let stored = running.maps.set_local_prefixes(prefixes?);
                stored.unwrap_or_else(|error| warn!("the addresses of this host are out of date: {error}"));
            }
        }
    }
}

/// Does what would have been done if these interfaces had been watched all along.
async fn catch_up(running: &Running, links: &[Link]) {
    let Ok(state) = running.instance.state() else {
        return;
    };
    for interface in &state.interfaces {
        let Some((index, _)) = interface.attached else {
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

fn watch_state(running: &Running) -> anyhow::Result<EventStream<[u8; 1024]>> {
    let directory = running.instance.run_directory();
    let inotify = Inotify::init().context("cannot use inotify")?;
    inotify
        .watches()
        // The lock is closed by every change, even one that was killed.
        .add(directory, WatchMask::CLOSE_WRITE)
        .with_context(|| format!("cannot watch {}", directory.display()))?;
    inotify
        .into_event_stream([0; 1024])
        .context("cannot use inotify")
}

/// Makes names, interfaces and routes those of the state in force.
async fn take_up(running: &Running) -> anyhow::Result<()> {
    let state = running.instance.state()?;
    running.steering.follow(&running.maps, &state)?;
    running.delivery.apply(&state.interface_names()).await?;
    Ok(())
}

async fn follow_link(running: &Running, event: LinkEvent) {
    match event {
        LinkEvent::Added(link) => appeared(running, &link).await,
        LinkEvent::Removed(link) => gone(running, link.index).await,
        LinkEvent::Renamed { link, .. } => {
            renamed(running, &link).await;
            appeared(running, &link).await;
        }
        LinkEvent::Up(_) | LinkEvent::Down(_) => {}
    }
}

async fn gone(running: &Running, index: u32) {
    change(running, |change| change.interface_gone(index)).await;
}

async fn renamed(running: &Running, link: &Link) {
    let Some(state) = change(running, |change| change.interface_renamed(link)).await else {
        return;
    };
    if state.interface_names().contains(&link.name) {
        info!("following an interface that is called {} now", link.name);
    }
}

/// Attaches to an interface of a name that was asked for, unless it is attached.
async fn appeared(running: &Running, link: &Link) {
    let Ok(state) = running.instance.state() else {
        return;
    };
    let waits = state.interfaces.iter().any(|interface| {
        interface.name == link.name
            && interface
                .attached
                .is_none_or(|(index, _)| index != link.index)
    });
    if waits
        && change(running, |change| change.interface_back(link))
            .await
            .is_some()
    {
        info!("attached to {} again", link.name);
    }
}

/// Makes one change and takes it up; what fails is logged, because the agent goes on without.
async fn change(
    running: &Running,
    edit: impl FnOnce(Change) -> Result<State, crate::instance::Error>,
) -> Option<State> {
    let changed = Change::begin(&running.instance).and_then(edit);
    match changed {
        Ok(state) => {
            if let Err(error) = take_up(running).await {
                warn!("{error:#}");
            }
            Some(state)
        }
        Err(error) => {
            warn!("{error}");
            None
        }
    }
}
