//! Brings an instance up: everything is checked first, then built, and undone if a step fails.

use std::{
    cell::RefCell, collections::BTreeMap, fs, os::unix::net::UnixDatagram, path::PathBuf,
    sync::Arc, thread,
};

use anyhow::Context as _;
use log::{info, warn};
use tproxy_common::{agent::AgentState, limits::WORKERS};

use super::{
    Options, control_groups::FollowedGroups, expiry::Expiry, leftovers, redirects::Redirects,
    steering::Steering, upkeep::Watches, ways_out::Following,
};
use crate::{
    config::Config,
    delivery::{
        Assignment, Delivery, LocalAddresses, Neighbour, Netlink, Wanted, choose, link_by_name,
        list_links,
    },
    instance::{
        AgentLock, AgentRecord, Built, Change, ChangeLock, Error, Instance, Interface, NamespaceId,
        PinsLock, State, check_attachable, clear, private_directory, remove,
    },
    kernel::{self, HeldLinks, Loaded, Maps, bpffs},
    listener::{Discard, discard},
    plural::plural,
    relay::{self, Capacity, Listener, Relay},
    requirements,
    sys::release_freed_memory,
};

/// An instance that takes flows.
pub(super) struct Running {
    pub(super) parts: Parts,
    /// What is to be followed.
    pub(super) watches: Watches,
    /// Says that the agent lives, for as long as it is held.
    pub(super) lock: AgentLock,
}

/// What an agent works with.
pub(super) struct Parts {
    pub(super) instance: Instance,
    pub(super) maps: Maps,
    pub(super) netlink: Netlink,
    pub(super) delivery: Delivery,
    pub(super) steering: Arc<Steering>,
    pub(super) relay: Arc<Relay>,
    pub(super) agent_state: AgentState,
    pub(super) expiry: Expiry,
    state: State,
    pub(super) redirects: Redirects,
    pub(super) following: Following,
    pub(super) groups: FollowedGroups,
    links: RefCell<HeldLinks>,
    /// Says that the agent lives, whatever becomes of its files.
    _pins: Option<PinsLock>,
    _discard: Discard,
    /// Shows the programs that the agent lives.
    _lifeline: UnixDatagram,
}

impl Parts {
    /// Keeps the programs of this state attached, should somebody remove their pins.
    pub(super) fn hold_links(&self, state: &State) {
        if let Some(pins) = self.instance.pins() {
            self.links.borrow_mut().follow(&pins, state.carrying());
        }
    }

    /// Makes sure that what delivers flows can be removed, should somebody have removed the files that
    /// say what that is.
    pub(super) fn recall_origin(&self) {
        let files = self.instance.run_directory().display();
        match self.instance.recall_origin(&self.state) {
            Ok(false) => {}
            Ok(true) => warn!(
                "{files} was removed: removing the policy rules and routes of mark {:#x} and table {}, which this agent remembers",
                self.state.mark, self.state.table
            ),
            Err(error) => warn!("policy rules and routes may be left: {error}"),
        }
    }

    /// Leaves that to the pins.
    pub(super) fn let_go_of_links(&self) {
        self.links.take();
    }

    /// Whether everything is pinned that the instance rests on.
    pub(super) fn has_pins(&self) -> bool {
        let pins = self.instance.pins();
        pins.is_some_and(|pins| self.state.loaded.is_whole_and_current(&pins))
    }

    /// The line that says that flows are taken.
    pub(super) fn ready_line(&self) -> String {
        let interfaces = match self.state.interface_names() {
            names if names.is_empty() => "none".to_owned(),
            names => names.join(","),
        };
        let (rules, workers) = (self.state.rules.len(), self.relay.stats().len());
        format!(
            "tproxy ready: instance {}, interfaces {interfaces}, {rules} {}, {workers} {}",
            self.instance.name(),
            plural(rules, "rule"),
            plural(workers, "worker"),
        )
    }
}

