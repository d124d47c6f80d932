//! A relay whose datagrams come from a client in a network namespace of its own, to addresses that are
//! nobody's. In the place of the kernel programs, nft's `tproxy` gives them to the worker's sockets.

use std::fs::File;
use std::io::{IoSlice, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::gettid;
use tproxy_tests::wait::uninterrupted;
use tproxy_user::relay::{Admission, Listener, Settings, bind};

use crate::relay_support::{Choice, Harness, PATIENCE, tag};

/// The relay's namespace, in which the test's thread is, and the client's.
pub(crate) struct Lab {
    client: File,
}

/// One of the two families: addresses that a test uses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family {
    /// The client's address.
    pub(crate) client: &'static str,
    /// The address of the relay's host.
    pub(crate) gateway: &'static str,
    /// An address behind the relay that no host has.
    pub(crate) far: &'static str,
    /// Where servers are.
    pub(crate) loopback: &'static str,
}

pub(crate) const V4: Family = Family {
    client: "10.9.0.2",
    gateway: "10.9.0.1",
    far: "198.51.100.9",
    loopback: "127.0.0.1",
};
pub(crate) const V6: Family = Family {
    client: "fd09::2",
    gateway: "fd09::1",
    far: "2001:db8:9::9",
    loopback: "::1",
};
pub(crate) const FAMILIES: [Family; 2] = [V4, V6];

/// An address and a port.
pub(crate) fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse::<IpAddr>().unwrap(), port)
}

/// Runs a test in namespaces of its own, on a thread of its own.
pub(crate) fn in_lab(test: impl FnOnce(&Lab) + Send + 'static) {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
        test(&Lab::new());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Lab {
    fn new() -> Self {
        let client = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let lab = Self {
            client: client.join().unwrap(),
        };
        // A number names the namespace of that thread.
        let gateway = gettid();
        lab.in_client(|| {
            run(
                "ip -batch -",
                &format!(
                    "link set lo up
                     link add cl0 type veth peer name gw0 netns {gateway}
                     addr add 10.9.0.2/24 dev cl0
                     addr add 10.9.0.3/24 dev cl0
                     addr add fd09::2/64 dev cl0 nodad
                     link set cl0 up"
                ),
            );
        });
        run(
            "ip -batch -",
            "link set lo up
             addr add 10.9.0.1/24 dev gw0
             addr add fd09::1/64 dev gw0 nodad
             link set gw0 up",
        );
        for family in ["ip -4 -batch -", "ip -6 -batch -"] {
            run(
                family,
                "rule add fwmark 1 lookup 100
                 route add local default dev lo table 100",
            );
        }
        lab.in_client(|| {
            run("ip -batch -", "route add default via 10.9.0.1");
            run("ip -6 -batch -", "route add default via fd09::1");
        });
        lab
    }

    /// Runs something in the client's namespace.
    pub(crate) fn in_client<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.client.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                action()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A socket of the client, bound to `address` and connected to `destination`.
    pub(crate) fn client_at(&self, address: &str, destination: SocketAddr) -> UdpSocket {
        self.in_client(|| {
            let socket = patient(UdpSocket::bind(at(address, 0)).unwrap());
            socket.connect(destination).unwrap();
            socket
        })
    }
}

/// A relay in the namespace of the calling thread, which takes all datagrams to the far addresses.
pub(crate) fn steered_relay(workers: usize, settings: Settings, choice: Choice) -> Harness {
    Harness::choosing(steered_listeners(workers), settings, choice)
}

/// The sockets of such a relay.
pub(crate) fn steered_listeners(workers: usize) -> Vec<Listener> {
    let listeners = bind(0, workers).unwrap();
    steer_to(&listeners);
    listeners
}

/// Gives datagrams to far addresses to the sockets of a relay, unless a session's has them.
fn steer_to(listeners: &[Listener]) {
    let port = listeners[0].udp.local_addr().unwrap().port();
    nft(&format!(
        "iifname gw0 ip daddr 198.51.100.0/24 meta l4proto udp tproxy ip to :{port} meta mark set 1 accept
         iifname gw0 ip6 daddr 2001:db8:9::/64 meta l4proto udp tproxy ip6 to :{port} meta mark set 1 accept"
    ));
}

/// Lets ICMP errors to far addresses come here, as the kernel programs do.
pub(crate) fn steer_errors() {
    run(
        "nft -f -",
        "table inet errors {
             chain prerouting {
                 type filter hook prerouting priority mangle
                 iifname gw0 meta l4proto { icmp, icmpv6 } meta mark set 1
             }
         }
        ",
    );
}

