//! What the classifier program that explains is asked by the mark of a packet, and answers in its
//! return value.

use crate::handover::Taken;

/// Its answer about one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explanation {
    /// The rule with this place in the order, from 0, takes it.
    Rule(u32),
    /// No rule takes it.
    NoRule,
    /// It is from or to this host, or for an address that is not forwarded to.
    NotForwarded,
    /// It is no TCP segment or UDP datagram that can be read.
    Unreadable,
}

impl Explanation {
    const NO_RULE: u32 = 1 << 16;
    const NOT_FORWARDED: u32 = 2 << 16;
    const UNREADABLE: u32 = 3 << 16;

    /// The return value that says so.
    #[must_use]
    #[inline(always)]
    pub const fn to_code(self) -> u32 {
        match self {
            Self::Rule(rule) => rule & 0xffff,
            Self::NoRule => Self::NO_RULE,
            Self::NotForwarded => Self::NOT_FORWARDED,
            Self::Unreadable => Self::UNREADABLE,
        }
    }

    /// What a return value says; `None` for one that the program does not give.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            Self::NO_RULE => Some(Self::NoRule),
            Self::NOT_FORWARDED => Some(Self::NotForwarded),
            Self::UNREADABLE => Some(Self::Unreadable),
            rule if rule < crate::limits::RULES as u32 => Some(Self::Rule(rule)),
            _ => None,
        }
    }
}

/// Whether somebody is there to take the flows of a rule that hands them over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Somebody takes them.
    There,
    /// Nobody does, and `on_missing` decides.
    Missing,
    /// The agent drains or has not begun: they go their own way, whatever `on_missing` says.
    LeftAlone,
}

impl Presence {
    const THERE: u32 = 4 << 16;
    const MISSING: u32 = 5 << 16;
    const LEFT_ALONE: u32 = 6 << 16;

    /// In the mark of a packet: the question is about presence.
    const ASKED: u32 = 1 << 31;
    const REDIRECTED: u32 = 1 << 30;

    /// The mark of a packet that asks whether somebody is there who gets its flow.
    #[must_use]
    pub const fn question(taken: Taken) -> u32 {
        let redirected = if taken.redirected {
            Self::REDIRECTED
        } else {
            0
        };
        Self::ASKED | redirected | (taken.slot & 0xffff)
    }

    /// Who is asked about by the mark of a packet; `None` when the question is another.
    #[must_use]
    #[inline(always)]
    pub const fn asked(mark: u32) -> Option<Taken> {
        if mark & Self::ASKED == 0 {
            return None;
        }
        Some(Taken {
            slot: mark & 0xffff,
            redirected: mark & Self::REDIRECTED != 0,
        })
    }

    /// The return value that says so.
    #[must_use]
    #[inline(always)]
    pub const fn to_code(self) -> u32 {
        match self {
            Self::There => Self::THERE,
            Self::Missing => Self::MISSING,
            Self::LeftAlone => Self::LEFT_ALONE,
        }
    }

    /// What a return value says; `None` for one that is no such answer.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            Self::THERE => Some(Self::There),
            Self::MISSING => Some(Self::Missing),
            Self::LEFT_ALONE => Some(Self::LeftAlone),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::RULES;

    #[test]
    fn every_answer_survives_its_code() {
        let rules = (0..RULES as u32).map(Explanation::Rule);
        let others = [
            Explanation::NoRule,
            Explanation::NotForwarded,
            Explanation::Unreadable,
        ];
        for answer in rules.chain(others) {
            assert_eq!(Explanation::from_code(answer.to_code()), Some(answer));
        }
        for code in [RULES as u32, 0xffff, 4 << 16, u32::MAX] {
            assert_eq!(Explanation::from_code(code), None, "{code:#x}");
        }
    }

    #[test]
    fn questions_and_answers_of_presence_survive() {
        for presence in [Presence::There, Presence::Missing, Presence::LeftAlone] {
            let code = presence.to_code();
            assert_eq!(Presence::from_code(code), Some(presence));
            assert_eq!(Explanation::from_code(code), None);
        }
        assert_eq!(Presence::from_code(Explanation::NoRule.to_code()), None);
        for slot in [0, 1, crate::limits::COUNTER_SLOTS as u32 - 1] {
            for redirected in [false, true] {
                let taken = Taken { slot, redirected };
                assert_eq!(Presence::asked(Presence::question(taken)), Some(taken));
            }
        }
        assert_eq!(Presence::asked(0), None);
    }
}
