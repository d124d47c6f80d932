//! The agent: brings an instance up, keeps it current while it relays, and takes it down.

mod expiry;
mod flow_filter;
mod leftovers;
mod options;
mod redirects;
mod reload;
mod shutdown;
mod start;
mod steering;
mod sys;
mod upkeep;

pub use flow_filter::{EPOCH, turn};
pub use options::Options;

use std::{
    io::{self, Write as _},
    pin::Pin,
    sync::Arc,
};

use anyhow::Context as _;
use futures_util::{
    FutureExt as _,
    future::{Fuse, FusedFuture as _},
};
use log::{info, warn};

use crate::{
    config::{Config, Source},
    instance::{Instance, remove},
    relay::Relay,
};
use reload::Reload;
use shutdown::Signals;
use start::{Parts, Running};

/// Runs the agent until it is told to stop. Blocks. With a file, its rules and sets are those to start
/// with, and SIGHUP reads them again.
///
/// # Errors
///
/// When it cannot start, with everything undone; or when something that it depends on breaks.
pub fn run(
    instance: &Instance,
    options: &Options,
    file: Option<(Source, Config)>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(instance, options, file))
}

async fn serve(
    instance: &Instance,
    options: &Options,
    file: Option<(Source, Config)>,
) -> anyhow::Result<()> {
    let (mut signals, hangup) = Signals::install()?;
    let (reload, config) = match file {
        Some((source, config)) => (Some(Reload::new(source, &config)), Some(config)),
        None => (None, None),
    };
    // The lock is held to the very end.
    let Running {
        parts,
        watches,
        lock: _lock,
    } = start::start(instance, options, config).await?;
    if let Err(error) = writeln!(io::stdout(), "{}", parts.ready_line()) {
        warn!("nobody reads standard output: {error}");
    }
    if reload.is_some() {
        reload::warn_of_shadows(&parts);
    }
    let mut workers = wait(&parts.relay);
    // Goes on while flows finish: they need their rules and routes to the end.
    let mut upkeep = Box::pin(upkeep::run(&parts, watches, hangup, reload));
    let mut broken = tokio::select! {
        () = signals.next() => None,
        error = &mut upkeep => Some(error),
        ended = &mut workers => Some(
            ended.err().unwrap_or_else(|| anyhow::anyhow!("the workers ended")),
        ),
    };
    if let Some(error) = &broken {
        warn!("stopping: {error:#}");
        warn!(
            "programs and rules stay, so that no flow goes past them: `tproxy unload` removes them"
        );
    }
    if !workers.is_terminated() {
        let mut stopping = Box::pin(stop(
            &parts,
            options,
            broken.is_some(),
            &mut signals,
            &mut workers,
        ));
        if broken.is_none() {
            tokio::select! {
                () = &mut stopping => {}
                error = &mut upkeep => broken = Some(error),
            }
        }
        if broken.is_some() {
            stopping.await;
        }
    }
    drop(upkeep);
    // An agent that broke is missing, as one that was killed is.
    if !options.pin && broken.is_none() {
        remove(instance, Some(&parts.netlink))
            .await
            .context("cannot undo everything; `tproxy unload` tries again")?;
    }
    broken.map_or(Ok(()), Err)
}

/// Lets running flows finish, up to the drain time or a second signal.
async fn stop(
    running: &Parts,
    options: &Options,
    broken: bool,
    signals: &mut Signals,
    workers: &mut Workers,
) {
    if !options.pin && !broken {
        // New flows go their own way from now on, as they will when the programs are gone.
        let state = running.agent_state.draining();
        if let Err(error) = running.maps.set_agent(state) {
            warn!("new flows may be refused while draining: {error}");
        }
    }
    info!(
        "waiting up to {} s for running flows to finish",
        options.drain.as_secs_f64()
    );
    running.relay.drain(options.drain);
    let ended = tokio::select! {
        ended = &mut *workers => ended,
        () = signals.next() => {
            info!("stopping at once");
            running.relay.stop();
            workers.await
        }
    };
    ended.unwrap_or_else(|error| warn!("{error:#}"));
}

/// The end of all workers, with what ended them too soon.
type Workers = Fuse<Pin<Box<dyn Future<Output = anyhow::Result<()>>>>>;

/// The relay's own wait blocks, so a thread does it.
fn wait(relay: &Arc<Relay>) -> Workers {
    let relay = Arc::clone(relay);
    let joined = tokio::task::spawn_blocking(move || relay.join());
    let ended: Pin<Box<dyn Future<Output = _>>> = Box::pin(async move {
        joined.await.context("the wait for the workers ended")??;
        Ok(())
    });
    ended.fuse()
}
