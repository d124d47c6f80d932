//! The loaded program against the same decision in user space, over generated frames, rules and
//! states of the agent.
//!
//! `TPROXY_SEED` is the seed of the generator (0 unless set), `TPROXY_FRAMES` the number of frames;
//! a failure names both and the smallest case that was found.

use std::{
    cell::RefCell,
    collections::HashSet,
    env,
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    rc::Rc,
    str::FromStr,
};

use aya::maps::{HashMap, Map, MapData};
use ipnet::IpNet;
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};
use tproxy_common::{
    address::Family,
    agent::AgentState,
    flow::{Protocol, Scope},
    flow_filter::GRACE,
    fragment::{Fate, FragmentedPacket},
    outcome::{OUTCOMES, Outcome},
    sockets::MEMBERS,
    tables::{Action, OnMissing},
};
use tproxy_user::{
    agent::turn,
    kernel::{FlowFilter, Generation},
    rule::{AddressMatch, PortRange, Rule},
};

use crate::{
    frame::{ACK, ETHERNET_HEADER, Extension, Frame, SYN, Transport, shortest},
    model::{ComparableEnds, Interface, Memory, Model, directions},
    sandbox::{
        FIRST_SLOT, MARK, Metadata, Sandbox, UPSTREAM_MARK, Workers, compiled, connection,
        expected, in_sandbox, index_of, ip, is_of_others, make_local, rule,
    },
};

const FRAMES: u32 = 65_536;

/// On average; a failure is looked for in ever fewer of them.
const FRAMES_OF_A_CASE: u32 = 512;

/// Workers that have a listener; the agent claims more in some cases.
const LISTENERS: u32 = 2;

/// The hardware address of both interfaces.
const ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const INTERFACES: [&str; 2] = ["d0", "d1"];

/// Most rules of a case.
const RULES: usize = 40;

/// Connections that are there all the time, of this small world's addresses, of either protocol.
const CONNECTIONS: [(&str, &str); 2] = [
    ("10.1.1.255:5", "10.3.2.255:4"),
    ("[2001:0:1:1::]:5", "[2001:0:2:1:1:1:1:1]:4"),
];

#[test]
fn the_loaded_program_agrees_with_user_space() {
    let seed: u64 = from_environment("TPROXY_SEED", 0);
    let frames: u32 = from_environment("TPROXY_FRAMES", FRAMES);
    in_sandbox(move |sandbox| {
        let world = World::make(sandbox);
        // The seed as it is would be all zeroes, which this generator cannot leave.
        let octets = u128::from(seed).wrapping_add(1).to_le_bytes();
        let config = Config {
            cases: frames.div_ceil(FRAMES_OF_A_CASE),
            failure_persistence: None,
            max_shrink_iters: 10_000,
            ..Config::default()
        };
        let rng = TestRng::from_seed(RngAlgorithm::XorShift, &octets);
        let mut runner = TestRunner::new_with_rng(config, rng);
        match runner.run(&any_case(), |case| world.check(&case)) {
            Ok(()) => {}
            Err(TestError::Fail(reason, case)) => panic!(
                "with TPROXY_SEED={seed} TPROXY_FRAMES={frames}: {reason}\nsmallest case: {case:#?}"
            ),
            Err(abort) => panic!("{abort}"),
        }
        world.demand_every_outcome(frames);
    });
}

fn from_environment<T: FromStr<Err: Debug>>(name: &str, default: T) -> T {
    env::var(name).map_or(default, |value| value.parse().expect(name))
}

/// What is the same for all cases.
struct World<'a> {
    sandbox: &'a Sandbox,
    interfaces: [u32; 2],
    awaited: HashSet<ComparableEnds>,
    memory: Rc<RefCell<Memory>>,
    fates: RefCell<HashMap<MapData, FragmentedPacket, Fate>>,
    /// How often each outcome should have occurred so far.
    counted: RefCell<[u64; OUTCOMES]>,
    _sockets: Sockets,
}

