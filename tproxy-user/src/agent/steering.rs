//! The relay's view of rules: which one took a flow, and what it counts.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use log::info;
use tproxy_common::{
    address::Address,
    classifier::classify,
    counters::WorkerCounter,
    flow::{Flow, Protocol, Scope},
    handover::{Ends, Place, Taken},
    limits::UNATTRIBUTED_SLOT,
};

use crate::{
    delivery::Assignment,
    instance::{Instance, State},
    kernel::{
        self, FlowFilter, Generation, Handover, IntakeCounters, LocalUdp, Maps, RelayCounters,
        Turns, WorkerCounters,
    },
    relay::{Admission, FlowRecord, Load, Policy, RuleTag},
};

/// Tells the relay's workers about rules. Follows changes by [`Steering::follow`].
pub(super) struct Steering {
    handover: Handover,
    local_udp: LocalUdp,
    stand_ins: [IpAddr; 2],
    counters: RelayCounters,
    intake: IntakeCounters,
    flow_filter: FlowFilter,
    workers: WorkerCounters,
    turns: Turns,
    instance: Instance,
    maps: Maps,
    rules: ArcSwap<Rules>,
}

/// The rules of one generation as the workers need them.
struct Rules {
    tables: Option<Generation>,
    known: Vec<Known>,
    interfaces: Vec<u32>,
}

/// A rule as its flows need it.
#[derive(Clone)]
struct Known {
    tag: RuleTag,
    /// Whether servers see the client's address.
    from_client: bool,
}

impl Steering {
    /// Opens the maps. There are no rules before the first [`Steering::follow`].
    pub(super) fn open(
        instance: &Instance,
        maps: &Maps,
        assignment: Assignment,
    ) -> Result<Self, kernel::Error> {
        let counters = RelayCounters::open(maps)?;
        counters.forget_live();
        Ok(Self {
            handover: Handover::open(maps)?,
            local_udp: LocalUdp::open(maps)?,
            stand_ins: [
                assignment.stand_in_v4().into(),
                assignment.stand_in_v6().into(),
            ],
            intake: IntakeCounters::open(maps)?,
            flow_filter: FlowFilter::open(maps)?,
            workers: WorkerCounters::open(maps)?,
            turns: Turns::open(maps)?,
            counters,
            instance: instance.clone(),
            maps: maps.clone(),
            rules: ArcSwap::from_pointee(Rules {
                tables: None,
                known: Vec::new(),
                interfaces: Vec::new(),
            }),
        })
    }

    /// Takes up the state in force.
    pub(super) fn follow(&self, state: &State, tables: Generation) {
        let known = state.rules.iter().map(|rule| Known {
            tag: RuleTag {
                name: rule.name().into(),
                slot: rule.slot,
            },
            from_client: rule.spec.uses_client_address(),
        });
        self.rules.store(Arc::new(Rules {
            tables: Some(tables),
            known: known.collect(),
            interfaces: state.attached().collect(),
        }));
    }
}

impl Steering {
    /// The rule with this counter slot. One that was deleted a moment ago has no name any more, but
    /// it took the flow, so the flow is served.
    fn rule(&self, slot: u32) -> Known {
        if let Some(known) = self.rules.load().rule(slot) {
            return known;
        }
        // A rule that was added a moment ago, and not taken up yet.
        if let Ok((state, tables)) = self.instance.in_force() {
            self.follow(&state, tables);
        }
        let nameless = || Known {
            tag: RuleTag {
                name: "-".into(),
                slot,
            },
            from_client: false,
        };
        self.rules.load().rule(slot).unwrap_or_else(nameless)
    }

    /// What the hook that took the flow said of it.
    fn taken(&self, ends: &Ends) -> Option<Taken> {
        let announced = |ends: &Ends| self.handover.taken(Place::of(ends));
        announced(ends).or_else(|| match ends.protocol {
            Protocol::Tcp => announced(&ends.before_routing()),
            Protocol::Udp => {
                let family = ends.destination.family();
                self.local_udp.of_port(family, ends.source_port).taken(ends)
            }
        })
    }

    /// Where a client takes answers: a process of this host that has bound its socket to an address
    /// takes none at the stand-in for it.
    fn answered_at(&self, client: SocketAddr) -> SocketAddr {
        if !self.stand_ins.contains(&client.ip()) {
            return client;
        }
        let family = Address::from(client.ip()).family();
        match self.local_udp.of_port(family, client.port()).bound() {
            Some(octets) => {
                let bound = Ipv6Addr::from(octets).to_canonical();
                SocketAddr::new(bound, client.port())
            }
            None => client,
        }
    }

    fn classify(&self, ends: &Ends) -> Known {
        let found = self.rules.load().classify(ends);
        self.rule(found.unwrap_or(UNATTRIBUTED_SLOT))
    }
}

impl Policy for Steering {
    fn admit(
        &self,
        protocol: Protocol,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Option<Admission> {
        let ends = Ends {
            protocol,
            source: client.ip().into(),
            source_port: client.port(),
            destination: destination.ip().into(),
            destination_port: destination.port(),
        };
        let Known { tag, from_client } = match self.taken(&ends) {
            Some(taken) => self.rule(taken.slot),
            None => self.classify(&ends),
        };
        let direct = Admission::direct(tag, self.answered_at(client), destination);
        Some(Admission {
            source: from_client.then(|| client.ip()),
            ..direct
        })
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

    fn over_limit(&self) {
        self.intake.over_limit();
    }

    fn paused(&self) {
        self.intake.paused();
    }

    fn fell_back(&self) {
        self.intake.fell_back();
    }

    fn awaits_answers(&self, protocol: Protocol, own: SocketAddr, server: SocketAddr) {
        self.flow_filter.stamp(&Ends {
            protocol,
            source: server.ip().into(),
            source_port: server.port(),
            destination: own.ip().into(),
            destination_port: own.port(),
        });
    }

    fn serving(&self, worker: usize, load: Load) {
        let Load {
            flows,
            sessions,
            dropped,
        } = load;
        let counter = WorkerCounter {
            flows,
            sessions,
            dropped,
        };
        self.workers.set(worker, counter);
    }

    fn wants_more(&self, worker: usize) {
        self.turns.prolong(worker);
    }
}

impl Rules {
    fn rule(&self, slot: u32) -> Option<Known> {
        let mut known = self.known.iter();
        known.find(|known| known.tag.slot == slot).cloned()
    }

    /// The slot of the rule by the tables in force, for a flow whose word another one has overwritten. The
    /// interface it came in by is not known any more, so each attached one is tried.
    fn classify(&self, ends: &Ends) -> Option<u32> {
        let found = self.tables.as_ref().and_then(|tables| {
            self.interfaces
                .iter()
                .filter_map(|interface| {
                    classify(tables, &Flow::between(ends, Scope::Forward, *interface))
                })
                .min_by_key(|found| found.rule)
        });
        Some(found?.entry.slot())
    }
}
