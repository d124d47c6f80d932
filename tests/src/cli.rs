//! The program's command line, run to its end inside a namespace.

use std::{env, path::PathBuf, thread};

use serde_json::Value;

use crate::{Namespace, process::Process, wait};

/// The program under test: `TPROXY_BIN`, or where `cargo xtask build` leaves it.
#[must_use]
pub fn program() -> PathBuf {
    env::var_os("TPROXY_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/release/tproxy"),
        PathBuf::from,
    )
}

/// Runs commands against one instance, from one namespace.
#[derive(Debug, Clone)]
pub struct Cli<'a> {
    namespace: &'a Namespace,
    instance: String,
}

impl<'a> Cli<'a> {
    /// Commands for `instance`, run inside `namespace`.
    #[must_use]
    pub fn new(namespace: &'a Namespace, instance: &str) -> Self {
        Self {
            namespace,
            instance: instance.to_owned(),
        }
    }

    /// The name of the instance.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Runs `tproxy --instance NAME ARGUMENTS` (split at spaces), which must succeed.
    #[track_caller]
    pub fn run(&self, arguments: &str) {
        self.attempt(arguments).assert_done();
    }

    /// As [`Cli::run`]; returns what the command wrote to standard output.
    #[must_use]
    #[track_caller]
    pub fn output(&self, arguments: &str) -> String {
        let attempt = self.attempt(arguments);
        attempt.assert_done();
        attempt.stdout
    }

    /// Runs a command with `--json` added, which must succeed, and returns what it printed.
    #[must_use]
    #[track_caller]
    pub fn json(&self, arguments: &str) -> Value {
        let output = self.output(&format!("{arguments} --json"));
        serde_json::from_str(&output)
            .unwrap_or_else(|error| panic!("{error} in the JSON of {arguments}: {output}"))
    }

    /// Runs a command that may fail.
    #[must_use]
    #[track_caller]
    pub fn attempt(&self, arguments: &str) -> Attempt {
        self.attempt_under("", arguments)
    }

    /// As [`Cli::attempt`], with the program started by another: `setpriv --no-new-privs`, for example.
    #[must_use]
    #[track_caller]
    pub fn attempt_under(&self, wrapper: &str, arguments: &str) -> Attempt {
        // An agent that starts where it should have refused leaves something behind when it is killed.
        let _guard = UnloadOnPanic(self);
        let mut process = self.start_under(wrapper, arguments);
        Attempt::end_of(arguments, &mut process)
    }

    /// Starts a command without waiting for its end.
    #[must_use]
    #[track_caller]
    pub fn start_under(&self, wrapper: &str, arguments: &str) -> Process {
        let program = program();
        let program = program.to_str().expect("the path of the program is UTF-8");
        let mut words = wrapper
            .split_whitespace()
            .chain([program, "--instance", &self.instance]);
        let first = words.next().expect("there is the program at least");
        let mut command = self.namespace.command(first);
        command.args(words).args(arguments.split_whitespace());
        Process::start(&mut command)
    }
}

struct UnloadOnPanic<'a>(&'a Cli<'a>);

impl Drop for UnloadOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let mut unload = self.0.start_under("", "unload");
            let _ = wait::within(wait::PATIENCE, || unload.has_ended().then_some(()));
        }
    }
}

/// What a command did.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The arguments.
    pub arguments: String,
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Everything on standard output, without the last line's end.
    pub stdout: String,
    /// The lines on standard error.
    pub stderr: Vec<String>,
}

impl Attempt {
    /// Waits for the end of `process`, which runs with `arguments`.
    #[must_use]
    #[track_caller]
    pub fn end_of(arguments: &str, process: &mut Process) -> Self {
        let status = process.wait();
        Self {
            arguments: arguments.to_owned(),
            code: status.code(),
            stdout: process.stdout.text(),
            stderr: process.stderr.so_far(),
        }
    }

    /// Checks that the command succeeded.
    #[track_caller]
    pub fn assert_done(&self) {
        assert_eq!(self.code, Some(0), "{self:#?}");
    }

    /// Checks that the command failed as it should, see [`Attempt::refusal`].
    #[track_caller]
    pub fn assert_refused(&self, code: i32, words: &[&str]) {
        if let Err(reason) = self.refusal(code, words) {
            panic!("{reason}");
        }
    }

    /// Whether the command failed as it should: with `code`, nothing on standard output, and one line on standard
    /// error that starts with the program's name and contains each of `words`.
    ///
    /// # Errors
    /// What is wrong, for tests that try many commands.
    pub fn refusal(&self, code: i32, words: &[&str]) -> Result<(), String> {
        let wrong = |what: String| Err(format!("{what}: {self:#?}"));
        if self.code != Some(code) {
            return wrong(format!("not refused with exit code {code}"));
        }
        if !self.stdout.is_empty() {
            return wrong("a refused command prints nothing to standard output".to_owned());
        }
        let [line] = self.stderr.as_slice() else {
            return wrong("not one line on standard error".to_owned());
        };
        if !line.starts_with("tproxy: ") {
            return wrong("the line does not start with the program's name".to_owned());
        }
        match words.iter().find(|word| !line.contains(**word)) {
            Some(word) => wrong(format!("the line does not say {word:?}")),
            None => Ok(()),
        }
    }
}
