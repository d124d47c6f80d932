//! Frames as they are on an interface: captured, compared, and put there by hand.

use std::{io, net::IpAddr, os::fd::AsFd};

use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex};
use socket2::{Domain, Socket, Type};

use crate::{Namespace, sys};

/// Enough for whatever a test lets pass between two looks.
const CAPTURE_BUFFER: usize = 64 << 20;

/// Longer than any frame, those of segmentation offload (64 KiB and headers) included.
const LONGEST_FRAME: usize = 80 * 1024;

/// A packet socket on one interface: it captures each frame from the moment it is opened, and sends frames unchanged.
#[derive(Debug)]
pub struct Wire {
    socket: Socket,
}

/// Which way a captured frame goes, from the interface's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Received.
    In,
    /// Sent.
    Out,
}

/// A captured frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Received or sent.
    pub direction: Direction,
    /// The VLAN tag (priority and id), which the kernel keeps beside the frame.
    pub vlan: Option<u16>,
    /// The frame from its link-layer header on; tun devices have none.
    pub bytes: Vec<u8>,
}

impl Wire {
    /// Opens `interface` of `namespace`.
    #[must_use]
    #[track_caller]
    pub fn open(namespace: &Namespace, interface: &str) -> Self {
        Self::bound(namespace, interface, true)
    }

    /// Opens `interface` of `namespace` to send only: nothing is captured, which would cost time.
    #[must_use]
    #[track_caller]
    pub fn sender(namespace: &Namespace, interface: &str) -> Self {
        Self::bound(namespace, interface, false)
    }

    #[track_caller]
    fn bound(namespace: &Namespace, interface: &str, captures: bool) -> Self {
        let socket = namespace
            .enter(|| open(interface, captures))
            .unwrap_or_else(|error| panic!("packet socket on {interface}: {error}"));
        Self { socket }
    }

    /// All frames since the last call.
    #[must_use]
    #[track_caller]
    pub fn frames(&self) -> Vec<Frame> {
        let mut buffer = vec![0; LONGEST_FRAME];
        let mut frames = Vec::new();
        loop {
            match sys::receive_frame(&self.socket, &mut buffer) {
                Ok(received) => frames.push(Frame {
                    direction: direction(received.kind),
                    vlan: received.vlan,
                    bytes: buffer[..received.length].to_vec(),
                }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return frames,
                Err(error) => panic!("receive from a packet socket: {error}"),
            }
        }
    }

    /// Sends a frame, link-layer header included.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        let sent = self.socket.send(frame).expect("send a frame");
        assert_eq!(sent, frame.len(), "frames are sent whole");
    }
}

impl Frame {
    /// The IP packet in an Ethernet frame without what routers change: time to live and the IPv4 header's checksum are
    /// zero. `None` when it is not IP between `one` and `other`, in either direction.
    #[must_use]
    pub fn routed_packet(&self, one: IpAddr, other: IpAddr) -> Option<Vec<u8>> {
        let packet = self.bytes.get(14..)?;
        let (source, destination) = ip_addresses(packet)?;
        if ![(one, other), (other, one)].contains(&(source, destination)) {
            return None;
        }
        Some(without_router_changes(packet))
    }
}

/// The source and the destination of an IP packet.
#[must_use]
pub fn ip_addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => Some((
            address::<4>(packet.get(12..16)?),
            address::<4>(packet.get(16..20)?),
        )),
        6 => Some((
            address::<16>(packet.get(8..24)?),
            address::<16>(packet.get(24..40)?),
        )),
        _ => None,
    }
}

/// The hardware address of `interface`.
#[must_use]
#[track_caller]
pub fn hardware_address(namespace: &Namespace, interface: &str) -> [u8; 6] {
    namespace.enter(|| {
        getifaddrs()
            .expect("list the interfaces")
            .filter(|entry| entry.interface_name == interface)
            .find_map(|entry| entry.address?.as_link_addr()?.addr())
            .unwrap_or_else(|| panic!("no hardware address of {interface}"))
    })
}

fn open(interface: &str, captures: bool) -> io::Result<Socket> {
    // Protocol zero: nothing is captured before the socket is bound to its interface.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    nix::sys::socket::setsockopt(
        &socket.as_fd(),
        nix::sys::socket::sockopt::RcvBufForce,
        &CAPTURE_BUFFER,
    )?;
    sys::request_auxiliary_data(&socket)?;
    sys::bind_packet_socket(&socket, if_nametoindex(interface)?, captures)?;
    Ok(socket)
}

fn direction(kind: u8) -> Direction {
    if kind == libc::PACKET_OUTGOING {
        Direction::Out
    } else {
        Direction::In
    }
}

fn without_router_changes(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[8] = 0;
        packet[10..12].fill(0);
    } else {
        packet[7] = 0;
    }
    packet
}

fn address<const LENGTH: usize>(bytes: &[u8]) -> IpAddr
where
    IpAddr: From<[u8; LENGTH]>,
{
    <[u8; LENGTH]>::try_from(bytes)
        .expect("sliced to this length")
        .into()
}
