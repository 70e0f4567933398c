//! What is wrong with a config, in one sentence that names file, line, key and remedy.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// What is wrong, and where inside its table.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{key}: {what}")]
pub struct Problem {
    /// The key at fault.
    pub key: String,
    /// What is wrong with it and what to do about it.
    pub what: String,
}

impl Problem {
    /// A problem with `key`.
    pub fn new(key: &str, what: impl Into<String>) -> Self {
        Self {
            key: key.to_owned(),
            what: what.into(),
        }
    }
}

/// Why a config is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {error}; name a file that can be read", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A line of the file is wrong.
    #[error("{}:{line}: {problem}", path.display())]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong there.
        problem: Problem,
    },
    /// The file is of no kind, of several, or of another kind than asked for.
    #[error("{}: {what}", path.display())]
    Kind {
        /// Which file.
        path: PathBuf,
        /// What it is and should be.
        what: String,
    },
    /// What the flags say, without a file.
    #[error("--{}: {}", problem.key.replace('_', "-"), problem.what)]
    Flags {
        /// What is wrong.
        problem: Problem,
    },
    /// The file of a secret or a password is unfit.
    #[error("{}: {what}", path.display())]
    Secret {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it and what to do about it.
        what: String,
    },
}
