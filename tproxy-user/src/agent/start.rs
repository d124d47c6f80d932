//! Brings an instance up: everything is checked first, then built, and undone if a step fails.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use anyhow::Context as _;
use tproxy_common::{agent::AgentState, limits::WORKERS};

use super::{Options, steering::Steering};
use crate::{
    delivery::{
        Assignment, Delivery, LocalAddresses, Netlink, Wanted, choose, link_by_name, list_links,
    },
    instance::{
        AgentLock, AgentRecord, Change, Instance, Interface, NamespaceId, State, clear, remove,
        upstream_mark,
    },
    kernel::{self, Maps, RelayCounters, bpffs},
    relay::{self, Relay},
    requirements,
};

/// An instance that takes flows.
pub(super) struct Running {
    pub(super) instance: Instance,
    pub(super) maps: Maps,
    pub(super) netlink: Netlink,
    pub(super) delivery: Delivery,
    pub(super) local: LocalAddresses,
    pub(super) steering: Arc<Steering>,
    pub(super) relay: Arc<Relay>,
    pub(super) agent_state: AgentState,
    state: State,
    /// Says that the agent lives; released with this.
    _lock: AgentLock,
}

impl Running {
    /// The line that says that flows are taken.
    pub(super) fn ready_line(&self) -> String {
        let interfaces = match self.state.interface_names() {
            names if names.is_empty() => "none".to_owned(),
            names => names.join(","),
        };
        format!(
            "tproxy ready: instance {}, interfaces {interfaces}, {}, {}",
            self.instance.name(),
            plural(self.state.rules.len(), "rule"),
            plural(self.relay.stats().len(), "worker"),
        )
    }
}

fn plural(number: usize, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

/// Checks everything that can be checked, removes what a dead agent left, and starts.
pub(super) async fn start(instance: &Instance, options: &Options) -> anyhow::Result<Running> {
    requirements::check()?;
    let mut lock = AgentLock::acquire(instance)?;
    // Whoever meets this lock can say from now on who holds it.
    publish(&mut lock, 0, 0)?;
    let previous = instance.state().ok();
    let result = start_locked(instance, options, previous.as_ref(), lock).await;
    if result.is_err() && previous.is_none() {
        // Nothing was there before, so nothing stays.
        let _ = fs::remove_dir_all(instance.run_directory());
        let _ = instance.run_directory().parent().map(fs::remove_dir);
    }
    result
}

async fn start_locked(
    instance: &Instance,
    options: &Options,
    previous: Option<&State>,
    lock: AgentLock,
) -> anyhow::Result<Running> {
    let namespace = NamespaceId::current().context("cannot identify the network namespace")?;
    let netlink = Netlink::open()?;
    for name in &options.interfaces {
        link_by_name(&netlink, name).await?;
    }
    let kept = previous.filter(|state| state.pinned && options.rules.is_empty());
    let wanted = Wanted {
        mark: options.mark,
        table: options.table,
        previous: previous
            .filter(|state| state.namespace == namespace)
            .map(State::assignment),
    };
    let assignment = choose(&netlink, wanted).await?;
    let workers = options
        .workers
        .unwrap_or_else(one_for_each_cpu)
        .min(WORKERS);
    let listeners = relay::bind(options.port, workers as usize)?;

    // From here on the instance changes.
    remove_leftovers(instance, previous, namespace, &netlink).await?;
    let built = build(
        instance,
        options,
        kept,
        assignment,
        namespace,
        netlink.clone(),
        listeners,
        lock,
    )
    .await;
    if built.is_err()
        && let Err(error) = remove(instance, Some(&netlink)).await
    {
        log::warn!("cannot undo everything: {error}; `tproxy unload` tries again");
    }
    built
}

#[expect(
    clippy::too_many_arguments,
    reason = "one caller; each is a step's result"
)]
async fn build(
    instance: &Instance,
    options: &Options,
    kept: Option<&State>,
    assignment: Assignment,
    namespace: NamespaceId,
    netlink: Netlink,
    listeners: Vec<std::net::TcpListener>,
    mut lock: AgentLock,
) -> anyhow::Result<Running> {
    let port = listeners[0]
        .local_addr()
        .context("cannot read the listening port")?
        .port();
    let workers = u32::try_from(listeners.len()).unwrap_or(WORKERS);
    publish(&mut lock, port, workers)?;
    let maps = load(instance, assignment)?;
    let local = LocalAddresses::open(&netlink, assignment.table).await?;
    maps.set_local_prefixes(local.prefixes())?;
    let mut state = State {
        generation: 0,
        namespace,
        mark: assignment.mark,
        table: assignment.table,
        pinned: options.pin,
        tcx: kernel::kernel_has_tcx() && !options.clsact,
        interfaces: Vec::new(),
        rules: kept.map(|state| state.rules.clone()).unwrap_or_default(),
        next_rule: kept.map_or(0, |state| state.next_rule),
    };
    let mut interfaces = options.interfaces.clone();
    if let Some(kept) = kept.filter(|_| interfaces.is_empty()) {
        // One that is not there at the moment is attached when it comes.
        let links = list_links(&netlink).await?;
        let (there, absent): (Vec<String>, Vec<String>) = kept
            .interface_names()
            .into_iter()
            .partition(|name| links.iter().any(|link| link.name == *name));
        interfaces = there;
        state.interfaces = absent.into_iter().map(Interface::absent).collect();
    }

    let steering = Arc::new(Steering::open(&maps)?);
    maps.set_listeners(&listeners)?;
    let mut change = Change::establish(instance, state)?;
    for spec in &options.rules {
        let place = change.state().rules.len();
        change.add_rule(spec.clone(), place)?;
    }
    state = change.commit()?;
    kernel::attach_lookup(&pins(instance)?)?;
    let delivery = Delivery::new(netlink.clone(), assignment);
    if !interfaces.is_empty() {
        state = Change::begin(instance)?
            .attach(&netlink, &interfaces)
            .await?;
    }
    delivery.apply(&state.interface_names()).await?;
    steering.follow(&maps, &state)?;
    let settings = relay::Settings {
        mark: Some(upstream_mark(assignment.mark)),
        connect_timeout: options.connect_timeout,
        ..relay::Settings::default()
    };
    let relay = Relay::start(listeners, settings, Arc::clone(&steering) as _)?;
    let agent_state = AgentState::accepting(workers, port);
    maps.set_agent(agent_state)?;
    Ok(Running {
        instance: instance.clone(),
        maps,
        netlink,
        delivery,
        local,
        steering,
        relay: Arc::new(relay),
        agent_state,
        state,
        _lock: lock,
    })
}

