//! What processes hold: memory, descriptors, bytes in pipes.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::{libc::O_NONBLOCK, unistd::Pid};

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Footprint {
    /// Bytes resident, pages that several processes share counted in parts (`Pss`).
    pub(crate) resident: f64,
    /// Bytes of them that no file backs: what the processes have written.
    pub(crate) written: f64,
    /// Open descriptors; a table that processes share counts once.
    pub(crate) descriptors: f64,
    /// Bytes in pipes.
    pub(crate) in_pipes: f64,
}

impl Footprint {
    /// # Errors
    ///
    /// When one of them has ended.
    pub(crate) fn of(processes: &[Pid]) -> Result<Self> {
        let mut footprint = Self::default();
        let mut tables = HashSet::new();
        let mut pipes = HashSet::new();
        for process in processes {
            let directory = PathBuf::from(format!("/proc/{process}"));
            footprint
                .add_memory(&directory)
                .with_context(|| format!("cannot read the memory of process {process}"))?;
            let directory = directory.join("fd");
            let table = descriptors(&directory)
                .with_context(|| format!("cannot read the descriptors of process {process}"))?;
            footprint.in_pipes += table
                .iter()
                .filter(|(_, leads_to)| leads_to.starts_with("pipe:"))
                .filter(|(_, pipe)| pipes.insert(pipe.clone()))
                .map(|(number, _)| bytes_in_pipe(&directory.join(number)))
                .sum::<f64>();
            let count = u32::try_from(table.len())?;
            if tables.insert(table) {
                footprint.descriptors += f64::from(count);
            }
        }
        Ok(footprint)
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            resident: self.resident - earlier.resident,
            written: self.written - earlier.written,
            descriptors: self.descriptors - earlier.descriptors,
            in_pipes: self.in_pipes - earlier.in_pipes,
        }
    }

    fn add_memory(&mut self, directory: &Path) -> Result<()> {
        let text = fs::read_to_string(directory.join("smaps_rollup"))?;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(name), Some(kibibytes)) = (words.next(), words.next()) else {
                continue;
            };
            let bytes = kibibytes.parse::<f64>().unwrap_or(0.0) * 1024.0;
            match name {
                "Pss:" => self.resident += bytes,
                "Pss_Anon:" | "Pss_Shmem:" => self.written += bytes,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Each descriptor's number, and what it leads to.
fn descriptors(directory: &Path) -> Result<Vec<(OsString, String)>> {
    let mut table = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // It may have been closed meanwhile.
        if let Ok(leads_to) = fs::read_link(entry.path()) {
            table.push((entry.file_name(), leads_to.to_string_lossy().into_owned()));
        }
    }
    Ok(table)
}

/// 0 for one that was closed meanwhile.
fn bytes_in_pipe(path: &Path) -> f64 {
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(O_NONBLOCK).open(path);
    let bytes = opened.map(rustix::io::ioctl_fionread);
    match bytes {
        Ok(Ok(bytes)) => f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use nix::unistd::Pid;

    use super::Footprint;

    #[test]
    fn bytes_in_pipes_are_found() {
        // A process of its own: other tests use pipes in this one.
        let mut idle = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::piped())
            .spawn()
            .expect("start sleep");
        let process = Pid::from_raw(idle.id().try_into().expect("a process number"));
        let before = Footprint::of(&[process]).expect("it is there");
        let mut pipe = idle.stdin.take().expect("its standard input is a pipe");
        pipe.write_all(&[0; 1234]).expect("it fits");
        let after = Footprint::of(&[process]).expect("it is there");
        idle.kill().expect("end it");
        idle.wait().expect("wait for it");
        let in_pipes = after.since(before).in_pipes;
        assert!((in_pipes - 1234.0).abs() < 1.0, "{in_pipes}");
    }
}
