//! Changes within tables against tables that are compiled anew, and against the plain oracle.

use super::*;

/// Puts an edit in force the way the kernel's memory has it.
fn put_in_force(tables: &mut Vec<Block>, edited: &Edited) {
    let Edited { behind, blocks } = edited;
    assert_eq!(u64::from(*behind), tables[0].words[0], "nobody else edits");
    tables.truncate(*behind as usize + 1);
    tables.extend_from_slice(blocks);
    tables[0].words[0] = tables.len() as u64 - 1;
}

/// The addresses at and beside both ends of a prefix.
fn edges_of(net: &IpNet) -> Vec<IpAddr> {
    let beside = |address: IpAddr, step: i8| -> IpAddr {
        match address {
            IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4).wrapping_add_signed(step.into())).into(),
            IpAddr::V6(v6) => {
                Ipv6Addr::from(u128::from(v6).wrapping_add_signed(step.into())).into()
            }
        }
    };
    let (first, last) = (net.network(), net.broadcast());
    vec![first, last, beside(first, -1), beside(last, 1)]
}

fn probes_at(addresses: &[IpAddr]) -> Vec<Probe> {
    let pairs = addresses
        .iter()
        .flat_map(|one| addresses.iter().map(move |other| (*one, *other)));
    pairs
        .filter(|(one, other)| one.is_ipv4() == other.is_ipv4())
        .map(|(source, destination)| Probe {
            scope: Scope::Forward,
            owner: Owner::user(0),
            protocol: Protocol::Tcp,
            interface: 2,
            source: (source, 2),
            destination: (destination, 3),
        })
        .collect()
}

/// One command: CIDRs of sets that are added (`true`) or taken out.
type Command = Vec<(SetName, IpNet, bool)>;

fn any_command() -> impl Strategy<Value = Command> {
    prop::collection::vec((any_set_name(), any_prefix(), any::<bool>()), 1..5)
}

fn carry_out(command: &Command, sets: &mut Sets) -> Vec<SetEdit> {
    let mut edits = Vec::new();
    for (set, net, add) in command {
        let contents = sets.get_mut(set).unwrap();
        let known: Vec<IpNet> = contents.iter().collect();
        // What is taken out had better be there.
        let net = if *add || known.is_empty() {
            *net
        } else {
            known[usize::from(net.prefix_len()) % known.len()]
        };
        if *add {
            contents.insert(&net);
        } else {
            contents.remove(&net);
        }
        edits.push(SetEdit {
            set: set.clone(),
            net,
        });
    }
    edits
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn edited_tables_classify_as_those_compiled_anew(
        rules in prop::collection::vec(any_rule(), 1..20),
        mut sets in any_sets(),
        commands in prop::collection::vec(any_command(), 1..12),
        probes in prop::collection::vec(any_probe(), 64),
    ) {
        let sources = sources(&rules);
        let mut tables = compiled(&rules, &sets);
        for (generation, command) in (8..).zip(&commands) {
            let before = tables.clone();
            let edits = carry_out(command, &mut sets);
            let edited = edit(tables.as_slice(), &sources, &sets, &edits, generation, 1 << 20);
            let edited = edited.expect("a small edit is possible");
            put_in_force(&mut tables, &edited);
            prop_assert_eq!(&tables[1..before.len()], &before[1..], "blocks in force stay");
            prop_assert_eq!(tables.as_slice().header().unwrap().generation(), generation);
            let anew = compiled(&rules, &sets);
            let of_edits: Vec<IpAddr> = edits.iter().flat_map(|edit| edges_of(&edit.net)).collect();
            for probe in probes.iter().chain(&probes_at(&of_edits)) {
                let found = classified(&tables, probe);
                prop_assert_eq!(found, classified(&anew, probe), "{:?}", probe);
                prop_assert_eq!(
                    found.map(|found| found.rule as usize),
                    oracle(&rules, &sets, probe),
                    "{:?}", probe
                );
            }
        }
    }
}

fn only_set(nets: Vec<IpNet>) -> (Vec<Rule>, Sets, SetName) {
    let name = SetName::new("only").unwrap();
    let mut of_set = rule(0);
    of_set.destination.include_sets.insert(name.clone());
    let sets = Sets::from([(name.clone(), Set::new(CidrList::new(nets)))]);
    (vec![of_set], sets, name)
}

fn net(first: u32, length: u8) -> IpNet {
    IpNet::new(Ipv4Addr::from(first).into(), length).unwrap()
}

