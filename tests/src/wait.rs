//! Waiting for a condition that announces itself by no event, always with a deadline.

use std::{
    env, io,
    sync::LazyLock,
    time::{Duration, Instant},
};

/// How long anything that should happen at once may take on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(15);

const POLL_INTERVAL: Duration = Duration::from_millis(4);

/// Polls `condition` until it yields a value, at most [`PATIENCE`] long, and panics naming `what` after that.
#[track_caller]
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    match within(PATIENCE, condition) {
        Some(value) => value,
        None => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// An upper bound for something that takes time, as long as this machine makes it: `TPROXY_TEST_SLOWNESS` times as long
/// where that is set, as it is in an emulated machine.
#[must_use]
pub fn scaled(bound: Duration) -> Duration {
    static SLOWNESS: LazyLock<u32> = LazyLock::new(|| {
        let set = env::var("TPROXY_TEST_SLOWNESS").ok();
        set.map_or(1, |factor| {
            factor.parse().expect("TPROXY_TEST_SLOWNESS is a number")
        })
    });
    bound * *SLOWNESS
}

/// Polls `condition` until it yields a value; `None` when `bound`, [`scaled`], has passed without one.
pub fn within<T>(bound: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + scaled(bound);
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Makes a system call again for as long as it is interrupted. A call with a time limit on a socket (`SO_RCVTIMEO`,
/// `SO_SNDTIMEO`) is not begun again by itself when the process was stopped meanwhile and goes on, as it is where a whole
/// machine is paused (signal(7)).
///
/// # Errors
/// Those of `call`, but for `Interrupted`.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
