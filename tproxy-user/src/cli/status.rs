//! `tproxy status`.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;
use tproxy_common::{counters::WorkerCounter, flow::Scope};

use super::{
    block_on,
    output::{print_json, print_line},
};
use crate::{
    delivery::{Netlink, controllers},
    instance::{AgentLock, AgentRecord, Instance, Interface, State, StoredRule},
    kernel::{
        Counters, IntakeCounters, ListenerCounters, Maps, RelayCounters, RuleTotals, WorkerCounters,
    },
    requirements,
    rule::scope_name,
};

#[derive(Serialize)]
struct Status {
    instance: String,
    agent: Option<AgentRecord>,
    interfaces: Vec<String>,
    /// Those of `interfaces` that do not exist at the moment, or whose program something else took
    /// off.
    absent: Vec<String>,
    /// Those of `interfaces` whose flows are routed as arriving at a bridge, bond or VRF, and so are not
    /// taken, each with that.
    ports: BTreeMap<String, String>,
    /// Those on which only answers to upstream connections from clients' addresses are looked for.
    answers_only: Vec<String>,
    generation: u64,
    rules: usize,
    sets: usize,
    /// Of all rules and sets.
    cidrs: usize,
    /// Memory of the tables, room for changes within them included.
    table_bytes: usize,
    /// Different sets of rules that keys of the tables satisfy, when all were last compiled.
    classes: usize,
    /// How long that took.
    compile_milliseconds: u64,
    workers: u32,
    flows: u64,
    /// Those of `flows` that are of UDP.
    sessions: u64,
    per_scope: Vec<OfScope>,
    per_worker: Vec<OfWorker>,
    listeners: Vec<OfListener>,
    mark: u32,
    table: u32,
    totals: Totals,
    /// Connections that were accepted and then reset for want of descriptors or memory.
    shed: u64,
    /// Connections that were accepted and then reset, because their client had as many flows as it may
    /// have.
    over_limit: u64,
    /// How often a worker stopped accepting for want of descriptors or memory.
    pauses: u64,
    /// Flows that were to reach their server from the client's address, and did from this host's.
    fallbacks: u64,
    counters: serde_json::Map<String, serde_json::Value>,
}

/// The flows of the rules of one scope.
#[derive(Serialize)]
struct OfScope {
    scope: &'static str,
    /// Now.
    live: u64,
    /// That began.
    flows: u64,
}

/// What one worker serves.
#[derive(Serialize)]
struct OfWorker {
    /// TCP flows, now.
    flows: u64,
    /// UDP sessions, now.
    sessions: u64,
    /// Datagrams that it has dropped.
    dropped: u64,
}

/// The listeners of other programs that a rule hands its flows to.
#[derive(Serialize)]
struct OfListener {
    rule: String,
    to: String,
    /// Sockets that are there now.
    present: u64,
    found: u64,
    lost: u64,
}

/// What the rules in force have counted between them.
#[derive(Default, Serialize)]
struct Totals {
    flows: u64,
    packets: u64,
    bytes: u64,
    bytes_to_upstream: u64,
    bytes_to_client: u64,
}

impl Totals {
    fn of(rules: &[RuleTotals]) -> Self {
        let mut totals = Self::default();
        for RuleTotals { kernel, relay } in rules {
            totals.flows += kernel.flows;
            totals.packets += kernel.packets;
            totals.bytes += kernel.bytes + relay.to_upstream + relay.to_client;
            totals.bytes_to_upstream += relay.to_upstream;
            totals.bytes_to_client += relay.to_client;
        }
        totals
    }
}

pub(super) fn execute(instance: &Instance, json: bool) -> anyhow::Result<()> {
    requirements::check()?;
    let status = read(instance)?;
    if json {
        print_json(&status)
    } else {
        print(&status)
    }
}