/// Checks everything that can be checked, removes what a dead agent left, and starts.
pub(super) async fn start(
    instance: &Instance,
    options: &Options,
    config: Option<Config>,
) -> anyhow::Result<Running> {
    requirements::check()?;
    let was_there = instance.run_directory().exists();
    if instance.is_forgotten() {
        PinsLock::acquire(instance)?;
        warn!("{}", instance.forgotten());
    }
    let mut lock = AgentLock::acquire(instance)?;
    // Whoever meets this lock can say from now on who holds it.
    publish(&mut lock, 0, 0)?;
    let started = prepare(instance, options, config, &mut lock).await;
    if started.is_err() && !was_there {
        // Still under the lock: nothing was there before, so nothing stays.
        let _ = fs::remove_dir_all(instance.run_directory());
        let _ = instance.run_directory().parent().map(fs::remove_dir);
    }
    started.map(|(parts, watches)| Running {
        parts,
        watches,
        lock,
    })
}

/// What is known before anything changes.
pub(super) struct Plan<'a> {
    pub(super) instance: &'a Instance,
    pub(super) options: &'a Options,
    /// Rules and sets to start with, in place of all others.
    pub(super) config: Option<Config>,
    pub(super) namespace: NamespaceId,
    pub(super) netlink: Netlink,
    pub(super) assignment: Assignment,
    /// Whether interfaces get tcx links rather than clsact filters.
    pub(super) tcx: bool,
    settings: relay::Settings,
    /// Whether what an agent left goes on as it is.
    takes_over: bool,
    /// The state of a pinned instance, whose rules and interfaces go on.
    pub(super) kept: Option<State>,
}

/// What flows are given to.
struct Sockets {
    workers: Vec<Listener>,
    discard: Discard,
    lifeline: UnixDatagram,
}

async fn prepare(
    instance: &Instance,
    options: &Options,
    config: Option<Config>,
    lock: &mut AgentLock,
) -> anyhow::Result<(Parts, Watches)> {
    let changes = ChangeLock::wait(instance)?;
    let previous = instance.remembered_state();
    let namespace = NamespaceId::current().context("cannot identify the network namespace")?;
    let netlink = Netlink::open()?;
    for name in &options.interfaces {
        let link = link_by_name(&netlink, name).await?;
        check_attachable(instance, &netlink, &link, namespace).await?;
    }
    // Held until this instance has its rules and routes.
    let _alone = NamespaceId::have_alone().context("cannot lock the network namespace")?;
    let here = |state: &&State| state.namespace == namespace;
    let wanted = Wanted {
        mark: options.mark,
        table: options.table,
        previous: previous.as_ref().filter(here).map(State::assignment),
        neighbours: &neighbours(instance, namespace),
    };
    let assignment = choose(&netlink, wanted).await?;
    let workers = options
        .workers
        .unwrap_or_else(one_for_each_cpu)
        .min(WORKERS);
    let sockets = Sockets {
        workers: relay::bind(options.port, workers as usize)?,
        discard: discard().context("cannot make a socket")?,
        lifeline: UnixDatagram::unbound().context("cannot make a socket")?,
    };
    let settings = relay::Settings {
        mark: Some(assignment.upstream_mark()),
        connect_timeout: options.connect_timeout,
        udp_idle: options.udp_idle,
        udp_idle_dns: options.dns_idle,
        flows_per_source: options.flows_per_source,
        udp_sessions: options.udp_sessions,
        udp_sessions_per_source: options.udp_sessions_per_source,
        ..relay::Settings::default()
    };
    relay::check_limits(&settings, sockets.workers.len())?;
    let mut plan = Plan {
        instance,
        options,
        config,
        namespace,
        netlink: netlink.clone(),
        assignment,
        tcx: kernel::kernel_has_tcx() && !options.clsact,
        settings,
        takes_over: false,
        kept: previous
            .clone()
            .filter(|state| state.pinned && options.rules.is_empty()),
    };
    if let Some(previous) = &previous {
        plan.takes_over = leftovers::fit(&plan, previous).await?;
    }

    check_interfaces(&plan)?;

    // From here on the instance changes.
    if plan.takes_over {
        drop(changes);
        let accepting_before = instance.maps()?.agent()?;
        return build(plan, sockets, lock).await.inspect_err(|_| {
            // The instance is what it was, without an agent.
            let _ = instance.maps().map(|maps| maps.set_agent(accepting_before));
        });
    }
    leftovers::remove(instance, namespace, &netlink, &changes).await?;
    drop(changes);
    let kept = plan.kept.clone();
    let built = build(plan, sockets, lock).await;
    if built.is_err()
        && let Err(error) = undo(instance, &netlink, kept).await
    {
        warn!("cannot undo everything: {error}; `tproxy unload` tries again");
    }
    built
}

