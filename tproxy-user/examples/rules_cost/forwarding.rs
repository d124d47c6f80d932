//! Segments of other people's flows on their whole way through a gateway: received by one veth, routed,
//! sent out of another. Sending them from this process includes all of it, because the kernel receives
//! and forwards a packet of a veth on the CPU that sent it, right after the system call.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind,
    send, socket,
};
use serde::Serialize;
use tproxy_common::{flow_filter::GRACE, tables::Block};
use tproxy_user::{
    agent::turn,
    delivery::{Framing, Link},
    kernel::{FlowFilter, Generation, attach_link, attach_lookup, detach_link},
};

use crate::{
    frame::{ACK, Frame},
    nanoseconds, progress,
    rule_sets::{random_prefixes, rule_set},
    sandbox::{Sandbox, compiled, index_of, ip},
};

const FRAMES: u32 = 100_000;
const MILLION: u32 = 1_000_000;

/// Where the frames come in, and its address.
const INGRESS: &str = "in0";
const ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// What stands in the way, and what a packet takes then.
#[derive(Serialize)]
pub(crate) struct Cost {
    name: &'static str,
    /// Nanoseconds, the fastest round: IPv4, IPv6.
    ns: [f64; 2],
    /// More than with nothing in the way, by the medians of the rounds' differences.
    added: [f64; 2],
}

pub(crate) fn costs(sandbox: &Sandbox, rounds: usize) -> Vec<Cost> {
    make_gateway();
    let _listeners = sandbox.start_workers(2);
    attach_lookup(sandbox.directory).expect("the sk_lookup program is attached");
    let filter = FlowFilter::open(&sandbox.maps).expect("the filter of flows");
    for _ in 0..=GRACE {
        turn(&filter).expect("the sockets are listed");
    }
    let small = compiled(&rule_set(1, 1));
    let large = compiled(&rule_set(1_024, MILLION));
    load_nft("small", 1);
    load_nft("large", MILLION as usize / 2);
    let variants = [
        Variant::Nothing,
        Variant::Ours("tproxy, 1 rule, 1 CIDR", &small),
        Variant::Ours("tproxy, 1,024 rules, 1,000,000 CIDRs", &large),
        Variant::Nft("nft, sets of 1 CIDR", "small"),
        Variant::Nft("nft, sets of 1,000,000 CIDRs", "large"),
    ];
    let flood = Flood::start();
    let mut samples = variants.map(|variant| (variant, [Vec::new(), Vec::new()]));
    for round in 1..=rounds {
        progress(&format!("forwarding, round {round} of {rounds}"));
        for (variant, of_variant) in &mut samples {
            variant.set_up(sandbox);
            for (frame, of_family) in frames().iter().zip(of_variant) {
                of_family.push(nanoseconds(flood.run(frame)) / f64::from(FRAMES));
            }
            variant.take_down(sandbox);
        }
        samples.rotate_left(1);
    }
    samples.sort_by_key(|(variant, _)| {
        variants
            .iter()
            .position(|other| other.name() == variant.name())
    });
    let (_, nothing) = samples[0].clone();
    samples
        .into_iter()
        .map(|(variant, of_variant)| Cost {
            name: variant.name(),
            ns: of_variant.each_ref().map(|of_family| fastest(of_family)),
            added: [0, 1].map(|family| added(&of_variant[family], &nothing[family])),
        })
        .collect()
}

#[derive(Clone, Copy)]
enum Variant<'a> {
    Nothing,
    /// The tc program with these tables.
    Ours(&'static str, &'a [Block]),
    /// A chain that looks destinations up in the sets of this table.
    Nft(&'static str, &'static str),
}

impl Variant<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "routing alone",
            Self::Ours(name, _) | Self::Nft(name, _) => name,
        }
    }

    fn set_up(&self, sandbox: &Sandbox) {
        match self {
            Self::Nothing => {}
            Self::Ours(_, tables) => {
                Generation::install(&sandbox.maps, tables).expect("the rules are installed");
                attach_link(sandbox.directory, &ingress()).expect("the program is attached");
            }
            Self::Nft(_, table) => nft(&format!("add table inet {table}\n")),
        }
    }

    fn take_down(&self, sandbox: &Sandbox) {
        match self {
            Self::Nothing => {}
            Self::Ours(..) => {
                detach_link(sandbox.directory, ingress().index).expect("the program is detached");
            }
            Self::Nft(_, table) => nft(&format!("add table inet {table} {{ flags dormant; }}\n")),
        }
    }
}

/// `feeder` sends to `in0`; what is routed goes out of `out0` to a host that is not there.
fn make_gateway() {
    ip(&format!(
        "link add {INGRESS} address 02:00:00:00:00:01 type veth peer name feeder"
    ));
    ip("link add out0 type veth peer name sink");
    for name in [INGRESS, "feeder", "out0", "sink"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0").expect("a sysctl");
        ip(&format!("link set {name} up"));
    }
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/net/{setting}"), "1").expect("a sysctl");
    }
    for (address, next, network) in [
        ("10.9.0.1/24", "10.9.0.2", "192.0.2.0/24"),
        ("fd09::1/64", "fd09::2", "2001:db8:9::/48"),
    ] {
        ip(&format!("address add {address} dev out0"));
        ip(&format!(
            "neigh add {next} lladdr 02:00:00:00:00:99 dev out0 nud permanent"
        ));
        ip(&format!("route add {network} via {next} dev out0"));
    }
    // Where the frames come from, so that the reverse path is right.
    ip("route add 10.1.0.0/24 dev in0");
    ip("route add 2001:db8:1::/48 dev in0");
}

