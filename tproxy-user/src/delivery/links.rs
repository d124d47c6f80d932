//! The interfaces of the network namespace: a list, and a stream of what happens to them.

use std::collections::{BTreeMap, HashMap, VecDeque};

use rtnetlink::{
    MulticastGroup,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage},
    },
};

use super::{
    Error, Netlink, Refusal,
    netlink::{Notification, Notifications},
};

/// How a packet of an interface begins at its tc hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Framing {
    /// An Ethernet header: Ethernet, Wi-Fi, veth, bridges, VLANs, tap, `lo`.
    Ethernet,
    /// The IP header itself: tun, `WireGuard`, ppp, IP tunnels.
    Ip,
    /// Anything else, with its `ARPHRD_*` number (`<linux/if_arp.h>`).
    Other(u16),
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The index, which no other interface of this network namespace has at the same time.
    pub index: u32,
    /// The name, which may change.
    pub name: String,
    /// How its packets begin.
    pub framing: Framing,
    /// Whether it is set up (`IFF_UP`), whatever its carrier.
    pub up: bool,
    /// The index of the bridge, bond or VRF that it is a port of.
    pub controller: Option<u32>,
}

/// What happened to an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is there now.
    Added(Link),
    /// It is gone.
    Removed(Link),
    /// Its name is another.
    Renamed {
        /// The name that it had.
        from: String,
        /// The interface with its new name.
        link: Link,
    },
    /// It was set up.
    Up(Link),
    /// It was set down.
    Down(Link),
    /// It is a port of a bridge, bond or VRF that it was not a port of before.
    BecamePort(Link),
}

/// The interfaces of the network namespace.
///
/// # Errors
///
/// [`Error::Read`] when the kernel does not give them.
pub async fn list_links(netlink: &Netlink) -> Result<Vec<Link>, Error> {
    let answers = netlink
        .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))
        .await
        .map_err(|refusal| Error::Read {
            what: "interfaces",
            refusal,
        })?;
    let links = answers.iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => Link::from_message(message),
        _ => None,
    });
    Ok(links.collect())
}

/// The interface of this name. Alternative names (`ip link property add altname`) do not count,
/// since a policy rule does not know them.
///
/// # Errors
///
/// [`Error::NoSuchInterface`] if there is none, [`Error::Read`] when the kernel does not answer.
pub async fn link_by_name(netlink: &Netlink, name: &str) -> Result<Link, Error> {
    let mut links = list_links(netlink).await?.into_iter();
    links
        .find(|link| link.name == name)
        .ok_or_else(|| Error::NoSuchInterface(name.to_owned()))
}

/// The name of each interface index.
///
/// # Errors
///
/// [`Error::Read`].
pub(super) async fn link_names(netlink: &Netlink) -> Result<HashMap<u32, String>, Error> {
    let links = list_links(netlink).await?;
    Ok(links
        .into_iter()
        .map(|link| (link.index, link.name))
        .collect())
}

/// The name of the bridge, bond or VRF that each port is a port of, by the index of the port.
///
/// # Errors
///
/// [`Error::Read`].
pub async fn controllers(netlink: &Netlink) -> Result<HashMap<u32, String>, Error> {
    let links = list_links(netlink).await?;
    let name_of = |index| {
        let named = links.iter().find(|link| link.index == index);
        // One in another network namespace has none here.
        named.map_or_else(
            || format!("the interface with index {index}"),
            |link| link.name.clone(),
        )
    };
    let of_port = |link: &Link| Some((link.index, name_of(link.controller?)));
    Ok(links.iter().filter_map(of_port).collect())
}

/// A stream of what happens to the interfaces of the network namespace.
pub struct LinkWatch {
    netlink: Netlink,
    notifications: Notifications,
    links: BTreeMap<u32, Link>,
    pending: VecDeque<LinkEvent>,
    /// Whether events were lost, and `links` may be wrong.
    stale: bool,
}

impl LinkWatch {
    /// Begins to watch. [`LinkWatch::links`] has the interfaces as they are now;
    /// [`LinkWatch::next`] tells of every change after that. The calling thread has to be in the
    /// network namespace of `netlink`.
    ///
    /// # Errors
    ///
    /// [`Error::Open`] and [`Error::Read`].
    pub async fn open(netlink: &Netlink) -> Result<Self, Error> {
        // Subscribing first: a change in between is in the list already and changes nothing then.
        let notifications = Notifications::subscribe(&[MulticastGroup::Link])?;
        let links = list_links(netlink).await?;
        Ok(Self {
            netlink: netlink.clone(),
            notifications,
            links: links.into_iter().map(|link| (link.index, link)).collect(),
            pending: VecDeque::new(),
            stale: false,
        })
    }