/// They are there for as long as this lives.
struct Sockets {
    _workers: Workers,
    _listeners: Vec<OwnedFd>,
    _connections: Vec<(TcpStream, TcpStream)>,
    _datagrams: Vec<(UdpSocket, UdpSocket)>,
}

impl<'a> World<'a> {
    fn make(sandbox: &'a Sandbox) -> Self {
        ip(
            "link add d0 address 02:00:00:00:00:01 type veth peer name d1 address 02:00:00:00:00:01",
        );
        let workers = sandbox.start_workers(LISTENERS);
        let listeners = open_listeners(sandbox);
        let ends = CONNECTIONS.map(|(client, server)| -> (SocketAddr, SocketAddr) {
            (client.parse().unwrap(), server.parse().unwrap())
        });
        for (client, server) in &ends {
            make_local(client.ip());
            make_local(server.ip());
        }
        let connections = ends
            .iter()
            .map(|(client, server)| connection(*client, *server));
        let connections = connections.collect();
        // The filter of flows is to change nothing but the cost.
        let filter = FlowFilter::open(&sandbox.maps).expect("the filter of flows");
        for _ in 0..=GRACE {
            turn(&filter).expect("the sockets are listed");
        }
        let datagrams = ends
            .iter()
            .map(|(client, server)| connected(*client, *server));
        let datagrams = datagrams.collect();
        let both = |protocol| {
            let each = ends.iter();
            each.flat_map(move |(client, server)| directions(protocol, *client, *server))
        };
        let mut memory = Memory::default();
        for connection in both(Protocol::Tcp) {
            memory.stamp(&connection.ends());
        }
        // Those of UDP came too late to be listed: a flow has a stamp when it has been taken. One has it
        // now.
        let stamped = both(Protocol::Udp).next().expect("a flow").ends();
        filter.stamp(&stamped);
        memory.stamp(&stamped);
        Self {
            sandbox,
            interfaces: INTERFACES.map(|name| index_of(name).expect("the interface")),
            awaited: both(Protocol::Tcp).chain(both(Protocol::Udp)).collect(),
            memory: Rc::new(RefCell::new(memory)),
            fates: RefCell::new(fates(sandbox)),
            counted: RefCell::new(sandbox.outcomes()),
            _sockets: Sockets {
                _workers: workers,
                _listeners: listeners,
                _connections: connections,
                _datagrams: datagrams,
            },
        }
    }

    /// Runs all frames of a case through both.
    fn check(&self, case: &Case) -> Result<(), TestCaseError> {
        let blocks = compiled(&case.rules);
        let maps = &self.sandbox.maps;
        Generation::install(maps, &blocks).expect("the rules are installed");
        maps.set_agent(case.agent).expect("the agent");
        maps.set_local_prefixes(&case.local)
            .expect("local prefixes");
        self.forget_fragments();
        let model = Model {
            blocks,
            local: case.local.clone(),
            agent: case.agent,
            listeners: LISTENERS,
            is_listened_to,
            memory: Rc::clone(&self.memory),
            fates: RefCell::default(),
            awaited: self.awaited.clone(),
        };
        case.packets
            .iter()
            .try_for_each(|packet| self.check_packet(&model, packet))
    }

    /// Each case has packets of its own, however long they would be remembered.
    fn forget_fragments(&self) {
        let mut fates = self.fates.borrow_mut();
        let known: Vec<_> = fates.keys().map(|key| key.expect("a packet")).collect();
        for packet in known {
            fates.remove(&packet).expect("it is there");
        }
    }

    fn check_packet(&self, model: &Model, packet: &Packet) -> Result<(), TestCaseError> {
        let bytes = packet.bytes();
        let interface = Interface {
            index: self.interfaces[packet.interface],
            address: ADDRESS,
        };
        let metadata = Metadata {
            mark: packet.mark,
            interface: interface.index,
        };
        let outcome = model.decide(&bytes, interface, metadata);
        let ran = self.sandbox.run(&bytes, None, metadata);
        let mut counted = self.counted.borrow_mut();
        counted[outcome as usize] += 1;
        if self.sandbox.occurred(outcome) == counted[outcome as usize]
            && ran == expected(outcome, packet.mark)
        {
            return Ok(());
        }
        counted[outcome as usize] -= 1;
        let kernel = self.sandbox.moved_since(&counted);
        // What failed is run again to find a smaller case.
        *counted = self.sandbox.outcomes();
        Err(TestCaseError::fail(format!(
            "user space: {outcome:?}, kernel: {kernel:?} {ran:x?}, for {packet:?}: {bytes:02x?}"
        )))
    }

