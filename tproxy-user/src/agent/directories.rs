//! Watches the directories of the instance: for changes, and for whoever removes what it rests on.

use std::path::Path;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask};

use crate::instance::{AGENT_LOCK_FILE, Instance, LOCK_FILE};

/// The watched directories.
pub(super) struct Directories {
    events: EventStream<[u8; 1024]>,
    /// The watch of the state files.
    files: WatchDescriptor,
}

/// What was done in them.
pub(super) enum News {
    /// A change came to its end, finished or not.
    Change,
    /// Something was removed, which may be all right.
    Removal,
}

impl Directories {
    /// Begins to watch. Nothing after this is missed.
    pub(super) fn watch(instance: &Instance) -> anyhow::Result<Self> {
        let inotify = Inotify::init().context(
            "cannot watch for changes of rules: inotify (see sysctl fs.inotify.max_user_instances)",
        )?;
        let watch = |directory: &Path, mask| {
            let watched = inotify.watches().add(directory, mask);
            watched.with_context(|| format!("cannot watch {}", directory.display()))
        };
        // Of a directory alone nothing would be told for as long as something is open that was in it.
        let removal = WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        // The lock is closed by every change, even one that was killed.
        let files = watch(instance.run_directory(), WatchMask::CLOSE_WRITE | removal)?;
        let pins = instance.pins().context("the BPF file system is gone")?;
        watch(&pins, removal)?;
        let events = inotify.into_event_stream([0; 1024]);
        let events = events.context("cannot use inotify")?;
        Ok(Self { events, files })
    }

    /// The next news. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> anyhow::Result<News> {
        loop {
            let event = self.events.next().await;
            let event = event
                .context("the watch of the instance's directories ended")?
                .context("cannot watch the instance's directories")?;
            if let Some(news) = self.news(&event) {
                return Ok(news);
            }
        }
    }

    fn news(&self, event: &EventOwned) -> Option<News> {
        let is = |file: &str| event.name.as_ref().is_some_and(|name| name == file);
        if event.mask.contains(EventMask::CLOSE_WRITE) {
            return is(LOCK_FILE).then_some(News::Change);
        }
        // Every change removes files of the state before.
        let is_usual = event.wd == self.files && event.name.is_some() && !is(AGENT_LOCK_FILE);
        (!is_usual).then_some(News::Removal)
    }
}
