//! Policy rules of others that come before ours and may take marked packets elsewhere.

use rtnetlink::packet_route::rule::{RuleAction, RuleFlags, RuleMessage};

use super::{
    Assignment, Netlink, PRIORITY,
    apply::Delivered,
    describe::{RuleSelectors, describe_rule},
    object::{Family, table_of_rule},
};

/// The table `local` (`RT_TABLE_LOCAL`, `<linux/rtnetlink.h>`), which delivers here itself.
const LOCAL_TABLE: u32 = 255;

/// Warns of each rule that comes before ours and may take packets that we have marked: those would
/// be routed by that rule and not reach the agent.
pub(super) async fn warn_of_rules_before_ours(
    netlink: &Netlink,
    assignment: Assignment,
    delivered: &Delivered,
) {
    for family in Family::BOTH {
        // Reading fails only with the connection, which the next change reports.
        let rules = netlink.rules(family).await.unwrap_or_default();
        let before = rules
            .iter()
            .filter(|rule| precedes_ours(rule, assignment, delivered));
        before.for_each(warn_of_rule_before_ours);
    }
}

/// It is the operator's to say which of the two rules is meant.
pub(super) fn warn_of_rule_before_ours(rule: &RuleMessage) {
    log::warn!(
        "the policy rule \"{}\" comes before ours and may take packets away from the agent; give it \
         a priority above {PRIORITY} if it should not",
        describe_rule(rule)
    );
}

/// Whether a rule comes before ours and could match a packet with our mark, and no bits besides,
/// that is delivered.
pub(super) fn precedes_ours(
    rule: &RuleMessage,
    assignment: Assignment,
    delivered: &Delivered,
) -> bool {
    let selectors = RuleSelectors::of(rule);
    let delivers_here =
        rule.header.action == RuleAction::ToTable && table_of_rule(rule) == LOCAL_TABLE;
    if selectors.priority >= PRIORITY || delivers_here || rule.header.action == RuleAction::Nop {
        return false;
    }
    // An inverted rule takes what its selectors do not; it is taken to match.
    if rule.header.flags.contains(RuleFlags::Invert) {
        return true;
    }
    let marked = selectors
        .fwmark
        .is_none_or(|fwmark| (assignment.mark ^ fwmark.value) & fwmark.mask == 0);
    let from_interface = selectors.iif.is_none_or(|name| delivered.takes_from(name));
    // A packet that comes in has no outgoing interface yet.
    marked && from_interface && selectors.oif.is_none()
}
