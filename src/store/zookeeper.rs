//! The store in ZooKeeper.
//!
//! Owns: operations, and what the crate's errors mean for a write. Refuses: repeating anything. Invariant: an
//! error of the crate counts as "not written" only if a server answered with it; whatever else happens to a
//! write leaves its outcome unknown.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use zookeeper_client::{
    AddWatchMode, Client, CreateMode, CreateOptions, Error, EventType, PersistentWatcher, SessionState,
};

use super::access::Access;
use super::hints::Hints;
use super::session::{Keeper, Link, Told};
use super::{Connection, Lifetime, Owner, Settings, StoreError, Value, Watch};

/// Until a watch that could not be set is set again.
const WATCH_AGAIN: Duration = Duration::from_millis(100);
/// How long the end of the keeper is waited for.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Above the roots of all clusters.
const TOP: &str = "/pointsman";

/// One session; clones share it.
#[derive(Clone, Debug)]
pub(super) struct ZooKeeper {
    root: Arc<str>,
    access: Arc<Access>,
    link: watch::Receiver<Link>,
    connection: watch::Receiver<Connection>,
    session_timeout: Duration,
    stop: CancellationToken,
    _ends_with_the_last: Arc<DropGuard>,
}

impl ZooKeeper {
    pub(super) async fn connect(settings: &Settings) -> Result<Self, StoreError> {
        let stop = CancellationToken::new();
        let Told {
            link,
            connection,
            session_timeout,
        } = Keeper::start(settings, stop.clone()).await?;
        Ok(Self {
            root: format!("{TOP}/{}", settings.cluster).into(),
            access: Arc::new(Access::new(settings.credentials.as_ref())),
            link,
            connection,
            session_timeout,
            stop: stop.clone(),
            _ends_with_the_last: Arc::new(stop.drop_guard()),
        })
    }