/// The other instances in this namespace.
fn neighbours(instance: &Instance, namespace: NamespaceId) -> Vec<Neighbour> {
    let others = Instance::all().into_iter();
    others
        .filter(|other| other.name() != instance.name())
        .filter_map(|other| {
            let origin = other.origin()?;
            (origin.namespace == namespace).then(|| Neighbour {
                instance: other.name().to_owned(),
                assignment: origin.assignment(),
            })
        })
        .collect()
}

/// Refuses a file whose rules name interfaces that will not be attached.
fn check_interfaces(plan: &Plan<'_>) -> Result<(), Error> {
    let Some(config) = &plan.config else {
        return Ok(());
    };
    let wanted = match &plan.kept {
        Some(state) if plan.options.interfaces.is_empty() => state.interface_names(),
        _ => plan.options.interfaces.clone(),
    };
    match config.unattached(plan.instance.name(), &wanted) {
        Some(problems) => Err(Error::Unattached(problems)),
        None => Ok(()),
    }
}

/// Takes out of the kernel what was begun. The rules and sets of a pinned instance stay.
async fn undo(instance: &Instance, netlink: &Netlink, kept: Option<State>) -> Result<(), Error> {
    let Some(state) = kept else {
        remove(instance, Some(netlink)).await?;
        return Ok(());
    };
    let changes = ChangeLock::wait(instance)?;
    let cleared = clear(instance, Some(netlink), Some(&changes)).await;
    instance.remember(&state)?;
    cleared.map(drop)
}

async fn build(
    plan: Plan<'_>,
    sockets: Sockets,
    lock: &mut AgentLock,
) -> anyhow::Result<(Parts, Watches)> {
    let instance = plan.instance;
    let assignment = plan.assignment;
    let netlink = plan.netlink.clone();
    let port = sockets.workers[0]
        .tcp
        .local_addr()
        .context("cannot read the listening port")?
        .port();
    let workers = u32::try_from(sockets.workers.len()).unwrap_or(WORKERS);
    publish(lock, port, workers)?;
    let loaded = if plan.takes_over {
        None
    } else {
        Some(load(instance, assignment)?)
    };
    let pins_lock = PinsLock::acquire(instance)?;
    let maps = instance.maps()?;
    let local = LocalAddresses::open(&netlink, assignment.table).await?;
    maps.set_local_prefixes(local.prefixes())?;
    let steering = Arc::new(Steering::open(instance, &maps, assignment)?);
    let delivery = Delivery::new(netlink.clone(), assignment);
    let watches = Watches::open(instance, &netlink, &delivery, local).await?;
    // The places that they get here end with the sockets themselves, which are the workers'.
    maps.set_sockets(&sockets.workers, &sockets.discard, &sockets.lifeline)?;
    let policy = Arc::clone(&steering) as _;
    let relay = Arc::new(Relay::start(
        sockets.workers,
        plan.settings.clone(),
        policy,
    )?);
    let redirects = Redirects::start(&maps)?;
    let agent_state = AgentState::accepting(workers, port);
    maps.set_agent(agent_state)?;
    match loaded {
        None => leftovers::take_over(&plan).await?,
        Some(loaded) => establish(&plan, loaded).await?,
    }
    if let Some(config) = plan.config {
        replace_rules(instance, config)?;
    }
    let (state, tables) = instance.in_force()?;
    let expiry = Expiry::open()?;
    expiry.follow(&state)?;
    delivery.apply(&state.flows(&state.delivering())).await?;
    steering.follow(&state, tables);
    redirects.follow(&state);
    let following = Following::new();
    following.follow(&state);
    let groups = FollowedGroups::new();
    groups.follow(&state);
    let Capacity {
        flows,
        sessions,
        descriptors,
        pipes,
    } = relay.capacity();
    info!(
        "serving at most {flows} flows at once, {sessions} of them of UDP: {descriptors} open files are allowed, 2 for a flow, {} for pipes",
        pipes * 2
    );
    release_freed_memory();
    let parts = Parts {
        instance: instance.clone(),
        maps,
        netlink,
        delivery,
        steering,
        relay,
        agent_state,
        expiry,
        state,
        redirects,
        following,
        groups,
        links: RefCell::default(),
        _pins: pins_lock,
        _discard: sockets.discard,
        _lifeline: sockets.lifeline,
    };
    parts.hold_links(&parts.state);
    Ok((parts, watches))
}

