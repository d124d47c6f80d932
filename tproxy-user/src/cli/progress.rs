//! Progress on a terminal, of what takes over a second.

use std::{
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What takes less is over before anybody wonders.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shown on standard error when that is a terminal, from a second on until dropped.
pub(super) struct Progress {
    bar: ProgressBar,
    /// Its end wakes the thread.
    over: Option<Sender<()>>,
    shows: Option<JoinHandle<()>>,
}

impl Progress {
    /// Something begins; `quiet` shows nothing of it.
    pub(super) fn start(what: &str, quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
            .with_style(style())
            .with_message(what.to_owned());
        let (over, wait) = mpsc::channel();
        let shown = bar.clone();
        let show = move || {
            if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                shown.set_draw_target(ProgressDrawTarget::stderr());
                shown.enable_steady_tick(Duration::from_millis(100));
            }
        };
        Self {
            bar,
            over: Some(over),
            shows: (!quiet).then(|| thread::spawn(show)),
        }
    }

    /// So many bytes were read.
    pub(super) fn bytes(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    /// Something else begins.
    pub(super) fn say(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }
}

fn style() -> ProgressStyle {
    let template = ProgressStyle::with_template("{spinner} {msg} {bytes}");
    template.unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.over.take();
        if let Some(shows) = self.shows.take() {
            let _ = shows.join();
        }
        self.bar.finish_and_clear();
    }
}
