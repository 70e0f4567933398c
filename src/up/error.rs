//! Why an `up` cannot run, in one sentence that says what to do about it.

use std::io;

use thiserror::Error;

use crate::store::StoreError;
use crate::topology::Addr;

/// See the module's note.
#[derive(Debug, Error)]
pub enum UpError {
    /// A program or a file is missing, or too old.
    #[error("{what}: {remedy}")]
    Missing {
        /// What, and what of it.
        what: String,
        /// How to get it.
        remedy: String,
    },
    /// Somebody listens where the first proxy should.
    #[error("cannot listen on {0} ({1}): end what listens there, or choose another address with --listen")]
    PortTaken(Addr, io::Error),
    /// No loopback port is free.
    #[error("no free loopback port was found between 10000 and 32000: end some of what listens there")]
    NoPort,
    /// Another `up` runs there.
    #[error("another 'pointsman up' runs in {0}: end it, or choose another folder with --dir")]
    Running(String),
    /// The folder cannot be used.
    #[error("cannot use {0} ({1}): choose another folder with --dir")]
    Folder(String, io::Error),
    /// A child could not be started.
    #[error("cannot start {0}: {1}")]
    Spawn(String, io::Error),
    /// A child ended while the circuit was coming up.
    #[error("{name} ended while it was starting ({how}): {last}")]
    Ended {
        /// Which child.
        name: String,
        /// How it ended.
        how: String,
        /// The last it wrote.
        last: String,
    },
    /// A child did not serve in time.
    #[error("{name} does not serve within {seconds} s: {last}")]
    Silent {
        /// Which child.
        name: String,
        /// How long it was waited for.
        seconds: u64,
        /// What was heard last.
        last: String,
    },
    /// ZooKeeper refuses what the cluster needs.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The system refuses something else.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}
