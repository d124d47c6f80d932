//! The lock of changes: whoever holds it is the only one who changes the instance.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use super::{Error, Instance, RUN};

/// The file that is locked, in the instance's directory. It is open for writing while it is locked
/// for a change, so that its end can be watched for.
pub const LOCK_FILE: &str = "lock";

/// Held until dropped, and let go by the kernel when its holder dies.
#[derive(Debug)]
pub struct ChangeLock {
    _file: File,
}

impl ChangeLock {
    /// Waits for the lock.
    ///
    /// # Errors
    ///
    /// When the instance has no directory or the lock cannot be taken.
    pub fn wait(instance: &Instance) -> Result<Self, Error> {
        let path = instance.run_directory().join(LOCK_FILE);
        let failed = |cause: io::Error| match cause.kind() {
            io::ErrorKind::NotFound => Error::NotThere(instance.name().to_owned()),
            _ => Error::File {
                path: path.clone(),
                cause,
            },
        };
        loop {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(failed)?;
            file.lock().map_err(failed)?;
            // The holder before may have removed the instance, and another one made it again.
            if is_at(&file, &path).map_err(failed)? {
                return Ok(Self { _file: file });
            }
        }
    }

    /// Waits until nobody changes the instance, and keeps others from it while its state is taken
    /// up. Leaves no trace that a watcher of changes would see.
    ///
    /// # Errors
    ///
    /// When there is no lock or it cannot be taken.
    pub fn follow(instance: &Instance) -> io::Result<Self> {
        let file = File::open(instance.run_directory().join(LOCK_FILE))?;
        file.lock_shared()?;
        Ok(Self { _file: file })
    }

    /// Waits until no other instance attaches interfaces. Comes after the lock of the own instance.
    pub(super) fn wait_to_attach() -> Result<Self, Error> {
        let failed = |cause| Error::File {
            path: RUN.into(),
            cause,
        };
        let file = File::open(RUN).map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(Self { _file: file })
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let opened = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (opened.dev(), opened.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
