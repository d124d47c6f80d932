//! Python programs of the tests, in the environment that `cargo xtask setup` makes.

use std::path::{Path, PathBuf};

/// The environment: xtask makes it in the same place, wherever cargo builds.
const ENVIRONMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/python");

/// What a command line starts with whose program is to find no variable that names a proxy, whatever the environment of
/// the tests has.
pub const WITHOUT_PROXIES: &str = "env -u http_proxy -u https_proxy -u all_proxy -u no_proxy -u HTTP_PROXY \
                                   -u HTTPS_PROXY -u ALL_PROXY -u NO_PROXY";

/// What a command line starts with that runs a script of `tests/src/peer`.
#[must_use]
#[track_caller]
pub fn python(script: &str) -> String {
    let interpreter = existing(Path::new(ENVIRONMENT).join("bin/python3"));
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/src/peer");
    let script = existing(Path::new(directory).join(script));
    format!("{} {}", interpreter.display(), script.display())
}

/// A file of a package in the environment.
#[track_caller]
pub(super) fn package(path: &str) -> PathBuf {
    let versions = Path::new(ENVIRONMENT).join("lib");
    let packages = versions.read_dir().into_iter().flatten().flatten();
    let mut files = packages.map(|version| version.path().join("site-packages").join(path));
    let file = files.find(|file| file.exists());
    existing(file.unwrap_or_else(|| versions.join(path)))
}

#[track_caller]
fn existing(path: PathBuf) -> PathBuf {
    assert!(
        path.exists(),
        "no {}: `cargo xtask setup` installs it",
        path.display()
    );
    path
}
