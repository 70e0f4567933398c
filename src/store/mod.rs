//! The store: ZooKeeper behind a seam, and its in-memory twin.
//!
//! ```text
//!  Store --> ZooKeeper { session loop: connect, re-attach, new session } --> ensemble
//!        \-> Memory    { the same in this process, with faults on demand }
//!  Watch <-- hints: "this path changed"          Connection <-- Away | Up { session, attachment }
//! ```
//!
//! Owns: [`Store`] and its operations, [`Watch`], [`Connection`], [`Ephemeral`]. Refuses: what the values mean
//! (`topology::codec`) and what follows from them. Invariants: an operation begun while away was not sent; a
//! write whose outcome was lost says so ([`StoreError::Unknown`]) and is never repeated here; only a server says
//! that a session has expired; queues are bounded (hints coalesce).

mod access;
mod connection;
mod ephemeral;
mod error;
mod hints;
mod memory;
mod session;
mod zookeeper;

use std::time::Duration;

use tokio::time::sleep;

use crate::clock;
use crate::telemetry::Repeated;

pub use access::Credentials;
pub use connection::Connection;
pub use ephemeral::{Ephemeral, Standing};
pub use error::{Effect, StoreError};
pub use hints::{Hint, Watch};
pub use memory::{Loss, Memory};

use memory::MemorySession;
use zookeeper::ZooKeeper;

/// How long a session outlives its connection, unless configured.
pub const SESSION_TIMEOUT: Duration = Duration::from_millis(4000);

/// Between two attempts to reach a ZooKeeper that was never there yet.
const CONNECT_AGAIN: Duration = Duration::from_millis(200);
/// Until that it is not there is said again.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Where the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// ZooKeeper's connect string: `HOST:PORT,HOST:PORT`.
    pub connect: String,
    /// The cluster's name: the root is `/pointsman/<cluster>`.
    pub cluster: String,
    /// How long a session outlives its connection.
    pub session_timeout: Duration,
    /// Who we are there; none: nobody, and everybody may do everything with our znodes.
    pub credentials: Option<Credentials>,
}

impl Settings {
    /// The defaults for an ensemble and a cluster.
    pub fn new(connect: &str, cluster: &str) -> Self {
        Self {
            connect: connect.to_owned(),
            cluster: cluster.to_owned(),
            session_timeout: SESSION_TIMEOUT,
            credentials: None,
        }
    }
}

/// A znode as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its version, the condition of a compare-and-set.
    pub version: i32,
    /// Whose session it ends with.
    pub owner: Owner,
    /// Its place in the order in which all znodes of the ensemble were created.
    pub created: i64,
}

/// Whose session a znode ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody's: it is persistent.
    Nobody,
    /// Ours.
    Us,
    /// That of somebody else, or of an earlier life of ours.
    Other,
}

/// How long a znode lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is deleted.
    Persistent,
    /// As long as our session.
    Ephemeral,
}

/// A handle to the store; clones share one session, which ends with the last of them.
///
/// All paths are below the cluster's root and begin with `/`.
#[derive(Clone, Debug)]
pub struct Store(Inner);

#[derive(Clone, Debug)]
enum Inner {
    ZooKeeper(ZooKeeper),
    Memory(MemorySession),
}

impl Store {
    /// Connects to ZooKeeper. Fails if no server answers now; later it is waited for.
    pub async fn connect(settings: &Settings) -> Result<Self, StoreError> {
        Ok(Self(Inner::ZooKeeper(ZooKeeper::connect(settings).await?)))
    }

    /// The same for servers, which may be up before ZooKeeper is: waits until one answers, which is said at once and then each
    /// minute. Fails only of what no waiting mends: an address that is none, refused credentials.
    pub async fn await_connect(settings: &Settings) -> Result<Self, StoreError> {
        let mut away = Repeated::new(SAY_AGAIN);
        loop {
            match Self::connect(settings).await {
                Err(StoreError::Unreachable { connect, why }) => {
                    if away.due(clock::now()) {
                        tracing::warn!("ZooKeeper at {connect} does not answer ({why}): waiting for it");
                    }
                    sleep(CONNECT_AGAIN).await;
                }
                done => return done,
            }
        }
    }