    /// A generator that never comes to some outcome would show nothing about it.
    fn demand_every_outcome(&self, frames: u32) {
        let counted = self.counted.borrow();
        let total: u64 = counted.iter().sum();
        assert!(total > u64::from(frames) * 4 / 5, "only {total} frames");
        assert_eq!(
            *counted,
            self.sandbox.outcomes(),
            "some outcome was counted beside"
        );
        for (outcome, name) in Outcome::ALL {
            // A tag cannot be given to a test run, a cookie and a quoted segment cannot be guessed, and
            // no interface is one for answers.
            let impossible = [
                Outcome::Vlan,
                Outcome::SynCookie,
                Outcome::IcmpError,
                Outcome::AnswersOnly,
            ];
            let possible = !is_of_others(*outcome) && !impossible.contains(outcome);
            let times = counted[*outcome as usize];
            println!("{name:20} {times:8}");
            assert_eq!(
                possible,
                times > u64::from(frames / 2000),
                "{name}: {times}"
            );
        }
    }
}

/// The ways of fragments as the programs know them.
fn fates(sandbox: &Sandbox) -> HashMap<MapData, FragmentedPacket, Fate> {
    let pin = sandbox.directory.join("FRAGMENTED_PACKETS");
    let map = MapData::from_pin(pin).and_then(Map::from_map_data);
    map.and_then(TryInto::try_into)
        .expect("the ways of fragments")
}

/// Two UDP sockets that are connected to each other.
fn connected(client: SocketAddr, server: SocketAddr) -> (UdpSocket, UdpSocket) {
    let one = UdpSocket::bind(client).expect("a free address");
    let other = UdpSocket::bind(server).expect("a free address");
    one.connect(server).expect("a connection");
    other.connect(client).expect("a connection");
    (one, other)
}

/// Of five rules that redirect, one has a listener for both families, one for IPv4 alone, one for IPv6
/// alone, one for both but not for UDP, and one has none.
fn is_listened_to(protocol: Protocol, family: Family, slot: u32) -> bool {
    match slot % 5 {
        0 => true,
        1 => family == Family::V4,
        2 => family == Family::V6,
        3 => protocol == Protocol::Tcp,
        _ => false,
    }
}

/// Puts sockets where [`is_listened_to`] says that there are some, each rule's in another place.
fn open_listeners(sandbox: &Sandbox) -> Vec<OwnedFd> {
    let mut kept = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (family, address) in [(Family::V6, "[::1]:0"), (Family::V4, "127.0.0.1:0")] {
            let socket: OwnedFd = match protocol {
                Protocol::Tcp => TcpListener::bind(address).expect("a listener").into(),
                Protocol::Udp => UdpSocket::bind(address).expect("a socket").into(),
            };
            for slot in FIRST_SLOT..FIRST_SLOT + u32::try_from(RULES).expect("a small number") {
                if is_listened_to(protocol, family, slot) {
                    let member = (slot / 5 % MEMBERS) as usize;
                    let maps = &sandbox.maps;
                    let set = maps.set_redirect_member(protocol, family, slot, member, &socket);
                    set.expect("the socket is taken");
                }
            }
            kept.push(socket);
        }
    }
    kept
}

/// Rules, the state of the agent, and packets that meet them.
#[derive(Clone, Debug)]
struct Case {
    rules: Vec<Rule>,
    agent: AgentState,
    local: Vec<IpNet>,
    packets: Vec<Packet>,
}

/// A frame, how it is damaged, and what the kernel knows of it.
#[derive(Clone, Debug)]
struct Packet {
    frame: Frame,
    damage: Vec<Damage>,
    mark: u32,
    interface: usize,
}