fn publish(lock: &mut AgentLock, port: u16, workers: u32) -> anyhow::Result<()> {
    let record = AgentRecord {
        pid: std::process::id(),
        port,
        workers,
    };
    lock.publish(record)
        .context("cannot write the agent's lock file")
}

/// Loads and pins beside, then moves the pins to their place in one step.
fn load(instance: &Instance, assignment: Assignment) -> anyhow::Result<Maps> {
    bpffs::mounted()?;
    let finished = pins(instance)?;
    let unfinished = instance
        .unfinished_pins()
        .context("the BPF file system is gone")?;
    if let Some(directory) = finished.parent() {
        private_directory(directory)?;
    }
    private_directory(&unfinished)?;
    let settings = kernel::Settings {
        mark: assignment.mark,
        upstream_mark: upstream_mark(assignment.mark),
    };
    kernel::load(settings, &unfinished)?;
    RelayCounters::create(&unfinished)?;
    fs::rename(&unfinished, &finished)
        .with_context(|| format!("cannot put the pins in place: {}", finished.display()))?;
    Ok(Maps::new(&finished))
}

fn private_directory(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

/// Removes what a dead agent left, here or in the network namespace that it lived in.
async fn remove_leftovers(
    instance: &Instance,
    previous: Option<&State>,
    here: NamespaceId,
    netlink: &Netlink,
) -> anyhow::Result<()> {
    let elsewhere = previous.filter(|state| state.namespace != here);
    let cleared = match elsewhere {
        None => clear(instance, Some(netlink)).await,
        Some(state) => clear_elsewhere(instance, state.namespace)?,
    };
    cleared.context("cannot remove what a killed agent left")?;
    Ok(())
}

/// A network namespace belongs to a thread, so one goes there, and is gone before anything runs that
/// it could disturb.
fn clear_elsewhere(
    instance: &Instance,
    namespace: NamespaceId,
) -> anyhow::Result<Result<bool, crate::instance::Error>> {
    let instance = instance.clone();
    let clearing = thread::spawn(move || {
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
                anyhow::Ok(clear(&instance, netlink.as_ref()).await)
            })
    });
    let died = |_| anyhow::anyhow!("the clearing thread died");
    clearing.join().map_err(died)?
}

fn pins(instance: &Instance) -> anyhow::Result<PathBuf> {
    instance.pins().context("the BPF file system is gone")
}

fn one_for_each_cpu() -> u32 {
    thread::available_parallelism()
        .ok()
        .and_then(|cpus| u32::try_from(cpus.get()).ok())
        .unwrap_or(1)
}
