//! The fuzz targets on the stable toolchain: their seeds, and some thousands of inputs made of them.

use std::{fs, path::Path};

use proptest::{prelude::*, sample::Index};

#[path = "../../fuzz/targets/entry/cidr_list.rs"]
mod cidr_list;
#[path = "../../fuzz/targets/entry/config.rs"]
mod config;

/// The seeds of a target.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/seeds")
        .join(target);
    let entries = fs::read_dir(&directory).expect("the target has seeds");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).expect("a seed"))
        .collect()
}

/// What one step of mutation does at a place.
#[derive(Clone, Debug)]
enum Mutation {
    Insert(Vec<u8>),
    Delete(usize),
    Flip(u8),
    Repeat(usize),
    Cut,
}

/// Words that mean something in one of the formats.
const WORDS: [&str; 24] = [
    "\n",
    "\r\n",
    "[",
    "]",
    "[[",
    "]]",
    "\"",
    "'''",
    "=",
    ".",
    ",",
    "#",
    "{",
    "}",
    "set:",
    "@",
    "!",
    "/",
    "-",
    "rule",
    "dst",
    "4294967296",
    "::/0",
    "\u{feff}",
];

fn any_mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        prop::sample::select(&WORDS[..]).prop_map(|word| Mutation::Insert(word.into())),
        prop::collection::vec(any::<u8>(), 1..8).prop_map(Mutation::Insert),
        (1_usize..40).prop_map(Mutation::Delete),
        (1_u8..=255).prop_map(Mutation::Flip),
        (1_usize..200).prop_map(Mutation::Repeat),
        Just(Mutation::Cut),
    ]
}

fn mutated(seed: &[u8], mutations: &[(Index, Mutation)]) -> Vec<u8> {
    let mut input = seed.to_vec();
    for (at, mutation) in mutations {
        let at = at.index(input.len() + 1);
        match mutation {
            Mutation::Insert(bytes) => {
                input.splice(at..at, bytes.iter().copied());
            }
            Mutation::Delete(count) => {
                input.drain(at..input.len().min(at + count));
            }
            Mutation::Flip(bits) => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= bits;
                }
            }
            Mutation::Repeat(count) => {
                let piece = input[at..input.len().min(at + count)].to_vec();
                input.splice(at..at, piece);
            }
            Mutation::Cut => input.truncate(at),
        }
    }
    input
}

fn any_mutations() -> impl Strategy<Value = Vec<(Index, Mutation)>> {
    prop::collection::vec((any::<Index>(), any_mutation()), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_file_makes_it_panic(
        seed in prop::sample::select(seeds("config")),
        mutations in any_mutations(),
    ) {
        config::run(&mutated(&seed, &mutations));
    }

    #[test]
    fn no_list_makes_it_panic(
        seed in prop::sample::select(seeds("cidr_list")),
        mutations in any_mutations(),
    ) {
        cidr_list::run(&mutated(&seed, &mutations));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        config::run(&bytes);
        cidr_list::run(&bytes);
    }
}

#[test]
fn no_seed_makes_it_panic() {
    for seed in seeds("config") {
        config::run(&seed);
    }
    for seed in seeds("cidr_list") {
        cidr_list::run(&seed);
    }
}
