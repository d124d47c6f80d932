//! The rtnetlink connection: requests that are acknowledged, dumps, and multicast subscriptions.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE,
        NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    },
    packet_route::RouteNetlinkMessage,
    sys::AsyncSocket as _,
};
use socket2::{SockFilter, SockRef};
use tokio::sync::Mutex;

use super::{Error, Refusal};

/// A connection to the kernel's routing tables, rules and links.
///
/// It belongs to the network namespace that the thread was in when [`Netlink::open`] ran. Clones
/// share the connection, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
    /// Held during a dump, up to its last message: a connection has one at a time, and a second is
    /// refused with `EBUSY` (`__netlink_dump_start`).
    dumping: Arc<Mutex<()>>,
}

/// How often a dump is begun again because the kernel said that it changed half-way. The kernel
/// tells of every later change, so that the last answer is good enough.
const DUMP_ATTEMPTS: usize = 5;

impl Netlink {
    /// Opens a connection in the network namespace of the calling thread. It must be called within
    /// a tokio runtime, which from then on drives the connection.
    ///
    /// # Errors
    ///
    /// [`Error::Open`] when the socket cannot be made.
    pub fn open() -> Result<Self, Error> {
        // Strict checking makes the kernel filter dumps by table and type (Linux 4.20).
        let (mut connection, handle, _unsolicited) =
            rtnetlink::new_connection_with_strict_check().map_err(Error::Open)?;
        // Without these the library keeps both to itself: a connection that ends would look like
        // an acknowledgement, and a dump that fails (its last message has the errno) like an empty
        // one.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        tokio::spawn(connection);
        Ok(Self {
            handle,
            dumping: Arc::default(),
        })
    }

    /// Adds an object; `EEXIST` if it is there.
    pub(super) async fn create(&self, message: RouteNetlinkMessage) -> Result<(), Refusal> {
        self.acknowledged(message, NLM_F_CREATE | NLM_F_EXCL).await
    }

    /// Adds a route in the place of the one that is there.
    pub(super) async fn replace(&self, message: RouteNetlinkMessage) -> Result<(), Refusal> {
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.acknowledged(message, flags).await
    }

    /// Deletes an object, or changes one that is there.
    pub(super) async fn change(&self, message: RouteNetlinkMessage) -> Result<(), Refusal> {
        self.acknowledged(message, 0).await
    }

    async fn acknowledged(&self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Refusal> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self
            .handle
            .clone()
            .request(request)
            .map_err(|_| Refusal::Closed)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return match error.raw_code() {
                    0 => Ok(()),
                    code => Err(Refusal::from_kernel(code)),
                };
            }
        }
        Err(Refusal::Closed)
    }

    /// The answer to a question that has one.
    pub(super) async fn ask(
        &self,
        question: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, Refusal> {
        let mut request = NetlinkMessage::from(question);
        request.header.flags = NLM_F_REQUEST;
        let mut answers = self
            .handle
            .clone()
            .request(request)
            .map_err(|_| Refusal::Closed)?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(answer) => return Ok(answer),
                NetlinkPayload::Error(error) => return Err(Refusal::from_kernel(error.raw_code())),
                _ => {}
            }
        }
        Err(Refusal::Closed)
    }

    /// Everything that answers a dump request.
    pub(super) async fn dump(
        &self,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        // A task of its own: a dump whose asker is cancelled is read to its end all the same.
        let netlink = self.clone();
        let dump = tokio::spawn(async move { netlink.dump_alone(message).await });
        dump.await.map_err(|_| Refusal::Closed)?
    }

    async fn dump_alone(
        &self,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        let _alone = self.dumping.lock().await;
        for _ in 1..DUMP_ATTEMPTS {
            let dump = self.dump_once(message.clone()).await?;
            if dump.consistent {
                return Ok(dump.answers);
            }
        }
        Ok(self.dump_once(message).await?.answers)
    }

    async fn dump_once(&self, message: RouteNetlinkMessage) -> Result<Dump, Refusal> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut messages = self
            .handle
            .clone()
            .request(request)
            .map_err(|_| Refusal::Closed)?;
        let mut dump = Dump {
            answers: Vec::new(),
            consistent: true,
        };
        while let Some(answer) = messages.next().await {
            dump.consistent &= answer.header.flags & NLM_F_DUMP_INTR == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => dump.answers.push(message),
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(dump),
                NetlinkPayload::Done(done) => return Err(Refusal::from_kernel(done.code)),
                NetlinkPayload::Error(error) => return Err(Refusal::from_kernel(error.raw_code())),
                _ => {}
            }
        }
        Err(Refusal::Closed)
    }
}