fn read(instance: &Instance) -> anyhow::Result<Status> {
    let (state, tables) = instance.in_force()?;
    let maps = instance.maps()?;
    let agent = AgentLock::holder(instance);
    let mut absent = Vec::new();
    for interface in state.interfaces.iter().chain(&state.answering) {
        if !instance.is_attached(&state, interface)? {
            absent.push(interface.name.clone());
        }
    }
    let counters = Counters::new(&maps);
    let rules = counters.rules(state.rules.iter().map(|rule| rule.slot))?;
    let intake = IntakeCounters::open(&maps)?.get();
    let per_worker = per_worker(&maps, agent)?;
    Ok(Status {
        instance: instance.name().to_owned(),
        agent,
        interfaces: state.interface_names(),
        absent,
        ports: ports(&state, agent)?,
        answers_only: state
            .answering
            .iter()
            .map(|interface| interface.name.clone())
            .collect(),
        generation: state.generation,
        rules: state.rules.len(),
        sets: state.sets.len(),
        cidrs: state.built.cidrs,
        table_bytes: tables.bytes(),
        classes: state.built.classes,
        compile_milliseconds: state.built.milliseconds,
        workers: agent.map_or(0, |agent| agent.workers),
        // What a killed agent counted as live is not.
        flows: if agent.is_some() {
            RelayCounters::open(&maps)?.live()
        } else {
            0
        },
        sessions: per_worker.iter().map(|worker| worker.sessions).sum(),
        per_scope: per_scope(&state, &rules, agent.is_some()),
        per_worker,
        listeners: listeners(&state, &maps)?,
        mark: state.mark,
        table: state.table,
        totals: Totals::of(&rules),
        shed: intake.shed,
        over_limit: intake.over_limit,
        pauses: intake.pauses,
        fallbacks: intake.fallbacks,
        counters: counters
            .outcomes()?
            .into_iter()
            .map(|(name, count)| (name.to_owned(), count.into()))
            .collect(),
    })
}

/// Links can be listed in their network namespace only. Where that is out of reach, nothing is said.
fn ports(state: &State, agent: Option<AgentRecord>) -> anyhow::Result<BTreeMap<String, String>> {
    let process = agent.and_then(|agent| agent.process());
    if !state.namespace.enter(process).unwrap_or(false) {
        return Ok(BTreeMap::new());
    }
    let controllers = block_on(async { Ok(controllers(&Netlink::open()?).await?) })?;
    let port = |interface: &Interface| {
        let controller = controllers.get(&interface.attached?)?;
        Some((interface.name.clone(), controller.clone()))
    };
    Ok(state.interfaces.iter().filter_map(port).collect())
}

fn per_worker(maps: &Maps, agent: Option<AgentRecord>) -> anyhow::Result<Vec<OfWorker>> {
    let workers = agent.map_or(0, |agent| agent.workers);
    let counters = WorkerCounters::open(maps)?.get(workers);
    let of_worker = |counter: WorkerCounter| OfWorker {
        flows: counter.flows,
        sessions: counter.sessions,
        dropped: counter.dropped,
    };
    Ok(counters.into_iter().map(of_worker).collect())
}

fn per_scope(state: &State, totals: &[RuleTotals], lives: bool) -> Vec<OfScope> {
    let scopes = [Scope::Forward, Scope::Inbound, Scope::Local].map(scope_name);
    let of_scope = |scope: &'static str| {
        let rules = state.rules.iter().zip(totals);
        let rules = rules.filter(|(stored, _)| stored.spec.scope_word() == scope);
        let mut of_scope = OfScope {
            scope,
            live: 0,
            flows: 0,
        };
        for (_, totals) in rules {
            of_scope.live += if lives { totals.relay.live } else { 0 };
            of_scope.flows += totals.kernel.flows;
        }
        of_scope
    };
    scopes.map(of_scope).into()
}

fn listeners(state: &State, maps: &Maps) -> anyhow::Result<Vec<OfListener>> {
    let counters = ListenerCounters::open(maps)?;
    let redirects = state
        .rules
        .iter()
        .filter(|stored| stored.spec.action_word() == "redirect");
    let of_rule = |stored: &StoredRule| {
        let counter = counters.get(stored.slot);
        OfListener {
            rule: stored.name().to_owned(),
            to: stored.spec.to.clone().unwrap_or_default(),
            present: counter.present,
            found: counter.found,
            lost: counter.lost,
        }
    };
    Ok(redirects.map(of_rule).collect())
}

