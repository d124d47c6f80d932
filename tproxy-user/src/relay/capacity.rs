//! How many flows can be served at once, from the limit of open descriptors.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors of an idle flow: the client's socket and the upstream socket. A UDP session has as
/// many, and takes the place of a flow.
const PER_FLOW: usize = 2;
/// Descriptors of a pipe.
const PER_PIPE: usize = 2;
/// What all pipes may hold together, in bytes: three quarters of what the kernel lets a user
/// without privileges have by default (`fs.pipe-user-pages-soft`, pipe(7)). Beyond that it makes
/// pipes of two pages.
const PIPE_MEMORY: usize = 48 * 1024 * 1024;
/// Descriptors left for everything else in the process: programs, maps, listeners, logs, control
/// connections.
const RESERVE: usize = 256;

/// How the descriptors are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// The limit that all this adds up to.
    pub descriptors: usize,
    /// The most flows at once, over all workers.
    pub flows: usize,
    /// How many of these may be UDP sessions: half of them, so that nobody who sends datagrams from
    /// many addresses takes the places of TCP flows.
    pub sessions: usize,
    /// The most pipes at once, over all workers.
    pub pipes: usize,
}

impl Capacity {
    /// Shares `descriptors` out between flows, pipes and a reserve. `None` when they do not suffice
    /// for a single flow.
    ///
    /// Pipes of `pipe_capacity` bytes are for flows with bytes in flight only, and a flow without
    /// one copies instead: one for every 32 flows does.
    #[must_use]
    pub fn plan(descriptors: usize, workers: usize, pipe_capacity: usize) -> Option<Self> {
        let most = (PIPE_MEMORY / pipe_capacity.max(1)).max(workers);
        let pipes = (descriptors / 64).clamp(workers, most);
        let flows = descriptors.checked_sub(RESERVE + pipes * PER_PIPE)? / PER_FLOW;
        (flows > 0).then_some(Self {
            descriptors,
            flows,
            sessions: flows.div_ceil(2),
            pipes,
        })
    }
}

/// Raises the soft limit of open descriptors to the hard one and returns it.
pub(super) fn raise_descriptor_limit() -> io::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(usize::try_from(hard).unwrap_or(usize::MAX))
}

/// The places for flows that all workers share.
#[derive(Debug, Clone)]
pub(super) struct Places {
    free: Arc<AtomicUsize>,
}

impl Places {
    pub(super) fn new(flows: usize) -> Self {
        Self {
            free: Arc::new(AtomicUsize::new(flows)),
        }
    }

    /// Takes a place if there is one.
    pub(super) fn take(&self) -> bool {
        self.free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| {
                free.checked_sub(1)
            })
            .is_ok()
    }

    /// Gives a place back.
    pub(super) fn give_back(&self) {
        self.free.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_stays_within_the_limit() {
        for descriptors in [300, 1024, 20_000, 524_288, 1 << 30] {
            for workers in [1, 2, 16] {
                let plan = Capacity::plan(descriptors, workers, 256 * 1024).unwrap();
                assert!(
                    plan.flows * PER_FLOW + plan.pipes * PER_PIPE + RESERVE <= descriptors,
                    "{plan:?}"
                );
                assert!(plan.pipes >= workers, "{plan:?}");
            }
        }
    }

    #[test]
    fn twenty_thousand_descriptors_serve_nine_thousand_flows() {
        assert!(Capacity::plan(20_000, 2, 256 * 1024).unwrap().flows >= 9_000);
    }

    #[test]
    fn too_few_descriptors_are_no_plan() {
        assert_eq!(Capacity::plan(200, 2, 256 * 1024), None);
    }

    #[test]
    fn places_run_out_and_come_back() {
        let places = Places::new(1);
        assert!(places.take());
        assert!(!places.take());
        places.give_back();
        assert!(places.take());
    }
}
