//! Kernels of Debian, fetched and unpacked but never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::command;

/// An unpacked kernel package.
pub(super) struct Kernel {
    /// What boots.
    pub(super) image: PathBuf,
    /// `/lib/modules/RELEASE` of the package.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// The newest kernel of a series (`6.1`) that the package lists of this host know.
    ///
    /// # Errors
    ///
    /// When there is none, or it cannot be fetched.
    pub(super) fn of_series(series: &str) -> Result<Self> {
        let package = package_of(series)?;
        let directory = command::target_directory().join("vm").join(&package);
        if !directory.exists() {
            fetch(&package, &directory)?;
        }
        let release = package.trim_start_matches("linux-image-");
        let modules = directory.join("lib/modules").join(release);
        if !modules.join("modules.dep").exists() {
            command::run(
                Command::new("/sbin/depmod")
                    .arg("--basedir")
                    .arg(&directory)
                    .arg(release),
            )?;
        }
        Ok(Self {
            image: directory.join("boot").join(format!("vmlinuz-{release}")),
            modules,
        })
    }

    /// The files of these modules and of those that they need, each after what it needs.
    ///
    /// # Errors
    ///
    /// When the package has no list of its modules.
    pub(super) fn modules_in_order(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let list = self.modules.join("modules.dep");
        let list = fs::read_to_string(&list).with_context(|| list.display().to_string())?;
        let mut ordered: Vec<PathBuf> = Vec::new();
        for name in names {
            let file = format!("/{name}.ko");
            // "kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko ...", what is needed first standing last.
            // What the kernel has built in is not listed.
            let line = list.lines().find(|line| {
                let module = line.split(':').next().unwrap_or_default();
                module.trim_end_matches(".xz").ends_with(&file)
            });
            let words = line.into_iter().flat_map(|line| line.split([':', ' ']));
            let mut files: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
            files.reverse();
            for file in files {
                let path = self.modules.join(file);
                if !ordered.contains(&path) {
                    ordered.push(path);
                }
            }
        }
        Ok(ordered)
    }
}

/// The package that the newest version of a series is in. Those of the `cloud` flavour are smaller
/// but lack the file system of the host.
fn package_of(series: &str) -> Result<String> {
    let names = command::quietly(Command::new("apt-cache").args(["pkgnames", "linux-image-"]))?;
    let candidates = names.lines().filter_map(|name| {
        let release = name.strip_prefix("linux-image-")?;
        let version = release.strip_suffix("-amd64")?;
        let rest = version.strip_prefix(series)?.strip_prefix('.')?;
        // 6.1.0-50, 6.12.117+deb12; not 6.1.0-50-cloud or 6.1.0-50-rt.
        let numbers: Vec<u32> = rest
            .trim_end_matches("+deb12")
            .split(['.', '-'])
            .map(|number| number.parse().ok())
            .collect::<Option<_>>()?;
        Some((numbers, name))
    });
    match candidates.max() {
        Some((_, name)) => Ok(name.to_owned()),
        None => bail!(
            "the package lists know no kernel {series}: apt-get update, or see `apt-cache pkgnames linux-image-`"
        ),
    }
}

fn fetch(package: &str, directory: &Path) -> Result<()> {
    let unfinished = directory.with_file_name(format!("{package}.unfinished"));
    fs::create_dir_all(&unfinished).with_context(|| unfinished.display().to_string())?;
    command::run(
        Command::new("apt-get")
            .args(["-q", "download", package])
            .current_dir(&unfinished),
    )?;
    let archive = fs::read_dir(&unfinished)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get left no package in {}", unfinished.display()))?;
    command::run(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(&archive)
            .arg(&unfinished),
    )?;
    fs::remove_file(&archive)?;
    fs::rename(&unfinished, directory).with_context(|| directory.display().to_string())
}
