//! Where a file comes from.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::Problems;

/// The largest file that is read: a million CIDRs in it would take less.
const MOST_BYTES: u64 = 128 << 20;

/// A file, or standard input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// Standard input; paths are seen from the working directory.
    StandardInput,
}

impl Source {
    /// What is meant by an argument: `-` is standard input.
    #[must_use]
    pub fn of_argument(argument: &Path) -> Self {
        if argument == Path::new("-") {
            Self::StandardInput
        } else {
            Self::File(argument.into())
        }
    }

    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::File(path) => path.to_str().unwrap_or("the file"),
            Self::StandardInput => "standard input",
        }
    }

    /// Where relative paths in it begin.
    pub(super) fn directory(&self) -> &Path {
        match self {
            Self::File(path) => path.parent().unwrap_or(Path::new("")),
            Self::StandardInput => Path::new(""),
        }
    }

    /// What is in it.
    pub(super) fn text(&self) -> Result<String, Problems> {
        let bytes = match self {
            Self::File(path) => File::open(path).and_then(read),
            Self::StandardInput => read(io::stdin().lock()),
        };
        let bytes = bytes.map_err(|error| {
            let text = match error.kind() {
                io::ErrorKind::IsADirectory => "is a directory: name a file".to_owned(),
                _ => format!("cannot be read: {error}"),
            };
            Problems::of_file(self.name(), text)
        })?;
        String::from_utf8(bytes).map_err(|error| {
            let read = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..read]
                .split(|byte| *byte == b'\n')
                .count();
            Problems::at_line(self.name(), line, "is not UTF-8 text")
        })
    }
}

fn read(file: impl io::Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        let text = "larger than 128 MiB: put CIDRs into files of their own";
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}
