//! Real packets through attached programs: what cannot be crafted for a test run.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use nix::{
    libc,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _,
        sendto, socket,
    },
};
use tproxy_common::{attachment::FULL, limits::INTERFACES, outcome::Outcome};
use tproxy_user::{
    delivery::{Framing, Link},
    kernel::attach_link,
};

use crate::{
    frame::{ETHERNET_HEADER, Frame, SYN, shortest},
    sandbox::{Sandbox, in_sandbox, index_of, ip, rule, words},
};

const ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Drops new TCP flows that arrive on one interface.
fn drop_on(sandbox: &Sandbox, interface: &str) {
    let mut rule = rule(|spec| spec.action = Some("drop".into()));
    rule.interfaces = words(&[interface]);
    sandbox.install(&[rule]);
}

pub(crate) fn attach(sandbox: &Sandbox, name: &str, framing: Framing) {
    let link = Link {
        index: index_of(name).expect("the interface"),
        name: name.to_owned(),
        framing,
        up: true,
        controller: None,
    };
    attach_link(sandbox.directory, &link).expect("the program is attached");
}

/// Waits until an outcome has occurred so many times.
#[track_caller]
fn wait_for(sandbox: &Sandbox, outcome: Outcome, times: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while sandbox.occurred(outcome) < times {
        let all = sandbox.moved_since(&[0; _]);
        assert!(
            Instant::now() < deadline,
            "{outcome:?} is not {times}: {all:?}"
        );
        std::thread::yield_now();
    }
}

/// The kernel takes the tag out of the frame before the program runs.
#[test]
fn a_tagged_frame_is_not_for_the_interface_itself() {
    in_sandbox(|sandbox| {
        attach_to_veth(sandbox);
        for frame in syns() {
            let (addresses, packet) = frame.split_at(12);
            let tagged = [addresses, &[0x81, 0, 0, 7], packet].concat();
            let dropped = sandbox.occurred(Outcome::Dropped);
            let tags = sandbox.occurred(Outcome::Vlan);
            send(&tagged, "peer");
            wait_for(sandbox, Outcome::Vlan, tags + 1);
            send(&frame, "peer");
            wait_for(sandbox, Outcome::Dropped, dropped + 1);
            assert_eq!(sandbox.occurred(Outcome::Vlan), tags + 1);
        }
    });
}

/// A test run takes no frame without the whole of a fixed IP header; a device does.
#[test]
fn packets_cut_short_within_the_ip_header() {
    in_sandbox(|sandbox| {
        attach_to_veth(sandbox);
        for frame in syns() {
            let before = sandbox.occurred(Outcome::Malformed);
            let lengths = ETHERNET_HEADER + 1..shortest(&frame);
            let sent = lengths.len() as u64;
            for length in lengths {
                send(&frame[..length], "peer");
            }
            wait_for(sandbox, Outcome::Malformed, before + sent);
            assert_eq!(sandbox.occurred(Outcome::Dropped), 0);
            assert_eq!(sandbox.occurred(Outcome::Malformed), before + sent);
        }
    });
}

/// A pair of interfaces, `attached` and `peer`, whose TCP flows are dropped.
fn attach_to_veth(sandbox: &Sandbox) {
    ip("link add attached address 02:00:00:00:00:01 type veth peer name peer");
    for name in ["peer", "attached"] {
        ip(&format!("link set {name} up"));
    }
    drop_on(sandbox, "attached");
    attach(sandbox, "attached", Framing::Ethernet);
}

/// The beginning of a flow of each family, for `attached`.
fn syns() -> [Vec<u8>; 2] {
    [
        Frame::tcp("10.1.0.2:40000", "192.0.2.9:443", SYN),
        Frame::tcp("[2001:db8:1::2]:40000", "[2001:db8:9::9]:443", SYN),
    ]
    .map(|frame| {
        Frame {
            link: ADDRESS,
            ..frame
        }
        .bytes()
    })
}

/// Sends a frame out of an interface.
pub(crate) fn send(frame: &[u8], interface: &str) {
    let packets = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::empty(),
        None::<SockProtocol>,
    );
    let index = index_of(interface).expect("the interface");
    sendto(
        packets.expect("a packet socket").as_raw_fd(),
        frame,
        &link_address(index),
        MsgFlags::empty(),
    )
    .expect("the frame is sent");
}

/// The address by which packet(7) knows an interface.
fn link_address(index: u32) -> LinkAddr {
    let of_interface = nix::ifaddrs::getifaddrs()
        .expect("a list of interfaces")
        .filter_map(|interface| interface.address?.as_link_addr().copied())
        .find(|address| address.ifindex() == index as usize);
    let address = of_interface.expect("the interface");
    assert_eq!(address.family(), Some(AddressFamily::Packet));
    address
}

/// Packets of a tun device begin with the IP header, as those of ppp and `WireGuard` do.
#[test]
fn packets_of_an_interface_without_ethernet_header() {
    in_sandbox(|sandbox| {
        let mut device = open_tun("tun0").expect("a tun device");
        ip("link set tun0 up");
        drop_on(sandbox, "tun0");
        attach(sandbox, "tun0", Framing::Ip);
        let flows = [
            ("10.1.0.2:40000", "192.0.2.9:443"),
            ("[2001:db8:1::2]:40000", "[2001:db8:9::9]:443"),
        ];
        for (times, (source, destination)) in (1..).zip(flows) {
            let frame = Frame::tcp(source, destination, SYN).bytes();
            device
                .write_all(&frame[ETHERNET_HEADER..])
                .expect("the device takes a packet");
            wait_for(sandbox, Outcome::Dropped, times);
            // Cut within the last header.
            let cut = &frame[ETHERNET_HEADER..frame.len() - 1];
            device.write_all(cut).expect("the device takes a packet");
            wait_for(sandbox, Outcome::Malformed, times);
            assert_eq!(sandbox.occurred(Outcome::Dropped), times);
        }
    });
}

/// Makes a tun device whose packets carry no packet information,
/// <https://docs.kernel.org/networking/tuntap.html>. It is gone when the file is closed.
pub(crate) fn open_tun(name: &str) -> io::Result<File> {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let flags = u16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).expect("flags of 16 bits");
    let mut request = [0_u8; size_of::<libc::ifreq>()];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[libc::IFNAMSIZ..][..2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes as many bytes as an ifreq has, which outlive the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    if result == 0 {
        Ok(device)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The message names the limit; an interface that goes makes room.
#[test]
fn there_is_a_limit_of_interfaces() {
    in_sandbox(|sandbox| {
        let last = u32::try_from(INTERFACES).expect("a small number");
        for index in 1..=last {
            sandbox
                .maps
                .set_interface(index, FULL)
                .expect("there is room");
        }
        let refusal = sandbox.maps.set_interface(last + 1, FULL).unwrap_err();
        assert!(
            refusal.to_string().contains("at most 256 interfaces"),
            "{refusal}"
        );
        sandbox.maps.remove_interface(1).expect("it is there");
        sandbox
            .maps
            .set_interface(last + 1, FULL)
            .expect("there is room again");
    });
}
