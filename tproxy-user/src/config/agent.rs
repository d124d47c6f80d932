//! The section `[agent]`: options of `run`.

use std::time::Duration;

use super::document::{Document, Table, Value, Word};
use crate::delivery::{is_reserved_table, valid_interface_name};

/// Options of `run` that a file gives. What it does not name is `None`, or an empty list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentSection {
    /// Interfaces to attach to.
    pub interfaces: Vec<String>,
    /// Steering mark.
    pub mark: Option<u32>,
    /// Routing table.
    pub table: Option<u32>,
    /// Port of the listeners.
    pub port: Option<u16>,
    /// Worker threads.
    pub workers: Option<u32>,
    /// Whether to attach in a clsact qdisc.
    pub clsact: Option<bool>,
    /// How long an upstream connection may take.
    pub connect_timeout: Option<Duration>,
    /// How long running flows may take to finish at the end.
    pub drain: Option<Duration>,
    /// Whether programs, maps and rules stay at the end.
    pub pin: Option<bool>,
    /// TCP flows at once of one client's address, over all workers.
    pub flows_per_source: Option<usize>,
    /// How long a UDP session is kept in which nothing passes.
    pub udp_idle: Option<Duration>,
    /// The same for port 53.
    pub dns_idle: Option<Duration>,
    /// UDP sessions at once.
    pub udp_sessions: Option<usize>,
    /// UDP sessions at once of one client's address, at each worker.
    pub udp_sessions_per_source: Option<usize>,
}

const KEYS: [&str; 14] = [
    "interfaces",
    "mark",
    "table",
    "port",
    "workers",
    "clsact",
    "connect_timeout",
    "drain",
    "pin",
    "flows_per_source",
    "udp_idle",
    "dns_idle",
    "udp_sessions",
    "udp_sessions_per_source",
];

impl AgentSection {
    pub(super) fn read(document: &mut Document<'_>, table: Table<'_, '_>) -> Self {
        document.known_keys(table, "[agent]", &KEYS);
        let mut section = Self::default();
        for (key, value) in table {
            let key = key.get_ref().as_ref();
            match key {
                "interfaces" => section.interfaces = interfaces(document, value),
                "mark" => section.mark = parsed(document, key, value, mark),
                "table" => section.table = parsed(document, key, value, self::table),
                "port" => section.port = parsed(document, key, value, port),
                "workers" => section.workers = parsed(document, key, value, workers),
                "clsact" => section.clsact = document.flag(key, value),
                "connect_timeout" => {
                    section.connect_timeout = parsed(document, key, value, seconds);
                }
                "drain" => section.drain = parsed(document, key, value, seconds),
                "pin" => section.pin = document.flag(key, value),
                "flows_per_source" => {
                    section.flows_per_source = parsed(document, key, value, flows);
                }
                "udp_idle" => section.udp_idle = parsed(document, key, value, idle),
                "dns_idle" => section.dns_idle = parsed(document, key, value, idle),
                "udp_sessions" => section.udp_sessions = parsed(document, key, value, sessions),
                "udp_sessions_per_source" => {
                    section.udp_sessions_per_source = parsed(document, key, value, sessions);
                }
                _ => {}
            }
        }
        section
    }
}

fn interfaces(document: &mut Document<'_>, value: Value<'_, '_>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for Word { text, offset } in document.list("interfaces", value, true) {
        if !valid_interface_name(&text) {
            let problem = format!("interfaces: \"{text}\" is not an interface name");
            document.refuse(offset, problem);
        } else if names.contains(&text) {
            document.refuse(offset, format!("interfaces: {text} is named twice"));
        } else {
            names.push(text);
        }
    }
    names
}

fn parsed<T>(
    document: &mut Document<'_>,
    key: &str,
    value: Value<'_, '_>,
    parse: fn(&str) -> Result<T, String>,
) -> Option<T> {
    let Word { text, offset } = document.word(key, value)?;
    match parse(&text) {
        Ok(value) => Some(value),
        Err(problem) => {
            document.refuse(offset, format!("{key}: \"{text}\" is {problem}"));
            None
        }
    }
}

/// A mark that packets can have who would have none without it.
///
/// # Errors
///
/// What a word is that is no such number.
pub fn mark(word: &str) -> Result<u32, String> {
    match number(word) {
        Ok(0) => Err("no mark: leave it out for one that is free".to_owned()),
        other => other,
    }
}

