//! The agent (`tproxy run`), started inside a namespace with an instance name of its own.

use std::{
    collections::BTreeSet,
    fs::OpenOptions,
    net::SocketAddr,
    ops::Deref,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::ExitStatus,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{Cli, FlowLine, Namespace, process::Process, sys, wait};

/// A running agent. It dereferences to the [`Cli`] of its instance. When it goes out of scope it is killed, and whatever
/// it left is unloaded.
#[derive(Debug)]
pub struct Agent<'a> {
    cli: Cli<'a>,
    process: Process,
    ready: String,
}

/// Flags for both ways to attach: tcx links, and filters in a clsact qdisc as on kernels without tcx.
pub const ATTACH_MODES: [&str; 2] = ["", "--clsact"];

static STARTED: AtomicU32 = AtomicU32::new(0);

/// An instance name that no other test uses.
#[must_use]
pub fn unique_instance() -> String {
    format!(
        "test-{}-{}",
        std::process::id(),
        STARTED.fetch_add(1, Ordering::Relaxed)
    )
}

impl<'a> Agent<'a> {
    /// Starts `tproxy run ARGUMENTS` in `namespace` as an instance of its own and waits until it is ready.
    #[must_use]
    #[track_caller]
    pub fn start(namespace: &'a Namespace, arguments: &str) -> Self {
        Self::start_under(namespace, &unique_instance(), "", arguments)
    }

    /// Starts the agent as `instance`, through `wrapper` (`prlimit --nofile=64`, say, or nothing), which must replace
    /// itself by the agent.
    #[must_use]
    #[track_caller]
    pub fn start_under(
        namespace: &'a Namespace,
        instance: &str,
        wrapper: &str,
        arguments: &str,
    ) -> Self {
        let cli = Cli::new(namespace, instance);
        let wrapper = format!("env RUST_LOG=info {wrapper}");
        let process = cli.start_under(&wrapper, &format!("run {arguments}"));
        Self::over(cli, process)
    }

    /// Waits until the agent is ready that `process` has become, or will become. `cli` is for its instance.
    #[must_use]
    #[track_caller]
    pub fn over(cli: Cli<'a>, process: Process) -> Self {
        let Some(ready) = process
            .stdout
            .find(|line| line.starts_with("tproxy ready: ").then(|| line.to_owned()))
        else {
            panic!(
                "no ready line from the agent {}\n{}",
                cli.instance(),
                process.stderr.text()
            );
        };
        Self {
            cli,
            process,
            ready,
        }
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The line that it printed when it was ready.
    #[must_use]
    pub fn ready_line(&self) -> &str {
        &self.ready
    }

    /// The lines that it has written to standard output so far.
    #[must_use]
    pub fn standard_output(&self) -> Vec<String> {
        self.process.stdout.so_far()
    }

    /// Everything it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.stderr.text()
    }

    /// The flows that it has reported so far.
    #[must_use]
    pub fn flows(&self) -> Vec<FlowLine> {
        self.process
            .stderr
            .so_far()
            .iter()
            .filter_map(|line| FlowLine::parse(line))
            .collect()
    }

    /// Waits for the line of the flow that came from `client`.
    #[must_use]
    #[track_caller]
    pub fn flow_of(&self, client: SocketAddr) -> FlowLine {
        self.flow_where(&format!("from {client}"), |flow| flow.client == client)
    }

    /// Waits for the line of the flow from `client` to `server`.
    #[must_use]
    #[track_caller]
    pub fn flow_between(&self, client: SocketAddr, server: SocketAddr) -> FlowLine {
        let what = format!("from {client} to {server}");
        self.flow_where(&what, |flow| (flow.client, flow.server) == (client, server))
    }

    #[track_caller]
    fn flow_where(&self, what: &str, condition: impl Fn(&FlowLine) -> bool) -> FlowLine {
        let stderr = &self.process.stderr;
        let flow = stderr.find(|line| FlowLine::parse(line).filter(&condition));
        flow.unwrap_or_else(|| panic!("no line of a flow {what}"))
    }

    /// Waits until at least `count` flows have been reported.
    #[track_caller]
    pub fn wait_for_flows(&self, count: usize) {
        let mut seen = 0;
        let found = self.process.stderr.find(|line| {
            seen += usize::from(FlowLine::parse(line).is_some());
            (seen >= count).then_some(())
        });
        assert!(
            found.is_some(),
            "{seen} flow lines instead of {count}:\n{}",
            self.log()
        );
    }

