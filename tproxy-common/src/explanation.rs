//! What the classifier program that explains answers, in its return value.

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
}
