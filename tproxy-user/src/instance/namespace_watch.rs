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
        let what = match resolve(path)? {
            Named::Path(path) => Watched::Path(Box::new(PathWatch::open(path, namespace)?)),
            Named::Process(process) => watch_process(process)?,
        };
        // Another process may have its number by now.
        let what = match what {
            Watched::Process(_) if !stands_for(path, namespace)? => Watched::Ended,
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

/// What a path to a network namespace names.
enum Named {
    /// A file that the namespace is mounted on.
    Path(PathBuf),
    /// A process (`/proc/PID/ns/net`).
    Process(u32),
}

/// Links are followed, so that the file itself is watched; but `ns/net` of a process is a link of a
/// kind of its own, which leads nowhere by its text.
fn resolve(path: &Path) -> io::Result<Named> {
    let path = std::path::absolute(path)?;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = match directory.canonicalize() {
        // A process that has ended has no directory any more.
        Err(error) if is_missing(&error) && process_of(directory).is_some() => directory.into(),
        directory => directory?,
    };
    if let Some(process) = process_of(&directory) {
        return Ok(Named::Process(process));
    }
    let path = directory.join(name);
    match fs::read_link(&path) {
        Ok(target) if !target.to_string_lossy().starts_with("net:[") => {
            resolve(&directory.join(target))
        }
        _ => Ok(Named::Path(path)),
    }
}

/// The process whose directory in `/proc` this is in.
fn process_of(directory: &Path) -> Option<u32> {
    let mut parts = directory.strip_prefix("/proc").ok()?.iter();
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
    polled: bool,
}

/// How often a path is looked at that nothing tells of.
const POLLED: Duration = Duration::from_secs(1);

impl PathWatch {
    fn open(path: PathBuf, namespace: NamespaceId) -> io::Result<Self> {
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
            polled: fs::read_link(&path).is_ok(),
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
                // A process in the /proc of somebody else, of whose end nothing tells.
                () = sleep(POLLED), if self.polled => {}
                ready = self.mounts.ready(Interest::PRIORITY | Interest::ERROR) => {
                    ready?.clear_ready();
                }
            }
        }
    }
}
