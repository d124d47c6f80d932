//! The clsact qdisc, which kernels without tcx need for programs: whether it is there, which filters
//! it has, and its end when nobody uses it.

use nix::errno::Errno;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};

use super::{Error, Netlink, Refusal};

/// Parents of the filters of clsact: `TC_H_CLSACT` with `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS`
/// (`<linux/pkt_sched.h>`).
const INGRESS: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0xfff2,
};
const EGRESS: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0xfff3,
};

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

/// Whether the clsact qdisc of an interface has a filter with this program at ingress.
///
/// # Errors
///
/// [`Error::Read`].
pub async fn has_filter(netlink: &Netlink, index: u32, program: u32) -> Result<bool, Error> {
    let filters = filters(netlink, index, INGRESS).await?;
    Ok(filters.iter().any(|filter| runs(filter, program)))
}

/// Removes the filters with this program from the ingress of an interface. It is no error when there
/// is none, or no such interface.
///
/// # Errors
///
/// [`Error::Read`] and [`Error::Change`].
pub async fn remove_filters(netlink: &Netlink, index: u32, program: u32) -> Result<(), Error> {
    for filter in filters(netlink, index, INGRESS).await? {
        if !runs(&filter, program) {
            continue;
        }
        let mut message = TcMessage::default();
        message.header = filter.header;
        message.attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned())];
        let removal = netlink.change(RouteNetlinkMessage::DelTrafficFilter(message));
        match removal.await {
            Err(refusal) if !is_gone(refusal) => {
                return Err(Error::Change {
                    action: "remove",
                    object: format!("filter of the interface with index {index}"),
                    refusal,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The filters at one hook; none where there is no such interface or no qdisc.
async fn filters(netlink: &Netlink, index: u32, hook: TcHandle) -> Result<Vec<TcMessage>, Error> {
    let mut question = TcMessage::with_index(index.cast_signed());
    question.header.parent = hook;
    let filters = netlink.dump(RouteNetlinkMessage::GetTrafficFilter(question));
    match filters.await {
        Ok(answers) => Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
                _ => None,
            })
            .collect()),
        Err(refusal) if is_gone(refusal) => Ok(Vec::new()),
        Err(refusal) => Err(Error::Read {
            what: "traffic filters",
            refusal,
        }),
    }
}

fn runs(filter: &TcMessage, program: u32) -> bool {
    filter.attributes.iter().any(|attribute| match attribute {
        TcAttribute::Options(options) => {
            options.contains(&TcOption::Bpf(TcFilterBpfOption::ProgId(program)))
        }
        _ => false,
    })
}

/// Removes the clsact qdisc of an interface, unless it has filters. It is no error when there is
/// none, or no such interface.
///
/// # Errors
///
/// [`Error::Read`] and [`Error::Change`].
pub async fn remove_unused_clsact(netlink: &Netlink, index: u32) -> Result<(), Error> {
    for hook in [INGRESS, EGRESS] {
        if !filters(netlink, index, hook).await?.is_empty() {
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
