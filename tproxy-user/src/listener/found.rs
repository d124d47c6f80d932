//! A socket of another program, as a duplicate of it.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
};

use nix::errno::Errno;
use socket2::SockRef;

use tproxy_common::address::Family;

use super::{Error, Process, error::advice, holder::Place, listing::Listed, sys};

/// A duplicate of a socket of another program. It keeps the port bound while it is open.
#[derive(Debug)]
pub struct Found {
    /// The duplicate.
    pub socket: OwnedFd,
    /// Unlike any other socket's since the host started (`SO_COOKIE`, socket(7)).
    pub cookie: u64,
    /// Its inode in the socket file system.
    pub inode: u32,
    /// The process that it is from; others may have it as well.
    pub process: Process,
    /// What it is bound to. A v4-mapped address is told as the IPv4 address that it is.
    pub bound: SocketAddr,
    /// Whether it has `IP_TRANSPARENT` (ip(7)), without which it cannot have connections to
    /// addresses that are not of this host.
    pub transparent: bool,
    /// Whether flows of IPv4 can be given to it.
    pub ipv4: bool,
    /// Whether flows of IPv6 can be given to it.
    pub ipv6: bool,
}

impl Found {
    /// Whether flows of this family can be given to it.
    #[must_use]
    pub const fn serves(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }

    /// Whether it will do for flows to addresses that are not of this host.
    ///
    /// # Errors
    ///
    /// When it is not transparent, with what to do about it.
    pub fn check_transparent(&self) -> Result<(), Error> {
        if self.transparent {
            return Ok(());
        }
        Err(not_transparent(self.process.clone(), self.bound))
    }
}

pub(super) fn not_transparent(process: Process, bound: SocketAddr) -> Error {
    Error::NotTransparent {
        advice: advice(&process.command),
        process,
        bound,
    }
}

/// Takes the socket from where it was seen, with a descriptor for the process. `None` when it is no
/// longer there.
pub(super) fn take(place: Place, socket: &Listed) -> Result<Option<(Found, OwnedFd)>, Error> {
    let refused = |error: &io::Error| Error::Refused {
        process: Process::of(place.pid),
        bound: socket.bound,
        errno: Errno::from_raw(error.raw_os_error().unwrap_or_default()),
    };
    let process = match sys::open_process(place.pid) {
        Ok(process) => process,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(refused(&error)),
    };
    let duplicate = match sys::duplicate(&process, place.descriptor) {
        Ok(duplicate) => duplicate,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(refused(&error)),
    };
    // The number may stand for something else by now, even in another process.
    if SockRef::from(&duplicate).cookie().ok() != Some(socket.cookie) {
        return Ok(None);
    }
    let transparent = is_transparent(&duplicate).map_err(|error| refused(&error))?;
    let found = Found {
        socket: duplicate,
        cookie: socket.cookie,
        inode: socket.inode,
        process: Process::of(place.pid),
        bound: socket.bound,
        transparent,
        ipv4: socket.ipv4,
        ipv6: socket.ipv6,
    };
    Ok(Some((found, process)))
}

/// The kernel has one flag for both families; it is asked for by the name of IPv4, which sockets of
/// IPv6 know as well.
fn is_transparent(socket: &impl AsFd) -> io::Result<bool> {
    SockRef::from(socket).ip_transparent_v4()
}

/// No such process, no such descriptor there.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ESRCH | Errno::EBADF)
    )
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        os::fd::{AsRawFd as _, RawFd},
        process::Command,
    };

    use tproxy_common::flow::Protocol;

    use super::*;
    use crate::listener::listing;

    fn listed(listener: &TcpListener) -> Listed {
        let port = listener.local_addr().unwrap().port();
        let listed = listing::list(Protocol::Tcp, &[port].into()).unwrap();
        let cookie = SockRef::from(listener).cookie().unwrap();
        let mut listed = listed.into_iter();
        listed.find(|socket| socket.cookie == cookie).unwrap()
    }

    fn take_from(pid: u32, descriptor: RawFd, socket: &Listed) -> Option<u64> {
        let taken = take(Place { pid, descriptor }, socket).unwrap();
        taken.map(|(found, _process)| SockRef::from(&found.socket).cookie().unwrap())
    }

    #[test]
    fn what_is_no_longer_where_it_was_seen_is_not_taken() {
        let [one, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let socket = listed(&one);
        let own = std::process::id();
        assert_eq!(
            take_from(own, one.as_raw_fd(), &socket),
            Some(socket.cookie)
        );
        // Another socket, something else, nothing.
        let file = std::fs::File::open("/dev/null").unwrap();
        for descriptor in [other.as_raw_fd(), file.as_raw_fd(), 1_000_000] {
            assert_eq!(take_from(own, descriptor, &socket), None);
        }
        let mut ended = Command::new("true").spawn().unwrap();
        let pid = ended.id();
        ended.wait().unwrap();
        assert_eq!(take_from(pid, 0, &socket), None);
    }
}
