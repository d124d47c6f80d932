//! A fresh network namespace for a test, on a thread of its own.

use std::{
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
};

use nix::sched::{CloneFlags, unshare};

/// A process that is started has every descriptor of this one until it executes its command. Beside
/// another test that starts one no socket would be closed for certain when it should be.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a test in a network namespace of its own, on a new thread, with `lo` up. The namespace is
/// gone when the test ends.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let test = move || {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
        let status = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(status.expect("ip runs").success(), "lo comes up");
        test();
    };
    if let Err(panic) = thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}
