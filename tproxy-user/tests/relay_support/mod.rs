//! A relay on a loopback listener, whose policy sends every flow to an address of the test's choice.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use tproxy_common::flow::Protocol;
use tproxy_tests::wait::uninterrupted;
use tproxy_user::relay::{Admission, FlowRecord, Listener, Policy, Relay, RuleTag, Settings};

/// How long anything may take that should happen at once, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A relay under test.
pub(crate) struct Harness {
    pub(crate) relay: Relay,
    /// Where clients connect to.
    pub(crate) address: SocketAddr,
    pub(crate) policy: Arc<Recorder>,
    ends: Mutex<Receiver<Ended>>,
}

/// What the policy was told at the end of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) client: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) to_upstream: u64,
    pub(crate) to_client: u64,
    pub(crate) end: String,
}

/// Where a test wants flows to go to.
pub(crate) type Choice =
    Box<dyn Fn(Protocol, SocketAddr, SocketAddr) -> Option<Admission> + Send + Sync>;

/// A policy that admits what the test chooses, and remembers what it is told.
pub(crate) struct Recorder {
    choice: Choice,
    pub(crate) opened: AtomicU64,
    pub(crate) to_upstream: AtomicU64,
    pub(crate) to_client: AtomicU64,
    /// How often a worker wanted more connections.
    pub(crate) wanted: AtomicU64,
    ends: Mutex<Sender<Ended>>,
}

impl Policy for Recorder {
    fn admit(
        &self,
        protocol: Protocol,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Option<Admission> {
        (self.choice)(protocol, client, destination)
    }

    fn is_own(&self, address: IpAddr) -> bool {
        address.is_loopback()
    }

    fn opened(&self, _rule: &RuleTag) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    fn moved(&self, _rule: &RuleTag, to_upstream: u64, to_client: u64) {
        self.to_upstream.fetch_add(to_upstream, Ordering::Relaxed);
        self.to_client.fetch_add(to_client, Ordering::Relaxed);
    }

    fn wants_more(&self, _worker: usize) {
        self.wanted.fetch_add(1, Ordering::Relaxed);
    }

    fn ended(&self, flow: &FlowRecord<'_>) {
        let ended = Ended {
            client: flow.client,
            destination: flow.destination,
            to_upstream: flow.to_upstream,
            to_client: flow.to_client,
            end: flow.end.to_string(),
        };
        // The test may be over, and the receiver gone.
        let _ = self.ends.lock().unwrap().send(ended);
    }
}

impl Harness {
    /// A relay with one worker to `upstream`, or one that refuses all flows.
    pub(crate) fn new(upstream: impl Into<Option<SocketAddr>>) -> Self {
        Self::with(upstream, Settings::default())
    }

    pub(crate) fn with(upstream: impl Into<Option<SocketAddr>>, settings: Settings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::on(vec![listener], upstream, settings)
    }

    pub(crate) fn on(
        listeners: Vec<TcpListener>,
        upstream: impl Into<Option<SocketAddr>>,
        settings: Settings,
    ) -> Self {
        let listeners = listeners.into_iter().map(with_udp).collect();
        let upstream = upstream.into();
        Self::choosing(
            listeners,
            settings,
            Box::new(move |_, client, _| Some(Admission::direct(tag(), client, upstream?))),
        )
    }

    /// A relay whose flows go where `choice` says.
    pub(crate) fn choosing(listeners: Vec<Listener>, settings: Settings, choice: Choice) -> Self {
        let address = listeners[0].tcp.local_addr().unwrap();
        let (sender, ends) = channel();
        let policy = Arc::new(Recorder {
            choice,
            opened: AtomicU64::new(0),
            to_upstream: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            ends: Mutex::new(sender),
        });
        let relay = Relay::start(listeners, settings, Arc::<Recorder>::clone(&policy)).unwrap();
        Self {
            relay,
            address,
            policy,
            ends: Mutex::new(ends),
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        patient(TcpStream::connect(self.address).unwrap())
    }

    /// The next flow that ends.
    pub(crate) fn ended(&self) -> Ended {
        self.ends
            .lock()
            .unwrap()
            .recv_timeout(PATIENCE)
            .expect("a flow that ends")
    }

    /// Whether no flow has ended since the last call.
    pub(crate) fn none_ended(&self) -> bool {
        self.ends.lock().unwrap().try_recv().is_err()
    }

    /// The sum of one counter over all workers.
    pub(crate) fn total(&self, counter: impl Fn(&tproxy_user::relay::WorkerStats) -> u64) -> u64 {
        self.relay.stats().iter().map(counter).sum()
    }
}

/// The rule of all flows.
pub(crate) fn tag() -> RuleTag {
    RuleTag {
        name: "test".into(),
        slot: 0,
    }
}

/// A listener whose datagrams nobody sends.
pub(crate) fn with_udp(tcp: TcpListener) -> Listener {
    Listener {
        tcp,
        udp: UdpSocket::bind("127.0.0.1:0").unwrap(),
    }
}

/// A server socket on loopback, which fails rather than waits for a connection that does not come.
pub(crate) fn server() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&listener)
        .set_read_timeout(Some(PATIENCE))
        .unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    patient(listener.accept().unwrap().0)
}

/// A stream whose reads and writes fail rather than hang the test.
pub(crate) fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Waits for `condition`, by looking at it until it holds.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asserts that the next read of `stream` reports a RST.
pub(crate) fn assert_reset(stream: &mut TcpStream) {
    let result = uninterrupted(|| stream.read(&mut [0; 16]));
    assert!(
        matches!(&result, Err(error) if error.kind() == ErrorKind::ConnectionReset),
        "expected a RST, got {result:?}"
    );
}

/// Ends a stream by a RST.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}

/// A listener whose backlog is full, so that further connections get no answer. The streams keep it so.
pub(crate) fn silent_server() -> ((Socket, Vec<Socket>), SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let streams = (0..4)
        .map(|_| {
            let stream = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
            let _ = stream.connect(&address);
            stream
        })
        .collect();
    ((listener, streams), address.as_socket().unwrap())
}
