//! The log on standard error, which never holds up whoever logs.
//!
//! Workers log a line for each flow. Standard error may be a pipe that nobody reads or a terminal
//! that is stopped, so a thread of its own writes, from a queue that drops what does not fit.

use std::{
    env,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use env_logger::{DEFAULT_FILTER_ENV, Target};
use log::LevelFilter;

/// Records that wait to be written at most.
const QUEUE: usize = 8192;

/// How long the end of the process waits for the log to be written.
const PATIENCE: Duration = Duration::from_secs(1);

/// The running log.
pub(super) struct Log {
    queue: SyncSender<Message>,
}

enum Message {
    Record(Vec<u8>),
    Flush(SyncSender<()>),
}

impl Log {
    /// Logs from now on what is at least this important.
    pub(super) fn start(level: LevelFilter) -> Self {
        let (queue, messages) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            queue: queue.clone(),
            dropped: Arc::clone(&dropped),
        };
        thread::spawn(move || write(&messages, &dropped));
        let mut logger = env_logger::Builder::new();
        let asked = env::var(DEFAULT_FILTER_ENV).unwrap_or_default();
        if !is_for_all(&asked) {
            // The libraries' own words only when they are asked for.
            logger
                .filter_level(LevelFilter::Warn)
                .filter_module("netlink_proto", LevelFilter::Error)
                .filter_module("tproxy", level)
                .filter_module("tproxy_user", level);
        }
        logger
            .parse_filters(&asked)
            .target(Target::Pipe(Box::new(writer)))
            .init();
        Self { queue }
    }

    /// Waits until what was logged so far is written, but not for ever.
    pub(super) fn flush(&self) {
        let (done, flushed) = sync_channel(1);
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            let _ = flushed.recv_timeout(PATIENCE);
        }
    }
}

/// Whether a filter as `env_logger` reads it names a level for all modules. Ours for some of them would
/// take precedence over that.
fn is_for_all(filter: &str) -> bool {
    let directives = filter.split('/').next().unwrap_or_default();
    directives
        .split(',')
        .any(|directive| directive.trim().parse::<LevelFilter>().is_ok())
}

/// Gives each record, which the logger writes in one piece, to the queue.
struct Writer {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Write for Writer {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        if self
            .queue
            .try_send(Message::Record(record.to_vec()))
            .is_err()
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(messages: &Receiver<Message>, dropped: &AtomicU64) {
    // Nobody is there to be told of a standard error that cannot be written to.
    for message in messages {
        match message {
            Message::Record(record) => {
                let _ = io::stderr().write_all(&record);
            }
            Message::Flush(done) => {
                let _ = done.send(());
            }
        }
        match dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            lines => {
                let _ = writeln!(
                    io::stderr(),
                    "tproxy: {lines} lines of the log were dropped"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_without_a_module_is_for_all() {
        for filter in ["debug", "OFF", "tproxy_user::relay=trace,warn", "info/flow"] {
            assert!(is_for_all(filter), "{filter}");
        }
        for filter in [
            "",
            "tproxy_user=debug",
            "tproxy_user::relay",
            "tproxy=info/debug",
        ] {
            assert!(!is_for_all(filter), "{filter}");
        }
    }
}