/// Nodes are full, so that every one on the way is split: the trees stay searchable at any size.
#[test]
fn many_edits_of_a_large_set_are_each_in_force() {
    let spaced = |index: u32| net(0x0b00_0000 + index * 512, 24);
    let (rules, mut sets, name) = only_set((0..50_000).map(spaced).collect());
    let sources = sources(&rules);
    let mut tables = compiled(&rules, &sets);
    let size = tables.len();
    for round in 0..1000_u32 {
        let nets = [
            net(0x0b00_0100 + round * 4096 + (round % 7) * 8, 30),
            spaced(round * 13),
        ];
        assert!(sets.get_mut(&name).unwrap().insert(&nets[0]));
        assert!(sets.get_mut(&name).unwrap().remove(&nets[1]));
        let edits = nets.map(|net| SetEdit {
            set: name.clone(),
            net,
        });
        let edited = edit(tables.as_slice(), &sources, &sets, &edits, 8, 100).unwrap();
        put_in_force(&mut tables, &edited);
    }
    let anew = compiled(&rules, &sets);
    for address in (0..50_000 * 512 + 1024).step_by(4) {
        let probe = probe(&Ipv4Addr::from(0x0b00_0000 - 512 + address).to_string(), 80);
        let found = classify(tables.as_slice(), &probe.flow());
        assert_eq!(found, classify(anew.as_slice(), &probe.flow()), "{probe:?}");
    }
    assert!(tables.len() - size < 1000 * 24, "{}", tables.len() - size);
}

#[test]
fn what_does_not_fit_or_is_too_much_is_left_to_the_compiler() {
    let (rules, mut sets, name) = only_set((0..10_000).map(|index| net(index * 2, 32)).collect());
    let tables = compiled(&rules, &sets);
    let all = net(0, 0);
    sets.get_mut(&name).unwrap().insert(&all);
    let edits = [SetEdit {
        set: name.clone(),
        net: all,
    }];
    let tried = |room| edit(tables.as_slice(), &sources(&rules), &sets, &edits, 8, room);
    assert_eq!(tried(1 << 20), None);
    let (rules, mut sets, name) = only_set(vec![net(0, 32)]);
    let tables = compiled(&rules, &sets);
    sets.get_mut(&name).unwrap().insert(&net(9, 32));
    let edits = [SetEdit {
        set: name,
        net: net(9, 32),
    }];
    let tried = |room| edit(tables.as_slice(), &sources(&rules), &sets, &edits, 8, room);
    assert_eq!(tried(1), None);
    assert!(tried(10).is_some());
}

/// Whether a rule names link-local destinations is in its entry, which an edit does not write. So the
/// compiler gets the edit with which that changes, and no other.
#[test]
fn an_edit_that_names_link_local_destinations_is_left_to_the_compiler() {
    let (rules, mut sets, name) = only_set(vec![net(0xa900_0000, 8)]);
    let sources = sources(&rules);
    let mut tables = compiled(&rules, &sets);
    let [metadata, subnet] = [net(0xa9fe_a9fe, 32), net(0xa9fe_0000, 17)];
    let target = probe("169.254.169.254", 80);
    let mut names = false;
    for (net, is_added, is_edit) in [
        (net(0xa9fd_0000, 16), true, true),
        (metadata, true, false),
        (subnet, true, true),
        (metadata, false, true),
        (subnet, false, false),
    ] {
        let set = sets.get_mut(&name).unwrap();
        assert!(if is_added {
            set.insert(&net)
        } else {
            set.remove(&net)
        });
        let set = name.clone();
        let edits = [SetEdit { set, net }];
        match edit(tables.as_slice(), &sources, &sets, &edits, 8, 100) {
            Some(edited) => put_in_force(&mut tables, &edited),
            None => tables = compiled(&rules, &sets),
        }
        let found = classified(&tables, &target).unwrap();
        names ^= !is_edit;
        assert_eq!(found.entry.names_link_local(), names, "{net} {is_added}");
        assert_eq!(Some(found), classified(&compiled(&rules, &sets), &target));
        let edited = edit(tables.as_slice(), &sources, &sets, &edits, 9, 100);
        assert!(edited.is_some(), "{net}: it is in force");
    }
}

/// A set that no rule names, or a CIDR that lies in another one, changes the generation alone.
#[test]
fn an_edit_that_changes_no_address_writes_little() {
    let (rules, mut sets, name) = only_set(vec![net(0x0a00_0000, 8)]);
    let other = SetName::new("other").unwrap();
    sets.insert(other.clone(), Set::default());
    let mut tables = compiled(&rules, &sets);
    for (set, generation) in [(name, 8), (other, 9)] {
        let inner = net(0x0a01_0000, 16);
        sets.get_mut(&set).unwrap().insert(&inner);
        let edits = [SetEdit { set, net: inner }];
        let edited = edit(
            tables.as_slice(),
            &sources(&rules),
            &sets,
            &edits,
            generation,
            10,
        );
        put_in_force(&mut tables, &edited.unwrap());
        assert_eq!(tables.as_slice().header().unwrap().generation(), generation);
    }
}

/// Whatever the blocks hold, an edit ends.
#[test]
fn damaged_tables_are_left_to_the_compiler() {
    let (rules, mut sets, name) = only_set(vec![net(0, 32)]);
    let whole = compiled(&rules, &sets);
    sets.get_mut(&name).unwrap().insert(&net(9, 32));
    let edits = [SetEdit {
        set: name,
        net: net(9, 32),
    }];
    for block in 0..whole.len() {
        for word in 0..whole[block].words.len() {
            for value in [0, 1, u64::MAX, 0x4000_0001_4000_0001, 0x8000_0001_8000_0001] {
                let mut tables = whole.clone();
                tables[block].words[word] = value;
                let _ = edit(tables.as_slice(), &sources(&rules), &sets, &edits, 8, 100);
            }
        }
    }
}