    /// The interfaces as of the last event.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// The next event. When events came faster than they were read, the interfaces are listed again
    /// and the events made from the difference, so that one that came and went in between is not
    /// told of. Cancelling loses nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] when the netlink connection has ended.
    pub async fn next(&mut self) -> Result<LinkEvent, Error> {
        loop {
            if self.stale {
                self.list_again().await?;
                self.stale = false;
            }
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            let notification = self.notifications.next().await;
            match notification.map_err(|refusal| Error::Read {
                what: "interfaces",
                refusal,
            })? {
                Notification::Overrun => self.stale = true,
                Notification::Change(change) => self.take(*change),
            }
        }
    }

    fn take(&mut self, change: RouteNetlinkMessage) {
        match change {
            RouteNetlinkMessage::NewLink(message) => {
                if let Some(link) = Link::from_message(&message) {
                    self.update(link);
                }
            }
            // A bridge says so, too, when an interface leaves it, in a family of its own.
            RouteNetlinkMessage::DelLink(message)
                if message.header.interface_family == AddressFamily::Unspec =>
            {
                self.remove(message.header.index);
            }
            _ => {}
        }
    }

    async fn list_again(&mut self) -> Result<(), Error> {
        let links = list_links(&self.netlink).await?;
        let gone: Vec<u32> = self
            .links
            .keys()
            .filter(|index| !links.iter().any(|link| link.index == **index))
            .copied()
            .collect();
        for index in gone {
            self.remove(index);
        }
        for link in links {
            self.update(link);
        }
        Ok(())
    }

    fn update(&mut self, link: Link) {
        let Some(before) = self.links.insert(link.index, link.clone()) else {
            self.pending.push_back(LinkEvent::Added(link));
            return;
        };
        if before.name != link.name {
            self.pending.push_back(LinkEvent::Renamed {
                from: before.name,
                link: link.clone(),
            });
        }
        if link.controller.is_some() && before.controller != link.controller {
            self.pending.push_back(LinkEvent::BecamePort(link.clone()));
        }
        match (before.up, link.up) {
            (false, true) => self.pending.push_back(LinkEvent::Up(link)),
            (true, false) => self.pending.push_back(LinkEvent::Down(link)),
            _ => {}
        }
    }

    fn remove(&mut self, index: u32) {
        self.pending
            .extend(self.links.remove(&index).map(LinkEvent::Removed));
    }
}

impl Link {
    fn from_message(message: &LinkMessage) -> Option<Self> {
        // Bridges tell of their ports in a family of their own, with part of the attributes.
        if message.header.interface_family != AddressFamily::Unspec {
            return None;
        }
        let name = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            })?;
        Some(Self {
            index: message.header.index,
            name,
            framing: Framing::of(message.header.link_layer_type),
            up: message.header.flags.contains(LinkFlags::Up),
            controller: message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::Controller(index) => Some(*index),
                    _ => None,
                }),
        })
    }
}

impl Framing {
    fn of(layer: LinkLayerType) -> Self {
        match layer {
            LinkLayerType::Ether | LinkLayerType::Loopback => Self::Ethernet,
            LinkLayerType::None
            | LinkLayerType::Rawip
            | LinkLayerType::Ppp
            | LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ipgre
            | LinkLayerType::Ip6gre => Self::Ip,
            other => Self::Other(other.into()),
        }
    }
}

/// Sets an interface up or down.
pub(super) async fn set_up(netlink: &Netlink, index: u32, up: bool) -> Result<(), Refusal> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.change_mask = LinkFlags::Up;
    if up {
        link.header.flags = LinkFlags::Up;
    }
    netlink.change(RouteNetlinkMessage::SetLink(link)).await
}
/// Whether the kernel would take this as an interface name (`dev_valid_name`, net/core/dev.c).
#[must_use]
pub fn valid_interface_name(name: &str) -> bool {
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name
            .bytes()
            .any(|byte| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0)
}
