//! The machine that was measured on.

use std::fs;

use serde::Serialize;

use crate::terminal;

/// A load average below this is an idle machine.
const QUIET: f64 = 0.7;

/// What numbers depend on beside what they measure.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cores: usize,
    /// Processes that wanted to run before the first round.
    load_before: f64,
}

impl Machine {
    /// This one.
    pub(crate) fn here(load_before: f64) -> Self {
        Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| "unknown".into(), |release| release.trim().into()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            load_before,
        }
    }

    /// Says so if it was not idle.
    pub(crate) fn print_if_busy(&self) {
        if self.load_before > QUIET {
            let busy = format!(
                "The machine was busy with something else (load {:.1}): trust the ratios little and the rates not at all.",
                self.load_before
            );
            println!("{}", terminal::red(&busy));
        }
    }
}
