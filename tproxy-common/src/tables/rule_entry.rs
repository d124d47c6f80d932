//! What the tables hold about one rule beside what it asks.

use crate::{address::Address, handover::Taken};

/// What is done with the flows of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The agent relays.
    Relay,
    /// Left alone.
    Pass,
    /// Discarded.
    Drop,
    /// Refused: RST for TCP, ICMP port unreachable for UDP.
    Reject,
    /// Given to a listener on this host that is not the agent's.
    Redirect,
}

/// What happens to a flow that nobody is there to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnMissing {
    /// Left alone.
    Pass,
    /// Refused: RST for TCP.
    Drop,
}

/// What the tables hold about one rule, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleEntry(u64);

impl RuleEntry {
    const NAMES_LINK_LOCAL: u64 = 1 << 16;

    /// An entry; `slot` is the rule's counter slot.
    #[must_use]
    pub fn new(action: Action, on_missing: OnMissing, slot: u32) -> Self {
        let action = match action {
            Action::Relay => 0,
            Action::Pass => 1,
            Action::Drop => 2,
            Action::Reject => 3,
            Action::Redirect => 4,
        };
        let on_missing = match on_missing {
            OnMissing::Pass => 1,
            OnMissing::Drop => 0,
        };
        Self(u64::from(slot) << 32 | on_missing << 8 | action)
    }

    /// The same entry of a rule that names IPv4 link-local destinations, which others leave alone.
    #[must_use]
    pub const fn naming_link_local(self, names: bool) -> Self {
        if names {
            Self(self.0 | Self::NAMES_LINK_LOCAL)
        } else {
            self
        }
    }

    /// The word that an entry block holds.
    #[must_use]
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// The entry in such a word.
    #[must_use]
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// What to do with the flow.
    #[must_use]
    #[inline(always)]
    pub const fn action(self) -> Action {
        match self.0 as u8 {
            0 => Action::Relay,
            2 => Action::Drop,
            3 => Action::Reject,
            4 => Action::Redirect,
            _ => Action::Pass,
        }
    }

    /// What to do when nobody takes it.
    #[must_use]
    #[inline(always)]
    pub const fn on_missing(self) -> OnMissing {
        if (self.0 >> 8) as u8 == 1 {
            OnMissing::Pass
        } else {
            OnMissing::Drop
        }
    }

    /// Whether it names IPv4 link-local destinations.
    #[must_use]
    #[inline(always)]
    pub const fn names_link_local(self) -> bool {
        self.0 & Self::NAMES_LINK_LOCAL != 0
    }

    /// Whether it leaves flows to this destination alone that it matches. What answers at link-local
    /// addresses trusts those on its link, and means nobody beyond: such flows are taken only by rules
    /// that name these addresses.
    #[must_use]
    #[inline(always)]
    pub const fn shuns(self, destination: &Address) -> bool {
        matches!(self.action(), Action::Relay | Action::Redirect)
            && destination.is_v4_link_local()
            && !self.names_link_local()
    }

    /// The counter slot.
    #[must_use]
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// What hands its flows over.
    #[must_use]
    #[inline(always)]
    pub const fn taken(self) -> Taken {
        Taken {
            slot: self.slot(),
            redirected: matches!(self.action(), Action::Redirect),
        }
    }
}
