//! The clsact qdisc, which kernels without tcx need for programs: taken away when nobody uses it.

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    tc::{TcHandle, TcHeader, TcMessage},
};

use super::{Error, Netlink};

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
        let filters = netlink
            .dump(RouteNetlinkMessage::GetTrafficFilter(question))
            .await
            .map_err(|refusal| Error::Read {
                what: "traffic filters",
                refusal,
            })?;
        if !filters.is_empty() {
            return Ok(());
        }
    }
    let mut message = TcMessage::default();
    message.header = TcHeader {
        index: index.cast_signed(),
        handle: HANDLE,
        parent: PARENT,
        ..TcHeader::default()
    };
    netlink
        .change(RouteNetlinkMessage::DelQueueDiscipline(message))
        .await
        .map_err(|refusal| Error::Change {
            action: "remove",
            object: format!("clsact qdisc of {name}"),
            refusal,
        })
}
