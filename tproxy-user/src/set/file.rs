//! Where lists of CIDRs are read from.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::{ReadError, Reading, read};
use crate::background;

/// The largest file that is read: a million of the longest lines, four times over.
const MOST_BYTES: usize = 256 << 20;

/// A list that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file.
    #[error("cannot read {name}: {cause}")]
    File {
        /// Which.
        name: String,
        /// The failure.
        cause: io::Error,
    },
    /// Not a file.
    #[error("{0} is a directory: name a file with a CIDR a line")]
    Directory(String),
    /// Far too large.
    #[error("{0} is larger than 256 MiB: no list of a million CIDRs is")]
    TooLarge(String),
    /// What is in it.
    #[error(transparent)]
    Content(#[from] ReadError),
}

/// Reads the list in a file, or from standard input when the path is `-`. `progress` hears of the
/// bytes that were read so far.
///
/// # Errors
///
/// When it cannot be read, or is no list of at most a million CIDRs.
pub fn load(path: &Path, progress: &mut dyn FnMut(u64)) -> Result<Reading, LoadError> {
    if path == Path::new("-") {
        return load_from(io::stdin().lock(), "standard input", progress);
    }
    let name = path.display().to_string();
    let failed = |cause| LoadError::File {
        name: name.clone(),
        cause,
    };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(LoadError::Directory(name));
    }
    load_from(file, &name, progress)
}

fn load_from(
    mut file: impl io::Read,
    name: &str,
    progress: &mut dyn FnMut(u64),
) -> Result<Reading, LoadError> {
    const PIECE: u64 = 1 << 20;
    let mut bytes = Vec::new();
    loop {
        let piece = file.by_ref().take(PIECE).read_to_end(&mut bytes);
        let more = piece.map_err(|cause| LoadError::File {
            name: name.to_owned(),
            cause,
        })?;
        if bytes.len() > MOST_BYTES {
            return Err(LoadError::TooLarge(name.to_owned()));
        }
        if more == 0 {
            return Ok(background::run(|| read(name, &bytes))?);
        }
        progress(bytes.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn refused(path: &Path) -> String {
        load(path, &mut |_| {}).unwrap_err().to_string()
    }

    #[test]
    fn a_file_is_read_and_progress_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        let text = "10.0.0.0/8\n".repeat(200_000);
        fs::write(&path, &text).unwrap();
        let mut told = Vec::new();
        let reading = load(&path, &mut |bytes| told.push(bytes)).unwrap();
        assert_eq!((reading.list.len(), reading.duplicates), (1, 199_999));
        assert!(told.len() >= 2 && told.is_sorted());
        assert_eq!(told.last(), Some(&(text.len() as u64)));
    }

    #[test]
    fn what_is_no_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().display().to_string();
        assert_eq!(
            refused(directory.path()),
            format!("{name} is a directory: name a file with a CIDR a line")
        );
        let missing = refused(&directory.path().join("missing"));
        assert!(
            missing.starts_with(&format!("cannot read {name}/missing: ")),
            "{missing}"
        );
        let endless = refused(Path::new("/dev/zero"));
        assert_eq!(
            endless,
            "/dev/zero is larger than 256 MiB: no list of a million CIDRs is"
        );
    }

    #[test]
    fn a_bad_line_is_named_with_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        fs::write(&path, "10.0.0.0/8\nx\n").unwrap();
        assert_eq!(
            refused(&path),
            format!("{}:2: \"x\" is not a CIDR or an IP address", path.display())
        );
    }
}