/// Something that is wrong with a frame behind its addresses.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Set {
        at: u16,
        octet: u8,
    },
    Flip {
        at: u16,
        bit: u8,
    },
    Cut {
        at: u16,
    },
    /// Another length in the IP header, which leaves the rest as padding.
    Length {
        octets: u16,
    },
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.frame.bytes();
        // The hardware addresses stay, or most damaged frames would be for somebody else.
        let first = 12;
        for damage in &self.damage {
            let place = |at: u16| first + usize::from(at) % (bytes.len() - first);
            match *damage {
                Damage::Set { at, octet } => {
                    let place = place(at);
                    bytes[place] = octet;
                }
                Damage::Flip { at, bit } => {
                    let place = place(at);
                    bytes[place] ^= 1 << bit;
                }
                Damage::Cut { at } => bytes.truncate(place(at).max(ETHERNET_HEADER)),
                Damage::Length { octets } => {
                    let field = ETHERNET_HEADER + if self.frame.source.is_ipv4() { 2 } else { 4 };
                    if let Some(length) = bytes.get_mut(field..field + 2) {
                        length.copy_from_slice(&octets.to_be_bytes());
                    }
                }
            }
        }
        if bytes.len() < shortest(&bytes) {
            bytes.resize(shortest(&bytes), 0);
        }
        bytes
    }
}

fn any_case() -> impl Strategy<Value = Case> {
    let groups = prop_oneof![
        5 => any_packet().prop_map(|packet| vec![packet]).boxed(),
        1 => any_fragments().boxed(),
    ];
    // One in six is of three and a half.
    let most = 2 * FRAMES_OF_A_CASE as usize * 10 / 14;
    (
        prop::collection::vec(any_rule(), 0..RULES),
        any_agent(),
        prop::collection::vec(any_local_prefix(), 0..4),
        prop::collection::vec(groups, 1..most),
    )
        .prop_map(|(rules, agent, local, groups)| Case {
            rules,
            agent,
            local,
            packets: groups.into_iter().flatten().collect(),
        })
}

fn any_agent() -> impl Strategy<Value = AgentState> {
    let accepting = |workers| AgentState::accepting(workers, 3129);
    prop_oneof![
        4 => Just(accepting(LISTENERS)),
        2 => select(vec![1, 3, 5, 64]).prop_map(accepting),
        2 => select(vec![1, 2, 5]).prop_map(move |workers| accepting(workers).draining()),
        1 => Just(AgentState::default()),
    ]
}

/// Addresses from a small world, so that prefixes nest, touch and repeat; both ends of the address
/// space and both sides of /64 are in it, and some that are not forwarded.
fn any_v4() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![
        30 => (0_u8..4, 0_u8..4).prop_map(|(a, b)| Ipv4Addr::new(10, a, b, 255 * (a & 1))),
        2 => (0_u8..4).prop_map(|a| Ipv4Addr::new(255, 255, 255, 0xfc | a)),
        2 => (0_u8..4).prop_map(|a| Ipv4Addr::new(169, 254, 169, 0xfc | a)),
        1 => select(vec![Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(224, 0, 0, 1)]),
    ]
}

fn any_v6() -> impl Strategy<Value = Ipv6Addr> {
    let low = select(vec![0_u16, 1, 0xffff]);
    prop_oneof![
        30 => (0_u16..3, 0_u16..3, low)
            .prop_map(|(a, b, low)| Ipv6Addr::new(0x2001, 0, a, b, low, low, low, low)),
        1 => any_v4().prop_map(|mapped| mapped.to_ipv6_mapped()),
        1 => select(vec!["::", "::1", "fe80::1", "ff02::1", "febf:ffff:ffff:ffff::"])
            .prop_map(|text| text.parse().unwrap()),
    ]
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any_v4().prop_map(IpAddr::V4), any_v6().prop_map(IpAddr::V6)]
}

fn any_prefix() -> impl Strategy<Value = IpNet> {
    (any_address(), 0_u8..=128).prop_map(|(address, length)| {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, length % (longest + 1)).unwrap().trunc()
    })
}

