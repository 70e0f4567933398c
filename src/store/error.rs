//! Why the store did not do as told, and whether it may have.

use thiserror::Error;

/// See the module's note.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// No server answered at the start.
    #[error("ZooKeeper at {connect} does not answer ({why}): start it, or correct the address")]
    Unreachable {
        /// The connect string.
        connect: String,
        /// What the last attempt met.
        why: String,
    },
    /// The settings are nonsense.
    #[error("{connect:?} is no ZooKeeper address ({why}): write HOST:PORT,HOST:PORT")]
    BadAddress {
        /// The connect string.
        connect: String,
        /// What is wrong with it.
        why: String,
    },
    /// Not connected: it was not sent.
    #[error("ZooKeeper is away")]
    Away,
    /// The connection broke: it may or may not have been done, or may yet be.
    #[error("the connection to ZooKeeper broke: the outcome is not known")]
    Unknown,
    /// The znode has another version: somebody else wrote first.
    #[error("{0} was changed by somebody else")]
    Conflict(String),
    /// There is such a znode already.
    #[error("{0} exists already")]
    Exists(String),
    /// There is no such znode.
    #[error("{0} does not exist")]
    Missing(String),
    /// Its ACL does not let us.
    #[error("ZooKeeper refuses {path} {why}")]
    Forbidden {
        /// Which znode, from the ensemble's root.
        path: String,
        /// To whom, and the remedy.
        why: String,
    },
    /// The server refuses for another reason.
    #[error("ZooKeeper refuses {path}: {why}")]
    Refused {
        /// Which znode.
        path: String,
        /// In its words.
        why: String,
    },
}

/// Whether a write that failed happened nevertheless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It did not.
    NotWritten,
    /// It may have, or may yet.
    Unknown,
}

impl StoreError {
    /// Whether the write that ended with this error may have happened.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Unknown => Effect::Unknown,
            Self::Unreachable { .. }
            | Self::BadAddress { .. }
            | Self::Away
            | Self::Conflict(_)
            | Self::Exists(_)
            | Self::Missing(_)
            | Self::Forbidden { .. }
            | Self::Refused { .. } => Effect::NotWritten,
        }
    }
}
