//! Another host on a link of this namespace, for packets that a test run cannot stand for.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    process, thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, SockRef, Socket, Type};
use tproxy_tests::wait::uninterrupted;
use tproxy_user::{
    delivery::{Delivery, Flows, Framing, Netlink},
    kernel::attach_lookup,
};

use crate::{
    devices::attach,
    sandbox::{ASSIGNMENT, Sandbox, index_of, ip},
};

/// The link's end in the namespace of the test.
pub(crate) const NEAR: &str = "near";

/// The end in the neighbour's.
pub(crate) const FAR: &str = "far";

/// How long anything may take that should happen at once, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The addresses of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// This host's on the link.
    pub(crate) own: IpAddr,
    /// The neighbour's.
    pub(crate) client: IpAddr,
    /// One that the neighbour has as well, behind its end of the link: the server that this host's own
    /// processes talk to, and that the neighbour reaches through this host.
    pub(crate) server: IpAddr,
}

/// Both families'.
pub(crate) fn families() -> [Addresses; 2] {
    [
        ["10.77.1.1", "10.77.1.2", "192.0.2.9"],
        ["fd77:1::1", "fd77:1::2", "2001:db8:9::9"],
    ]
    .map(|addresses| {
        let [own, client, server] = addresses.map(|text| text.parse().expect("an address"));
        Addresses {
            own,
            client,
            server,
        }
    })
}

/// A network namespace at the other end of a link.
pub(crate) struct Neighbour(File);

impl Neighbour {
    /// Makes it, with a link to the caller's namespace.
    pub(crate) fn on_link() -> Self {
        let namespace = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            File::open("/proc/thread-self/ns/net").expect("the namespace")
        });
        let neighbour = Self(namespace.join().expect("the namespace"));
        let path = format!("/proc/{}/fd/{}", process::id(), neighbour.0.as_raw_fd());
        ip(&format!(
            "link add {NEAR} address 02:00:00:00:00:01 type veth peer name {FAR} address 02:00:00:00:00:02 netns {path}"
        ));
        for Addresses { own, .. } in families() {
            give(own, NEAR);
        }
        ip(&format!("link set {NEAR} up"));
        neighbour.run(|| {
            ip("link set lo up");
            for Addresses { client, .. } in families() {
                give(client, FAR);
            }
            ip(&format!("link set {FAR} up"));
            for Addresses { own, .. } in families() {
                ip(&format!("route add default via {own}"));
            }
        });
        neighbour
    }

    /// Runs something in its namespace.
    pub(crate) fn run<R: Send>(&self, action: impl FnOnce() -> R + Send) -> R {
        let enter = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).expect("the namespace");
            action()
        };
        let ended = thread::scope(|scope| scope.spawn(enter).join());
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Connects to an address from there.
    pub(crate) fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&address, PATIENCE))
    }

    /// A UDP socket there that is connected to an address.
    pub(crate) fn datagrams_to(&self, address: SocketAddr) -> UdpSocket {
        self.run(|| {
            let socket = UdpSocket::bind(any(address)).expect("a socket");
            socket.connect(address).expect("a way");
            patient(socket)
        })
    }
}

/// Has the programs take what arrives on the link.
pub(crate) fn attach_to_link(sandbox: &Sandbox) {
    let own = families().map(|addresses| IpNet::from(addresses.own));
    let loopback = ["127.0.0.0/8", "::1/128"].map(|net| net.parse().expect("a prefix"));
    let index = index_of(NEAR).expect("the interface");
    let maps = &sandbox.maps;
    maps.set_local_prefixes(&[own, loopback].concat())
        .expect("local prefixes");
    maps.set_interface(index, tproxy_common::attachment::FULL)
        .expect("an interface");
    attach(sandbox, NEAR, Framing::Ethernet);
    attach_lookup(sandbox.directory).expect("the program is attached");
}

/// Brings flows that are taken to this namespace's own sockets.
pub(crate) fn deliver(interfaces: &[&str], local: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let netlink = Netlink::open().expect("a netlink connection");
        let delivery = Delivery::new(netlink, ASSIGNMENT);
        let applied = delivery.apply(&Flows { interfaces, local }).await;
        applied.expect("rules and routes");
    });
}

/// Gives an interface an address, on a network of 24 or 64 bits.
fn give(address: IpAddr, interface: &str) {
    match address {
        IpAddr::V4(v4) => ip(&format!("addr add {v4}/24 dev {interface}")),
        IpAddr::V6(v6) => ip(&format!("addr add {v6}/64 dev {interface} nodad")),
    }
}

/// A listener that takes foreign addresses as well.
pub(crate) fn listen(address: SocketAddr) -> TcpListener {
    let socket = transparent(address, Type::STREAM);
    socket.listen(128).expect("a listener");
    let listener: TcpListener = socket.into();
    let limit = SockRef::from(&listener).set_read_timeout(Some(PATIENCE));
    limit.expect("an option");
    listener
}

/// A UDP socket that takes foreign addresses as well, and can have one.
pub(crate) fn datagrams_at(address: SocketAddr) -> UdpSocket {
    patient(transparent(address, Type::DGRAM).into())
}

fn transparent(address: SocketAddr, kind: Type) -> Socket {
    let socket = Socket::new(Domain::for_address(address), kind, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    socket.set_ip_transparent_v4(true).expect("an option");
    socket.bind(&address.into()).expect("a free address");
    socket
}

/// A socket that fails a test rather than to hang it.
pub(crate) fn patient(socket: UdpSocket) -> UdpSocket {
    let limit = socket.set_read_timeout(Some(PATIENCE));
    limit.expect("an option");
    socket
}

/// Any port of any address of the same family.
pub(crate) fn any(address: SocketAddr) -> SocketAddr {
    let unspecified = match address {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    unspecified.parse().expect("an address")
}

/// The address of a socket of either family, as what it is.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Accepts a connection, and says where it was going to and where it comes from.
#[track_caller]
pub(crate) fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr, SocketAddr) {
    let (accepted, client) = listener.accept().expect("a connection");
    let destination = accepted.local_addr().expect("an address");
    (accepted, canonical(destination), canonical(client))
}

/// Receives a datagram, and says what is in it and where it comes from.
#[track_caller]
pub(crate) fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 1 << 16];
    let received = uninterrupted(|| socket.recv_from(&mut buffer));
    let (length, client) = received.expect("a datagram");
    buffer.truncate(length);
    (buffer, canonical(client))
}

/// Waits until a condition holds.
#[track_caller]
pub(crate) fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it never came");
        thread::yield_now();
    }
}

/// Whether nothing waits to be accepted.
pub(crate) fn is_idle(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).expect("an option");
    let accepted = listener.accept();
    listener.set_nonblocking(false).expect("an option");
    accepted.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Sets a sysctl of the calling thread's network namespace, `net.ipv4.tcp_syncookies` for instance.
pub(crate) fn sysctl(key: &str, value: &str) {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}
