//! The agent: brings an instance up, keeps it current while it relays, and takes it down.

mod control_groups;
mod directories;
mod errand;
mod expiry;
mod flow_filter;
mod leftovers;
mod options;
mod redirects;
mod reload;
mod removals;
mod shutdown;
mod start;
mod steering;
mod sys;
mod upkeep;
mod ways_out;

pub use errand::{CannotRun, Errand};
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
    instance::{Instance, NamespaceId, NamespaceWatch, remove},
    relay::Relay,
    sys::keep_large_blocks_apart,
};
use reload::Reload;
use shutdown::{Signals, Told};
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
    runtime()?.block_on(async {
        serve(instance, options, file, Purpose::Serve).await?;
        Ok(())
    })
}

/// Runs the agent for as long as a command runs, and says what that exited with. Blocks.
///
/// # Errors
///
/// When agent or command cannot start ([`CannotRun`]), with everything undone; or when something
/// breaks that the agent depends on.
pub fn run_with(instance: &Instance, options: &Options, errand: Errand) -> anyhow::Result<u8> {
    let purpose = Purpose::Errand(errand);
    runtime()?.block_on(serve(instance, options, None, purpose))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// What an agent is there for.
enum Purpose {
    /// Whoever is taken by its rules.
    Serve,
    /// A command.
    Errand(Errand),
}

/// Why an agent stops.
enum Cause {
    /// It was told to, or its network namespace is gone.
    Told,
    /// Its command has ended, with this code.
    Ended(u8),
    /// Something broke.
    Broken(anyhow::Error),
}

async fn serve(
    instance: &Instance,
    options: &Options,
    file: Option<(Source, Config)>,
    purpose: Purpose,
) -> anyhow::Result<u8> {
    keep_large_blocks_apart();
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
    let mut namespace = watch_namespace(options)?;
    let mut command = match &purpose {
        Purpose::Serve => {
            if let Err(error) = writeln!(io::stdout(), "{}", parts.ready_line()) {
                warn!("nobody reads standard output: {error}");
            }
            None
        }
        Purpose::Errand(errand) => match errand.start() {
            Ok(command) => Some(command),
            Err(error) => {
                parts.relay.stop();
                // It would put back what is removed.
                drop(watches);
                parts.let_go_of_links();
                remove(instance, Some(&parts.netlink)).await?;
                return Err(error);
            }
        },
    };
    reload::warn_of_idle_rules(&parts);
    let mut workers = wait(&parts.relay);
    // Goes on while flows finish: they need their rules and routes to the end.
    let mut upkeep = Box::pin(upkeep::run(&parts, watches, hangup, reload));
    let mut cause = tokio::select! {
        cause = until_told(&mut signals, command.as_mut()) => cause,
        gone = gone(namespace.as_mut()) => gone,
        error = &mut upkeep => Cause::Broken(error),
        ended = &mut workers => Cause::Broken(
            ended.err().unwrap_or_else(|| anyhow::anyhow!("the workers ended")),
        ),
    };
    if let Cause::Broken(error) = &cause {
        warn!("stopping: {error:#}");
        warn!(
            "programs and rules stay, so that no flow goes past them: `tproxy unload` removes them"
        );
    }
    if !workers.is_terminated() {
        let patience = match (&cause, &purpose) {
            (Cause::Ended(_), Purpose::Errand(errand)) if !errand.is_in_use() => Patience::None,
            (Cause::Broken(_), _) => Patience::OfBroken,
            _ => Patience::OfOptions,
        };
        let mut stopping = Box::pin(stop(&parts, options, patience, &mut signals, &mut workers));
        if !matches!(cause, Cause::Broken(_)) {
            tokio::select! {
                () = &mut stopping => {}
                error = &mut upkeep => cause = Cause::Broken(error),
            }
        }
        if matches!(cause, Cause::Broken(_)) {
            stopping.await;
        }
    }
    drop(upkeep);
    // Pins that are there hold them on.
    parts.let_go_of_links();
    let code = match cause {
        // An agent that broke is missing, as one that was killed is.
        Cause::Broken(error) => return Err(error),
        Cause::Told => 0,
        Cause::Ended(code) => code,
    };
    if !options.pin {
        parts.recall_origin();
        remove(instance, Some(&parts.netlink))
            .await
            .context("cannot undo everything; `tproxy unload` tries again")?;
    }
    Ok(code)
}

/// Waits for a signal or, where there is a command, for its end. That is told of a signal, too; one of
/// the keyboard it has got itself.
async fn until_told(signals: &mut Signals, command: Option<&mut errand::Running>) -> Cause {
    let Some(command) = command else {
        signals.next().await;
        return Cause::Told;
    };
    loop {
        tokio::select! {
            ended = command.ended() => return ended.map_or_else(Cause::Broken, Cause::Ended),
            told = signals.which() => if matches!(told, Told::Terminate) {
                command.terminate();
            },
        }
    }
}

/// Watches the network namespace that was asked for by a path.
fn watch_namespace(options: &Options) -> anyhow::Result<Option<NamespaceWatch>> {
    let Some(path) = &options.namespace else {
        return Ok(None);
    };
    let watch = NamespaceId::current().and_then(|here| NamespaceWatch::open(path, here));
    let watch = watch.with_context(|| format!("cannot watch {}", path.display()))?;
    Ok(Some(watch))
}

async fn gone(namespace: Option<&mut NamespaceWatch>) -> Cause {
    let Some(namespace) = namespace else {
        return std::future::pending().await;
    };
    match namespace.gone().await {
        Ok(()) => {
            info!("stopping: the network namespace is gone");
            Cause::Told
        }
        Err(error) => {
            warn!("it is not noticed any more when the network namespace goes: {error}");
            std::future::pending().await
        }
    }
}

/// How long running flows get.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// What the options say.
    OfOptions,
    /// The same, and new flows are not left alone.
    OfBroken,
    /// Nobody is left whom they could be of use to.
    None,
}

/// Lets running flows finish, up to the drain time or a second signal.
async fn stop(
    running: &Parts,
    options: &Options,
    patience: Patience,
    signals: &mut Signals,
    workers: &mut Workers,
) {
    if !options.pin && patience != Patience::OfBroken {
        // New flows go their own way from now on, as they will when the programs are gone.
        let state = running.agent_state.draining();
        if let Err(error) = running.maps.set_agent(state) {
            warn!("new flows may be refused while draining: {error}");
        }
    }
    if patience == Patience::None {
        running.relay.stop();
    } else {
        info!(
            "waiting up to {} s for running flows to finish",
            options.drain.as_secs_f64()
        );
        running.relay.drain(options.drain);
    }
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
