//! Thousands of flows that begin and end in random orders, and nothing left of them. Descriptors belong to a process,
//! so this test has one to itself.

#[path = "relay_support/end.rs"]
mod end;
#[expect(dead_code, reason = "shared by several test binaries")]
mod relay_support;

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};
use tproxy_user::relay::{Admission, Settings};

use end::End;
use relay_support::{Harness, accept, eventually, patient, server, tag, with_udp};

/// Threads with flows of their own, told by their clients' addresses.
const DRIVERS: usize = 4;
const FLOWS_OF_EACH: usize = 5_000;
const FLOWS: usize = DRIVERS * FLOWS_OF_EACH;
/// How many flows each driver has at once at most.
const MOST_OPEN: usize = 64;
const PIPES: usize = 8;
/// Makes a run choose as an earlier one did.
const SEED: &str = "RELAY_CHURN_SEED";

#[test]
fn nothing_is_left_of_twenty_thousand_flows() {
    let seed = std::env::var(SEED).map_or_else(
        |_| RandomState::new().hash_one(FLOWS),
        |seed| seed.parse().expect("a number"),
    );
    println!("{SEED}={seed}");
    let (listeners, upstreams): (Vec<_>, Vec<_>) = (0..DRIVERS).map(|_| server()).unzip();
    let harness = Harness::choosing(
        vec![with_udp(TcpListener::bind("127.0.0.1:0").unwrap())],
        Settings {
            max_pipes: Some(PIPES),
            ..Settings::default()
        },
        Box::new(move |_, client, _| {
            let driver = (0..DRIVERS).find(|&driver| client.ip() == source(driver))?;
            Some(Admission::direct(tag(), client, upstreams[driver]))
        }),
    );
    let mut first = Flow::open(&harness, 0, &listeners[0]);
    first.ends.iter_mut().for_each(End::reset);
    harness.ended();
    let before = ["socket:", "pipe:"].map(descriptors);

    let ends = std::thread::scope(|scope| {
        let harness = &harness;
        let drivers = listeners.iter().enumerate().map(|(driver, listener)| {
            let random = Random::new(seed.wrapping_add(driver as u64));
            scope.spawn(move || drive(harness, driver, listener, random))
        });
        let drivers: Vec<_> = drivers.collect();
        let ends = drivers.into_iter().map(|driver| driver.join().unwrap());
        ends.fold([0; 3], |sum, ends| {
            [0, 1, 2].map(|kind| sum[kind] + ends[kind])
        })
    });

    let words = ["fin", "client-reset", "upstream-reset"];
    let mut counted = [0; 3];
    for _ in 0..FLOWS {
        let ended = harness.ended();
        let kind = words.iter().position(|&word| word == ended.end);
        counted[kind.unwrap_or_else(|| panic!("{ended:?}"))] += 1;
    }
    assert_eq!(counted, ends, "of {words:?}");
    assert!(harness.none_ended());
    assert_eq!(harness.total(|stats| stats.accepted), FLOWS as u64 + 1);
    eventually("no flow left", || harness.total(|stats| stats.flows) == 0);
    assert_eq!(harness.total(|stats| stats.pipes), 0);
    let [sockets, pipe_ends] = ["socket:", "pipe:"].map(descriptors);
    assert_eq!(sockets, before[0]);
    let at_rest = (pipe_ends - before[1]) / 2;
    assert!(at_rest <= PIPES, "{at_rest} pipes");
}

/// The address of a driver's clients.
fn source(driver: usize) -> IpAddr {
    let last = u8::try_from(driver + 2).expect("a few drivers");
    Ipv4Addr::new(127, 0, 0, last).into()
}

/// Begins and ends flows, and says how many have ended by `fin`, a reset of the client, and one of the server.
fn drive(
    harness: &Harness,
    driver: usize,
    listener: &TcpListener,
    mut random: Random,
) -> [usize; 3] {
    let mut open = Vec::new();
    let mut ended = [0; 3];
    let mut begun = 0;
    while begun < FLOWS_OF_EACH || !open.is_empty() {
        let may_begin = begun < FLOWS_OF_EACH && open.len() < MOST_OPEN;
        if may_begin && (open.is_empty() || random.flip()) {
            open.push(Flow::open(harness, driver, listener));
            begun += 1;
        } else {
            let mut flow = open.swap_remove(random.below(open.len()));
            flow.exchange(&mut random);
            ended[flow.finish(&mut random)] += 1;
        }
    }
    ended
}

/// Both ends of a flow: the server's, and the client's.
struct Flow {
    ends: [End; 2],
}

/// The indexes of both ends in a [`Flow`].
const SERVER: usize = 0;
const CLIENT: usize = 1;

impl Flow {
    fn open(harness: &Harness, driver: usize, listener: &TcpListener) -> Self {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let own = SocketAddr::new(source(driver), 0);
        client.bind(&own.into()).unwrap();
        client.connect(&harness.address.into()).unwrap();
        // The next connection at this listener is this one: the driver has no other under way.
        let server = accept(listener);
        Self {
            ends: [End::new(server), End::new(patient(client.into()))],
        }
    }

    /// Both ends send: nothing, little, or enough for a pipe.
    fn exchange(&mut self, random: &mut Random) {
        for from in [SERVER, CLIENT] {
            self.pass(from, random);
        }
    }

    /// Sends from one end to the other.
    fn pass(&mut self, from: usize, random: &mut Random) {
        let most = [1, 100, 40_000][random.below(3)];
        self.ends[from].send(random.below(most));
        let sent = self.ends[from].sent;
        self.ends[1 - from].receive(sent);
    }

    /// Ends it in one of all ways, checks what the ends see of it, and says as what it ends: 0 is `fin`, 1 a reset of the
    /// client, 2 one of the server.
    fn finish(&mut self, random: &mut Random) -> usize {
        let first = random.below(2);
        let second = 1 - first;
        let reset_by = |end: usize| if end == CLIENT { 1 } else { 2 };
        match random.below(5) {
            // One after the other, which may go on sending meanwhile.
            0 | 1 => {
                self.ends[first].close();
                self.ends[second].expect_end();
                if random.flip() {
                    self.pass(second, random);
                }
                self.ends[second].close();
                self.ends[first].expect_end();
                0
            }
            2 => {
                self.ends.iter_mut().for_each(End::close);
                self.ends.iter_mut().for_each(End::expect_end);
                0
            }
            3 => {
                self.ends[first].reset();
                self.ends[second].expect_reset();
                reset_by(first)
            }
            _ => {
                self.ends[first].close();
                self.ends[second].expect_end();
                self.ends[second].reset();
                self.ends[first].expect_reset();
                reset_by(second)
            }
        }
    }
}

/// xorshift64 (Marsaglia, "Xorshift RNGs", 2003).
struct Random(u64);

impl Random {
    /// Multiplied, seeds that are neighbours are not alike (Knuth's multiplicative hash).
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1))
    }

    /// A number less than `bound`.
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let bound = u64::try_from(bound).expect("64 bits");
        usize::try_from((self.0 >> 32) % bound).expect("less than the bound")
    }

    fn flip(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// How many descriptors of this process lead to something of this kind.
fn descriptors(kind: &str) -> usize {
    let leads_there = |entry: &fs::DirEntry| {
        let leads_to = fs::read_link(entry.path());
        leads_to.is_ok_and(|leads_to| leads_to.to_string_lossy().starts_with(kind))
    };
    let table = fs::read_dir("/proc/self/fd").unwrap().flatten();
    table.filter(leads_there).count()
}
