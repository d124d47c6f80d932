//! Sets against a plain collection of CIDRs.

use std::collections::BTreeSet;

use ipnet::IpNet;
use proptest::prelude::*;
use tproxy_common::address::Family;

use super::{
    CidrList, Set,
    prefix::{Prefix, Range, join},
};

/// CIDRs of a small world, so that they repeat and lie in each other.
fn any_net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (0_u32..64, 26_u8..=32).prop_map(|(host, length)| {
            IpNet::new(std::net::Ipv4Addr::from(0x0a00_0000 + host).into(), length).unwrap()
        }),
        (0_u128..64, 122_u8..=128).prop_map(|(host, length)| {
            IpNet::new(std::net::Ipv6Addr::from(host).into(), length).unwrap()
        }),
    ]
    .prop_map(|net| net.trunc())
}

fn plain_ranges(plain: &BTreeSet<IpNet>, family: Family, within: Prefix) -> Vec<Range> {
    let mut prefixes: Vec<Prefix> = plain
        .iter()
        .map(Prefix::of)
        .filter(|(of, _)| *of == family)
        .map(|(_, prefix)| prefix)
        .filter(|prefix| prefix.holds(within) || within.holds(*prefix))
        .map(|prefix| if prefix.holds(within) { within } else { prefix })
        .collect();
    prefixes.sort_unstable();
    join(prefixes.into_iter().map(Prefix::range))
}

proptest! {
    #[test]
    fn a_set_holds_what_a_plain_collection_holds(
        base in prop::collection::vec(any_net(), 0..40),
        edits in prop::collection::vec((any_net(), any::<bool>()), 0..40),
        asked in prop::collection::vec(any_net(), 20),
    ) {
        let mut plain: BTreeSet<IpNet> = base.iter().copied().collect();
        let mut set = Set::new(CidrList::new(base));
        for (net, add) in edits {
            if add {
                prop_assert_eq!(set.insert(&net), plain.insert(net));
            } else {
                prop_assert_eq!(set.remove(&net), plain.remove(&net));
            }
        }
        prop_assert_eq!(set.len(), plain.len());
        prop_assert_eq!(set.iter().collect::<BTreeSet<_>>(), plain.clone());
        let folded = Set::new(set.to_list());
        prop_assert_eq!(folded.iter().collect::<Vec<_>>(), set.iter().collect::<Vec<_>>());
        let again = Set::with_overlay(
            CidrList::new(folded.iter().filter(|net| !set.added().contains(net)).chain(set.removed())),
            &set.added(),
            &set.removed(),
        );
        prop_assert_eq!(again.iter().collect::<Vec<_>>(), set.iter().collect::<Vec<_>>());
        for net in asked {
            let (family, prefix) = Prefix::of(&net);
            prop_assert_eq!(set.contains(&net), plain.contains(&net));
            let holder = plain.iter().filter(|holder| holder.contains(&net)).max_by_key(|holder| holder.prefix_len());
            prop_assert_eq!(set.find_holder(&net), holder.copied());
            let address = net.addr();
            let holder = plain.iter().filter(|holder| holder.contains(&address)).max_by_key(|holder| holder.prefix_len());
            prop_assert_eq!(set.find(address), holder.copied());
            prop_assert_eq!(set.has_within(&net), plain.iter().any(|inner| net.contains(inner)));
            let ranges = plain_ranges(&plain, family, prefix);
            prop_assert_eq!(set.ranges_within(family, prefix, 1000), Some(ranges.clone()));
            let few = set.ranges_within(family, prefix, 3);
            prop_assert!(few.is_none() || few == Some(ranges));
        }
        let all = Prefix::new(0, 0);
        for family in [Family::V4, Family::V6] {
            prop_assert_eq!(set.ranges(family).unwrap(), plain_ranges(&plain, family, all));
        }
    }
}
