//! Ctrl-C, SIGTERM and a closed terminal: they end a lab by the same way as a failure does.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static ARRIVED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From now on these signals set a flag in place of ending the process, so that whatever was built
/// is taken down by its `Drop`.
pub(crate) fn catch() -> Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&ARRIVED))
            .context("cannot install a signal handler")?;
    }
    Ok(())
}

/// Whether one of them has arrived.
pub(crate) fn arrived() -> bool {
    ARRIVED.load(Ordering::Relaxed)
}

/// An error once one of them has arrived: for `?` between two steps.
pub(crate) fn check() -> Result<()> {
    if arrived() {
        bail!("interrupted");
    }
    Ok(())
}
