//! The relay's view of rules: which one took a flow, and what it counts.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use log::info;
use tproxy_common::{
    classifier::classify,
    flow::{Flow, Protocol, Scope},
    handover::{Ends, Place},
    limits::UNATTRIBUTED_SLOT,
};

use crate::{
    instance::State,
    kernel::{self, Generation, Handover, IntakeCounters, Maps, RelayCounters},
    relay::{Admission, FlowRecord, Policy, RuleTag},
};

/// Tells the relay's workers about rules. Follows changes by [`Steering::follow`].
pub(super) struct Steering {
    handover: Handover,
    counters: RelayCounters,
    intake: IntakeCounters,
    maps: Maps,
    rules: ArcSwap<Rules>,
}

/// The rules of one generation as the workers need them.
struct Rules {
    tables: Option<Generation>,
    tags: Vec<RuleTag>,
    interfaces: Vec<u32>,
}

impl Steering {
    /// Opens the maps. There are no rules before the first [`Steering::follow`].
    pub(super) fn open(maps: &Maps) -> Result<Self, kernel::Error> {
        let counters = RelayCounters::open(maps)?;
        counters.forget_live();
        Ok(Self {
            handover: Handover::open(maps)?,
            intake: IntakeCounters::open(maps)?,
            counters,
            maps: maps.clone(),
            rules: ArcSwap::from_pointee(Rules {
                tables: None,
                tags: Vec::new(),
                interfaces: Vec::new(),
            }),
        })
    }

    /// Takes up the state in force.
    pub(super) fn follow(&self, state: &State, tables: Generation) {
        let tags = state.rules.iter().map(|rule| RuleTag {
            name: rule.name().into(),
            slot: rule.slot,
        });
        self.rules.store(Arc::new(Rules {
            tables: Some(tables),
            tags: tags.collect(),
            interfaces: state.attached().collect(),
        }));
    }
}

impl Policy for Steering {
    fn admit(&self, client: SocketAddr, destination: SocketAddr) -> Option<Admission> {
        let ends = Ends {
            source: client.ip().into(),
            source_port: client.port(),
            destination: destination.ip().into(),
            destination_port: destination.port(),
        };
        let rules = self.rules.load();
        let tag = match self.handover.slot(Place::of(&ends)) {
            Some(slot) => rules.tag(slot),
            None => rules.classify(&ends),
        };
        Some(Admission::direct(tag, destination))
    }

    fn is_own(&self, address: IpAddr) -> bool {
        // Of two mistakes, refusing a flow is the one without a loop.
        self.maps.is_local(address).unwrap_or(true)
    }

    fn opened(&self, rule: &RuleTag) {
        self.counters.opened(rule.slot);
    }

    fn moved(&self, rule: &RuleTag, to_upstream: u64, to_client: u64) {
        self.counters.moved(rule.slot, to_upstream, to_client);
    }

    fn ended(&self, flow: &FlowRecord<'_>) {
        self.counters.ended(flow.rule.slot);
        info!(target: "tproxy::flow", "{flow}");
    }

    fn shed(&self) {
        self.intake.shed();
    }

    fn paused(&self) {
        self.intake.paused();
    }
}

impl Rules {
    /// The rule with this counter slot. One that was deleted a moment ago has no name any more, but
    /// it took the flow, so the flow is served.
    fn tag(&self, slot: u32) -> RuleTag {
        let known = self.tags.iter().find(|tag| tag.slot == slot);
        known.cloned().unwrap_or_else(|| RuleTag {
            name: "-".into(),
            slot,
        })
    }

    /// The rule by the tables in force, for a flow whose word another one has overwritten. The
    /// interface it came in by is not known any more, so each attached one is tried.
    fn classify(&self, ends: &Ends) -> RuleTag {
        let found = self.tables.as_ref().and_then(|tables| {
            self.interfaces
                .iter()
                .filter_map(|interface| classify(tables, &flow(ends, *interface)))
                .min_by_key(|found| found.rule)
        });
        self.tag(found.map_or(UNATTRIBUTED_SLOT, |found| found.entry.slot()))
    }
}

fn flow(ends: &Ends, interface: u32) -> Flow {
    Flow {
        scope: Scope::Forward,
        protocol: Protocol::Tcp,
        interface,
        source: ends.source,
        source_port: ends.source_port,
        destination: ends.destination,
        destination_port: ends.destination_port,
    }
}
