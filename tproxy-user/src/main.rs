//! The `tproxy` command: parses, runs, and says in one line what went wrong.
//!
//! Exit codes: 0 done, 1 it failed, 2 the command line was wrong, or a file that it names.

use std::process::ExitCode;

fn main() -> ExitCode {
    tproxy_user::cli::main()
}
