//! A fresh network namespace for a test, on a thread of its own.

use std::{
    fmt::Write as _,
    fs,
    future::Future,
    io::Write as _,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use tproxy_user::delivery::Netlink;

use crate::log_capture;

/// How long a test may take in all. Nothing here waits for longer than it must; this is for a test
/// that hangs.
const TEST_LIMIT: Duration = Duration::from_mins(1);

/// Runs a test in a network namespace of its own: on a new thread, with `lo` up, in a runtime of
/// that thread alone. The namespace is gone when the test ends.
pub(crate) fn in_namespace<F, T>(test: F)
where
    F: FnOnce(Netlink) -> T + Send + 'static,
    T: Future<Output = ()>,
{
    in_namespace_as_made(|netlink| {
        ip("link set lo up");
        test(netlink)
    });
}

/// The same with `lo` down, as the kernel makes a namespace.
pub(crate) fn in_namespace_as_made<F, T>(test: F)
where
    F: FnOnce(Netlink) -> T + Send + 'static,
    T: Future<Output = ()>,
{
    let test = move || {
        log_capture::start();
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let test = test(Netlink::open().expect("a netlink connection"));
            tokio::time::timeout(TEST_LIMIT, test)
                .await
                .expect("the test hangs");
        });
    };
    if let Err(panic) = thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip ARGUMENTS` in the namespace of the calling thread and returns what it prints.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("ip runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8(output.stdout).expect("ip prints UTF-8")
}

/// Runs the commands of a batch, one a line, in one process while the calling thread waits.
pub(crate) fn ip_batch(commands: &str) {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("ip runs");
    let mut input = child.stdin.take().expect("a pipe");
    input
        .write_all(commands.as_bytes())
        .expect("ip reads the batch");
    drop(input);
    assert!(child.wait().expect("ip ends").success(), "ip -batch fails");
}

/// Notifications that the netlink sockets of this network namespace have lost so far.
pub(crate) fn lost_notifications() -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/netlink").expect("a list of sockets");
    let mut lines = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let header = lines.next().expect("a header");
    let drops = header
        .iter()
        .position(|name| *name == "Drops")
        .expect("a column of drops");
    lines
        .map(|line| line[drops].parse::<u64>().expect("a number"))
        .sum()
}

/// Everything that delivery could change, in both families, as text.
pub(crate) fn everything() -> String {
    let mut text = String::new();
    for show in [
        "rule show",
        "-6 rule show",
        "-d route show table all",
        "-6 -d route show table all",
        "-o link show",
    ] {
        let _ = writeln!(text, "$ ip {show}\n{}", ip(show));
    }
    text
}

/// What `ip -j ARGUMENTS` prints; an empty list if it prints nothing.
pub(crate) fn ip_json(arguments: &str) -> Vec<Value> {
    let text = ip(&format!("-j {arguments}"));
    if text.trim().is_empty() {
        return Vec::new();
    }
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("ip -j {arguments}: {error}: {text}"))
}

/// The rules of a family (`-4`, `-6`) that look a table up.
pub(crate) fn rules_to(family: &str, table: u32) -> Vec<Value> {
    let table = table.to_string();
    let rules = ip_json(&format!("{family} -d rule show"));
    rules
        .into_iter()
        .filter(|rule| rule["table"] == table.as_str())
        .collect()
}

/// The routes of a family (`-4`, `-6`) in a table. A table without routes may not exist.
pub(crate) fn routes_in(family: &str, table: u32) -> Vec<Value> {
    let table = table.to_string();
    let routes = ip_json(&format!("{family} -d route show table all"));
    routes
        .into_iter()
        .filter(|route| route["table"] == table.as_str())
        .collect()
}

/// Waits until a condition holds, and panics when it does not within the limit.
#[track_caller]
pub(crate) fn within(
    limit: Duration,
    what: &str,
    mut holds: impl FnMut() -> bool,
) -> impl Future<Output = ()> {
    let location = std::panic::Location::caller();
    let what = what.to_owned();
    async move {
        let deadline = tokio::time::Instant::now() + limit;
        while !holds() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "not within {limit:?} (at {location}): {what}\n{}",
                everything()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
