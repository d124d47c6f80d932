//! The other network namespaces of this host.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use tproxy_common::flow::Protocol;

use super::{Elsewhere, Process, holder::Holders, listing, reach};
use crate::instance::{NamespaceId, enter_namespace};

/// How long the search may take. It is for the sake of a better message alone.
const PATIENCE: Duration = Duration::from_millis(500);

/// How many namespaces are looked into at most.
const NAMESPACES: usize = 256;

/// Another network namespace in which a connection to the address reaches a socket. `None` when
/// there is none, as far as it is found in half a second.
pub(super) fn search(protocol: Protocol, address: SocketAddr) -> Option<Elsewhere> {
    // A thread cannot always go back to where it came from, so one that ends afterwards goes.
    thread::scope(|scope| {
        let visitor = scope.spawn(|| visit(protocol, address));
        visitor.join().ok().flatten()
    })
}

fn visit(protocol: Protocol, address: SocketAddr) -> Option<Elsewhere> {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = vec![NamespaceId::current().ok()?];
    for path in named().chain(of_processes()) {
        if Instant::now() > deadline || seen.len() > NAMESPACES {
            return None;
        }
        let Ok(id) = NamespaceId::of(&path) else {
            continue;
        };
        if seen.contains(&id) {
            continue;
        }
        seen.push(id);
        if enter_namespace(&path).is_err() {
            continue;
        }
        let ports = [address.port()].into();
        let listed = listing::list(protocol, &ports).unwrap_or_default();
        let reached = reach::reached(&listed, address);
        if !reached.is_empty() {
            let inodes = reached.iter().map(|socket| socket.inode).collect();
            let search = Holders::default().locate(&inodes).unwrap_or_default();
            let mut pids = reached.iter().filter_map(|socket| search.pid(socket.inode));
            return Some(Elsewhere {
                process: pids.next().map(Process::of),
                path,
            });
        }
    }
    None
}

/// Those that `ip netns` has names for.
fn named() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(super::absence::NAMED).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path()))
}

/// Those of processes, containers for instance.
fn of_processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let is_process = path.file_name()?.to_str()?.parse::<u32>().is_ok();
        is_process.then(|| path.join(Path::new("ns/net")))
    })
}
