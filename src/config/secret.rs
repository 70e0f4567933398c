//! The files of the cluster's secret and of passwords, and how what is secret is read.
//!
//! Invariant: what others can read or change is no secret, and is refused before anything begins.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use nix::unistd::Uid;

use super::agent::Password;
use super::error::ConfigError;

/// The shortest secret, in bytes.
pub const SECRET_BYTES_MIN: usize = 16;
/// The longest file of a secret or password, in bytes.
pub const SECRET_BYTES_MAX: u64 = 4096;
/// Permission bits of those who are neither the owner nor of its group.
const OTHERS: u32 = 0o007;
/// Permission bits of the group.
const GROUP: u32 = 0o070;
/// Of those, the one to read.
const GROUP_READS: u32 = 0o040;

/// Reads the cluster's secret: the file's text without white space at its ends, at least [`SECRET_BYTES_MIN`] bytes.
pub fn read_secret(path: &Path) -> Result<Arc<[u8]>, ConfigError> {
    let text = read_private(path, SECRET_BYTES_MAX)?;
    let secret = text.trim();
    if secret.len() < SECRET_BYTES_MIN {
        let what = format!(
            "the secret has {} bytes, {SECRET_BYTES_MIN} are needed: make one with 'openssl rand -hex 32'",
            secret.len()
        );
        return Err(refused(path, what));
    }
    Ok(secret.as_bytes().into())
}

/// Reads user and password for ZooKeeper: one line, `user:password`.
pub fn read_user_and_password(path: &Path) -> Result<(String, String), ConfigError> {
    let line = read_line(path)?;
    match line.split_once(':') {
        Some((user, password)) if !user.is_empty() && !password.is_empty() => {
            Ok((user.to_owned(), password.to_owned()))
        }
        Some(_) | None => Err(refused(
            path,
            "it is not of the form user:password: write one such line".to_owned(),
        )),
    }
}

impl Password {
    /// The password, read from its file (which holds it as its only line) if it is in one.
    pub fn read(&self) -> Result<Option<String>, ConfigError> {
        match self {
            Self::None => Ok(None),
            Self::Given(password) => Ok(Some(password.clone())),
            Self::File(path) => read_line(path).map(Some),
        }
    }
}

/// The file's only line, without its end.
fn read_line(path: &Path) -> Result<String, ConfigError> {
    let text = read_private(path, SECRET_BYTES_MAX)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.contains(['\n', '\r']) {
        return Err(refused(path, "it has several lines: leave one".to_owned()));
    }
    if line.is_empty() {
        return Err(refused(path, "it is empty: write the password into it".to_owned()));
    }
    Ok(line.to_owned())
}

/// The text of a file of at most `bytes_max` bytes that nobody else may use.
pub(super) fn read_private(path: &Path, bytes_max: u64) -> Result<String, ConfigError> {
    let unreadable = |error| ConfigError::Unreadable {
        path: path.to_owned(),
        error,
    };
    // Looked at before it is opened: opening a pipe would wait for who writes into it.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(refused(path, "it is no file: name a regular file".to_owned()));
    }
    let file = File::open(path).map_err(unreadable)?;
    let found = file.metadata().map_err(unreadable)?;
    if let Some(who) = who_else(&found) {
        let what = format!("{who} may use it: run 'chmod 600 {}'", path.display());
        return Err(refused(path, what));
    }
    if found.len() > bytes_max {
        let what = format!(
            "it has {} bytes, at most {bytes_max} are read: it is another file",
            found.len()
        );
        return Err(refused(path, what));
    }
    let mut text = String::new();
    match file.take(bytes_max).read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            let what =
                "it holds bytes that are no text (UTF-8): write it in hex, for example with 'openssl rand -hex 32'";
            Err(refused(path, what.to_owned()))
        }
        Err(error) => Err(unreadable(error)),
    }
}

/// Who may use a file beside its owner and us. Where it belongs to somebody else, its group is how we came to be able to
/// read it: so are the secrets of Kubernetes given to who is not root.
fn who_else(file: &Metadata) -> Option<&'static str> {
    let theirs = file.uid() != Uid::effective().as_raw();
    match file.mode() {
        mode if mode & OTHERS != 0 => Some("everybody on this machine"),
        mode if mode & GROUP != 0 && !(theirs && mode & GROUP == GROUP_READS) => Some("its group"),
        _ => None,
    }
}

pub(super) fn refused(path: &Path, what: String) -> ConfigError {
    ConfigError::Secret {
        path: path.to_owned(),
        what,
    }
}
