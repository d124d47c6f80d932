//! The end of a network namespace that was named: an agent in it would keep it alive.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

use super::NamespaceId;
use crate::sys::{open_process, watch_descriptor};

/// Tells when the network namespace of a path is gone: when the path is removed or stands for
/// something else, as after `ip netns del` or umount(8), or, for that of a process in `/proc`, when
/// the process has ended.
pub struct NamespaceWatch {
    what: Watched,
}

enum Watched {
    Path(Box<PathWatch>),
    /// A descriptor that can be read when the process has ended.
    Process(AsyncFd<OwnedFd>),
    /// The process had ended when the watch began.
    Ended,
}

impl NamespaceWatch {
    /// Begins to watch `path`, which had the namespace `namespace` when that was entered. It must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the kernel does not let it be watched.
    pub fn open(path: &Path, namespace: NamespaceId) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        if !stands_for(&path, namespace)? {
            return Ok(Self {
                what: Watched::Ended,
            });
        }
        let what = match follow(&path, namespace) {
            Some(file) => match process_of(&file) {
                Some(process) => watch_process(process)?,
                None => watch_path(PathWatch::of_file(file, namespace))?,
            },
            None => watch_path(PathWatch::through_links(path.clone(), namespace))?,
        };
        // Another process may have its number by now.
        let what = match what {
            Watched::Process(_) if !stands_for(&path, namespace)? => Watched::Ended,
            what => what,
        };
        Ok(Self { what })
    }

    /// Resolves when the namespace is gone, at once if it is already. Cancelling loses nothing.
    ///
    /// # Errors
    ///
    /// When the watch broke.
    pub async fn gone(&mut self) -> io::Result<()> {
        match &mut self.what {
            Watched::Path(watch) => watch.gone().await,
            Watched::Process(process) => process.readable().await.map(drop),
            Watched::Ended => Ok(()),
        }
    }
}

fn watch_process(process: u32) -> io::Result<Watched> {
    match open_process(process) {
        Ok(process) => watch_descriptor(process, Interest::READABLE).map(Watched::Process),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(Watched::Ended),
        Err(error) => Err(error),
    }
}

fn watch_path(watch: io::Result<PathWatch>) -> io::Result<Watched> {
    match watch {
        Ok(watch) => Ok(Watched::Path(Box::new(watch))),
        Err(error) if is_missing(&error) => Ok(Watched::Ended),
        Err(error) => Err(error),
    }
}

/// Whether the path leads to this namespace.
fn stands_for(path: &Path, namespace: NamespaceId) -> io::Result<bool> {
    match NamespaceId::of(path) {
        Ok(found) => Ok(found == namespace),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    ) || error.raw_os_error() == Some(libc::ESRCH)
}

/// The file itself that a path leads to over links. `None` when it cannot be told from their texts:
/// `root` and `cwd` of a process lead into mounts that this process may not have.
fn follow(path: &Path, namespace: NamespaceId) -> Option<PathBuf> {
    let file = resolve(path).ok()?;
    stands_for(&file, namespace).ok()?.then_some(file)
}

/// `ns/net` of a process is a link of a kind of its own, which leads nowhere by its text.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = directory.canonicalize()?;
    let path = directory.join(name);
    match fs::read_link(&path) {
        Ok(target) if !target.to_string_lossy().starts_with("net:[") => {
            resolve(&directory.join(target))
        }
        _ => Ok(path),
    }
}

/// The process in whose directory in `/proc` this is.
fn process_of(path: &Path) -> Option<u32> {
    let mut parts = path.strip_prefix("/proc").ok()?.iter();
    parts.next()?.to_str()?.parse().ok()
}

struct PathWatch {
    path: PathBuf,
    namespace: NamespaceId,
    /// Names that go from the directory of the path. The file itself tells nothing: what can be
    /// watched under its name is the namespace, which lives on with the agent.
    directory: EventStream<[u8; 1024]>,
    /// umount(2) is told of by nobody but the list of mounts.
    mounts: AsyncFd<OwnedFd>,
    /// Whether neither of them tells everything.
    polled: bool,
}

/// How often a path is looked at that nothing tells of.
const POLLED: Duration = Duration::from_secs(1);

impl PathWatch {
    /// Watches a file. One of `ns/net` here belongs to a process in the `/proc` of somebody else, of
    /// whose end nothing tells.
    fn of_file(path: PathBuf, namespace: NamespaceId) -> io::Result<Self> {
        let polled = fs::read_link(&path).is_ok();
        Self::open(path, namespace, polled)
    }

    /// Watches a path that leads into the mounts of a process, of whose end and whose mounts nothing
    /// tells.
    fn through_links(path: PathBuf, namespace: NamespaceId) -> io::Result<Self> {
        Self::open(path, namespace, true)
    }

    fn open(path: PathBuf, namespace: NamespaceId, polled: bool) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let events = WatchMask::DELETE | WatchMask::MOVE | WatchMask::DELETE_SELF;
        let directory = path.parent().unwrap_or(Path::new("/"));
        inotify.watches().add(
            directory,
            events | WatchMask::MOVE_SELF | WatchMask::ONLYDIR,
        )?;
        let mounts = File::open("/proc/self/mountinfo")?;
        Ok(Self {
            directory: inotify.into_event_stream([0; 1024])?,
            mounts: watch_descriptor(mounts, Interest::PRIORITY | Interest::ERROR)?,
            polled,
            path,
            namespace,
        })
    }

    async fn gone(&mut self) -> io::Result<()> {
        loop {
            if !stands_for(&self.path, self.namespace)? {
                return Ok(());
            }
            tokio::select! {
                event = self.directory.next() => {
                    event.ok_or(io::ErrorKind::UnexpectedEof)??;
                }
                () = sleep(POLLED), if self.polled => {}
                ready = self.mounts.ready(Interest::PRIORITY | Interest::ERROR) => {
                    ready?.clear_ready();
                }
            }
        }
    }
}
