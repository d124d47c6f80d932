//! Three namespaces, `client - gateway - server`, over both families.
//!
//! ```text
//! client eth0 ------ cl0 gateway sv0 ------ eth0 server
//! 10.77.1.2        .1.1         .2.1        10.77.2.2      192.0.2.0/24, 198.51.100.0/24
//! fd77:1::2       1::1           2::1       fd77:2::2      2001:db8:1::/48, 2001:db8:2::/48
//! ```
//!
//! The server answers at each address of the prefixes named under it. In the one-armed variant all three sit on one
//! link, the server at 10.77.1.3 and `fd77:1::3`, and the client reaches the prefixes through the gateway's only
//! interface, `cl0`.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use crate::{Agent, Exchange, Family, Namespace, address::FAMILIES, sys::kernel_is_at_least, wait};

/// The namespaces of one test.
#[derive(Debug)]
pub struct Lab {
    /// Where clients run; its interface is `eth0`, its default route leads to the gateway.
    pub client: Namespace,
    /// Where the agent runs; `cl0` leads to the client, `sv0` to the server.
    pub gateway: Namespace,
    /// Where servers run; its interface is `eth0`.
    pub server: Namespace,
    /// The link of the one-armed variant.
    switch: Option<Namespace>,
}

impl Lab {
    /// The routed variant, with offloads on as veth has them by default.
    #[must_use]
    #[track_caller]
    pub fn new() -> Self {
        let lab = Self::unlinked(None);
        lab.link_client();
        let server = lab.server.name();
        lab.gateway.ip(&format!(
            "link add sv0 type veth peer name eth0 netns {server}"
        ));
        for family in FAMILIES {
            let (own, length, next) = (
                family.server(),
                prefix_length(family),
                family.gateway_upstream(),
            );
            lab.server.ip(&format!(
                "link set eth0 up\n\
                 addr add {own}/{length} dev eth0 nodad\n\
                 route add default via {next}"
            ));
            lab.gateway.ip(&format!(
                "link set sv0 up\n\
                 addr add {next}/{length} dev sv0 nodad"
            ));
            lab.route_to_server(family, own);
        }
        await_link_local(&lab.gateway, "sv0", 2);
        await_link_local(&lab.server, "eth0", 1);
        lab
    }

    /// The one-armed variant: client, gateway and server on one link.
    #[must_use]
    #[track_caller]
    pub fn one_armed() -> Self {
        let lab = Self::unlinked(Some(Namespace::create("switch")));
        let switch = lab.switch.as_ref().expect("just made");
        switch.ip(&format!(
            "link add br0 type bridge\nlink set br0 up\n\
             link add p1 type veth peer name eth0 netns {}\n\
             link add p2 type veth peer name cl0 netns {}\n\
             link add p3 type veth peer name eth0 netns {}\n\
             link set p1 up master br0\nlink set p2 up master br0\nlink set p3 up master br0",
            lab.client.name(),
            lab.gateway.name(),
            lab.server.name()
        ));
        // The gateway would tell the client of the shorter way; here the way through it is wanted.
        lab.gateway.sysctl("net.ipv4.conf.all.send_redirects", 0);
        lab.gateway
            .sysctl("net.ipv4.conf.default.send_redirects", 0);
        lab.address_client();
        lab.address_gateway();
        for family in FAMILIES {
            let (own, length) = (one_armed_server(family), prefix_length(family));
            lab.server.ip(&format!(
                "link set eth0 up\n\
                 addr add {own}/{length} dev eth0 nodad"
            ));
            lab.route_to_server(family, own);
        }
        lab
    }

    fn unlinked(switch: Option<Namespace>) -> Self {
        let lab = Self {
            client: Namespace::create("client"),
            gateway: Namespace::create("gateway"),
            server: Namespace::create("server"),
            switch,
        };
        for namespace in lab.namespaces() {
            prepare(namespace);
        }
        lab.gateway.sysctl("net.ipv4.ip_forward", 1);
        lab.gateway.sysctl("net.ipv6.conf.all.forwarding", 1);
        for family in FAMILIES {
            let (near, far) = (family.near(), family.far());
            let (near_prefix, far_prefix) = (family.near_prefix(), family.far_prefix());
            // The route makes the whole prefix answer; only addresses can be bound in IPv6.
            lab.server.ip(&format!(
                "addr add {near} dev lo\n\
                 addr add {far} dev lo\n\
                 route add local {near_prefix} dev lo\n\
                 route add local {far_prefix} dev lo"
            ));
        }
        lab
    }

    fn address_client(&self) {
        for family in FAMILIES {
            let (own, length) = (family.client(), prefix_length(family));
            let next = family.gateway();
            self.client.ip(&format!(
                "link set eth0 up\n\
                 addr add {own}/{length} dev eth0 nodad\n\
                 route add default via {next}"
            ));
        }
    }

