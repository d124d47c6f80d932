//! A command that is killed half-way, or refused something by the kernel, at every place where that could matter.

use std::fs;

use tempfile::NamedTempFile;

use crate::{Cli, cli::Attempt, wait};

/// System calls by which a command changes anything outside of itself, or could be told half-way.
const CALLS: [&str; 9] = [
    "bpf", "sendto", "sendmsg", "rename", "unlink", "unlinkat", "rmdir", "write", "flock",
];

/// Runs a command again and again, killed before the first of its calls of each kind, then before the second, and so on
/// until it gets through. `after` sees what each attempt left, told where it ended, and has to put things right for the
/// next.
#[track_caller]
pub fn at_every_step(cli: &Cli, arguments: &str, mut after: impl FnMut(&str)) {
    for call in CALLS {
        for number in 1.. {
            let wrapper = format!(
                "strace -f -qq -o /dev/null -e trace={call} -e inject={call}:signal=SIGKILL:when={number}"
            );
            let attempt = cli.attempt_under(&wrapper, arguments);
            let place = format!("{arguments:?} killed before {call} number {number}");
            after(&place);
            match attempt.code {
                // strace ends by the signal that ended what it traced.
                None => {}
                Some(0) => break,
                Some(_) => panic!("{place}: {attempt:#?}"),
            }
        }
    }
}

/// Calls by which `run` sets things up and `unload` takes them off, and which of them to try: those for which it makes no
/// difference are many.
const CALLS_OF_LIFE: [(&str, usize); 7] = [
    ("mkdir", 1),
    ("rename", 1),
    ("flock", 1),
    ("rmdir", 1),
    ("unlinkat", 11),
    ("sendto", 13),
    ("bpf", 31),
];

/// As [`at_every_step`], for `run` and `unload`, at a bounded number of steps. `before` makes what the command needs.
/// `after` is told whether the command was killed: an agent that gets as far as to be ready was not, and runs.
#[track_caller]
pub fn at_steps_of_life(
    cli: &Cli,
    arguments: &str,
    mut before: impl FnMut(),
    mut after: impl FnMut(&str, bool),
) {
    for (call, stride) in CALLS_OF_LIFE {
        for number in (1..).step_by(stride) {
            before();
            let wrapper = format!(
                "strace -f -qq -o /dev/null -e trace={call} -e inject={call}:signal=SIGKILL:when={number}"
            );
            let mut process = cli.start_under(&wrapper, arguments);
            let place = format!("{arguments:?} killed before {call} number {number}");
            let was_killed = wait::until(&place, || {
                if !process.stdout.so_far().is_empty() {
                    return Some(false);
                }
                process
                    .has_ended()
                    .then(|| process.wait().code() != Some(0))
            });
            after(&place, was_killed);
            if !was_killed {
                break;
            }
        }
    }
}

/// System calls by which a command asks the kernel for something: of bpf(2), and by netlink.
const REQUESTS: [&str; 2] = ["bpf", "sendto"];

/// Runs a command again and again, with the first of its requests of each kind failing, then the second, and so on
/// until it makes no further one. `after` sees how each attempt ended and what it left, told which request failed, and
/// has to put things right for the next.
#[track_caller]
pub fn at_every_failure(cli: &Cli, arguments: &str, mut after: impl FnMut(&str, &Attempt)) {
    for call in REQUESTS {
        for number in 1.. {
            let trace = NamedTempFile::new().expect("a file for the trace");
            let wrapper = format!(
                "strace -f -qq -o {} -e trace={call} -e inject={call}:error=ENOMEM:when={number}",
                trace.path().display()
            );
            let attempt = cli.attempt_under(&wrapper, arguments);
            after(
                &format!("{arguments:?} without {call} number {number}"),
                &attempt,
            );
            let calls = fs::read_to_string(trace.path()).expect("the trace");
            if !calls.contains("(INJECTED)") {
                break;
            }
        }
    }
}
