//! What can go wrong with delivery, in the operator's words.

use std::io;

use nix::errno::Errno;

/// A failure to set up, watch or remove delivery.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The netlink socket could not be opened.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),

    /// The kernel's rules, routes or links could not be read.
    #[error("cannot read the {what}: {refusal}")]
    Read {
        /// What was asked for, such as "policy rules".
        what: &'static str,
        /// Why it was not given.
        refusal: Refusal,
    },

    /// A rule, a route or a link could not be changed. What the failed call had done is undone.
    #[error("cannot {action} the {object}: {refusal}{}", .refusal.advice())]
    Change {
        /// "add", "remove", "set up" or "set down".
        action: &'static str,
        /// The object as `ip` writes it.
        object: String,
        /// Why it could not be changed.
        refusal: Refusal,
    },

    /// Something else stands where one of our objects belongs.
    #[error("cannot add the {object}: {holder} is in its place")]
    InPlace {
        /// Our object as `ip` writes it.
        object: String,
        /// What is there instead.
        holder: String,
    },

    /// A mark that selects nothing.
    #[error("mark 0 marks nothing: choose another with --mark")]
    InvalidMark,

    /// A table that the kernel or `ip` reserves.
    #[error("table {0} is reserved by the kernel: choose another with --table")]
    InvalidTable(u32),

    /// The mark asked for selects packets of something else.
    #[error("mark {mark:#x} is taken by {holder}: choose another with --mark")]
    MarkTaken {
        /// The mark that was asked for.
        mark: u32,
        /// The policy rule that uses it.
        holder: String,
    },

    /// The table asked for is in use.
    #[error("table {table} is taken: {holder}; choose another with --table")]
    TableTaken {
        /// The table that was asked for.
        table: u32,
        /// The route in it or the rule that looks it up.
        holder: String,
    },

    /// Every mark that is tried by default is taken.
    #[error(
        "all {tries} default marks are taken, {first:#x} by {holder}: choose a mark with --mark"
    )]
    NoFreeMark {
        /// How many were tried.
        tries: usize,
        /// The first of them.
        first: u32,
        /// What holds the first.
        holder: String,
    },

    /// Every table that is tried by default is taken.
    #[error(
        "all {tries} default tables are taken ({first}: {holder}): choose a table with --table"
    )]
    NoFreeTable {
        /// How many were tried.
        tries: usize,
        /// The first of them.
        first: u32,
        /// What holds the first.
        holder: String,
    },

    /// A name that no interface can have (empty, over 15 bytes, with a slash or white space).
    #[error("{0:?} is not an interface name")]
    InvalidInterface(String),

    /// There is no interface of this name in the network namespace.
    #[error("no such interface: {0}; `ip link` lists them")]
    NoSuchInterface(String),
}

/// Why a netlink request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The kernel answered with this errno.
    #[error("{}", .0.desc())]
    Kernel(Errno),
    /// The netlink connection ended before the answer came.
    #[error("the netlink connection is closed")]
    Closed,
}

impl Refusal {
    /// The errno of a netlink answer, which is negative there.
    pub(super) fn from_kernel(negative_errno: i32) -> Self {
        Self::Kernel(Errno::from_raw(negative_errno.saturating_abs()))
    }

    pub(super) fn is(self, errno: Errno) -> bool {
        self == Self::Kernel(errno)
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Kernel(Errno::EPERM) => " (CAP_NET_ADMIN is missing: run as root)",
            _ => "",
        }
    }
}
