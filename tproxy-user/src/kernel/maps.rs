//! The pinned maps of an instance, by name and type.

use std::{
    fs,
    net::IpAddr,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    path::{Path, PathBuf},
};

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, SockMap, lpm_trie::Key},
};
use ipnet::IpNet;
use tproxy_common::{
    address::{Address, Family},
    agent::AgentState,
    flow::Protocol,
    sockets::{self, LIFELINE, MEMBERS},
};

use super::Error;
use crate::{delivery::Assignment, listener::Discard, relay::Listener, sys::SharedArray};

const LOCAL: &str = "LOCAL";
const SOCKETS: &str = "SOCKETS";

/// The maps of one instance, reached through their pins.
#[derive(Clone, Debug)]
pub struct Maps {
    directory: PathBuf,
}

impl Maps {
    /// The maps pinned in `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// Tells the programs about the agent.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn set_agent(&self, state: AgentState) -> Result<(), Error> {
        let mut map: Array<MapData, AgentState> = self.open("AGENT", TryInto::try_into)?;
        map.set(0, state, 0).map_err(failed("AGENT"))
    }

    /// What the agent last told.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn agent(&self) -> Result<AgentState, Error> {
        let map: Array<MapData, AgentState> = self.open("AGENT", TryInto::try_into)?;
        map.get(&0, 0).map_err(failed("AGENT"))
    }

    /// Registers the sockets of each worker, those that discard what they get, and one that lasts as
    /// long as the agent.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn set_sockets(
        &self,
        listeners: &[Listener],
        discard: &Discard,
        lifeline: &UnixDatagram,
    ) -> Result<(), Error> {
        let mut map: SockMap<MapData> = self.open(SOCKETS, TryInto::try_into)?;
        map.set(LIFELINE, &lifeline.as_raw_fd(), 0)
            .map_err(failed(SOCKETS))?;
        let mut set = |place, socket| map.set(place, &socket, 0).map_err(failed(SOCKETS));
        for (worker, Listener { tcp, udp }) in (0..).zip(listeners) {
            set(sockets::relay(Protocol::Tcp, worker), tcp.as_raw_fd())?;
            set(sockets::relay(Protocol::Udp, worker), udp.as_raw_fd())?;
        }
        let Discard { tcp, udp } = discard;
        set(sockets::discarding(Protocol::Tcp), tcp.as_raw_fd())?;
        set(sockets::discarding(Protocol::Udp), udp.as_raw_fd())
    }

    /// Makes these the sockets, [`MEMBERS`] at most, of the listener that the rule with this counter
    /// slot hands its flows of this family to. Each of them takes it.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn set_redirect<'s>(
        &self,
        protocol: Protocol,
        family: Family,
        slot: u32,
        members: impl Iterator<Item = &'s OwnedFd>,
    ) -> Result<(), Error> {
        let mut members = members.fuse();
        for member in 0..MEMBERS as usize {
            match members.next() {
                Some(socket) => self.set_redirect_member(protocol, family, slot, member, socket)?,
                None => self.remove_redirect_member(protocol, family, slot, member)?,
            }
        }
        Ok(())
    }

    /// Puts one of these sockets in its place.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn set_redirect_member(
        &self,
        protocol: Protocol,
        family: Family,
        slot: u32,
        member: usize,
        socket: &OwnedFd,
    ) -> Result<(), Error> {
        let mut map: SockMap<MapData> = self.open(SOCKETS, TryInto::try_into)?;
        map.set(
            place_of(protocol, family, slot, member),
            &socket.as_raw_fd(),
            0,
        )
        .map_err(failed(SOCKETS))
    }

    /// Empties the place of one of these sockets. One that is empty is no error.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn remove_redirect_member(
        &self,
        protocol: Protocol,
        family: Family,
        slot: u32,
        member: usize,
    ) -> Result<(), Error> {
        let mut map: SockMap<MapData> = self.open(SOCKETS, TryInto::try_into)?;
        match map.clear_index(&place_of(protocol, family, slot, member)) {
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::EINVAL) =>
            {
                Ok(())
            }
            cleared => cleared.map_err(failed(SOCKETS)),
        }
    }

    /// Declares an interface attached, for one of [`tproxy_common::attachment`]. One that is attached
    /// already gets this in the place of what it was attached for.
    ///
    /// # Errors
    ///
    /// When the map is full or cannot be written.
    pub fn set_interface(&self, index: u32, attachment: u32) -> Result<(), Error> {
        match self.attached()?.insert(index, attachment, 0) {
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::E2BIG) =>
            {
                Err(Error::TooManyInterfaces)
            }
            inserted => inserted.map_err(failed("ATTACHED")),
        }
    }

    /// Declares an interface detached. One that is not there is no error.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn remove_interface(&self, index: u32) -> Result<(), Error> {
        match self.attached()?.remove(&index) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(())
            }
            Err(error) => Err(failed("ATTACHED")(error)),
        }
    }

    /// Makes the map of this host's own prefixes hold exactly these, and the stand-ins.
    ///
    /// # Errors
    ///
    /// When the map is full or cannot be written.
    pub fn set_local_prefixes(&self, prefixes: &[IpNet]) -> Result<(), Error> {
        let name = LOCAL;
        let mut map: LpmTrie<MapData, [u8; 16], u32> = self.open(name, TryInto::try_into)?;
        let stand_ins = IpNet::from(Assignment::STAND_INS_V6);
        let prefixes = prefixes.iter().chain([&stand_ins]);
        let wanted: std::collections::HashSet<(u32, [u8; 16])> = prefixes.map(local_key).collect();
        let mut present = std::collections::HashSet::new();
        for key in map.keys() {
            let key = key.map_err(failed(name))?;
            present.insert((key.prefix_len(), key.data()));
        }
        // What is new goes in before what is old goes out.
        for (length, octets) in wanted.difference(&present) {
            map.insert(&Key::new(*length, *octets), 1, 0)
                .map_err(failed(name))?;
        }
        for (length, octets) in present.difference(&wanted) {
            map.remove(&Key::new(*length, *octets))
                .map_err(failed(name))?;
        }
        Ok(())
    }

    /// Whether an address is one of this host's own.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn is_local(&self, address: IpAddr) -> Result<bool, Error> {
        let map: LpmTrie<MapData, [u8; 16], u32> = self.open(LOCAL, TryInto::try_into)?;
        let octets = Address::from(address).mapped_octets();
        match map.get(&Key::new(128, octets), 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(cause) => Err(failed(LOCAL)(cause)),
        }
    }

    fn attached(&self) -> Result<HashMap<MapData, u32, u32>, Error> {
        self.open("ATTACHED", TryInto::try_into)
    }

    /// Maps the first `elements` of an array into memory, or what they are made of.
    ///
    /// # Errors
    ///
    /// When it is not there or not mappable.
    pub(super) fn share<T: Pod>(
        &self,
        name: &'static str,
        elements: usize,
    ) -> Result<SharedArray<T>, Error> {
        let Map::Array(array) = self.open(name, Ok)? else {
            return Err(Error::not_an_array(name));
        };
        SharedArray::map(array.fd(), elements).map_err(Error::Memory)
    }

    /// Opens a pin as the type that the caller writes.
    pub(super) fn open<M>(
        &self,
        name: &'static str,
        convert: impl FnOnce(Map) -> Result<M, MapError>,
    ) -> Result<M, Error> {
        let path = self.directory.join(name);
        let data = MapData::from_pin(&path).map_err(|error| {
            // A damaged instance is not a damaged map: say which file is missing.
            match fs::symlink_metadata(&path) {
                Err(cause) => Error::Path {
                    path: path.clone(),
                    cause,
                },
                Ok(_) => Error::Map {
                    map: name,
                    cause: error,
                },
            }
        })?;
        Map::from_map_data(data)
            .and_then(convert)
            .map_err(|cause| Error::Map { map: name, cause })
    }
}

pub(super) fn failed(map: &'static str) -> impl FnOnce(MapError) -> Error {
    move |cause| Error::Map { map, cause }
}

fn place_of(protocol: Protocol, family: Family, slot: u32, member: usize) -> u32 {
    let member = u32::try_from(member).unwrap_or(0);
    sockets::redirect(protocol, family, slot) + member.min(MEMBERS - 1)
}

fn local_key(prefix: &IpNet) -> (u32, [u8; 16]) {
    let mapped = match prefix {
        IpNet::V4(_) => 96,
        IpNet::V6(_) => 0,
    };
    (
        mapped + u32::from(prefix.prefix_len()),
        Address::from(prefix.network()).mapped_octets(),
    )
}