impl Status {
    /// How many flows there are, and of what kinds.
    fn flows(&self) -> String {
        let mut text = self.flows.to_string();
        if self.flows > 0 {
            let scopes = self.per_scope.iter().filter(|scope| scope.live > 0);
            let mut kinds: Vec<String> = scopes
                .map(|scope| format!("{} {}", scope.live, scope.scope))
                .collect();
            if self.sessions > 0 {
                kinds.push(format!("{} of UDP", self.sessions));
            }
            if !kinds.is_empty() {
                let _ = write!(text, " ({})", kinds.join(", "));
            }
        }
        text
    }

    /// Their names, with what is odd about each.
    fn interfaces(&self) -> String {
        let shown = |name: &String, otherwise: &str| {
            if self.absent.contains(name) {
                return format!("{name} (not attached)");
            }
            match self.ports.get(name) {
                Some(of) => format!("{name} (a port of {of}: attach {of} in its place)"),
                None => format!("{name}{otherwise}"),
            }
        };
        let full = self.interfaces.iter().map(|name| shown(name, ""));
        let answering = self.answers_only.iter();
        let answering = answering.map(|name| shown(name, " (answers only)"));
        let interfaces: Vec<String> = full.chain(answering).collect();
        if interfaces.is_empty() {
            return "none".to_owned();
        }
        interfaces.join(", ")
    }

    fn workers(&self) -> String {
        let of_worker = |worker: &OfWorker| format!("{}+{}", worker.flows, worker.sessions);
        let loads: Vec<String> = self.per_worker.iter().map(of_worker).collect();
        let dropped: u64 = self.per_worker.iter().map(|worker| worker.dropped).sum();
        if loads.is_empty() {
            return "none".to_owned();
        }
        format!(
            "{} (TCP flows + UDP sessions of each); {dropped} datagrams dropped",
            loads.join(" ")
        )
    }

    fn listeners(&self) -> Vec<String> {
        let of_rule = |of: &OfListener| {
            format!(
                "{} to {}: {} there, {} found, {} lost",
                of.rule, of.to, of.present, of.found, of.lost
            )
        };
        self.listeners.iter().map(of_rule).collect()
    }
}

fn print(status: &Status) -> anyhow::Result<()> {
    let agent = match status.agent {
        Some(agent) => format!(
            "process {}, {} workers on port {}",
            agent.pid, agent.workers, agent.port
        ),
        None => "none: on-missing of each rule decides".to_owned(),
    };
    for (key, value) in [
        ("instance", status.instance.clone()),
        ("agent", agent),
        ("interfaces", status.interfaces()),
        (
            "rules",
            format!(
                "{} (generation {}, {} bytes)",
                status.rules, status.generation, status.table_bytes
            ),
        ),
        (
            "sets",
            format!(
                "{} ({} CIDRs with those of rules)",
                status.sets, status.cidrs
            ),
        ),
        ("flows", status.flows()),
        ("workers", status.workers()),
        (
            "decided",
            format!(
                "{} new flows; {} bytes to servers, {} to clients; {} packets dropped",
                status.totals.flows,
                status.totals.bytes_to_upstream,
                status.totals.bytes_to_client,
                status.totals.packets
            ),
        ),
        (
            "overload",
            format!(
                "{} connections reset, {} over their client's limit, {} pauses",
                status.shed, status.over_limit, status.pauses
            ),
        ),
        (
            "fallbacks",
            format!("{} flows from this host's address", status.fallbacks),
        ),
        ("mark", format!("{:#x}", status.mark)),
        ("table", status.table.to_string()),
    ] {
        print_line(&format!("{key:<12}{value}"))?;
    }
    for (number, listener) in status.listeners().iter().enumerate() {
        let key = if number == 0 { "listeners" } else { "" };
        print_line(&format!("{key:<12}{listener}"))?;
    }
    print_line("packets")?;
    for (name, count) in &status.counters {
        if count.as_u64() != Some(0) {
            print_line(&format!("  {name:<24}{count}"))?;
        }
    }
    Ok(())
}
