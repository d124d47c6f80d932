//! Sockets that linger after their flow, with an end that is not of this host.
//!
//! What accepted a flow on its way to another host has that host's address as its own, and so has its
//! TIME_WAIT socket, for a minute. The tc program knows what to do with one. Without that program it is
//! in the way of the next flow from the same port: early demux attaches it to the SYN, and
//! `ip_forward` and `ip6_forward` drop what has a socket (`net/ipv4/ip_forward.c`,
//! `net/ipv6/ip6_output.c`).

use std::{net::IpAddr, time::Instant};

use ipnet::IpNet;
use log::debug;
use netlink_packet_sock_diag::{
    SockDiagDestroy, SockDiagMessage,
    constants::IPPROTO_TCP,
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, StateFlags, Timer},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use tproxy_common::flow::Protocol;

use super::{
    Error, Refusal,
    sockets::{for_each_socket, refused},
};

/// Sockets that are destroyed by one call: their requests take 36 KiB, which any send buffer holds.
const BATCH: usize = 512;

/// Octets of an answer about one socket; more than it takes.
const ANSWER: usize = 4096;

/// Destroys the TIME_WAIT sockets of the calling thread's network namespace whose own address is in
/// none of the prefixes `local`. Blocks. What a peer still sends, mostly its FIN once more, goes on to
/// the real server, which resets it.
///
/// They cannot be told from those of another instance or of another transparent proxy. To new flows
/// of theirs it does not matter.
///
/// It cannot fail in a way that is worth more than a word in the log: the kernel may be unable to
/// (`CONFIG_INET_DIAG_DESTROY`; TIME_WAIT from Linux 6.0 on), and all of them are gone after a minute.
pub fn destroy_lingering(local: &[IpNet]) {
    let begin = Instant::now();
    match try_destroy(local) {
        Ok(0) => {}
        Ok(count) => debug!(
            "destroyed {count} sockets in TIME_WAIT with foreign addresses in {:?}",
            begin.elapsed()
        ),
        Err(error) => debug!(
            "sockets in TIME_WAIT with foreign addresses stay for up to a minute, in which their flows' ports cannot be used again: {error}"
        ),
    }
}

fn try_destroy(local: &[IpNet]) -> Result<usize, Error> {
    // What nobody holds any more waits for its peer's FIN in such a socket as well, which says so
    // (`tw_substate`, include/net/inet_timewait_sock.h).
    let states = StateFlags::TIME_WAIT | StateFlags::FIN_WAIT2;
    let mut lingering = Vec::new();
    // All are found before the first is destroyed: the kernel's place in its list counts them.
    for_each_socket(Protocol::Tcp, &states, |found| {
        if found.timer == Some(Timer::TimeWait) && is_foreign(found.socket_id.source_address, local)
        {
            lingering.push(found);
        }
    })?;
    for batch in lingering.chunks(BATCH) {
        let socket = Socket::new(NETLINK_SOCK_DIAG).map_err(Error::Open)?;
        destroy(&socket, batch).map_err(|refusal| Error::Change {
            action: "destroy",
            object: "sockets in TIME_WAIT".to_owned(),
            refusal,
        })?;
    }
    Ok(lingering.len())
}

fn is_foreign(address: IpAddr, local: &[IpNet]) -> bool {
    // A dual-stack listener's IPv4 flows have v4-mapped addresses.
    let address = address.to_canonical();
    !local.iter().any(|prefix| prefix.contains(&address))
}

fn destroy(socket: &Socket, batch: &[InetResponseHeader]) -> Result<(), Refusal> {
    let requests: Vec<u8> = batch.iter().flat_map(request).collect();
    socket
        .send_to(&requests, &SocketAddr::new(0, 0), 0)
        .map_err(|error| refused(&error))?;
    // The kernel has done it when the call returns. It answers failures only, of which those beyond
    // its buffer are lost.
    let mut answer = Vec::with_capacity(ANSWER);
    loop {
        answer.clear();
        match socket
            .recv(&mut answer, libc::MSG_DONTWAIT)
            .map_err(|error| refused(&error))
        {
            Ok(_) => {}
            Err(Refusal::Kernel(Errno::ENOBUFS)) => continue,
            Err(Refusal::Kernel(Errno::EAGAIN)) => return Ok(()),
            Err(refusal) => return Err(refusal),
        }
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(&answer)
            .map_err(|_| Refusal::Kernel(Errno::EBADMSG))?;
        if let NetlinkPayload::Error(error) = message.payload {
            match Refusal::from_kernel(error.raw_code()) {
                // Gone meanwhile, or another has its place.
                Refusal::Kernel(Errno::ENOENT | Errno::ESTALE) => {}
                refusal => return Err(refusal),
            }
        }
    }
}

/// `SOCK_DESTROY` for the very socket that was listed: its cookie is that of no other.
fn request(found: &InetResponseHeader) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let request = InetRequest {
        family: found.family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::empty(),
        socket_id: found.socket_id.clone(),
    };
    let request = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut octets = vec![0; message.buffer_len()];
    message.serialize(&mut octets);
    octets
}
