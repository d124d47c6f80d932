//! The sockets that flows can be given to, as the kernel lists them (`sock_diag(7)`).

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
};

use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};
use nix::errno::Errno;
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
};
use tproxy_common::flow::Protocol;

use super::{Error, port_filter};

/// Octets of an answer: the kernel makes none of more than 32 KiB.
const ANSWER: usize = 64 * 1024;

/// `INET_DIAG_SOCKOPT` (`linux/inet_diag.h`): options of a socket, one bit each; from Linux 5.10 on.
const OPTIONS: u16 = 22;

/// The bit for `IP_TRANSPARENT` in the first octet of those, the sixth as the compiler lays bits out.
const TRANSPARENT: u8 = if cfg!(target_endian = "little") {
    1 << 5
} else {
    1 << 2
};

/// A socket that flows can be given to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    /// What it is bound to. A v4-mapped address is told as the IPv4 address that it is.
    pub(super) bound: SocketAddr,
    /// Unlike any other socket's since the host started (`SO_COOKIE`, socket(7)).
    pub(super) cookie: u64,
    /// Its inode, by which processes name it; 0 when none has it.
    pub(super) inode: u32,
    /// Whether flows of IPv4 can be given to it.
    pub(super) ipv4: bool,
    /// Whether flows of IPv6 can be given to it.
    pub(super) ipv6: bool,
    /// Whether it may have connections to foreign addresses; `None` where the kernel does not say.
    pub(super) transparent: Option<bool>,
}

/// Lists the sockets of both families in the calling thread's network namespace that are bound to
/// one of `ports`: TCP sockets that listen, UDP sockets that are not connected.
///
/// # Errors
///
/// When the kernel does not list them all.
pub(super) fn list(protocol: Protocol, ports: &BTreeSet<u16>) -> Result<Vec<Listed>, Error> {
    let mut listed = Vec::new();
    for family in [AF_INET, AF_INET6] {
        list_family(protocol, family, ports, &mut listed).map_err(|errno| Error::List {
            protocol: super::protocol_name(protocol),
            errno,
        })?;
    }
    // The order of the kernel's table is no order.
    listed.sort_by_key(|socket| socket.cookie);
    Ok(listed)
}

fn list_family(
    protocol: Protocol,
    family: u8,
    ports: &BTreeSet<u16>,
    listed: &mut Vec<Listed>,
) -> Result<(), Errno> {
    // One of its own for each: what is left of a list that failed would be in the way.
    let socket = Socket::new(NETLINK_SOCK_DIAG).map_err(|error| errno(&error))?;
    let kernel = netlink_sys::SocketAddr::new(0, 0);
    socket
        .send_to(&request(protocol, family, ports), &kernel, 0)
        .map_err(|error| errno(&error))?;
    let mut answer = Vec::with_capacity(ANSWER);
    loop {
        answer.clear();
        socket.recv(&mut answer, 0).map_err(|error| errno(&error))?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(|_| Errno::EBADMSG)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    let socket = read(&response);
                    if ports.contains(&socket.bound.port()) {
                        listed.push(socket);
                    }
                }
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(()),
                NetlinkPayload::Done(done) => return Err(from_kernel(done.code)),
                NetlinkPayload::Error(error) => return Err(from_kernel(error.raw_code())),
                _ => {}
            }
        }
    }
}

fn request(protocol: Protocol, family: u8, ports: &BTreeSet<u16>) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let (protocol, states) = match protocol {
        Protocol::Tcp => (IPPROTO_TCP, StateFlags::LISTEN),
        // What a socket without a connection is in: UDP borrows the states of TCP.
        Protocol::Udp => (IPPROTO_UDP, StateFlags::CLOSE),
    };
    let request = InetRequest {
        family,
        protocol,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id: SocketId::new_v4(),
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut octets = vec![0; message.buffer_len()];
    message.serialize(&mut octets);
    if let Some(filter) = port_filter::attribute(ports) {
        octets.extend(filter);
        // The length comes first in a message (netlink(7)).
        let length = u32::try_from(octets.len()).expect("a filter is shorter than 64 KiB");
        octets[..4].copy_from_slice(&length.to_ne_bytes());
    }
    octets
}

fn read(response: &InetResponse) -> Listed {
    let id = &response.header.socket_id;
    let [low, high] = [0, 4].map(|place| {
        let half = [0, 1, 2, 3].map(|octet| id.cookie[place + octet]);
        u64::from(u32::from_ne_bytes(half))
    });
    let address = id.source_address.to_canonical();
    // IPv4 alone takes a socket of that family or bound to a v4-mapped address. One that is bound
    // to an address of IPv6 takes that alone, which the kernel says itself.
    let dual_stack = response.nlas.contains(&Nla::SkV6Only(false)) && address.is_ipv6();
    Listed {
        bound: SocketAddr::new(address, id.source_port),
        cookie: high << 32 | low,
        inode: response.header.inode,
        ipv4: address.is_ipv4() || dual_stack,
        ipv6: address.is_ipv6(),
        transparent: options(response).map(|options| options & TRANSPARENT != 0),
    }
}

/// The first octet of the options.
fn options(response: &InetResponse) -> Option<u8> {
    let attribute = response.nlas.iter().find_map(|attribute| match attribute {
        Nla::Other(attribute) if attribute.kind() == OPTIONS => Some(attribute),
        _ => None,
    })?;
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    value.first().copied()
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

/// The errno of a netlink answer, which is negative there.
fn from_kernel(negative_errno: i32) -> Errno {
    Errno::from_raw(negative_errno.saturating_abs())
}

impl Listed {
    /// Whether it is bound to every address.
    pub(super) fn is_wildcard(&self) -> bool {
        self.bound.ip().is_unspecified()
    }

    /// Whether flows to this address can be given to it.
    pub(super) fn takes(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.ipv4,
            IpAddr::V6(_) => self.ipv6,
        }
    }
}
