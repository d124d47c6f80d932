//! What tokio leaves to its callers' care.

use std::{fs::File, io::Write as _};

use tokio::process::Command;

/// Lets a command begin in the control group whose list of processes this is.
pub(super) fn run_in_group(command: &mut Command, processes: File) {
    let join = move || {
        // 0 stands for the process that writes (cgroups(7)).
        (&processes).write_all(b"0")
    };
    // SAFETY: between fork(2) and execve(2) this makes one system call, and takes no memory.
    unsafe { command.pre_exec(join) };
}
