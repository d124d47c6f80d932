//! Which process has a socket: the links of /proc/PID/fd say (`proc_pid_fd(5)`).

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    os::fd::{OwnedFd, RawFd},
    path::PathBuf,
};

use tproxy_common::flow::Protocol;

use super::{
    Error, Found, Process, found,
    listing::{self, Listed},
};

/// How many processes that had sockets are looked into before all others.
const RECENT: usize = 64;

/// A descriptor of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) pid: u32,
    pub(super) descriptor: RawFd,
}

/// Remembers which processes had sockets: going through all of them takes long on a large host, and
/// a program that opens its socket anew is often still the same process.
#[derive(Default)]
pub(super) struct Holders {
    recent: Vec<u32>,
}

/// What a search has found.
#[derive(Debug, Default)]
pub(super) struct Search {
    places: HashMap<u32, Place>,
    /// Processes that could not be looked into.
    hidden: Vec<u32>,
}

impl Holders {
    /// Searches a process for each of these inodes.
    ///
    /// # Errors
    ///
    /// When /proc cannot be read. That a single process cannot be is no error.
    pub(super) fn locate(&mut self, inodes: &BTreeSet<u32>) -> Result<Search, Error> {
        let mut search = Search::default();
        let mut missing = inodes.clone();
        // A socket of the kernel's own has none, and neither has one that was closed just now.
        missing.remove(&0);
        self.recent
            .retain(|pid| search.look_into(*pid, &mut missing));
        if missing.is_empty() {
            return Ok(search);
        }
        for entry in fs::read_dir("/proc").map_err(Error::Processes)? {
            let entry = entry.map_err(Error::Processes)?;
            let Some(pid) = number(&entry.file_name()) else {
                continue;
            };
            if self.recent.contains(&pid) {
                continue;
            }
            search.look_into(pid, &mut missing);
            if missing.is_empty() {
                break;
            }
        }
        self.remember(&search);
        Ok(search)
    }

    fn remember(&mut self, search: &Search) {
        for place in search.places.values() {
            if !self.recent.contains(&place.pid) {
                self.recent.insert(0, place.pid);
            }
        }
        self.recent.truncate(RECENT);
    }
}

impl Search {
    /// The process that has the socket of this inode.
    pub(super) fn pid(&self, inode: u32) -> Option<u32> {
        self.places.get(&inode).map(|place| place.pid)
    }

    /// Takes a duplicate of a socket, with a descriptor for the process that it is from. `None` when
    /// the socket or the process is gone since it was listed.
    ///
    /// # Errors
    ///
    /// When no process can be seen to have it, and when the kernel refuses to give it.
    pub(super) fn take(
        &self,
        protocol: Protocol,
        socket: &Listed,
    ) -> Result<Option<(Found, OwnedFd)>, Error> {
        let Some(place) = self.places.get(&socket.inode) else {
            // Or its program has ended in between.
            let ports = [socket.bound.port()].into();
            let listed = listing::list(protocol, &ports)?;
            if !listed.iter().any(|other| other.cookie == socket.cookie) {
                return Ok(None);
            }
            return Err(Error::NoHolder {
                protocol: super::protocol_name(protocol),
                bound: socket.bound,
                inode: socket.inode,
                hidden: self.hidden.iter().copied().map(Process::of).collect(),
            });
        };
        found::take(*place, socket)
    }

    /// Looks for the sockets that are missing among the descriptors of a process. False when there is
    /// no such process.
    fn look_into(&mut self, pid: u32, missing: &mut BTreeSet<u32>) -> bool {
        if missing.is_empty() {
            return true;
        }
        let directory = PathBuf::from(format!("/proc/{pid}/fd"));
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if may_not(&error) => {
                self.hidden.push(pid);
                return true;
            }
            // It has just ended.
            Err(_) => return false,
        };
        for entry in entries.flatten() {
            let target = match fs::read_link(entry.path()) {
                Ok(target) => target,
                // Who may list them need not be allowed to follow them.
                Err(error) if may_not(&error) => {
                    self.hidden.push(pid);
                    return true;
                }
                Err(_) => continue,
            };
            let Some(inode) = target.to_str().and_then(socket_inode) else {
                continue;
            };
            let Some(descriptor) = number(&entry.file_name()) else {
                continue;
            };
            if missing.remove(&inode) {
                self.places.insert(inode, Place { pid, descriptor });
                if missing.is_empty() {
                    break;
                }
            }
        }
        true
    }
}

fn may_not(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// The inode in the target of a link to a socket, such as `socket:[4711]`.
fn socket_inode(target: &str) -> Option<u32> {
    target
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

fn number<T: std::str::FromStr>(name: &std::ffi::OsStr) -> Option<T> {
    name.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_sockets_tell_the_inode_and_others_tell_none() {
        assert_eq!(socket_inode("socket:[4711]"), Some(4711));
        for other in [
            "pipe:[4711]",
            "/socket:[1]",
            "socket:[]",
            "socket:[x]",
            "anon_inode:[1]",
        ] {
            assert_eq!(socket_inode(other), None, "{other}");
        }
    }
}
