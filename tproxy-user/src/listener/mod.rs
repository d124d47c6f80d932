//! Sockets of other programs that flows are redirected to: found by address and port, and taken as
//! duplicates.
//!
//! A duplicate keeps the port bound after its program has ended. So whoever gets one drops it as
//! soon as the kernel knows the socket (a place in a sockmap does not keep it alive), and nothing
//! here keeps one.

mod absence;
mod choice;
mod discard;
mod error;
mod found;
mod holder;
mod listing;
mod namespaces;
mod port_filter;
mod process;
mod reach;
mod sys;
mod watched;
mod watcher;

pub use absence::{Absence, Elsewhere, absence};
pub use choice::MEMBERS;
pub use discard::{Discard, discard};
pub use error::Error;
pub use found::Found;
pub use process::Process;
pub use watcher::{Change, Event, Wanted, Watcher};

use std::net::SocketAddr;

use tproxy_common::flow::Protocol;

use choice::{Candidate, choose};
use holder::Holders;

/// The sockets that a connection or a datagram to `address` reaches in the calling thread's network
/// namespace, [`MEMBERS`] at most: TCP sockets that listen, UDP sockets that are not connected.
///
/// A specific address is that of a socket bound to it, or else of one that is bound to every address
/// of its family. `0.0.0.0` and `::` mean every socket that is bound to all addresses of either
/// family. Of sockets that share a port all are found; where there are more than fit, those of many
/// processes before many of one. Empty when nobody listens: [`absence`] says more.
///
/// # Errors
///
/// When the kernel does not list them, and when there are some and none can be taken.
pub fn find(protocol: Protocol, address: SocketAddr) -> Result<Vec<Found>, Error> {
    let listed = listing::list(protocol, &[address.port()].into())?;
    let reached = reach::reached(&listed, address);
    let mut holders = Holders::default();
    let search = holders.locate(&reached.iter().map(|socket| socket.inode).collect())?;
    let candidates = reached.iter().map(|socket| Candidate {
        socket,
        holder: search.pid(socket.inode),
    });

    let mut found = Vec::new();
    let mut refused = None;
    for socket in choose(candidates, &[], MEMBERS) {
        match search.take(protocol, socket) {
            Ok(taken) => found.extend(taken.map(|(taken, _process)| taken)),
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// A protocol as it is typed.
const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}
