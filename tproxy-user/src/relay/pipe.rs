//! Pipes for splice(2), shared by the flows of one worker.
//!
//! A flow holds a pipe only while bytes of it are in flight, so a few pipes serve thousands of
//! flows.

use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

/// A pipe of this worker. Dropping it closes both its descriptors, with whatever is still in it.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) read: OwnedFd,
    pub(super) write: OwnedFd,
}

/// The pipes of one worker: those at rest, and a bound on all of them.
#[derive(Debug)]
pub(super) struct PipePool {
    at_rest: Vec<Pipe>,
    /// Pipes that flows hold now.
    held: usize,
    /// The most pipes that may exist, at rest and held together.
    limit: usize,
    /// The capacity asked of the kernel for each pipe, in bytes.
    capacity: usize,
}

/// What the kernel gives a pipe unasked on every architecture with 4 KiB pages, in bytes (pipe(7)).
const KERNEL_DEFAULT_CAPACITY: usize = 64 * 1024;

impl PipePool {
    /// An empty pool that makes at most `limit` pipes of `capacity` bytes, each when it is first
    /// needed.
    pub(super) fn new(limit: usize, capacity: usize) -> Self {
        Self {
            at_rest: Vec::new(),
            held: 0,
            limit,
            capacity,
        }
    }

    /// An empty pipe, or `None` when the pool is at its bound or the process has no descriptors
    /// left.
    pub(super) fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.at_rest.pop() {
            self.held += 1;
            return Some(pipe);
        }
        if self.held >= self.limit {
            return None;
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        if self.capacity != KERNEL_DEFAULT_CAPACITY {
            // A refusal (fs.pipe-max-size, fs.pipe-user-pages-soft) leaves a smaller pipe, which
            // works too.
            let _ = fcntl(
                &write,
                FcntlArg::F_SETPIPE_SZ(i32::try_from(self.capacity).unwrap_or(i32::MAX)),
            );
        }
        self.held += 1;
        Some(Pipe { read, write })
    }

    /// Takes back a pipe that is empty.
    pub(super) fn give_back(&mut self, pipe: Pipe) {
        self.held -= 1;
        // There may be too many when flows have brought theirs from other workers.
        if self.at_rest.len() + self.held < self.limit {
            self.at_rest.push(pipe);
        }
    }

    /// A flow leaves for another worker, with the pipes that it holds.
    pub(super) fn let_go(&mut self, pipes: usize) {
        self.held -= pipes;
    }

    /// A flow of another worker has come with pipes that it holds.
    pub(super) fn take_over(&mut self, pipes: usize) {
        self.held += pipes;
    }

    /// Closes a pipe that still has bytes of an aborted flow in it.
    pub(super) fn discard(&mut self, pipe: Pipe) {
        self.held -= 1;
        drop(pipe);
    }

    /// How many pipes flows hold now.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// How many bytes one pipe takes.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_stops_at_its_bound_and_reuses_what_comes_back() {
        let mut pool = PipePool::new(2, KERNEL_DEFAULT_CAPACITY);
        let first = pool.take().expect("the first of two");
        let second = pool.take().expect("the second of two");
        assert!(pool.take().is_none(), "a third pipe of two");
        pool.give_back(first);
        assert!(pool.take().is_some());
        pool.discard(second);
        assert_eq!(pool.held(), 1);
        assert!(
            pool.take().is_some(),
            "a discarded pipe makes room for another"
        );
    }

    #[test]
    fn pipes_that_come_from_elsewhere_are_kept_within_the_bound() {
        let mut one = PipePool::new(1, KERNEL_DEFAULT_CAPACITY);
        let mut other = PipePool::new(1, KERNEL_DEFAULT_CAPACITY);
        let pipes = [one.take().unwrap(), other.take().unwrap()];
        one.let_go(1);
        other.take_over(1);
        assert_eq!((one.held(), other.held()), (0, 2));
        assert!(one.take().is_some(), "there is room for another");
        for pipe in pipes {
            other.give_back(pipe);
        }
        assert_eq!((other.held(), other.at_rest.len()), (0, 1));
    }

    #[test]
    fn a_pool_asks_for_the_capacity() {
        let mut pool = PipePool::new(1, 256 * 1024);
        let pipe = pool.take().unwrap();
        assert_eq!(fcntl(&pipe.read, FcntlArg::F_GETPIPE_SZ), Ok(256 * 1024));
    }
}
