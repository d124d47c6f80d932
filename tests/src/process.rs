//! Programs that run beside a test, with their output collected line by line.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Instant,
};

use nix::{sys::signal::Signal, unistd::Pid};

use crate::{sys, wait};

/// A running program. It is killed when it goes out of scope.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// What it has written to standard output so far.
    pub stdout: Lines,
    /// What it has written to standard error so far.
    pub stderr: Lines,
}

impl Process {
    /// Starts `command`.
    #[must_use]
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let stdout = Lines::collect(child.stdout.take().expect("stdout is piped"));
        let stderr = Lines::collect(child.stderr.take().expect("stderr is piped"));
        Self {
            child,
            stdout,
            stderr,
        }
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(self.id().cast_signed());
        nix::sys::signal::kill(id, signal).expect("signal a child that has not been waited for");
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("wait for a child").is_some()
    }

    /// Waits until it ends and both of its outputs are read to the end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let id = self.id();
        let status = wait::until(&format!("the end of process {id}"), || {
            self.child.try_wait().expect("wait for a child")
        });
        self.stdout.wait_for_end();
        self.stderr.wait_for_end();
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets bpf(2) fail with `error` in the process of `command`, as on a kernel that lacks it: all of it, or only one of
/// its commands (`BPF_LINK_CREATE`, say).
pub fn fail_bpf(command: &mut Command, bpf_command: Option<u32>, error: i32) {
    sys::fail_bpf_before_exec(command, bpf_command, error);
}

/// The lines that a program writes, read by a thread as they come.
#[derive(Debug, Clone)]
pub struct Lines {
    shared: Arc<(Mutex<Collected>, Condvar)>,
}

#[derive(Debug, Default)]
struct Collected {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn collect(source: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new(Collected::default()), Condvar::new()));
        let writer = Arc::clone(&shared);
        thread::spawn(move || {
            let (collected, changed) = &*writer;
            for line in BufReader::new(source).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line).into_owned();
                collected
                    .lock()
                    .expect("no reader panics under the lock")
                    .lines
                    .push(line);
                changed.notify_all();
            }
            collected
                .lock()
                .expect("no reader panics under the lock")
                .ended = true;
            changed.notify_all();
        });
        Self { shared }
    }

    /// All lines so far.
    #[must_use]
    pub fn so_far(&self) -> Vec<String> {
        self.shared
            .0
            .lock()
            .expect("the collector does not panic")
            .lines
            .clone()
    }

    /// All lines so far as one text.
    #[must_use]
    pub fn text(&self) -> String {
        self.so_far().join("\n")
    }

    /// Waits for the first line, past or future, from which `choose` yields a value. `None` when the program closes its
    /// output, or [`wait::PATIENCE`] passes, without one.
    pub fn find<T>(&self, mut choose: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + wait::PATIENCE;
        let (collected, changed) = &*self.shared;
        let mut guard = collected.lock().expect("the collector does not panic");
        let mut seen = 0;
        loop {
            if let Some(value) = guard.lines[seen..].iter().find_map(|line| choose(line)) {
                return Some(value);
            }
            seen = guard.lines.len();
            let remaining = deadline.saturating_duration_since(Instant::now());
            if guard.ended || remaining.is_zero() {
                return None;
            }
            guard = changed
                .wait_timeout(guard, remaining)
                .expect("the collector does not panic")
                .0;
        }
    }

    fn wait_for_end(&self) {
        let _: Option<()> = self.find(|_| None);
    }
}

/// Runs `command` to its end, checks that it succeeded, and returns its standard output.
#[track_caller]
pub(crate) fn expect_success(command: &mut Command) -> String {
    let mut process = Process::start(command);
    let status = process.wait();
    let output = process.stdout.text();
    assert!(
        status.success(),
        "{command:?}: {status}\n{output}\n{}",
        process.stderr.text()
    );
    output
}