/// A routing table that is not one of the kernel's own.
///
/// # Errors
///
/// What a word is that is no such number.
pub fn table(word: &str) -> Result<u32, String> {
    match number(word) {
        Ok(table) if is_reserved_table(table) => {
            Err("reserved by the kernel: leave it out for one that is free".to_owned())
        }
        other => other,
    }
}

/// Decimal, or hexadecimal after `0x`, as `ip rule` takes marks.
fn number(word: &str) -> Result<u32, String> {
    let parsed = match word.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => word.parse(),
    };
    parsed.map_err(|_| "not a number from 0 to 4294967295 (0xffffffff)".to_owned())
}

/// A time in seconds, with or without a fraction, up to a day.
///
/// # Errors
///
/// What a word is that is no such number.
pub fn seconds(word: &str) -> Result<Duration, String> {
    const LONGEST: f64 = 86_400.0;
    match word.parse::<f64>() {
        Ok(seconds) if (0.0..=LONGEST).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("not a number of seconds from 0 to 86400".to_owned()),
    }
}

/// How long something may be idle, in seconds, up to a day. No time at all would end it before it
/// began.
///
/// # Errors
///
/// What a word is that is no such number.
pub fn idle(word: &str) -> Result<Duration, String> {
    const SHORTEST: Duration = Duration::from_secs(1);
    match seconds(word) {
        Ok(idle) if idle >= SHORTEST => Ok(idle),
        _ => Err("not a number of seconds from 1 to 86400".to_owned()),
    }
}

/// A number of TCP flows.
///
/// # Errors
///
/// What a word is that is no such number.
pub fn flows(word: &str) -> Result<usize, String> {
    at_least_one(word, "flows")
}

/// A number of UDP sessions.
///
/// # Errors
///
/// What a word is that is no such number.
pub fn sessions(word: &str) -> Result<usize, String> {
    at_least_one(word, "sessions")
}

fn at_least_one(word: &str, what: &str) -> Result<usize, String> {
    match word.parse::<u32>() {
        Ok(number @ 1..) => usize::try_from(number).map_err(|error| error.to_string()),
        _ => Err(format!("not a number of {what} from 1 to 4294967295")),
    }
}

fn port(word: &str) -> Result<u16, String> {
    let port = word.parse();
    port.map_err(|_| "not a port from 0 (one that is free) to 65535".to_owned())
}

fn workers(word: &str) -> Result<u32, String> {
    match word.parse() {
        Ok(workers @ 1..=tproxy_common::limits::WORKERS) => Ok(workers),
        _ => Err("not a number of workers from 1 to 64".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("7470"), Ok(7470));
        assert_eq!(number("0x74700000"), Ok(0x7470_0000));
        for word in ["", "0x", "x", "-1", "4294967296", "0x100000000", "1.5"] {
            assert!(number(word).is_err(), "{word}");
        }
    }

    #[test]
    fn marks_and_tables_are_those_that_can_be_had() {
        assert_eq!((mark("1"), mark("0x74700000")), (Ok(1), Ok(0x7470_0000)));
        assert!(mark("0").is_err() && mark("0x0").is_err());
        for word in ["1", "252", "256", "7470", "4294967295"] {
            assert!(table(word).is_ok(), "{word}");
        }
        for word in ["0", "253", "254", "255", "0xfe"] {
            assert!(table(word).unwrap_err().contains("reserved"), "{word}");
        }
    }

    #[test]
    fn limits_are_one_at_least() {
        for (word, number) in [("1", 1), ("4294967295", 4_294_967_295)] {
            assert_eq!((flows(word), sessions(word)), (Ok(number), Ok(number)));
        }
        for word in ["0", "-1", "4294967296", "1.5", "many", "0x10", ""] {
            assert!(flows(word).unwrap_err().contains("flows"), "{word}");
            assert!(sessions(word).unwrap_err().contains("sessions"), "{word}");
        }
    }

    #[test]
    fn durations_are_bounded() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for word in ["-1", "nan", "inf", "1e9", "10s", ""] {
            assert!(seconds(word).is_err(), "{word}");
        }
    }
}
