//! The clsact qdisc, which kernels without tcx need for programs: taken away when nobody uses it.

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

/// Removes the clsact qdisc of an interface, unless it has filters.
///
/// # Errors
///
/// [`Error::Read`] and [`Error::Change`].
pub async fn remove_unused_clsact(netlink: &Netlink, name: &str, index: u32) -> Result<(), Error> {
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
            object: format!("clsact qdisc of {name}"),
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
