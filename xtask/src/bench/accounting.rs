//! CPU seconds, as the kernel accounts them.

use std::fs;

use anyhow::{Context as _, Result};
use nix::unistd::Pid;

/// `USER_HZ`, the unit of times in /proc: part of the kernel's interface, 100 wherever Rust's Linux
/// targets run.
const TICKS_A_SECOND: f64 = 100.0;

/// CPU seconds used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuSeconds {
    /// By the proxy's processes, in user space and in their system calls.
    pub(crate) proxy: f64,
    /// By everything on the machine, interrupts too.
    pub(crate) machine: f64,
}

impl CpuSeconds {
    /// # Errors
    ///
    /// When the kernel's accounts cannot be read.
    pub(crate) fn read(proxy: &[Pid]) -> Result<Self> {
        Ok(Self {
            proxy: proxy.iter().copied().filter_map(of_process).sum(),
            machine: of_machine()?,
        })
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            proxy: self.proxy - earlier.proxy,
            machine: self.machine - earlier.machine,
        }
    }
}

/// proc(5): fields 14 to 17 of `stat`, counted from the process number, are its own times and those of
/// children that it has waited for; the name in parentheses may hold spaces. `None` when it is gone: its
/// parent has the times then.
fn of_process(process: Pid) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, after_name) = text.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    Some(seconds(fields.get(11..15)?))
}

/// proc(5): the first line of `stat` has user, nice, system, idle, iowait, irq, softirq.
fn of_machine() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let fields: Vec<&str> = text
        .lines()
        .next()
        .unwrap_or("")
        .split_whitespace()
        .skip(1)
        .collect();
    Ok(seconds(&fields[0..3]) + seconds(&fields[5..7]))
}

fn seconds(ticks: &[&str]) -> f64 {
    ticks
        .iter()
        .filter_map(|field| field.parse::<f64>().ok())
        .sum::<f64>()
        / TICKS_A_SECOND
}

/// The load average of the last minute.
pub(crate) fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    let first = text.split_whitespace().next().unwrap_or_default();
    first.parse().context("/proc/loadavg has no number")
}

/// Bytes of the kernel's own objects, sockets among them.
pub(crate) fn slab() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Slab:"));
    let kibibytes = line.context("/proc/meminfo has no Slab")?;
    let kibibytes = kibibytes.trim().trim_end_matches("kB").trim();
    Ok(kibibytes.parse::<f64>()? * 1024.0)
}
