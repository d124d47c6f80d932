//! A certificate that nobody has to trust but those who are told to.

use std::{path::PathBuf, process::Command};

use tempfile::TempDir;

use crate::process;

/// A certificate for a host's name, signed by itself, and its key.
#[derive(Debug)]
pub struct Certificate {
    directory: TempDir,
}

impl Certificate {
    /// Makes one for `host`, good for two days.
    #[must_use]
    #[track_caller]
    pub fn of(host: &str) -> Self {
        let certificate = Self {
            directory: TempDir::new().expect("make a directory"),
        };
        process::expect_success(
            Command::new("openssl")
                .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1".split(' '))
                .args(["-nodes", "-days", "2", "-subj", "/CN=test", "-addext"])
                .arg(format!("subjectAltName=DNS:{host}"))
                .arg("-out")
                .arg(certificate.path())
                .arg("-keyout")
                .arg(certificate.key()),
        );
        certificate
    }

    /// The file that whoever trusts it has to be given.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("certificate.pem")
    }

    pub(super) fn key(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }
}
