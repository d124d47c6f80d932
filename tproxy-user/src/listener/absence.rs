//! That nobody listens, and what is there instead.

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use tproxy_common::flow::Protocol;

use super::{
    Error, Process,
    listing::{self, Listed},
    namespaces, protocol_name,
};

/// Where `ip netns` keeps names of network namespaces.
pub(super) const NAMED: &str = "/run/netns";

/// An address that nobody listens at; displayed, a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absence {
    /// The protocol that was asked for.
    pub protocol: Protocol,
    /// The address that was asked for.
    pub address: SocketAddr,
    /// Other addresses at which somebody listens on that port here.
    pub others: BTreeSet<SocketAddr>,
    /// Another network namespace in which somebody listens at the address.
    pub elsewhere: Option<Elsewhere>,
}

/// A network namespace in which somebody listens at the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// The process that does, where it can be seen.
    pub process: Option<Process>,
    /// A file that stands for the namespace.
    pub path: PathBuf,
}

/// What is to be said of an address that [`find`](super::find) has found nobody at. Looks into the
/// other network namespaces of this host, for half a second at most.
///
/// # Errors
///
/// When the kernel does not list the sockets of this one.
pub fn absence(protocol: Protocol, address: SocketAddr) -> Result<Absence, Error> {
    let listed = listing::list(protocol, &[address.port()].into())?;
    Ok(Absence {
        elsewhere: namespaces::search(protocol, address),
        ..Absence::of(protocol, address, &listed)
    })
}

impl Absence {
    /// From the sockets of this network namespace alone.
    pub(super) fn of(protocol: Protocol, address: SocketAddr, listed: &[Listed]) -> Self {
        let at_port = listed
            .iter()
            .filter(|socket| socket.bound.port() == address.port());
        Self {
            protocol,
            address,
            others: at_port.map(|socket| socket.bound).collect(),
            elsewhere: None,
        }
    }
}

impl fmt::Display for Absence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            protocol,
            address,
            others,
            elsewhere,
        } = self;
        let protocol = protocol_name(*protocol);
        if let Some(Elsewhere { process, path }) = elsewhere {
            let of = match process {
                Some(process) => format!("of {process}"),
                None => path.display().to_string(),
            };
            // `--netns` takes names as well.
            let netns = path
                .strip_prefix(Path::new(NAMED))
                .unwrap_or(path)
                .display();
            return write!(
                formatter,
                "{protocol} {address} is listened at in the network namespace {of}, not in this one: run tproxy there (--netns {netns})"
            );
        }
        write!(formatter, "nobody listens at {protocol} {address}")?;
        if others.is_empty() {
            return formatter.write_str(": start the program that is to take these flows");
        }
        let others: Vec<String> = others.iter().map(SocketAddr::to_string).collect();
        let others = others.join(" and ");
        write!(formatter, ", only at {others}: name that address in --to")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn absence(others: &[&str], elsewhere: Option<Elsewhere>) -> String {
        let absence = Absence {
            protocol: Protocol::Tcp,
            address: "127.0.0.1:3129".parse().unwrap(),
            others: others.iter().map(|other| other.parse().unwrap()).collect(),
            elsewhere,
        };
        absence.to_string()
    }

    #[test]
    fn the_sentence_tells_the_next_step() {
        assert_eq!(
            absence(&[], None),
            "nobody listens at tcp 127.0.0.1:3129: start the program that is to take these flows"
        );
        assert_eq!(
            absence(&["10.0.0.1:3129"], None),
            "nobody listens at tcp 127.0.0.1:3129, only at 10.0.0.1:3129: name that address in --to"
        );
        let of_process = Elsewhere {
            process: Some(Process {
                pid: 812,
                command: "squid".into(),
            }),
            path: "/proc/812/ns/net".into(),
        };
        assert_eq!(
            absence(&[], Some(of_process.clone())),
            "tcp 127.0.0.1:3129 is listened at in the network namespace of squid (process 812), not in this one: run tproxy there (--netns /proc/812/ns/net)"
        );
        let named = Elsewhere {
            process: None,
            path: "/run/netns/blue".into(),
        };
        let text = absence(&["10.0.0.1:3129"], Some(named));
        assert!(text.contains("namespace /run/netns/blue, not"), "{text}");
        assert!(text.ends_with("(--netns blue)"), "{text}");
    }
}