/// Puts the rules and sets of a file in force. Only now: they may name interfaces that have just been
/// attached.
fn replace_rules(instance: &Instance, config: Config) -> anyhow::Result<()> {
    let mut change = Change::begin(instance)?;
    change.replace_by_file(config)?;
    change.commit()?;
    Ok(())
}

/// Puts the first generation in force and attaches what was loaded.
async fn establish(plan: &Plan<'_>, loaded: Loaded) -> anyhow::Result<()> {
    let instance = plan.instance;
    let (state, interfaces) = first_state(plan, loaded).await?;
    let mut change = Change::establish(instance, state)?;
    change.append_rules(&plan.options.rules)?;
    change.commit()?;
    kernel::attach_lookup(&pins(instance)?)?;
    if !interfaces.is_empty() {
        let change = Change::begin(instance)?;
        change.attach(&plan.netlink, &interfaces).await?;
    }
    Ok(())
}

/// The state to begin with, and the interfaces to attach then.
async fn first_state(plan: &Plan<'_>, loaded: Loaded) -> anyhow::Result<(State, Vec<String>)> {
    let kept = plan.kept.as_ref();
    let mut state = State {
        generation: 0,
        namespace: plan.namespace,
        mark: plan.assignment.mark,
        table: plan.assignment.table,
        pinned: plan.options.pin,
        local: false,
        loaded,
        tcx: plan.tcx,
        interfaces: Vec::new(),
        answering: Vec::new(),
        rules: kept.map(|state| state.rules.clone()).unwrap_or_default(),
        next_rule: kept.map_or(0, |state| state.next_rule),
        sets: kept.map(|state| state.sets.clone()).unwrap_or_default(),
        next_set: kept.map_or(0, |state| state.next_set),
        cgroups: BTreeMap::new(),
        built: Built::default(),
    };
    let Some(kept) = kept.filter(|_| plan.options.interfaces.is_empty()) else {
        return Ok((state, plan.options.interfaces.clone()));
    };
    // One that is not there at the moment is attached when it comes.
    let links = list_links(&plan.netlink).await?;
    let (there, absent): (Vec<String>, Vec<String>) = kept
        .interface_names()
        .into_iter()
        .partition(|name| links.iter().any(|link| link.name == *name));
    state.interfaces = absent.into_iter().map(Interface::absent).collect();
    Ok((state, there))
}

fn publish(lock: &mut AgentLock, port: u16, workers: u32) -> anyhow::Result<()> {
    AgentRecord::of_this_process(port, workers)
        .and_then(|record| lock.publish(record))
        .context("cannot write the agent's lock file")
}

/// Loads and pins beside, then moves the pins to their place in one step.
fn load(instance: &Instance, assignment: Assignment) -> anyhow::Result<Loaded> {
    bpffs::mounted()?;
    let finished = pins(instance)?;
    let unfinished = instance
        .unfinished_pins()
        .context("the BPF file system is gone")?;
    if let Some(directory) = finished.parent() {
        private_directory(directory)?;
    }
    private_directory(&unfinished)?;
    let settings = kernel::Settings::of_this_namespace(assignment)
        .context("cannot identify the network namespace")?;
    let loaded = kernel::load(settings, &unfinished)?;
    fs::rename(&unfinished, &finished)
        .with_context(|| format!("cannot put the pins in place: {}", finished.display()))?;
    Ok(loaded)
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
