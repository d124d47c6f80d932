//! What tokio leaves to its callers' care.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor that tokio's runtime, in which this is called, tells the readiness of.
///
/// # Errors
///
/// When the kernel cannot watch it.
pub(super) fn watch_readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor is open, and stays the same file until it is dropped, which happens
    // with the `AsyncFd` that owns it from here on.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    watched.map_err(Into::into)
}