    fn address_gateway(&self) {
        for family in FAMILIES {
            let (own, length) = (family.gateway(), prefix_length(family));
            self.gateway.ip(&format!(
                "link set cl0 up\n\
                 addr add {own}/{length} dev cl0 nodad"
            ));
        }
    }

    fn route_to_server(&self, family: Family, next: IpAddr) {
        let (near, far) = (family.near_prefix(), family.far_prefix());
        self.gateway.ip(&format!(
            "route add {near} via {next}\n\
             route add {far} via {next}"
        ));
    }

    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        [&self.client, &self.gateway, &self.server]
            .into_iter()
            .chain(self.switch.as_ref())
    }

    /// Deletes the link between client and gateway, and with it `cl0`.
    #[track_caller]
    pub fn unlink_client(&self) {
        self.gateway.ip("link del cl0");
    }

    /// Makes the link between client and gateway again, as it was.
    #[track_caller]
    pub fn link_client(&self) {
        let client = self.client.name();
        self.gateway.ip(&format!(
            "link add cl0 type veth peer name eth0 netns {client}"
        ));
        self.address_client();
        self.address_gateway();
        await_link_local(&self.gateway, "cl0", 2);
        await_link_local(&self.client, "eth0", 1);
    }

    /// Renames the gateway's interface towards the client. Before Linux 6.2 it has to be down for that, which takes its
    /// IPv6 address away.
    #[track_caller]
    pub fn rename_client_link(&self, from: &str, to: &str) {
        let rename = format!("link set {from} name {to}");
        if kernel_is_at_least(6, 2) {
            self.gateway.ip(&rename);
            return;
        }
        let (own, length) = (Family::V6.gateway(), prefix_length(Family::V6));
        self.gateway.ip(&format!(
            "link set {from} down\n{rename}\nlink set {to} up\naddr add {own}/{length} dev {to} nodad"
        ));
    }

    /// Switches an offload (`gro`, `gso`, `tso`, `tx`, ... as ethtool names them) on all interfaces of the routed
    /// variant.
    #[track_caller]
    pub fn offload(&self, feature: &str, on: bool) {
        let state = if on { "on" } else { "off" };
        let interfaces = [
            (&self.client, "eth0"),
            (&self.gateway, "cl0"),
            (&self.gateway, "sv0"),
            (&self.server, "eth0"),
        ];
        for (namespace, interface) in interfaces {
            namespace.run(&format!("ethtool -K {interface} {feature} {state}"));
        }
    }

    /// Starts the agent in the gateway.
    #[must_use]
    #[track_caller]
    pub fn agent(&self, arguments: &str) -> Agent<'_> {
        Agent::start(&self.gateway, arguments)
    }

    /// Connects from the client, within less time than a SYN that is lost would need to be sent again.
    ///
    /// # Errors
    ///
    /// When nobody answers in time, or the answer is a refusal.
    pub fn connect_at_once(&self, target: SocketAddr) -> io::Result<TcpStream> {
        const BOUND: Duration = Duration::from_millis(700);
        self.client
            .enter(|| TcpStream::connect_timeout(&target, BOUND))
    }

    /// Lets the client ask a [`Witness`](crate::peer::Witness) at `address` and `port` who is asking.
    #[must_use]
    #[track_caller]
    pub fn ask(&self, address: IpAddr, port: u16) -> Exchange {
        Exchange::of(&self.client, SocketAddr::new(address, port))
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

/// Waits for the link-local address that the kernel gives an interface some time after it is up, down to the last of its
/// routes, so that none comes between two snapshots: of the address, and on a router of the anycast address.
#[track_caller]
fn await_link_local(namespace: &Namespace, interface: &str, host_routes: usize) {
    wait::until("the routes of a link-local address", || {
        let routes = namespace.proc_net("ipv6_route");
        let of_interface = routes.lines().filter(|route| {
            let words: Vec<_> = route.split_whitespace().collect();
            words[0].starts_with("fe80") && words[1] == "80" && words.last() == Some(&interface)
        });
        (of_interface.count() >= host_routes).then_some(())
    });
}

/// The server's address in the one-armed variant.
#[must_use]
pub fn one_armed_server(family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 77, 1, 3].into(),
        Family::V6 => [0xfd77, 1, 0, 0, 0, 0, 0, 3].into(),
    }
}

/// Settings that must be in place before interfaces are made, and loopback.
fn prepare(namespace: &Namespace) {
    // No waiting for duplicate address detection, no router solicitations in captures.
    namespace.sysctl("net.ipv6.conf.all.accept_dad", 0);
    namespace.sysctl("net.ipv6.conf.default.accept_dad", 0);
    namespace.sysctl("net.ipv6.conf.default.router_solicitations", 0);
    namespace.sysctl("net.ipv4.conf.all.rp_filter", 0);
    namespace.sysctl("net.ipv4.conf.default.rp_filter", 0);
    namespace.ip("link set lo up");
}

fn prefix_length(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}
