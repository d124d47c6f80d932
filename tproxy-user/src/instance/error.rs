//! What can go wrong with an instance.

use std::{io, path::PathBuf};

use ipnet::IpNet;

use super::RuleNotFound;
use crate::{
    config::Problems,
    delivery, kernel, listener,
    rule::SpecErrors,
    set::{LoadError, SetName},
};

/// What can go wrong with an instance.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name cannot be part of a path.
    #[error("--instance: \"{0}\" is not a name: use 1 to 63 letters, digits, '_' or '-'")]
    Name(String),
    /// Nothing of this name is in the kernel.
    #[error("no instance {0} is running or pinned: start one with `tproxy --instance {0} run`")]
    NotThere(String),
    /// The agent of this instance is alive.
    #[error(
        "instance {name} is running already (process {pid}): stop it, or choose another name with --instance"
    )]
    Running {
        /// The instance.
        name: String,
        /// Its agent.
        pid: u32,
    },
    /// The agent of this instance is alive, and its files are gone.
    #[error(
        "instance {name} is running already, though {files} was removed: stop its agent first, by SIGTERM",
        files = .files.display()
    )]
    RunningUnseen {
        /// The instance.
        name: String,
        /// The directory of its files.
        files: PathBuf,
    },
    /// Pins of which nothing is known, since the files of the instance are gone.
    #[error(
        "{files}, which said the mark and table of instance {name}, was removed: in its network namespace there may be left policy rules with priority {priority} (`ip rule`, `ip -6 rule`), routes of the tables that these name, and clsact qdiscs",
        files = .files.display(),
        priority = delivery::PRIORITY
    )]
    Forgotten {
        /// The instance.
        name: String,
        /// The directory of its files.
        files: PathBuf,
    },
    /// Another instance has the interface.
    #[error("interface {interface} is attached to instance {instance}: detach it there first")]
    InterfaceTaken {
        /// The interface.
        interface: String,
        /// Who has it.
        instance: String,
    },
    /// The interface is not one of this instance.
    #[error("interface {interface} is not attached to instance {instance}{}", list(.attached))]
    NotAttached {
        /// The interface.
        interface: String,
        /// The instance.
        instance: String,
        /// What is attached.
        attached: Vec<String>,
    },
    /// The interface is one of this instance already.
    #[error("interface {0} is attached to this instance already: `tproxy status` shows it")]
    AttachedAlready(String),
    /// A list of interfaces to attach has one twice.
    #[error("interface {0} is named twice: leave one out")]
    NamedTwice(String),
    /// Link types whose headers are unknown.
    #[error(
        "interface {interface} has a link type (ARPHRD {kind}) that is neither Ethernet nor plain IP: it cannot be attached"
    )]
    LinkType {
        /// The interface.
        interface: String,
        /// The `ARPHRD_*` number.
        kind: u16,
    },
    /// A listener of another program cannot be used.
    #[error(transparent)]
    Listener(#[from] listener::Error),
    /// A listener is in another network namespace.
    #[error("{0}, or give --on-missing to let the rule wait for a listener here")]
    ListenerElsewhere(listener::Absence),
    /// The hooks of scope local have nothing to be attached to.
    #[error("scope local is not possible: {0}")]
    Cgroups(io::Error),
    /// The instance's network namespace cannot be entered or identified.
    #[error("cannot enter the network namespace of the instance: {0}")]
    Entering(io::Error),
    /// What speaks to netlink cannot run.
    #[error("cannot start a runtime: {0}")]
    Runtime(io::Error),
    /// A file of the instance.
    #[error("{path}: {cause}")]
    File {
        /// Which.
        path: PathBuf,
        /// The failure.
        cause: io::Error,
    },
    /// A state file that is not one.
    #[error("{path} is damaged ({problem}): `tproxy unload` removes the instance")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The instance lives in a network namespace that cannot be found.
    #[error(
        "instance {0} lives in another network namespace: run this command there, or name it with --netns"
    )]
    Namespace(String),
    /// A rule that makes no sense.
    #[error(transparent)]
    Rule(#[from] SpecErrors),
    /// A rule name that is there already.
    #[error("there is a rule {0} already: delete it first, or choose another --name")]
    RuleExists(String),
    /// A rule name that is not there.
    #[error(transparent)]
    RuleNotFound(#[from] RuleNotFound),
    /// A set that is not there.
    #[error(
        "there is no set {0}: `tproxy set list` shows them; `tproxy set add {0} CIDR` or `tproxy set load {0} FILE` makes it"
    )]
    NoSuchSet(SetName),
    /// A set that cannot be removed.
    #[error("set {set} is used by rule {rule}: delete that rule first")]
    SetInUse {
        /// The set.
        set: SetName,
        /// The first rule that names it.
        rule: String,
    },
    /// A CIDR that is not there.
    #[error("{net} is not in set {set}{}: nothing was changed", held(.holder.as_ref()))]
    NotInSet {
        /// The set.
        set: SetName,
        /// The CIDR.
        net: IpNet,
        /// A CIDR of the set that holds it.
        holder: Option<IpNet>,
    },
    /// A list of CIDRs.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Rules of a file that name interfaces that are not attached.
    #[error(transparent)]
    Unattached(Problems),
    /// The clock that counts from boot.
    #[error("the clock cannot be read: {0}")]
    Clock(#[from] nix::Error),
    /// The rules do not fit.
    #[error(transparent)]
    Compile(#[from] crate::compiler::CompileError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// Rules and routes.
    #[error(transparent)]
    Delivery(#[from] delivery::Error),
}

fn held(holder: Option<&IpNet>) -> String {
    holder.map_or_else(String::new, |holder| {
        format!(", though {holder} is, which holds it")
    })
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "; none is".to_owned()
    } else {
        format!("; attached: {}", names.join(", "))
    }
}
