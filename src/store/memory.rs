//! The store in this process: the twin of ZooKeeper that tests use, with faults on demand.
//!
//! Owns: [`Memory`], an ensemble, and its sessions. Invariant: it promises what `zookeeper` does and no more
//! (tests/it/store.rs runs the same tests against both).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::hints::Hints;
use super::{Connection, Inner, Lifetime, Owner, Store, StoreError, Value, Watch};

/// An ensemble in memory. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    tree: Arc<Mutex<Tree>>,
}

#[derive(Debug, Default)]
struct Tree {
    nodes: BTreeMap<String, Node>,
    sessions: BTreeMap<u64, watch::Sender<Connection>>,
    ids: u64,
    /// Creations so far.
    creations: i64,
    stopped: bool,
    /// What becomes of the next write, if it is lost.
    losing: Option<Loss>,
    watches: Vec<(String, Arc<Hints>, CancellationToken)>,
}

#[derive(Debug)]
struct Node {
    bytes: Vec<u8>,
    version: i32,
    /// The session it ends with.
    owner: Option<u64>,
    /// Children ever created: the next sequential number.
    children: u64,
    /// Its place in the order of all creations.
    created: i64,
}

/// What becomes of a write whose answer is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It is done, and nobody learns it.
    Done,
    /// It never arrives.
    NotDone,
}

/// One session; clones share it.
#[derive(Clone, Debug)]
pub(super) struct MemorySession {
    ensemble: Memory,
    id: u64,
    _ends_with_the_last: Arc<End>,
}

#[derive(Debug)]
struct End {
    ensemble: Memory,
    id: u64,
}

impl Drop for End {
    fn drop(&mut self) {
        self.ensemble.lock().end(self.id);
    }
}

impl Memory {
    /// A session with this ensemble.
    pub fn store(&self) -> Store {
        let mut tree = self.lock();
        tree.ids += 1;
        let id = tree.ids;
        let connection = if tree.stopped { Connection::Away } else { up(1, 1) };
        tree.sessions.insert(id, watch::Sender::new(connection));
        drop(tree);
        Store(Inner::Memory(MemorySession {
            ensemble: self.clone(),
            id,
            _ends_with_the_last: Arc::new(End {
                ensemble: self.clone(),
                id,
            }),
        }))
    }

    /// Nobody reaches it any more.
    pub fn stop(&self) {
        let mut tree = self.lock();
        tree.stopped = true;
        for connection in tree.sessions.values() {
            connection.send_replace(Connection::Away);
        }
    }

    /// It can be reached again, with the sessions it had.
    pub fn start(&self) {
        let mut tree = self.lock();
        tree.stopped = false;
        tree.ids += 1;
        let attachment = tree.ids;
        for connection in tree.sessions.values() {
            connection.send_replace(up(1, attachment));
        }
        tree.tell_everything();
    }

    /// All sessions expire: their ephemerals go, and each store has a new one at once.
    pub fn expire(&self) {
        let mut tree = self.lock();
        tree.ids += 1;
        let number = tree.ids;
        for id in tree.sessions.keys().copied().collect::<Vec<_>>() {
            tree.forget(id);
        }
        for connection in tree.sessions.values() {
            connection.send_replace(up(number, number));
        }
        tree.tell_everything();
    }

    /// The answer to the next write is lost.
    pub fn lose_next_write(&self, loss: Loss) {
        self.lock().losing = Some(loss);
    }

