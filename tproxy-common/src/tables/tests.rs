//! Blocks against a plain reading of what they are to hold, and lookups in tables that are damaged.

use proptest::prelude::*;

use super::*;
use crate::{
    address::Address,
    classifier::classify,
    flow::{Flow, Protocol, Scope},
};

#[test]
fn entries_hold_what_they_were_made_of() {
    for action in [
        Action::Relay,
        Action::Pass,
        Action::Drop,
        Action::Reject,
        Action::Redirect,
    ] {
        for on_missing in [OnMissing::Pass, OnMissing::Drop] {
            for slot in [0, 1, 2047, u32::MAX] {
                let entry = RuleEntry::new(action, on_missing, slot);
                assert_eq!(
                    (entry.action(), entry.on_missing(), entry.slot()),
                    (action, on_missing, slot)
                );
            }
        }
    }
}

#[test]
fn a_header_holds_what_it_was_made_of() {
    let roots = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].map(Child::node);
    let block = Header::encode(1024, 77, roots, u64::MAX);
    let header = Header::new(&block);
    assert_eq!((header.rules(), header.generation()), (1024, u64::MAX));
    for (dimension, root) in Dimension::ALL.into_iter().zip(roots) {
        assert_eq!(header.root(dimension), root, "{dimension:?}");
    }
    assert_eq!(header.entry(0), (77, 0));
    assert_eq!(header.entry(15), (77, 15));
    assert_eq!(header.entry(16), (78, 0));
    assert_eq!(header.entry(1023), (140, 15));
}

#[test]
fn a_class_stays_a_class_over_the_lower_half_and_a_node_becomes_a_lower_one() {
    let class = Child::class(9);
    assert_eq!(class.over_low_half(), class);
    assert!(class.is_class() && !class.is_low());
    let low = Child::node(9).over_low_half();
    assert_eq!(low.block(), 9);
    assert!(low.is_low() && !low.is_class());
    assert_eq!(low.over_low_half(), low);
    assert!(!Child::node(9).is_low());
}

#[test]
#[should_panic(expected = "children.len() == boundaries.len() + 1")]
fn a_node_needs_one_child_more_than_boundaries() {
    let _ = Block::node(&[1], &[Child::class(0)]);
}

/// Ascending boundaries, and keys at and beside them.
fn any_node_and_keys() -> impl Strategy<Value = (Vec<u64>, Vec<u64>)> {
    let boundary = prop_oneof![1_u64..20, any::<u64>(), (u64::MAX - 5)..=u64::MAX];
    prop::collection::btree_set(boundary, 0..=NODE_KEYS).prop_flat_map(|boundaries| {
        let boundaries: Vec<u64> = boundaries.into_iter().filter(|first| *first > 0).collect();
        let mut keys = vec![0, u64::MAX];
        for first in &boundaries {
            keys.extend([first - 1, *first, first.saturating_add(1)]);
        }
        let more = prop::collection::vec(any::<u64>(), 4);
        (Just(boundaries), Just(keys), more)
            .prop_map(|(boundaries, keys, more)| (boundaries, [keys, more].concat()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn a_node_leads_to_the_child_whose_range_holds_the_key(
        (boundaries, keys) in any_node_and_keys()
    ) {
        let children: Vec<Child> = (0..=boundaries.len() as u32).map(Child::class).collect();
        let node = Block::node(&boundaries, &children);
        for key in keys {
            let plain = boundaries.iter().filter(|first| **first <= key).count();
            prop_assert_eq!(node.child(node.position(key, 0)), children[plain], "{}", key);
        }
    }

    /// Whatever is in the blocks, a lookup ends, and does not leave them.
    #[test]
    fn damaged_tables_answer_something(
        words in prop::collection::vec(
            prop_oneof![0_u64..8, any::<u64>(), any::<u32>().prop_map(|word| {
                u64::from(word & 0xc000_0007) << 32 | u64::from(word >> 16 & 0x4007) << 16
            })],
            BLOCK_WORDS * 6,
        ),
        octets: [u8; 16],
        family in prop_oneof![Just(true), Just(false)],
        ports: (u16, u16),
    ) {
        let blocks: Vec<Block> = words
            .chunks(BLOCK_WORDS)
            .map(|words| Block { words: words.try_into().unwrap() })
            .collect();
        let [a, b, c, d, ..] = octets;
        let address = if family { Address::v4([a, b, c, d]) } else { Address::v6(octets) };
        let flow = Flow {
            scope: Scope::Forward,
            protocol: Protocol::Tcp,
            interface: 1,
            source: address,
            source_port: ports.0,
            destination: address,
            destination_port: ports.1,
        };
        if let Some(found) = classify(blocks.as_slice(), &flow) {
            let header = blocks.as_slice().header().unwrap();
            prop_assert!(found.rule < header.rules().next_multiple_of(64));
        }
    }
}

#[test]
fn no_blocks_at_all_have_no_header() {
    let blocks: [Block; 0] = [];
    assert!(blocks.as_slice().header().is_none());
    let lost = [Block {
        words: [9; BLOCK_WORDS],
    }];
    assert!(lost.as_slice().header().is_none());
}
