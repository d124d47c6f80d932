//! The line that the agent logs for each flow when it ends.

use std::net::SocketAddr;

/// A parsed flow line:
/// `tcp 10.1.0.2:51514 -> 192.0.2.9:443 rule=web up=direct 517B/48213B 3.2s fin`.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowLine {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Where the flow came from.
    pub client: SocketAddr,
    /// Where the client wanted to go.
    pub server: SocketAddr,
    /// The rule that took the flow.
    pub rule: String,
    /// The upstream that it went through; `direct` for none.
    pub upstream: String,
    /// Bytes from the client to the server.
    pub sent: u64,
    /// Bytes from the server to the client.
    pub received: u64,
    /// How long the flow lived, in seconds.
    pub seconds: f64,
    /// How it ended: `fin`, `client-reset`, `upstream-reset`, ...
    pub end: String,
}

impl FlowLine {
    /// Parses a line of the log; `None` when it is about something else. What stands before the protocol (time, level)
    /// and after the word for the end is not looked at.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line
            .split_whitespace()
            .skip_while(|word| !["tcp", "udp"].contains(word));
        let protocol = words.next()?.to_owned();
        let client = words.next()?.parse().ok()?;
        if words.next()? != "->" {
            return None;
        }
        let server = words.next()?.parse().ok()?;
        let rule = words.next()?.strip_prefix("rule=")?.to_owned();
        let upstream = words.next()?.strip_prefix("up=")?.to_owned();
        let (sent, received) = words.next()?.split_once('/')?;
        let seconds = words.next()?.strip_suffix('s')?.parse().ok()?;
        Some(Self {
            protocol,
            client,
            server,
            rule,
            upstream,
            sent: bytes(sent)?,
            received: bytes(received)?,
            seconds,
            end: words.next()?.to_owned(),
        })
    }
}

fn bytes(word: &str) -> Option<u64> {
    word.strip_suffix('B')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_documented_line_behind_a_log_prefix() {
        let line = "[2026-01-01T00:00:00Z INFO  tproxy] tcp 10.1.0.2:51514 -> 192.0.2.9:443 rule=web up=direct \
                    517B/48213B 3.2s fin";
        let flow = FlowLine::parse(line).expect("a flow line");
        assert_eq!(flow.client, "10.1.0.2:51514".parse().unwrap());
        assert_eq!((flow.sent, flow.received), (517, 48213));
        assert_eq!((flow.rule.as_str(), flow.end.as_str()), ("web", "fin"));
    }

    #[test]
    fn ignores_other_lines() {
        assert_eq!(
            FlowLine::parse("[INFO tproxy] listening on tcp port 1234"),
            None
        );
        assert_eq!(FlowLine::parse(""), None);
    }
}
