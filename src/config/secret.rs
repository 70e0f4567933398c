//! The files of the cluster's secret and of passwords.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use super::agent::Password;
use super::error::ConfigError;

/// The shortest secret, in bytes.
pub const SECRET_BYTES_MIN: usize = 16;
/// The longest file of a secret that is read, in bytes.
const SECRET_BYTES_MAX: u64 = 4096;
/// Permission bits of those who are neither the owner nor of its group.
const OTHERS: u32 = 0o007;

/// Reads the cluster's secret: the file's text without white space at its ends.
pub fn read_secret(path: &Path) -> Result<Arc<[u8]>, ConfigError> {
    let secret = read_private(path)?;
    if secret.len() < SECRET_BYTES_MIN {
        let what = format!(
            "the secret has {} bytes, {SECRET_BYTES_MIN} are needed: make one with 'openssl rand -hex 32'",
            secret.len()
        );
        return Err(refused(path, what));
    }
    Ok(secret.into_bytes().into())
}

impl Password {
    /// The password, read from its file if it is in one.
    pub fn read(&self) -> Result<Option<String>, ConfigError> {
        match self {
            Self::None => Ok(None),
            Self::Given(password) => Ok(Some(password.clone())),
            Self::File(path) => read_private(path).map(Some),
        }
    }
}

fn read_private(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |error| ConfigError::Unreadable {
        path: path.to_owned(),
        error,
    };
    let mode = fs::metadata(path).map_err(unreadable)?.mode();
    if mode & OTHERS != 0 {
        let what = format!(
            "everybody on this machine may use it: run 'chmod o= {}'",
            path.display()
        );
        return Err(refused(path, what));
    }
    let mut text = String::new();
    let mut file = File::open(path).map_err(unreadable)?.take(SECRET_BYTES_MAX);
    file.read_to_string(&mut text).map_err(unreadable)?;
    Ok(text.trim().to_owned())
}

fn refused(path: &Path, what: String) -> ConfigError {
    ConfigError::Secret {
        path: path.to_owned(),
        what,
    }
}
