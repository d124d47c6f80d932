//! Ports and port ranges of a rule.

use std::{fmt, ops::RangeInclusive, str::FromStr};

/// An inclusive range of ports, 1 to 65535.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(RangeInclusive<u16>);

impl PortRange {
    /// First port.
    #[must_use]
    pub const fn first(&self) -> u16 {
        *self.0.start()
    }

    /// Last port.
    #[must_use]
    pub const fn last(&self) -> u16 {
        *self.0.end()
    }
}

impl PortRange {
    /// The port of SSH (RFC 4253, 4.2), by which many a host is administered.
    pub const SSH: u16 = 22;

    /// All ports.
    #[must_use]
    pub const fn all() -> Self {
        Self(0..=u16::MAX)
    }

    /// Whether it is this port and no other.
    #[must_use]
    pub const fn is_just(&self, port: u16) -> bool {
        self.first() == port && self.last() == port
    }

    /// What is left of it without a port.
    pub fn without(&self, port: u16) -> impl Iterator<Item = Self> {
        let ranges = if self.0.contains(&port) {
            let below = (self.first() < port).then(|| Self(self.first()..=port - 1));
            let above = (self.last() > port).then(|| Self(port + 1..=self.last()));
            [below, above]
        } else {
            [Some(self.clone()), None]
        };
        ranges.into_iter().flatten()
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let port = |digits: &str| match digits.parse::<u16>() {
            // A leading sign parses as well, but nobody means it.
            Ok(port) if port != 0 && !digits.starts_with('+') => Ok(port),
            _ => Err(format!("\"{word}\" is not a port or range (1 to 65535)")),
        };
        let (first, last) = match word.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(word)?, port(word)?),
        };
        if first > last {
            return Err(format!("\"{word}\" is upside down: write {last}-{first}"));
        }
        Ok(Self(first..=last))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first() == self.last() {
            write!(formatter, "{}", self.first())
        } else {
            write!(formatter, "{}-{}", self.first(), self.last())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_taken_out_of_a_range() {
        let without = |first, last| {
            let range = PortRange(first..=last);
            let left = range.without(22);
            left.map(|range| (range.first(), range.last()))
                .collect::<Vec<_>>()
        };
        assert_eq!(without(0, 65535), [(0, 21), (23, 65535)]);
        assert_eq!(without(22, 30), [(23, 30)]);
        assert_eq!(without(20, 22), [(20, 21)]);
        assert_eq!(without(22, 22), []);
        assert_eq!(without(23, 30), [(23, 30)]);
    }

    #[test]
    fn takes_ports_and_ranges() {
        assert_eq!("80".parse(), Ok(PortRange(80..=80)));
        assert_eq!("1-65535".parse(), Ok(PortRange(1..=65535)));
        assert_eq!("443-443".parse::<PortRange>().unwrap().to_string(), "443");
    }

    #[test]
    fn refuses_what_is_no_port_and_names_it() {
        for word in [
            "0",
            "65536",
            "",
            "-",
            "80-",
            "-80",
            "http",
            "+80",
            " 80",
            "80:90",
            "1-2-3",
            "99999999999",
        ] {
            let error = word.parse::<PortRange>().unwrap_err();
            assert!(error.contains(&format!("\"{word}\"")), "{error}");
        }
    }

    #[test]
    fn refuses_a_range_upside_down_and_says_the_right_way() {
        assert_eq!(
            "90-80".parse::<PortRange>().unwrap_err(),
            "\"90-80\" is upside down: write 80-90"
        );
    }
}
