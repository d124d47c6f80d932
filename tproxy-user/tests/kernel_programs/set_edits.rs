//! Packets while sets change: each sees the tables before a change or after it.

use std::thread;

use ipnet::IpNet;
use tproxy_common::outcome::Outcome;
use tproxy_user::{
    compiler::{SetEdit, Source, compile, edit},
    kernel::{Generation, Maps},
    rule::Rule,
    set::{CidrList, Set, SetName, Sets},
};

use crate::{
    frame::{Frame, SYN},
    sandbox::{FIRST_SLOT, Metadata, in_sandbox, rule, words},
};

/// Blocks of changes within the tables, after which they are compiled anew: some of both.
const ROOM: usize = 200;

/// Changes altogether.
const CHANGES: u64 = 3000;

/// An address goes from one set to the other with each change, and back: some rule takes each of its
/// packets at any time. It would be in neither set where two states mix.
#[test]
fn no_packet_sees_two_states_of_the_sets() {
    in_sandbox(|sandbox| {
        let rules = [("passed", "pass"), ("dropped", "drop")].map(|(set, action)| {
            rule(|spec| {
                spec.dst = words(&[&format!("set:{set}")]);
                spec.action = Some(action.into());
            })
        });
        let frames = [
            Frame::tcp("10.1.0.2:40000", "192.0.2.9:443", SYN).bytes(),
            Frame::tcp("[2001:db8:1::2]:40000", "[2001:db8:9::9]:443", SYN).bytes(),
        ];
        let mut sets = first_sets();
        compile_anew(&sandbox.maps, &rules, &sets, 1);
        let before = sandbox.outcomes();
        thread::scope(|scope| {
            let (rules, sets) = (&rules, &mut sets);
            let changes = scope.spawn(move || {
                let within = (2..CHANGES + 2)
                    .filter(|generation| change(&sandbox.maps, rules, sets, *generation))
                    .count() as u64;
                let anew = CHANGES - within;
                assert!(
                    anew > 0 && within > 10 * anew,
                    "{within} within, {anew} anew"
                );
            });
            while !changes.is_finished() {
                for frame in &frames {
                    sandbox.run(frame, None, Metadata::default());
                }
            }
        });
        let mut seen = sandbox.moved_since(&before);
        seen.retain(|(_, times)| *times > 0);
        let mut outcomes: Vec<Outcome> = seen.iter().map(|(outcome, _)| *outcome).collect();
        outcomes.sort_by_key(|outcome| *outcome as u32);
        assert_eq!(outcomes, [Outcome::Passed, Outcome::Dropped], "{seen:?}");
    });
}

/// The addresses of the frames are in the first set; both have others, around them and elsewhere.
fn first_sets() -> Sets {
    let others = (0..2000_u32).map(|index| {
        let address = std::net::Ipv4Addr::from(0xc000_0000 + index * 77);
        IpNet::new(address.into(), 30).expect("a prefix").trunc()
    });
    let mut passed = Set::new(CidrList::new(others));
    let dropped = Set::new(CidrList::default());
    for net in moving() {
        passed.insert(&net);
    }
    Sets::from([(name("passed"), passed), (name("dropped"), dropped)])
}

fn moving() -> [IpNet; 2] {
    ["192.0.2.9/32", "2001:db8:9::9/128"].map(|word| word.parse().expect("a CIDR"))
}

fn name(name: &str) -> SetName {
    SetName::new(name).expect("a name")
}

/// Moves the addresses from the set that they are in to the other one, and says whether that was
/// done within the tables.
fn change(maps: &Maps, rules: &[Rule], sets: &mut Sets, generation: u64) -> bool {
    let (from, to) = if generation.is_multiple_of(2) {
        (name("passed"), name("dropped"))
    } else {
        (name("dropped"), name("passed"))
    };
    let mut edits = Vec::new();
    for net in moving() {
        assert!(sets.get_mut(&from).is_some_and(|set| set.remove(&net)));
        assert!(sets.get_mut(&to).is_some_and(|set| set.insert(&net)));
        edits.extend([&from, &to].map(|set| SetEdit {
            set: set.clone(),
            net,
        }));
    }
    let tables = Generation::in_force(maps).expect("tables").expect("tables");
    assert_eq!(tables.number(), generation - 1);
    let sources = sources(rules);
    let Some(edited) = edit(&tables, &sources, sets, &edits, generation, tables.room()) else {
        compile_anew(maps, rules, sets, generation);
        return false;
    };
    tables.extend(&edited.blocks).expect("there is room");
    true
}

fn compile_anew(maps: &Maps, rules: &[Rule], sets: &Sets, generation: u64) {
    let compiled = compile(&sources(rules), sets, generation).expect("the rules compile");
    Generation::install_with_room(maps, &compiled.blocks, ROOM).expect("the tables are installed");
}

fn sources(rules: &[Rule]) -> Vec<Source<'_>> {
    let numbered = rules.iter().zip(FIRST_SLOT..);
    numbered
        .map(|(rule, slot)| Source {
            rule,
            slot,
            interfaces: Vec::new(),
            cgroups: Vec::new(),
        })
        .collect()
}
