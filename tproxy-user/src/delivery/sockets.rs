//! The connected sockets of a network namespace, as the kernel lists them (`sock_diag(7)`).
//! [`destroy_lingering`](super::destroy_lingering) picks some of them.

use std::io;

use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::errno::Errno;
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use tproxy_common::{flow::Protocol, handover::Ends};

use super::{Error, Refusal};

/// Octets of an answer: the kernel makes none of more than 32 KiB.
const ANSWER: usize = 64 * 1024;

/// Calls `each` for every flow that a TCP socket of the calling thread's network namespace has, in
/// whatever state, or a connected UDP socket, with its ends as its peer's packets show them. Blocks.
/// A socket that comes or goes meanwhile may or may not be among them, and so may, rarely, one that
/// shares a hash chain with it.
///
/// # Errors
///
/// When the kernel does not list them all.
pub fn for_each_flow(mut each: impl FnMut(&Ends)) -> Result<(), Error> {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let states = match protocol {
            // Of a handshake that is not complete as well; listeners have no flow.
            Protocol::Tcp => StateFlags::all() - StateFlags::LISTEN,
            // This is what a UDP socket is in that is connected.
            Protocol::Udp => StateFlags::ESTABLISHED,
        };
        for_each_socket(protocol, &states, |found| {
            each(&ends(protocol, &found.socket_id));
        })?;
    }
    Ok(())
}

/// Calls `each` for every socket of a protocol in some states, otherwise like [`for_each_flow`].
pub(super) fn for_each_socket(
    protocol: Protocol,
    states: &StateFlags,
    mut each: impl FnMut(InetResponseHeader),
) -> Result<(), Error> {
    for family in [AF_INET, AF_INET6] {
        // One of its own for each: what is left of a list that failed would be in the way.
        let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(Error::Open)?;
        socket.bind_auto().map_err(Error::Open)?;
        let request = request(protocol, family, states.clone());
        list(&socket, &request, &mut each).map_err(|refusal| Error::Read {
            what: match protocol {
                Protocol::Tcp => "TCP sockets",
                Protocol::Udp => "UDP sockets",
            },
            refusal,
        })?;
    }
    Ok(())
}

fn list(
    socket: &Socket,
    request: &[u8],
    each: &mut impl FnMut(InetResponseHeader),
) -> Result<(), Refusal> {
    socket
        .send_to(request, &SocketAddr::new(0, 0), 0)
        .map_err(|error| refused(&error))?;
    let mut answer = Vec::with_capacity(ANSWER);
    loop {
        answer.clear();
        socket
            .recv(&mut answer, 0)
            .map_err(|error| refused(&error))?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|_| Refusal::Kernel(Errno::EBADMSG))?;
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
                    each(found.header);
                }
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(()),
                NetlinkPayload::Done(done) => return Err(Refusal::from_kernel(done.code)),
                NetlinkPayload::Error(error) => return Err(Refusal::from_kernel(error.raw_code())),
                _ => {}
            }
        }
    }
}

fn request(protocol: Protocol, family: u8, states: StateFlags) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest {
        family,
        protocol: match protocol {
            Protocol::Tcp => IPPROTO_TCP,
            Protocol::Udp => IPPROTO_UDP,
        },
        extensions: ExtensionFlags::empty(),
        states,
        socket_id: SocketId::new_v4(),
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut octets = vec![0; message.buffer_len()];
    message.serialize(&mut octets);
    octets
}

/// The kernel calls the socket's own end the source. A dual-stack socket has IPv4 flows under
/// v4-mapped addresses.
fn ends(protocol: Protocol, socket: &SocketId) -> Ends {
    Ends {
        protocol,
        source: socket.destination_address.to_canonical().into(),
        source_port: socket.destination_port,
        destination: socket.source_address.to_canonical().into(),
        destination_port: socket.source_port,
    }
}

pub(super) fn refused(error: &io::Error) -> Refusal {
    Refusal::Kernel(Errno::from_raw(error.raw_os_error().unwrap_or_default()))
}
