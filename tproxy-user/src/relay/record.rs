//! The account of one flow, and its line in the log.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::libc;

use super::RuleTag;
use super::side::Side;

/// What there is to say about a flow that is over. Displays as the flow line:
/// `tcp 10.1.0.2:51514 -> 192.0.2.9:443 rule=web up=direct 517B/48213B 3.2s fin`.
#[derive(Debug)]
pub struct FlowRecord<'a> {
    /// The transport protocol, in lower case.
    pub protocol: &'static str,
    /// Who opened the flow.
    pub client: SocketAddr,
    /// Where the client wanted to go.
    pub destination: SocketAddr,
    /// The rule that took the flow.
    pub rule: &'a RuleTag,
    /// How the relay reached the other end.
    pub upstream: &'static str,
    /// Bytes of payload handed to the upstream socket.
    pub to_upstream: u64,
    /// Bytes of payload handed to the client's socket.
    pub to_client: u64,
    /// From accepting the flow to its end.
    pub duration: Duration,
    /// How the flow ended.
    pub end: End,
}

impl fmt::Display for FlowRecord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} -> {} rule={} up={} {}B/{}B {:.1}s {}",
            self.protocol,
            self.client,
            self.destination,
            self.rule.name,
            self.upstream,
            self.to_upstream,
            self.to_client,
            self.duration.as_secs_f64(),
            self.end,
        )
    }
}

/// How a flow ended.
#[derive(Debug)]
pub enum End {
    /// Both ends closed, and each end's FIN was passed on.
    Fin,
    /// The client reset the connection, and upstream was told so.
    ClientReset,
    /// Upstream reset the connection, and the client was told so.
    UpstreamReset,
    /// Nothing listens at the upstream address, and the client was told so.
    Refused,
    /// There is no way to the host or network of one of the ends.
    Unreachable,
    /// One of the ends did not answer in time.
    Timeout,
    /// The relay was told to stop before the flow ended by itself.
    Drained,
    /// Nothing has passed in a UDP session for as long as it may be idle.
    Idle,
    /// A UDP session was idle, and another one of the same source took its place.
    Evicted,
    /// Any other failure of a socket.
    Error(io::Error),
}

impl End {
    /// What `error` means that a socket of an established flow on `side` returned.
    pub(super) fn from_error(side: Side, error: io::Error) -> Self {
        match error.raw_os_error() {
            // A RST is EPIPE on a connection whose other end had sent its FIN already, and ENOTCONN
            // to shutdown(2).
            Some(libc::ECONNRESET | libc::EPIPE | libc::ENOTCONN) => match side {
                Side::Client => Self::ClientReset,
                Side::Upstream => Self::UpstreamReset,
            },
            Some(libc::ECONNREFUSED) => Self::Refused,
            Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENETDOWN) => {
                Self::Unreachable
            }
            // connect(2), when the route is of type prohibit or blackhole (ip-route(8)).
            Some(libc::EACCES | libc::EINVAL) => Self::Unreachable,
            Some(libc::ETIMEDOUT) => Self::Timeout,
            _ => Self::Error(error),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fin => f.write_str("fin"),
            Self::ClientReset => f.write_str("client-reset"),
            Self::UpstreamReset => f.write_str("upstream-reset"),
            Self::Refused => f.write_str("refused"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Timeout => f.write_str("timeout"),
            Self::Drained => f.write_str("drained"),
            Self::Idle => f.write_str("idle"),
            Self::Evicted => f.write_str("evicted"),
            Self::Error(error) => write!(f, "error({error})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(client: &str, destination: &str, end: End) -> String {
        let rule = RuleTag {
            name: "web".into(),
            slot: 3,
        };
        FlowRecord {
            protocol: "tcp",
            client: client.parse().unwrap(),
            destination: destination.parse().unwrap(),
            rule: &rule,
            upstream: "direct",
            to_upstream: 517,
            to_client: 48213,
            duration: Duration::from_millis(3240),
            end,
        }
        .to_string()
    }

    #[test]
    fn flow_line_is_the_documented_one() {
        assert_eq!(
            record("10.1.0.2:51514", "192.0.2.9:443", End::Fin),
            "tcp 10.1.0.2:51514 -> 192.0.2.9:443 rule=web up=direct 517B/48213B 3.2s fin"
        );
    }

    #[test]
    fn flow_line_brackets_ipv6_addresses() {
        assert_eq!(
            record("[2001:db8::2]:1", "[2001:db8::9]:443", End::Refused),
            "tcp [2001:db8::2]:1 -> [2001:db8::9]:443 rule=web up=direct 517B/48213B 3.2s refused"
        );
    }

    #[test]
    fn flow_line_of_a_session_names_its_protocol() {
        let rule = RuleTag {
            name: "dns".into(),
            slot: 3,
        };
        let record = FlowRecord {
            protocol: "udp",
            client: "10.1.0.2:5000".parse().unwrap(),
            destination: "192.0.2.9:53".parse().unwrap(),
            rule: &rule,
            upstream: "direct",
            to_upstream: 40,
            to_client: 120,
            duration: Duration::from_millis(20_100),
            end: End::Idle,
        };
        assert_eq!(
            record.to_string(),
            "udp 10.1.0.2:5000 -> 192.0.2.9:53 rule=dns up=direct 40B/120B 20.1s idle"
        );
    }

    #[test]
    fn a_reset_is_told_by_its_side() {
        let reset = || io::Error::from_raw_os_error(libc::ECONNRESET);
        assert_eq!(
            End::from_error(Side::Client, reset()).to_string(),
            "client-reset"
        );
        assert_eq!(
            End::from_error(Side::Upstream, reset()).to_string(),
            "upstream-reset"
        );
        let odd = io::Error::from_raw_os_error(libc::EPERM);
        assert_eq!(
            End::from_error(Side::Client, odd).to_string(),
            "error(Operation not permitted (os error 1))"
        );
    }
}