/// Short prefixes would make all addresses this host's own.
fn any_local_prefix() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any_v4(), 23_u8..=32).prop_map(|(address, length)| (IpAddr::V4(address), length)),
        (any_v6(), 64_u8..=128).prop_map(|(address, length)| (IpAddr::V6(address), length)),
    ]
    .prop_map(|(address, length)| IpNet::new(address, length).unwrap().trunc())
}

fn any_match() -> impl Strategy<Value = AddressMatch> {
    (
        prop::collection::vec(any_prefix(), 0..4),
        prop::collection::vec(any_prefix(), 0..2),
    )
        .prop_map(|(include, exclude)| AddressMatch {
            include,
            exclude,
            ..AddressMatch::default()
        })
}

fn any_port() -> impl Strategy<Value = u16> {
    prop_oneof![1_u16..6, Just(65534), Just(65535)]
}

fn any_ports() -> impl Strategy<Value = Vec<PortRange>> {
    let range = (any_port(), any_port())
        .prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b)).parse().unwrap());
    prop::collection::vec(range, 0..3)
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let protocols = vec![
        vec![Protocol::Tcp],
        vec![Protocol::Udp],
        vec![Protocol::Tcp, Protocol::Udp],
    ];
    (
        (any_match(), any_match()),
        (any_ports(), any_ports()),
        select(protocols),
        // Those of other scopes are none of this program's business.
        prop_oneof![
            6 => Just(Scope::Forward),
            1 => Just(Scope::Inbound),
            1 => Just(Scope::Local),
        ],
        prop::collection::vec(select(vec!["d0", "d1", "gone"]), 0..2),
        select(vec![
            Action::Relay,
            Action::Relay,
            Action::Redirect,
            Action::Redirect,
            Action::Pass,
            Action::Drop,
            Action::Reject,
        ]),
        select(vec![OnMissing::Pass, OnMissing::Drop]),
    )
        .prop_map(
            |(addresses, ports, protocols, scope, interfaces, action, on_missing)| Rule {
                scope,
                protocols: match action {
                    Action::Reject => vec![Protocol::Tcp],
                    _ => protocols,
                },
                source: addresses.0,
                destination: addresses.1,
                source_ports: ports.0,
                destination_ports: ports.1,
                interfaces: interfaces.into_iter().map(String::from).collect(),
                listener: (action == Action::Redirect)
                    .then(|| SocketAddr::from(([127, 0, 0, 1], 8080))),
                action,
                on_missing,
                ..rule(|_| ())
            },
        )
}

fn any_mark() -> impl Strategy<Value = u32> {
    prop_oneof![
        8 => Just(0),
        1 => select(vec![UPSTREAM_MARK, UPSTREAM_MARK | 1, MARK, MARK | 1, 1, 0x0010_0000]),
        1 => any::<u32>(),
    ]
}

/// Fragments of one packet, in any order, some twice and some missing; those of another packet may have
/// the same number.
fn any_fragments() -> impl Strategy<Value = Vec<Packet>> {
    let offsets = prop::collection::vec((0_u16..4, any::<bool>()), 2..6);
    (any_frame(), offsets, any_mark(), 0..INTERFACES.len()).prop_map(
        |(frame, offsets, mark, interface)| {
            let fragments = offsets.into_iter().map(|(offset, more)| {
                let mut extensions = frame.extensions.clone();
                extensions.truncate(2);
                extensions.push(Extension::Fragment {
                    field: offset << 3 | u16::from(more),
                });
                Packet {
                    frame: Frame {
                        fragment: u16::from(more) << 13 | offset,
                        extensions,
                        ..frame.clone()
                    },
                    damage: Vec::new(),
                    mark,
                    interface,
                }
            });
            fragments.collect()
        },
    )
}

fn any_packet() -> impl Strategy<Value = Packet> {
    let damage = prop_oneof![
        2 => Just(Vec::new()).boxed(),
        1 => prop::collection::vec(any_damage(), 1..4).boxed(),
    ];
    (any_frame(), damage, any_mark(), 0..INTERFACES.len()).prop_map(
        |(frame, damage, mark, interface)| Packet {
            frame,
            damage,
            mark,
            interface,
        },
    )
}