    pub(super) async fn get(&self, path: &str) -> Result<Option<Value>, StoreError> {
        let at = self.at(path);
        let reading = |client: Client| async move {
            match client.get_data(&at).await {
                Ok((bytes, stat)) => {
                    let owner = match stat.ephemeral_owner {
                        0 => Owner::Nobody,
                        ours if ours == client.session_id().0 => Owner::Us,
                        _ => Owner::Other,
                    };
                    Ok(Some(Value {
                        bytes,
                        version: stat.version,
                        owner,
                        created: stat.czxid,
                    }))
                }
                Err(Error::NoNode) => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.run(reading).await.map_err(|ended| self.read_failed(ended, path))
    }

    pub(super) async fn set(&self, path: &str, bytes: Vec<u8>, version: i32) -> Result<i32, StoreError> {
        let at = self.at(path);
        let writing = |client: Client| async move { client.set_data(&at, &bytes, Some(version)).await };
        let stat = self
            .run(writing)
            .await
            .map_err(|ended| self.write_failed(ended, path))?;
        Ok(stat.version)
    }

    pub(super) async fn create(&self, path: &str, bytes: Vec<u8>, lifetime: Lifetime) -> Result<(), StoreError> {
        let at = self.at(path);
        let mode = match lifetime {
            Lifetime::Persistent => CreateMode::Persistent,
            Lifetime::Ephemeral => CreateMode::Ephemeral,
        };
        let access = &self.access;
        let writing = |client: Client| async move { create(&client, &at, &bytes, mode, access).await };
        self.run(writing)
            .await
            .map_err(|ended| self.write_failed(ended, path))
            .map(|_| ())
    }

    pub(super) async fn append(&self, parent: &str, bytes: Vec<u8>) -> Result<u64, StoreError> {
        let at = format!("{}/", self.at(parent));
        let (mode, access) = (CreateMode::PersistentSequential, &self.access);
        let writing = |client: Client| async move { create(&client, &at, &bytes, mode, access).await };
        let sequence = self
            .run(writing)
            .await
            .map_err(|ended| self.write_failed(ended, parent))?;
        Ok(u64::try_from(sequence).unwrap_or(0))
    }

    pub(super) async fn delete(&self, path: &str, version: Option<i32>) -> Result<(), StoreError> {
        let at = self.at(path);
        let writing = |client: Client| async move { client.delete(&at, version).await };
        self.run(writing).await.map_err(|ended| self.write_failed(ended, path))
    }

    pub(super) async fn children(&self, path: &str) -> Result<Vec<String>, StoreError> {
        let at = self.at(path);
        let reading = |client: Client| async move {
            match client.list_children(&at).await {
                Ok(names) => Ok(names),
                Err(Error::NoNode) => Ok(Vec::new()),
                Err(error) => Err(error),
            }
        };
        let mut names = self.run(reading).await.map_err(|ended| self.read_failed(ended, path))?;
        names.sort_unstable();
        Ok(names)
    }

    pub(super) async fn exposed(&self, paths: &[String]) -> Result<Vec<String>, StoreError> {
        let mut exposed = Vec::new();
        for path in paths {
            let at = self.at(path);
            let reading = |client: Client| async move {
                match client.get_acl(&at).await {
                    Ok((acls, _)) => Ok(acls),
                    Err(Error::NoNode | Error::NoAuth) => Ok(Vec::new()),
                    Err(error) => Err(error),
                }
            };
            let acls = self.run(reading).await;
            if self
                .access
                .is_wider(&acls.map_err(|ended| self.read_failed(ended, path))?)
            {
                exposed.push(self.at(path));
            }
        }
        Ok(exposed)
    }

    pub(super) async fn sync(&self) -> Result<(), StoreError> {
        let at = self.at("");
        let reading = |client: Client| async move { client.sync(&at).await };
        self.run(reading).await.map_err(|ended| self.read_failed(ended, "/"))
    }

    pub(super) fn watch(&self, path: &str) -> Watch {
        let hints = Arc::new(Hints::default());
        let stop = CancellationToken::new();
        let root = Arc::clone(&self.root);
        let following = follow(self.link.clone(), root, self.at(path), Arc::clone(&hints));
        tokio::spawn(stop.clone().run_until_cancelled_owned(following));
        Watch::new(hints, stop.drop_guard())
    }

    pub(super) fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.clone()
    }

    pub(super) fn session_timeout(&self) -> Duration {
        self.session_timeout
    }

    pub(super) async fn close(&self) {
        self.stop.cancel();
        let mut link = self.link.clone();
        // The keeper, which holds the other end, ends when the session has.
        let ended = async { while link.changed().await.is_ok() {} };
        if timeout(CLOSE_LIMIT, ended).await.is_err() {
            tracing::debug!("the ZooKeeper session is still being closed");
        }
    }

    fn read_failed(&self, ended: Ended, path: &str) -> StoreError {
        match self.write_failed(ended, path) {
            // A read leaves nothing behind.
            StoreError::Unknown => StoreError::Away,
            error => error,
        }
    }

    fn write_failed(&self, ended: Ended, path: &str) -> StoreError {
        match ended {
            Ended::NotSent => StoreError::Away,
            Ended::Lost => StoreError::Unknown,
            Ended::Answered(Error::NoAuth) => self.access.refusal(self.at(path)),
            Ended::Answered(error) => answered(error, path),
        }
    }

    fn at(&self, path: &str) -> String {
        format!("{}{}", self.root, path.trim_end_matches('/'))
    }

    /// Runs one operation on the client of the moment, until that is lost. What the crate still has queued then
    /// may be sent later.
    async fn run<T, F>(&self, operation: impl FnOnce(Client) -> F) -> Result<T, Ended>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut link = self.link.clone();
        let now = link.borrow_and_update().clone();
        let client = now.client.ok_or(Ended::NotSent)?;
        let lost = async {
            let other = |link: &Link| link.connection != now.connection;
            // A closed channel is the end of the session: lost as well.
            let _ = link.wait_for(other).await;
        };
        tokio::select! {
            biased;
            result = operation(client) => result.map_err(Ended::Answered),
            () = lost => Err(Ended::Lost),
        }
    }
}

