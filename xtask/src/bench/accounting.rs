//! CPU seconds and memory, as the kernel accounts them.

use std::fs;

use anyhow::{Context as _, Result};

/// `USER_HZ`, the unit of times in /proc: part of the kernel's interface, 100 wherever Rust's Linux
/// targets run.
const TICKS_A_SECOND: f64 = 100.0;

/// CPU seconds used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuSeconds {
    /// By the proxy, in user space and in its system calls.
    pub(crate) proxy: f64,
    /// By everything on the machine, interrupts too.
    pub(crate) machine: f64,
}

impl CpuSeconds {
    /// # Errors
    ///
    /// When the proxy is no more.
    pub(crate) fn read(proxy: Option<u32>) -> Result<Self> {
        let proxy = proxy.map_or(Ok(0.0), of_process)?;
        Ok(Self {
            proxy,
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

/// proc(5): fields 14 and 15 of `stat`, counted from the process number; the name in parentheses may
/// hold spaces.
fn of_process(process: u32) -> Result<f64> {
    let text =
        fs::read_to_string(format!("/proc/{process}/stat")).context("the proxy has ended")?;
    let (_, after_name) = text
        .rsplit_once(')')
        .context("/proc/PID/stat has no name")?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    Ok(seconds(&fields[11..13]))
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

/// Resident memory in megabytes, with the pages shared with other processes.
pub(crate) fn resident_megabytes(process: u32) -> Result<f64> {
    let path = format!("/proc/{process}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    let kibibytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes * 1024.0 / 1e6)
}
