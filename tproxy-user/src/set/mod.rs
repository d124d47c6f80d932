//! Sets of CIDRs: lists as people write them, and as rules use them, a million at a time.

mod cidr;
mod contents;
mod file;
mod list;
mod name;
pub(crate) mod prefix;
mod read;

pub use cidr::Cidr;
pub use contents::Set;
pub(crate) use contents::differences;
pub use file::{LoadError, load};
pub use list::{CidrList, Damaged};
pub use name::{SetName, absolute_word};
pub use read::{Line, Lines, ReadError, Reading, read};

use std::collections::BTreeMap;

/// The sets of an instance.
pub type Sets = BTreeMap<SetName, Set>;

#[cfg(test)]
mod tests;
