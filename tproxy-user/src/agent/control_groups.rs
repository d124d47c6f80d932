//! Follows the control groups that rules name. One that is made again, as that of a unit or of a
//! container which restarts, has another number, and the tables know groups by their numbers.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    ffi::OsString,
    future::pending,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt as _;
use inotify::{EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use log::warn;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    instance::{NamedGroups, State},
    rule::Cgroup,
};

/// How often groups are looked at of which nothing was told: the hierarchy may be mounted anew, and
/// the host may be out of watches.
const SAFETY_NET: Duration = Duration::from_secs(10);

/// How long a group may be gone before the rules are put in force without it. What restarts makes it
/// again at once, and nobody else gets its number meanwhile.
const RESTART: Duration = Duration::from_millis(50);

/// Begins and ends to follow control groups as rules come and go that name them.
pub(super) struct FollowedGroups(watch::Sender<NamedGroups>);

impl FollowedGroups {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(NamedGroups::default()))
    }

    /// Takes up the state in force.
    pub(super) fn follow(&self, state: &State) {
        let named = state.named_groups();
        self.0.send_if_modified(|current| {
            let differs = *current != named;
            *current = named;
            differs
        });
    }

    /// Those of the state that was last taken up.
    pub(super) fn current(&self) -> NamedGroups {
        self.0.borrow().clone()
    }

    /// What tells of them.
    pub(super) fn watch(&self) -> GroupWatch {
        let mut named = self.0.subscribe();
        named.mark_changed();
        GroupWatch {
            named,
            events: None,
            watched: HashMap::new(),
            next_look: Instant::now(),
            gone_since: None,
            complaint: None,
        }
    }
}

/// Tells when named control groups have other numbers than those in force. Does nothing while no
/// rule names one.
pub(super) struct GroupWatch {
    named: watch::Receiver<NamedGroups>,
    events: Option<EventStream<[u8; 1024]>>,
    /// The directories above named groups that are there, and what of their contents concerns those.
    watched: HashMap<WatchDescriptor, BTreeSet<OsString>>,
    next_look: Instant,
    /// Since when groups are missing that the tables know.
    gone_since: Option<Instant>,
    /// What was last logged: it is not said again each time.
    complaint: Option<String>,
}

impl GroupWatch {
    /// Resolves when the rules are to be put in force anew. Cancelling loses nothing. Where that
    /// fails, it is told again with the safety net.
    pub(super) async fn changed(&mut self) {
        loop {
            if self.is_told().await && self.look() {
                return;
            }
        }
    }

    /// Waits for something to happen. Says whether the groups are to be looked at.
    async fn is_told(&mut self) -> bool {
        let is_idle = self.named.borrow().is_empty();
        tokio::select! {
            named = self.named.changed() => {
                if named.is_err() {
                    pending::<()>().await;
                }
                true
            }
            event = next(self.events.as_mut()) => match event {
                Ok(event) => self.concerns(&event),
                Err(error) => {
                    self.events = None;
                    self.complain(format!("inotify: {error}"));
                    false
                }
            },
            () = sleep_until(self.next_look), if !is_idle => true,
        }
    }

    /// An event without a name says that a directory is gone, or that events were lost.
    fn concerns(&self, event: &EventOwned) -> bool {
        let Some(name) = &event.name else {
            return true;
        };
        let names = self.watched.get(&event.wd);
        names.is_some_and(|names| names.contains(name))
    }

    /// Says whether the rules are to be put in force anew.
    fn look(&mut self) -> bool {
        let named = self.named.borrow_and_update().clone();
        self.watch(&named);
        // Only now: what is made from here on is told of.
        let outdated = named.outdated();
        let now = Instant::now();
        self.next_look = now + SAFETY_NET;
        if outdated.is_empty() {
            self.gone_since = None;
            return false;
        }
        if outdated.iter().all(|(_, number)| number.is_none()) {
            let due = *self.gone_since.get_or_insert(now) + RESTART;
            if now < due {
                self.next_look = due;
                return false;
            }
        }
        self.gone_since = None;
        true
    }

    /// Watches what is there of the ways to these groups, and nothing else.
    fn watch(&mut self, named: &NamedGroups) {
        if named.is_empty() {
            self.events = None;
            self.watched.clear();
            return;
        }
        match self.watch_ways(named) {
            Ok(()) => self.complaint = None,
            Err(problem) => self.complain(problem),
        }
    }

    fn watch_ways(&mut self, named: &NamedGroups) -> Result<(), String> {
        let root = Cgroup::root().map_err(|error| error.to_string())?;
        let events = match &mut self.events {
            Some(events) => events,
            none => {
                self.watched.clear();
                let opened = Inotify::init().and_then(|new| new.into_event_stream([0; 1024]));
                none.insert(opened.map_err(|error| {
                    format!("inotify (see sysctl fs.inotify.max_user_instances): {error}")
                })?)
            }
        };
        let mut ways = Ways {
            watches: events.watches(),
            tried: HashMap::new(),
            wanted: HashMap::new(),
        };
        let mut outcome = Ok(());
        for group in named.groups() {
            let watched = ways.add(&root, group).map_err(|error| {
                format!(
                    "cannot watch for {group} (see sysctl fs.inotify.max_user_watches): {error}"
                )
            });
            outcome = outcome.and(watched);
        }
        let Ways {
            mut watches,
            wanted,
            ..
        } = ways;
        let before = std::mem::replace(&mut self.watched, wanted);
        for unwanted in before.into_keys() {
            if !self.watched.contains_key(&unwanted) {
                // That of a directory that is gone has gone with it.
                let _ = watches.remove(unwanted);
            }
        }
        outcome
    }

    fn complain(&mut self, problem: String) {
        if self.complaint.as_ref() != Some(&problem) {
            warn!(
                "control groups are followed within {} s only: {problem}",
                SAFETY_NET.as_secs()
            );
            self.complaint = Some(problem);
        }
    }
}

/// The next event; none ever where nothing is watched.
async fn next(events: Option<&mut EventStream<[u8; 1024]>>) -> io::Result<EventOwned> {
    match events {
        Some(events) => events
            .next()
            .await
            .unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into())),
        None => pending().await,
    }
}

/// Watches on the directories that lead to groups.
struct Ways {
    watches: Watches,
    /// Directories that this look has come by; `None` for one that is not there.
    tried: HashMap<PathBuf, Option<WatchDescriptor>>,
    wanted: HashMap<WatchDescriptor, BTreeSet<OsString>>,
}

impl Ways {
    /// Watches the directories above a group from the root on, as far as they are there. Each is
    /// watched before what it holds is looked at, so that nothing is missed.
    fn add(&mut self, root: &Path, group: &Cgroup) -> io::Result<()> {
        let mut above = root.to_owned();
        for step in group.path_from_root() {
            let step = root.join(step.to_string());
            let Some(watch) = self.watch(above)? else {
                break;
            };
            let names = self.wanted.entry(watch).or_default();
            names.extend(step.file_name().map(OsString::from));
            above = step;
        }
        Ok(())
    }

    fn watch(&mut self, directory: PathBuf) -> io::Result<Option<WatchDescriptor>> {
        let tried = match self.tried.entry(directory) {
            Entry::Occupied(tried) => return Ok(tried.get().clone()),
            Entry::Vacant(tried) => tried,
        };
        let events = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::ONLYDIR;
        let watch = match self.watches.add(tried.key(), events) {
            Ok(watch) => Some(watch),
            Err(error) if is_absent(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(tried.insert(watch).clone())
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
