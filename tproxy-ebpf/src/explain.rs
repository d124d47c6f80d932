//! Which rule takes a packet, for whoever asks by a test run. Counts nothing and writes nothing.

use aya_ebpf::programs::TcContext;
use tproxy_common::{
    explanation::Explanation,
    flow::{Flow, Scope},
    packet::parse,
};

use crate::{new_flow::is_forwarded, rules, skb::Skb};

/// The answer about the packet whose IP header begins at `network_offset`.
#[inline(always)]
pub fn explain(ctx: &TcContext, network_offset: usize) -> Explanation {
    let skb = Skb::new(ctx);
    let headers = skb
        .family()
        .and_then(|family| parse(&skb, family, network_offset).ok());
    let Some(headers) = headers else {
        return Explanation::Unreadable;
    };
    let flow = Flow::of(&headers, Scope::Forward, skb.interface());
    match rules::find(&flow) {
        None => Explanation::NoRule,
        Some(found) if !is_forwarded(&flow) || found.entry.shuns(&flow.destination) => {
            Explanation::NotForwarded
        }
        Some(found) => Explanation::Rule(found.rule),
    }
}
