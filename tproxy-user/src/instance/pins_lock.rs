//! A second sign that an agent lives, which does not go with the files of its instance: a lock on the
//! directory of its pins (flock(2)).

use std::{
    fs::{File, TryLockError},
    io,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{Error, Instance};

/// How long an agent may take to die that has let go of its other lock already.
const DYING: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(10);

/// Held by an agent for as long as it lives.
#[derive(Debug)]
pub struct PinsLock {
    _directory: File,
}

impl PinsLock {
    /// Takes the lock. `None` where there are no pins.
    ///
    /// # Errors
    ///
    /// [`Error::RunningUnseen`] when an agent has it.
    pub fn acquire(instance: &Instance) -> Result<Option<Self>, Error> {
        let Some(pins) = instance.pins() else {
            return Ok(None);
        };
        let failed = |cause| Error::File {
            path: pins.clone(),
            cause,
        };
        let directory = match File::open(&pins) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            directory => directory.map_err(failed)?,
        };
        let begun = Instant::now();
        loop {
            match directory.try_lock() {
                Ok(()) => {
                    return Ok(Some(Self {
                        _directory: directory,
                    }));
                }
                Err(TryLockError::WouldBlock) if begun.elapsed() < DYING => sleep(INTERVAL),
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::RunningUnseen {
                        name: instance.name().to_owned(),
                        files: instance.run_directory().into(),
                    });
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }
}