fn ingress() -> Link {
    Link {
        index: index_of(INGRESS).expect("the interface"),
        name: INGRESS.to_owned(),
        framing: Framing::Ethernet,
        up: true,
        controller: None,
    }
}

/// Two interval sets of so many networks each, and rules that drop what goes to one of them. Not
/// active yet.
fn load_nft(table: &str, each: usize) {
    let elements = |family: fn(&IpNet) -> bool| {
        let prefixes = random_prefixes().filter(family).take(each);
        prefixes
            .map(|prefix| prefix.to_string())
            .collect::<Vec<_>>()
            .join(",")
    };
    let (v4, v6) = (
        elements(|prefix| matches!(prefix, IpNet::V4(_))),
        elements(|prefix| matches!(prefix, IpNet::V6(_))),
    );
    nft(&format!(
        "table inet {table} {{ flags dormant;\n\
         set v4 {{ type ipv4_addr; flags interval; elements = {{ {v4} }}; }}\n\
         set v6 {{ type ipv6_addr; flags interval; elements = {{ {v6} }}; }}\n\
         chain pre {{ type filter hook prerouting priority mangle; \
         ip daddr @v4 tcp dport 443 drop; ip6 daddr @v6 tcp dport 443 drop; }}; }}\n"
    ));
}

fn nft(ruleset: &str) {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft runs");
    let mut input = nft.stdin.take().expect("its standard input");
    input.write_all(ruleset.as_bytes()).expect("nft reads");
    drop(input);
    let status = nft.wait().expect("nft ends");
    assert!(status.success(), "nft: {status}");
}

/// Mid-flow segments of each family that belong to nobody here, and that no set has.
fn frames() -> [Vec<u8>; 2] {
    [
        ("10.1.0.2", "192.0.2.9"),
        ("2001:db8:1::2", "2001:db8:9::9"),
    ]
    .map(|(client, server)| {
        let end = |address: &str, port| {
            let address: IpAddr = address.parse().expect("an address");
            SocketAddr::new(address, port)
        };
        let frame = Frame {
            link: ADDRESS,
            ..Frame::tcp_between(end(client, 41_000), end(server, 443), ACK)
        };
        with_checksum(frame.bytes())
    })
}

/// Routing demands a right checksum of the IPv4 header.
fn with_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[12..14] == [0x08, 0x00] {
        let header: [u8; 20] = frame[14..34].try_into().expect("20 octets");
        let sum = tproxy_common::checksum::Sum::default().plus(&header);
        frame[24..26].copy_from_slice(&sum.checksum());
    }
    frame
}

/// Sends frames out of `feeder`.
struct Flood(OwnedFd);

impl Flood {
    fn start() -> Self {
        let packets = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::empty(),
            None::<SockProtocol>,
        )
        .expect("a packet socket");
        let index = index_of("feeder").expect("the interface") as usize;
        let address: LinkAddr = nix::ifaddrs::getifaddrs()
            .expect("a list of interfaces")
            .filter_map(|interface| interface.address?.as_link_addr().copied())
            .find(|address| {
                address.ifindex() == index && address.family() == Some(AddressFamily::Packet)
            })
            .expect("the interface");
        bind(packets.as_raw_fd(), &address).expect("the socket is bound");
        Self(packets)
    }

    /// How long all frames took until the last of them was forwarded.
    fn run(&self, frame: &[u8]) -> Duration {
        let goal = forwarded() + u64::from(FRAMES);
        let began = Instant::now();
        for _ in 0..FRAMES {
            send(self.0.as_raw_fd(), frame, MsgFlags::empty()).expect("the frame is sent");
        }
        let took = began.elapsed();
        let deadline = began + Duration::from_secs(10);
        while forwarded() < goal {
            assert!(
                Instant::now() < deadline,
                "{} of {FRAMES} frames were not forwarded",
                goal - forwarded()
            );
            thread::yield_now();
        }
        took
    }
}

/// Packets that came out at the far end (`proc_pid_net(5)`: the second field behind the name).
fn forwarded() -> u64 {
    let devices = fs::read_to_string("/proc/thread-self/net/dev").expect("a list of interfaces");
    let sink = devices
        .lines()
        .find_map(|line| line.trim().strip_prefix("sink:"));
    let packets = sink.expect("the interface").split_whitespace().nth(1);
    packets.expect("a counter").parse().expect("a number")
}

fn fastest(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(f64::MAX, f64::min)
}

fn added(samples: &[f64], nothing: &[f64]) -> f64 {
    let mut differences: Vec<f64> = samples
        .iter()
        .zip(nothing)
        .map(|(with, without)| with - without)
        .collect();
    differences.sort_by(f64::total_cmp);
    differences[differences.len() / 2]
}
