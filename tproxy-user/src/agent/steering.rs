//! The relay's view of rules: which one took a flow, and what it counts.

use std::{net::SocketAddr, sync::Arc};

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
    kernel::{self, Generation, Handover, Maps, RelayCounters},
    relay::{Admission, FlowRecord, Policy, RuleTag},
};

/// Tells the relay's workers about rules. Follows changes by [`Steering::follow`].
pub(super) struct Steering {
    handover: Handover,
    counters: RelayCounters,
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
            counters,
            rules: ArcSwap::from_pointee(Rules {
                tables: None,
                tags: Vec::new(),
                interfaces: Vec::new(),
            }),
        })
    }

    /// Takes up the state in force.
    pub(super) fn follow(&self, maps: &Maps, state: &State) -> Result<(), kernel::Error> {
        let tags = state.rules.iter().map(|rule| RuleTag {
            name: rule.name().into(),
            slot: rule.slot,
        });
        let indexes = state
            .interfaces
            .iter()
            .filter_map(|interface| Some(interface.attached?.0));
        self.rules.store(Arc::new(Rules {
            tables: Generation::in_force(maps)?,
            tags: tags.collect(),
            interfaces: indexes.collect(),
        }));
        Ok(())
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
        let tag = self
            .handover
            .slot(Place::of(&ends))
            .and_then(|slot| rules.tags.iter().find(|tag| tag.slot == slot).cloned())
            .or_else(|| rules.classify(&ends))
            // Its rule was deleted a moment ago. It was taken, so it is served.
            .unwrap_or_else(|| RuleTag {
                name: "-".into(),
                slot: UNATTRIBUTED_SLOT,
            });
        Some(Admission::direct(tag, destination))
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
}

impl Rules {
    /// The rule by the tables in force, for a flow whose word another one has overwritten. The
    /// interface it came in by is not known any more, so each attached one is tried.
    fn classify(&self, ends: &Ends) -> Option<RuleTag> {
        let tables = self.tables.as_ref()?;
        let rule = self
            .interfaces
            .iter()
            .filter_map(|interface| classify(tables, &flow(ends, *interface)))
            .map(|found| found.rule)
            .min()?;
        self.tags.get(rule as usize).cloned()
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
