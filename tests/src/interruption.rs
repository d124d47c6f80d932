//! A command that is killed half-way, at every place where that could matter.

use crate::Cli;

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
