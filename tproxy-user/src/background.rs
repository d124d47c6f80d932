//! Long computations beside traffic.

use std::{panic::resume_unwind, thread};

/// Steps of niceness: with 10 a thread gets a tenth of the time of one that relays, when both want
/// all of it (sched(7)).
const NICENESS: i32 = 10;

/// Runs something that takes long on a thread of lower priority, and waits for it. Whoever relays, or
/// wants to connect, on the same CPU comes first.
pub(crate) fn run<T: Send>(long: impl FnOnce() -> T + Send) -> T {
    let result = thread::scope(|scope| {
        let background = scope.spawn(|| {
            lower_priority();
            long()
        });
        background.join()
    });
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Lowers the priority of this thread. One that stays as it is does the same work.
fn lower_priority() {
    // SAFETY: no memory is involved. On Linux, the process 0 is the calling thread (setpriority(2)).
    unsafe {
        let niceness = libc::getpriority(libc::PRIO_PROCESS, 0) + NICENESS;
        libc::setpriority(libc::PRIO_PROCESS, 0, niceness);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn niceness() -> i32 {
        // SAFETY: no memory is involved.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }

    #[test]
    fn only_the_background_has_a_lower_priority() {
        let here = niceness();
        assert_eq!(run(niceness), (here + NICENESS).min(19));
        assert_eq!(niceness(), here);
    }

    #[test]
    #[should_panic(expected = "said by the background")]
    fn a_panic_goes_on() {
        run(|| panic!("said by the background"));
    }
}