struct Dump {
    answers: Vec<RouteNetlinkMessage>,
    consistent: bool,
}

/// What the kernel says of its own accord.
pub(super) enum Notification {
    /// A change, as a message of the same form as the request that would make it.
    Change(Box<RouteNetlinkMessage>),
    /// Changes came faster than they were read, and some are lost (`ENOBUFS`).
    Overrun,
}

/// The changes in some multicast groups of the calling thread's network namespace.
pub(super) struct Notifications {
    messages: Pin<Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Send>>,
}

impl Notifications {
    /// Subscribes: every change made after this returns is told, but for those of the unicast routes
    /// of the table `main`. It must be called within a tokio runtime.
    pub(super) fn subscribe(groups: &[MulticastGroup]) -> Result<Self, Error> {
        Self::open(groups, &all_but_forwarding_routes())
    }

    /// The same with the unicast routes of the table `main`.
    pub(super) fn subscribe_to_all(groups: &[MulticastGroup]) -> Result<Self, Error> {
        Self::open(groups, &[])
    }

    fn open(groups: &[MulticastGroup], filter: &[SockFilter]) -> Result<Self, Error> {
        let (mut connection, _handle, messages) =
            rtnetlink::new_multicast_connection(groups).map_err(Error::Open)?;
        if !filter.is_empty() {
            let socket = SockRef::from(connection.socket_mut().socket_ref());
            socket.attach_filter(filter).map_err(Error::Open)?;
        }
        tokio::spawn(connection);
        Ok(Self {
            messages: Box::pin(messages.map(|(message, _)| message)),
        })
    }

    /// The next notification; [`Refusal::Closed`] when the connection has ended.
    pub(super) async fn next(&mut self) -> Result<Notification, Refusal> {
        loop {
            let message = self.messages.next().await.ok_or(Refusal::Closed)?;
            match message.payload {
                NetlinkPayload::InnerMessage(change) => {
                    return Ok(Notification::Change(Box::new(change)));
                }
                NetlinkPayload::Overrun(_) => return Ok(Notification::Overrun),
                _ => {}
            }
        }
    }
}

/// A socket filter (classic BPF) that keeps back the unicast routes of the table `main`: most
/// have no use for them, and a router with a full table has hundreds of changes of them a second.
fn all_but_forwarding_routes() -> [SockFilter; 9] {
    // Offsets in `struct nlmsghdr` and, after its 16 bytes, in `struct rtmsg`.
    const MESSAGE_TYPE: u32 = 4;
    const TABLE: u32 = 16 + 4;
    const ROUTE_TYPE: u32 = 16 + 7;
    const RTM_NEWROUTE: u16 = 24;
    const RTM_DELROUTE: u16 = 25;
    const RT_TABLE_MAIN: u32 = 254;
    const RTN_UNICAST: u32 = 1;
    // Classic BPF reads in network byte order; netlink writes in the host's.
    let read = |message_type: u16| u32::from(u16::from_be(message_type));
    let statement = |code, operand| SockFilter::new(code, 0, 0, operand);
    let skip = |operand, equal, unequal| SockFilter::new(JUMP_IF_EQUAL, equal, unequal, operand);
    [
        statement(LOAD_HALF_WORD, MESSAGE_TYPE),
        skip(read(RTM_NEWROUTE), 1, 0),
        skip(read(RTM_DELROUTE), 0, 4),
        statement(LOAD_BYTE, TABLE),
        skip(RT_TABLE_MAIN, 0, 2),
        statement(LOAD_BYTE, ROUTE_TYPE),
        skip(RTN_UNICAST, 1, 0),
        statement(RETURN, u32::MAX),
        statement(RETURN, 0),
    ]
}

// Opcodes of classic BPF (`<linux/bpf_common.h>`).
const LOAD_HALF_WORD: u16 = 0x28; // BPF_LD | BPF_H | BPF_ABS
const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