/// Lets nothing out that the relay sends, to a client or to the port of an upstream server, unless it
/// carries `mark`.
pub(crate) fn require_mark(mark: u32, upstream: u16) {
    run(
        "nft -f -",
        &format!(
            "table inet marks {{
                 chain output {{
                     type filter hook output priority filter
                     ip saddr 198.51.100.0/24 meta mark != {mark} drop
                     ip6 saddr 2001:db8:9::/64 meta mark != {mark} drop
                     udp dport {upstream} meta mark != {mark} drop
                 }}
             }}
            "
        ),
    );
}

/// Makes datagrams to far addresses local, and no more: only a socket at the very address gets them.
pub(crate) fn steer_to_sessions_only() {
    nft("iifname gw0 ip daddr 198.51.100.0/24 meta mark set 1 accept
         iifname gw0 ip6 daddr 2001:db8:9::/64 meta mark set 1 accept");
}

fn nft(rules: &str) {
    run(
        "nft -f -",
        &format!(
            "table inet steer
             delete table inet steer
             table inet steer {{
                 chain prerouting {{
                     type filter hook prerouting priority mangle
                     {rules}
                 }}
             }}
            "
        ),
    );
}

fn run(command_line: &str, input: &str) {
    let mut words = command_line.split(' ');
    let mut child = Command::new(words.next().unwrap())
        .args(words)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: Vec<&str> = input.lines().map(str::trim).collect();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(lines.join("\n").as_bytes()).unwrap();
    drop(stdin);
    assert!(
        child.wait().unwrap().success(),
        "{command_line} fails:\n{input}"
    );
}

/// A server of datagrams on loopback.
pub(crate) fn datagram_server(family: Family) -> (UdpSocket, SocketAddr) {
    let socket = patient(UdpSocket::bind(at(family.loopback, 0)).unwrap());
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// A socket whose reads fail rather than hang the test.
pub(crate) fn patient(socket: UdpSocket) -> UdpSocket {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The next datagram.
pub(crate) fn receive(socket: &UdpSocket) -> Vec<u8> {
    receive_from(socket).0
}

/// The next datagram, and who sent it.
pub(crate) fn receive_from(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let (length, sender) = uninterrupted(|| socket.recv_from(&mut buffer)).unwrap();
    buffer.truncate(length);
    (buffer, sender)
}

/// Whether nothing waits at a socket.
pub(crate) fn is_silent(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).unwrap();
    let silent = socket
        .peek(&mut [0; 1])
        .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    socket.set_nonblocking(false).unwrap();
    silent
}

/// Sends bytes as datagrams of `segment` bytes, by one call (`UDP_SEGMENT`, udp(7)).
pub(crate) fn send_joined(socket: &UdpSocket, bytes: &[u8], segment: u16) {
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &[ControlMessage::UdpGsoSegments(&segment)],
        MsgFlags::empty(),
        None,
    )
    .unwrap();
}

/// So many bytes, no two words of them alike.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0u32..)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes())
        .take(length)
        .collect()
}

/// Everything goes to one upstream address.
pub(crate) fn to(upstream: SocketAddr) -> Choice {
    Box::new(move |_, client, _| Some(Admission::direct(tag(), client, upstream)))
}
