//! Delivery: the policy rules and local routes that bring marked packets to this host's sockets.
//!
//! The tc program marks the packets of the flows that a rule takes. For each attached interface a
//! policy rule, `iif IFNAME fwmark MARK/MARK lookup TABLE`, sends those to a table of our own, whose
//! only route, `local default dev lo`, delivers them here whatever their destination is. Both exist
//! once for IPv4 and once for IPv6.
//!
//! For flows that processes of this host open, the interface is `lo`. A datagram that cannot be marked
//! any more gets a source of ours instead ([`Assignment::stand_in_v4`], [`Assignment::stand_in_v6`]),
//! for which there is a rule of its own. The source of a connected socket comes from the route, so
//! the table says which one that is for each prefix that this host has a route for:
//! `local PREFIX dev lo src SOURCE`. Where it has no route, a process is told that the network is
//! unreachable: for IPv4 because the default route of our table gives no source, for IPv6 because the
//! rule for local UDP flows passes over it (`suppress_prefixlength 0`).
//!
//! - [`choose`] finds a mark and a table that nothing else holds.
//! - [`Delivery`] writes, restores and removes the rules and routes; [`remove_leftovers`] removes
//!   those of an agent that was killed.
//! - [`LinkWatch`] tells of interfaces that come, go or change their name.
//! - [`for_each_flow`] lists the flows of the sockets.
//! - [`destroy_lingering`] destroys what sockets leave that had flows to other hosts.
//! - [`ways_out`] finds the interfaces that lead to servers; [`WaysOut`] tells when there are others.
//! - [`LocalAddresses`] is the set of prefixes that are this host's own.
//!
//! All but what is about sockets speaks rtnetlink over a [`Netlink`], which belongs to the network
//! namespace of the thread that opened it.

mod apply;
mod assignment;
mod clsact;
mod describe;
mod error;
mod host_routes;
mod lingering;
mod links;
mod local;
mod netlink;
mod object;
mod plan;
mod policy;
mod precedence;
mod repairs;
mod sockets;
mod source;
mod source_v6;
mod transaction;
mod watch;
mod ways_out;

pub use apply::{Delivery, Flows, remove_leftovers};
pub use assignment::Assignment;
pub use clsact::{has_clsact, has_filter, remove_filters, remove_unused_clsact};
pub use error::{Error, Refusal};
pub use lingering::destroy_lingering;
pub use links::{
    Framing, Link, LinkEvent, LinkWatch, controllers, link_by_name, list_links,
    valid_interface_name,
};
pub use local::{LocalAddresses, local_addresses};
pub use netlink::Netlink;
pub use object::PRIORITY;
pub use plan::{Neighbour, Wanted, choose, is_reserved_table};
pub use sockets::for_each_flow;
pub use watch::Watch;
pub use ways_out::{WaysOut, ways_out};