fn any_damage() -> impl Strategy<Value = Damage> {
    // Most fields that matter are near the front, and these numbers mean something there.
    let at = || prop_oneof![0_u16..64, any::<u16>()];
    let octet = prop_oneof![any::<u8>(), select(vec![0, 6, 17, 43, 44, 50, 51, 59, 60])];
    prop_oneof![
        (at(), octet).prop_map(|(at, octet)| Damage::Set { at, octet }),
        (at(), 0_u8..8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        at().prop_map(|at| Damage::Cut { at }),
        (0_u16..100).prop_map(|octets| Damage::Length { octets }),
    ]
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let ends = prop_oneof![
        10 => ((any_v4(), any_port()), (any_v4(), any_port())).prop_map(|(source, destination)| {
            (SocketAddr::from(source), SocketAddr::from(destination))
        }),
        10 => ((any_v6(), any_port()), (any_v6(), any_port())).prop_map(|(source, destination)| {
            (SocketAddr::from(source), SocketAddr::from(destination))
        }),
        2 => (select(CONNECTIONS.to_vec()), any::<bool>()).prop_map(|((client, server), back)| {
            let (client, server) = (client.parse().unwrap(), server.parse().unwrap());
            if back { (server, client) } else { (client, server) }
        }),
    ];
    let link = prop_oneof![
        30 => Just(ADDRESS),
        1 => select(vec![[0; 6], [0xff; 6], [0x33, 0x33, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]]),
    ];
    let ether_type = prop::option::weighted(0.03, select(vec![0x0800, 0x86dd, 0x0806, 0x8100, 4]));
    let option_words = prop_oneof![4 => Just(0_u8), 1 => 1_u8..=10];
    let fragment = prop_oneof![
        6 => Just(0_u16),
        2 => Just(0x4000),
        1 => select(vec![0x2000, 0x00b9, 0x1fff, 0x8000]),
    ];
    let extensions = prop_oneof![
        4 => Just(Vec::new()).boxed(),
        2 => prop::collection::vec(any_extension(), 1..4).boxed(),
        1 => prop::collection::vec(any_extension(), 6..12).boxed(),
    ];
    (
        ends,
        (link, ether_type),
        (option_words, fragment, extensions),
        0_u32..4,
        any_transport(),
        0_u16..40,
    )
        .prop_map(
            |(
                (source, destination),
                (link, ether_type),
                header,
                identification,
                transport,
                payload,
            )| Frame {
                identification,
                link,
                ether_type,
                option_words: header.0,
                fragment: header.1,
                extensions: header.2,
                transport,
                payload,
                ..Frame::tcp_between(source, destination, 0)
            },
        )
}

fn any_extension() -> impl Strategy<Value = Extension> {
    prop_oneof![
        4 => (0_u8..4).prop_map(|units| Extension::HopByHop { units }),
        4 => (0_u8..4).prop_map(|units| Extension::DestinationOptions { units }),
        3 => (0_u8..4, select(vec![0, 0, 0, 1])).prop_map(|(units, segments_left)| {
            Extension::Routing { units, segments_left }
        }),
        2 => select(vec![0, 0, 0, 6, 1, 8]).prop_map(|field| Extension::Fragment { field }),
        3 => (0_u8..6).prop_map(|words| Extension::Authentication { words }),
    ]
}

fn any_transport() -> impl Strategy<Value = Transport> {
    let flags = prop_oneof![5 => Just(SYN), 3 => Just(ACK), 1 => any::<u8>()];
    let data_offset = prop_oneof![20 => Just(5_u8), 1 => 0_u8..16];
    prop_oneof![
        12 => (flags, data_offset)
            .prop_map(|(flags, data_offset)| Transport::Tcp { flags, data_offset }),
        8 => Just(Transport::Udp),
        1 => select(vec![1, 6, 17, 50, 58, 59, 132])
            .prop_map(|protocol| Transport::Other { protocol }),
    ]
}
