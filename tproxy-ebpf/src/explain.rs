//! Which rule takes a packet, or whether somebody is there to take it, for whoever asks by a test run.
//! Counts nothing and writes nothing.

use aya_ebpf::programs::TcContext;
use tproxy_common::{
    explanation::{Explanation, Presence},
    flow::{Flow, Scope},
    packet::parse,
};

use crate::{new_flow::is_forwarded, presence, rules, skb::Skb};

/// The code of the answer about the packet whose IP header begins at `network_offset`.
#[inline(always)]
pub fn explain(ctx: &TcContext, network_offset: usize) -> u32 {
    let skb = Skb::new(ctx);
    let headers = skb
        .family()
        .and_then(|family| parse(&skb, family, network_offset).ok());
    let Some(headers) = headers else {
        return Explanation::Unreadable.to_code();
    };
    match Presence::asked(skb.mark()) {
        Some(taken) => presence::of(&headers.ends(), taken).to_code(),
        None => by_rules(&Flow::of(&headers, Scope::Forward, skb.interface())).to_code(),
    }
}

#[inline(always)]
fn by_rules(flow: &Flow) -> Explanation {
    match rules::find(flow) {
        None => Explanation::NoRule,
        Some(found) if !is_forwarded(flow) || found.entry.shuns(&flow.destination) => {
            Explanation::NotForwarded
        }
        Some(found) => Explanation::Rule(found.rule),
    }
}
