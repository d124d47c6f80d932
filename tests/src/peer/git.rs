//! A git repository that nginx serves as plain files.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use tempfile::TempDir;

use crate::{
    pattern,
    peer::{Nginx, WITHOUT_PROXIES},
    process,
};

/// Variables for git, so that the settings of whoever runs the tests are of no effect.
const APART: &str = "GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0";

/// A repository below the root of an [`Nginx`].
#[derive(Debug)]
pub struct Repository {
    /// Of its only file.
    content: Vec<u8>,
}

impl Repository {
    /// The path in URLs.
    const PATH: &str = "project.git";

    /// The name of its only file.
    const FILE: &str = "file";

    /// Makes one of about a megabyte and puts it where `nginx` serves it.
    #[must_use]
    #[track_caller]
    pub fn serve(nginx: &Nginx) -> Self {
        let work = TempDir::new().expect("make a directory");
        let git = |line: &str| {
            let mut command = Command::new("env");
            command.args(APART.split(' ')).args(line.split(' '));
            process::expect_success(command.current_dir(work.path()));
        };
        // Hardly compressible, so that the pack is as long.
        let mut content = Vec::new();
        pattern::write(&mut content, 1 << 20).expect("write to memory");
        git("git init --quiet --initial-branch=main");
        fs::write(work.path().join(Self::FILE), &content).expect("write the file");
        git("git add --all");
        git("git -c user.name=test -c user.email=test@example.test commit --quiet --message=first");
        let bare = nginx.root().join(Self::PATH);
        let bare_path = bare.to_str().expect("temporary directories are UTF-8");
        git(&format!("git clone --quiet --bare . {bare_path}"));
        git(&format!("git --git-dir={bare_path} update-server-info"));
        Self { content }
    }

    /// The command line that clones it from the nginx at `server` into an empty directory.
    #[must_use]
    pub fn clone_command(&self, server: SocketAddr, directory: &Path) -> String {
        let (path, directory) = (Self::PATH, directory.display());
        format!("{WITHOUT_PROXIES} {APART} git clone --quiet http://{server}/{path} {directory}")
    }

    /// Checks that `directory` is a clone of it.
    #[track_caller]
    pub fn assert_cloned(&self, directory: &Path) {
        let file = fs::read(directory.join(Self::FILE)).expect("read the cloned file");
        assert!(file == self.content, "the clone has the same content");
    }
}
