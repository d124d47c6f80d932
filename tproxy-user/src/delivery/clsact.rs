//! The clsact qdisc, which kernels without tcx need for programs: whether it is there, and its end
//! when nobody uses it.

use nix::errno::Errno;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    tc::{TcHandle, TcHeader, TcMessage},
};

use super::{Error, Netlink, Refusal};

/// Parents of the filters of clsact: `TC_H_CLSACT` with `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS`
/// (`<linux/pkt_sched.h>`).
const HOOKS: [TcHandle; 2] = [
    TcHandle {
        major: 0xffff,
        minor: 0xfff2,
    },
    TcHandle {
        major: 0xffff,
        minor: 0xfff3,
    },
];

/// The qdisc itself: `TC_H_MAKE(TC_H_CLSACT, 0)` at `TC_H_CLSACT` (`tc qdisc add dev X clsact`).
const HANDLE: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};
const PARENT: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0xfff1,
};

/// Whether an interface has a clsact qdisc.
///
/// # Errors
///
/// [`Error::Read`].
pub async fn has_clsact(netlink: &Netlink, index: u32) -> Result<bool, Error> {
    let question = TcMessage::with_index(index.cast_signed());
    let qdiscs = netlink.dump(RouteNetlinkMessage::GetQueueDiscipline(question));
    let qdiscs = qdiscs.await.map_err(|refusal| Error::Read {
        what: "queueing disciplines",
        refusal,
    })?;
    // The kernel may answer for all interfaces.
    Ok(qdiscs.iter().any(|message| {
        matches!(message, RouteNetlinkMessage::NewQueueDiscipline(qdisc)
            if qdisc.header.index == index.cast_signed() && qdisc.header.parent == PARENT)
    }))
}

/// Removes the clsact qdisc of an interface, unless it has filters. It is no error when there is
/// none, or no such interface.
///
/// # Errors
///
/// [`Error::Read`] and [`Error::Change`].
pub async fn remove_unused_clsact(netlink: &Netlink, index: u32) -> Result<(), Error> {
    for hook in HOOKS {
        let mut question = TcMessage::with_index(index.cast_signed());
        question.header.parent = hook;
        let filters = netlink.dump(RouteNetlinkMessage::GetTrafficFilter(question));
        match filters.await {
            Ok(filters) if filters.is_empty() => {}
            Err(refusal) if !is_gone(refusal) => {
                return Err(Error::Read {
                    what: "traffic filters",
                    refusal,
                });
            }
            _ => return Ok(()),
        }
    }
    let mut message = TcMessage::default();
    message.header = TcHeader {
        index: index.cast_signed(),
        handle: HANDLE,
        parent: PARENT,
        ..TcHeader::default()
    };
    let removal = netlink.change(RouteNetlinkMessage::DelQueueDiscipline(message));
    match removal.await {
        Err(refusal) if !is_gone(refusal) => Err(Error::Change {
            action: "remove",
            object: format!("clsact qdisc of the interface with index {index}"),
            refusal,
        }),
        _ => Ok(()),
    }
}

/// The interface or its qdisc is not there any more.
fn is_gone(refusal: Refusal) -> bool {
    [Errno::ENODEV, Errno::ENOENT, Errno::EINVAL]
        .into_iter()
        .any(|errno| refusal.is(errno))
}