    fn lock(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn up(session: u64, attachment: u64) -> Connection {
    Connection::Up { session, attachment }
}

impl MemorySession {
    pub(super) fn get(&self, path: &str) -> Result<Option<Value>, StoreError> {
        let tree = self.reach()?;
        Ok(tree.nodes.get(path).map(|node| Value {
            bytes: node.bytes.clone(),
            version: node.version,
            owner: match node.owner {
                None => Owner::Nobody,
                Some(owner) if owner == self.id => Owner::Us,
                Some(_) => Owner::Other,
            },
            created: node.created,
        }))
    }

    pub(super) fn set(&self, path: &str, bytes: Vec<u8>, version: i32) -> Result<i32, StoreError> {
        self.write(|tree| {
            let node = tree
                .nodes
                .get_mut(path)
                .ok_or_else(|| StoreError::Missing(path.to_owned()))?;
            if node.version != version {
                return Err(StoreError::Conflict(path.to_owned()));
            }
            node.bytes = bytes;
            node.version += 1;
            tree.tell(path);
            Ok(version + 1)
        })
    }

    pub(super) fn create(&self, path: &str, bytes: Vec<u8>, lifetime: Lifetime) -> Result<(), StoreError> {
        let owner = match lifetime {
            Lifetime::Persistent => None,
            Lifetime::Ephemeral => Some(self.id),
        };
        self.write(|tree| tree.create(path, bytes, owner))
    }

    pub(super) fn append(&self, parent: &str, bytes: Vec<u8>) -> Result<u64, StoreError> {
        self.write(|tree| {
            tree.make(parent);
            let number = tree.nodes.get(parent).map_or(0, |node| node.children);
            tree.create(&format!("{parent}/{number:010}"), bytes, None)?;
            Ok(number)
        })
    }

    pub(super) fn delete(&self, path: &str, version: Option<i32>) -> Result<(), StoreError> {
        self.write(|tree| {
            let node = tree
                .nodes
                .get(path)
                .ok_or_else(|| StoreError::Missing(path.to_owned()))?;
            if version.is_some_and(|version| version != node.version) {
                return Err(StoreError::Conflict(path.to_owned()));
            }
            if !tree.children(path).is_empty() {
                return Err(StoreError::Refused {
                    path: path.to_owned(),
                    why: "node has not empty children".to_owned(),
                });
            }
            tree.nodes.remove(path);
            tree.tell(path);
            Ok(())
        })
    }

    pub(super) fn children(&self, path: &str) -> Result<Vec<String>, StoreError> {
        Ok(self.reach()?.children(path).into_iter().collect())
    }

    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.reach().map(|_| ())
    }

    pub(super) fn watch(&self, path: &str) -> Watch {
        let hints = Arc::new(Hints::default());
        let (stop, guard): (CancellationToken, DropGuard) = {
            let stop = CancellationToken::new();
            (stop.clone(), stop.drop_guard())
        };
        hints.everything();
        let mut tree = self.ensemble.lock();
        tree.watches.retain(|(_, _, stop)| !stop.is_cancelled());
        let path = path.trim_end_matches('/').to_owned();
        tree.watches.push((path, Arc::clone(&hints), stop));
        Watch::new(hints, guard)
    }

    pub(super) fn connection(&self) -> watch::Receiver<Connection> {
        let tree = self.ensemble.lock();
        match tree.sessions.get(&self.id) {
            Some(connection) => connection.subscribe(),
            None => watch::Sender::new(Connection::Away).subscribe(),
        }
    }

    pub(super) fn close(&self) {
        self.ensemble.lock().end(self.id);
    }

    fn reach(&self) -> Result<MutexGuard<'_, Tree>, StoreError> {
        let tree = self.ensemble.lock();
        if tree.stopped || !tree.sessions.contains_key(&self.id) {
            return Err(StoreError::Away);
        }
        Ok(tree)
    }

    fn write<T>(&self, change: impl FnOnce(&mut Tree) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut tree = self.reach()?;
        match tree.losing.take() {
            None => change(&mut tree),
            Some(Loss::NotDone) => Err(StoreError::Unknown),
            Some(Loss::Done) => change(&mut tree).and(Err(StoreError::Unknown)),
        }
    }
}

impl Tree {
    fn create(&mut self, path: &str, bytes: Vec<u8>, owner: Option<u64>) -> Result<(), StoreError> {
        if self.nodes.contains_key(path) {
            return Err(StoreError::Exists(path.to_owned()));
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.make(parent);
            if let Some(parent) = self.nodes.get_mut(parent) {
                parent.children += 1;
            }
        }
        self.creations += 1;
        let node = Node {
            bytes,
            version: 0,
            owner,
            children: 0,
            created: self.creations,
        };
        self.nodes.insert(path.to_owned(), node);
        self.tell(path);
        Ok(())
    }

    /// Makes a parent, and its own, where they are missing.
    fn make(&mut self, path: &str) {
        if !path.is_empty() && !self.nodes.contains_key(path) {
            // It was just seen to be missing.
            let _ = self.create(path, Vec::new(), None);
        }
    }

    fn children(&self, path: &str) -> BTreeSet<String> {
        let below = self
            .nodes
            .keys()
            .filter_map(|node| node.strip_prefix(path)?.strip_prefix('/'));
        below.filter(|name| !name.contains('/')).map(str::to_owned).collect()
    }

    /// A session ends, and with it its ephemerals.
    fn end(&mut self, session: u64) {
        if let Some(connection) = self.sessions.remove(&session) {
            connection.send_replace(Connection::Away);
        }
        self.forget(session);
    }

    fn forget(&mut self, session: u64) {
        let theirs = self.nodes.iter().filter(|(_, node)| node.owner == Some(session));
        let theirs: Vec<String> = theirs.map(|(path, _)| path.clone()).collect();
        for path in theirs {
            self.nodes.remove(&path);
            self.tell(&path);
        }
    }

    fn tell(&mut self, path: &str) {
        for (at, hints, _) in &self.watches {
            let below = path.strip_prefix(at.as_str());
            if below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
                hints.path(path.to_owned());
            }
        }
    }

    fn tell_everything(&self) {
        for (_, hints, _) in &self.watches {
            hints.everything();
        }
    }
}
