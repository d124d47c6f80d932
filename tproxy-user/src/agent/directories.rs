//! Watches the directories of the instance: for changes, and for whoever removes what it rests on.

use std::path::Path;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchMask};

use crate::instance::{Instance, LOCK_FILE};

/// The watched directories.
pub(super) struct Directories(EventStream<[u8; 1024]>);

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
        // The lock is closed by every change, even one that was killed.
        watch(instance.run_directory(), WatchMask::CLOSE_WRITE)?;
        let pins = instance.pins().context("the BPF file system is gone")?;
        // The directory itself is not told of for as long as something in it is open.
        let removal = WatchMask::DELETE | WatchMask::MOVED_FROM;
        watch(
            &pins,
            removal | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF,
        )?;
        let events = inotify.into_event_stream([0; 1024]);
        Ok(Self(events.context("cannot use inotify")?))
    }

    /// The next news. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> anyhow::Result<News> {
        loop {
            let event = self.0.next().await;
            let event = event
                .context("the watch of the instance's directories ended")?
                .context("cannot watch the instance's directories")?;
            if !event.mask.contains(EventMask::CLOSE_WRITE) {
                return Ok(News::Removal);
            }
            if event.name.is_some_and(|name| name == LOCK_FILE) {
                return Ok(News::Change);
            }
        }
    }
}