    /// The znode at `path`, if there is one.
    pub async fn get(&self, path: &str) -> Result<Option<Value>, StoreError> {
        match &self.0 {
            Inner::ZooKeeper(store) => store.get(path).await,
            Inner::Memory(store) => store.get(path),
        }
    }

    /// Writes `bytes` if the znode still has `version`; returns its version then.
    pub async fn set(&self, path: &str, bytes: Vec<u8>, version: i32) -> Result<i32, StoreError> {
        match &self.0 {
            Inner::ZooKeeper(store) => store.set(path, bytes, version).await,
            Inner::Memory(store) => store.set(path, bytes, version),
        }
    }

    /// Creates a znode, and its parents where they are missing. Its version is 0.
    pub async fn create(&self, path: &str, bytes: Vec<u8>, lifetime: Lifetime) -> Result<(), StoreError> {
        match &self.0 {
            Inner::ZooKeeper(store) => store.create(path, bytes, lifetime).await,
            Inner::Memory(store) => store.create(path, bytes, lifetime),
        }
    }

    /// Creates a persistent znode below `parent` whose name is the next number, and returns that.
    pub async fn append(&self, parent: &str, bytes: Vec<u8>) -> Result<u64, StoreError> {
        match &self.0 {
            Inner::ZooKeeper(store) => store.append(parent, bytes).await,
            Inner::Memory(store) => store.append(parent, bytes),
        }
    }

    /// Creates a persistent znode unless there is one already.
    pub async fn ensure(&self, path: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        match self.create(path, bytes, Lifetime::Persistent).await {
            Ok(()) | Err(StoreError::Exists(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes a znode, if it still has `version` where one is given.
    pub async fn delete(&self, path: &str, version: Option<i32>) -> Result<(), StoreError> {
        match &self.0 {
            Inner::ZooKeeper(store) => store.delete(path, version).await,
            Inner::Memory(store) => store.delete(path, version),
        }
    }

    /// The names of the znodes below `path`, sorted; none if it does not exist.
    pub async fn children(&self, path: &str) -> Result<Vec<String>, StoreError> {
        match &self.0 {
            Inner::ZooKeeper(store) => store.children(path).await,
            Inner::Memory(store) => store.children(path),
        }
    }

    /// Which of these znodes let everybody do more than our own ones do. None without credentials, and those that do
    /// not exist or do not show it are left out.
    pub async fn exposed(&self, paths: &[String]) -> Result<Vec<String>, StoreError> {
        match &self.0 {
            Inner::ZooKeeper(store) => store.exposed(paths).await,
            Inner::Memory(_) => Ok(Vec::new()),
        }
    }

    /// Makes reads that follow see whatever was written before this call, by anyone.
    pub async fn sync(&self) -> Result<(), StoreError> {
        match &self.0 {
            Inner::ZooKeeper(store) => store.sync().await,
            Inner::Memory(store) => store.sync(),
        }
    }

    /// Hints about changes at and below `path`. The first one says [`Hint::Everything`], once the watch is set.
    pub fn watch(&self, path: &str) -> Watch {
        match &self.0 {
            Inner::ZooKeeper(store) => store.watch(path),
            Inner::Memory(store) => store.watch(path),
        }
    }

    /// Whether the store can be reached, and in which session.
    pub fn connection(&self) -> tokio::sync::watch::Receiver<Connection> {
        match &self.0 {
            Inner::ZooKeeper(store) => store.connection(),
            Inner::Memory(store) => store.connection(),
        }
    }

    /// How long a session outlives its connection, as the server granted it.
    pub fn session_timeout(&self) -> Duration {
        match &self.0 {
            Inner::ZooKeeper(store) => store.session_timeout(),
            Inner::Memory(_) => SESSION_TIMEOUT,
        }
    }

    /// Ends the session, and with it its ephemerals, at once instead of after its timeout.
    pub async fn close(&self) {
        match &self.0 {
            Inner::ZooKeeper(store) => store.close().await,
            Inner::Memory(store) => store.close(),
        }
    }
}