    /// Waits for a line of the log that contains `text`.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        let found = self
            .process
            .stderr
            .find(|line| line.contains(text).then_some(()));
        assert!(found.is_some(), "no {text:?} in the log:\n{}", self.log());
    }

    /// `status --json`.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> Value {
        self.cli.json("status")
    }

    /// One of the counters of `status --json`; zero when it is not listed.
    #[must_use]
    #[track_caller]
    pub fn counter(&self, name: &str) -> u64 {
        self.status()["counters"][name].as_u64().unwrap_or(0)
    }

    /// The TCP port at which the agent listens.
    #[must_use]
    #[track_caller]
    pub fn port(&self) -> u16 {
        let status = self.status();
        let port = status["agent"]["port"]
            .as_u64()
            .unwrap_or_else(|| panic!("agent.port in {status}"));
        u16::try_from(port).expect("ports have 16 bits")
    }

    /// `rule list --json`.
    #[must_use]
    #[track_caller]
    pub fn rules(&self) -> Vec<Value> {
        let rules = self.cli.json("rule list");
        rules
            .as_array()
            .unwrap_or_else(|| panic!("an array of rules, not {rules}"))
            .clone()
    }

    /// The names of the rules in force, in order.
    #[must_use]
    #[track_caller]
    pub fn rule_names(&self) -> Vec<String> {
        let name = |rule: &Value| rule["name"].as_str().map(str::to_owned);
        self.rules()
            .iter()
            .map(|rule| name(rule).expect("each rule has a name"))
            .collect()
    }

    /// The number of descriptors that the agent has open.
    #[must_use]
    pub fn open_descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id()))
            .expect("the agent runs")
            .count()
    }

    /// How many threads it has.
    #[must_use]
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.id()))
            .expect("the agent runs")
            .count()
    }

    /// The bytes in its pipes.
    #[must_use]
    pub fn bytes_in_pipes(&self) -> u64 {
        let table = std::fs::read_dir(format!("/proc/{}/fd", self.id())).expect("the agent runs");
        let mut pipes = BTreeSet::new();
        let bytes = table.flatten().filter_map(|entry| {
            let leads_to = std::fs::read_link(entry.path()).ok()?;
            if !leads_to.to_string_lossy().starts_with("pipe:") || !pipes.insert(leads_to) {
                return None;
            }
            // Opening one end of a pipe whose other end is gone would wait.
            let mut options = OpenOptions::new();
            let pipe = options.read(true).custom_flags(libc::O_NONBLOCK);
            sys::readable_bytes(&pipe.open(entry.path()).ok()?).ok()
        });
        bytes.sum()
    }

    /// The id of its thread with this name.
    #[must_use]
    #[track_caller]
    pub fn thread(&self, name: &str) -> u32 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.id())).expect("the agent runs");
        let named = tasks.flatten().find(|task| {
            let command = std::fs::read_to_string(task.path().join("comm"));
            command.is_ok_and(|command| command.trim() == name)
        });
        let task = named.unwrap_or_else(|| panic!("no thread {name}"));
        let id = task.file_name().to_string_lossy().parse();
        id.expect("threads are named by their number")
    }

    /// Checks that the agent uses less than a fifth of a processor for so long.
    #[track_caller]
    pub fn assert_at_rest(&self, window: Duration) {
        let before = self.processor_time();
        std::thread::sleep(window);
        let used = self.processor_time().saturating_sub(before);
        assert!(
            used < window / 5,
            "{used:?} of processor time in {window:?} at rest"
        );
    }

    /// The processor time that the agent has used, user and system.
    #[must_use]
    pub fn processor_time(&self) -> Duration {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.id())).expect("the agent runs");
        // The name of the program, in parentheses, may contain spaces; fields are counted from behind it (proc(5)).
        let (_, fields) = stat
            .rsplit_once(") ")
            .expect("the name ends with a parenthesis");
        let ticks: u64 = fields
            .split(' ')
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().expect("ticks"))
            .sum();
        // USER_HZ is 100 on every architecture that the program supports.
        Duration::from_millis(ticks * 10)
    }

    /// A line of `/proc/PID/status` in KiB, for example `VmRSS`.
    #[must_use]
    pub fn memory_kib(&self, key: &str) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the agent runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let number = line
            .and_then(|line| line.split_whitespace().next())
            .expect("a size");
        number.parse().expect("a number of KiB")
    }

    /// Asks it to end and returns at once; [`Agent::wait`] takes it from there.
    pub fn terminate(&self) {
        self.process.signal(Signal::SIGTERM);
    }

    /// Waits until it has ended by itself with exit code 0, and returns all flows that it reported.
    #[track_caller]
    pub fn wait(&mut self) -> Vec<FlowLine> {
        let status = self.process.wait();
        assert_eq!(
            status.code(),
            Some(0),
            "exit code of the agent:\n{}",
            self.log()
        );
        self.flows()
    }

    /// Waits until it has ended by itself, however.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Ends it with SIGTERM, checks exit code 0, and returns all flows that it reported.
    #[track_caller]
    pub fn stop(&mut self) -> Vec<FlowLine> {
        self.terminate();
        self.wait()
    }

    /// Ends it with SIGKILL and waits until it is gone.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process.signal(Signal::SIGKILL);
        let _ = self.process.wait();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Whether the agent still runs.
    pub fn is_running(&mut self) -> bool {
        !self.process.has_ended()
    }

    /// Waits until the agent's descriptors are back at `count`, as they are when no flow is left, but for a few that
    /// belong to no flow.
    #[track_caller]
    pub fn wait_for_descriptors(&self, count: usize) {
        const OF_NO_FLOW: usize = 8;
        let back = || (self.open_descriptors() <= count + OF_NO_FLOW).then_some(());
        let reached = wait::within(wait::PATIENCE, back);
        let open = self.open_descriptors();
        assert!(
            reached.is_some(),
            "the agent has {open} descriptors instead of {count}"
        );
    }
}

impl<'a> Deref for Agent<'a> {
    type Target = Cli<'a>;

    fn deref(&self) -> &Self::Target {
        &self.cli
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("end of the log of the agent {}:", self.cli.instance());
            let lines = self.process.stderr.so_far();
            for line in lines.iter().rev().take(20).rev() {
                eprintln!("{line}");
            }
        }
        let clean = self.process.has_ended() && !has_left_something(self.cli.instance());
        if clean {
            return;
        }
        if self.is_running() {
            self.process.signal(Signal::SIGKILL);
        }
        let mut unload = self.cli.start_under("", "unload");
        let _ = wait::within(wait::PATIENCE, || unload.has_ended().then_some(()));
    }
}

fn has_left_something(instance: &str) -> bool {
    ["/sys/fs/bpf/tproxy", "/run/tproxy"]
        .iter()
        .any(|root| Path::new(root).join(instance).exists())
}