/// How an operation failed.
enum Ended {
    NotSent,
    Lost,
    Answered(Error),
}

/// What a server's error means for an operation on `path`.
fn answered(error: Error, path: &str) -> StoreError {
    match error {
        Error::BadVersion => StoreError::Conflict(path.to_owned()),
        Error::NodeExists => StoreError::Exists(path.to_owned()),
        Error::NoNode => StoreError::Missing(path.to_owned()),
        Error::NoAuth
        | Error::NoChildrenForEphemerals
        | Error::NotEmpty
        | Error::InvalidAcl
        | Error::AuthFailed
        | Error::NotReadOnly
        | Error::QuotaExceeded
        | Error::Throttled
        | Error::MarshallingError
        | Error::Unimplemented
        | Error::BadArguments(_) => StoreError::Refused {
            path: path.to_owned(),
            why: error.to_string(),
        },
        // Also "session expired": the crate says so by its own clock, of requests that were sent.
        _ => StoreError::Unknown,
    }
}

/// Creates a znode, and its parents first where they are missing. The number is that of a sequential one.
async fn create(client: &Client, at: &str, bytes: &[u8], mode: CreateMode, access: &Access) -> Result<i64, Error> {
    let options: CreateOptions<'_> = access.own(mode);
    let created = match client.create(at, bytes, &options).await {
        Err(Error::NoNode) => {
            let (parent, _) = at.rsplit_once('/').ok_or(Error::NoNode)?;
            match client.create(TOP, &[], &access.shared()).await {
                Ok(_) | Err(Error::NodeExists) => {}
                Err(error) => return Err(error),
            }
            client.mkdir(parent, &access.own(CreateMode::Persistent)).await?;
            client.create(at, bytes, &options).await
        }
        other => other,
    };
    created.map(|(_, sequence)| sequence.into_i64())
}

/// Sets the watch in each connection that comes, and passes its events on.
///
/// In each connection and not only in each client: a server knows watches by connection, and the crate (0.11.2)
/// restores only those that fire once. One that is lost without a word would leave us with the picture of the moment
/// for ever.
async fn follow(mut link: watch::Receiver<Link>, root: Arc<str>, at: String, hints: Arc<Hints>) {
    // The last one stays until the next is set: the end of a path's only watcher takes the server's watch along.
    let mut _last = None;
    loop {
        let client = link.borrow_and_update().client.clone();
        let Some(mut watcher) = set_watch(client, &mut link, &at).await else {
            if link.has_changed().is_err() {
                return;
            }
            continue;
        };
        _last = None;
        // Set first, then read: the reader learns now that it may read. Events of the time away are not delivered
        // again (ZOOKEEPER-4698).
        hints.everything();
        loop {
            let event = watcher.changed().await;
            if event.event_type != EventType::Session {
                hints.path(event.path.strip_prefix(&*root).unwrap_or(&event.path).to_owned());
            } else if event.session_state.is_terminated() || event.session_state == SessionState::SyncConnected {
                break;
            }
        }
        _last = Some(watcher);
    }
}

/// Sets the watch, or waits for something to change. The client is given up in any case: held, it would keep its
/// session from ending.
async fn set_watch(client: Option<Client>, link: &mut watch::Receiver<Link>, at: &str) -> Option<PersistentWatcher> {
    let Some(client) = client else {
        // An end shows in the next look.
        let _ = link.changed().await;
        return None;
    };
    tokio::select! {
        set = client.watch(at, AddWatchMode::PersistentRecursive) => match set {
            Ok(watcher) => return Some(watcher),
            Err(error) => tracing::debug!(%error, at, "a watch could not be set"),
        },
        _ = link.changed() => return None,
    }
    drop(client);
    // The same client again, unless another comes first.
    let _ = timeout(WATCH_AGAIN, link.changed()).await;
    None
}
