//! Reads what stands in the shard's znodes and tells the host what is new.
//!
//! Owns: when to read: at each connection (after a `sync`), at each hint, when the host asks. Refuses:
//! concluding anything from what cannot be read. Invariant: a state is told only if its version is above the
//! last told one, or as the answer to a `sync`.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::news::News;
use super::znode;
use crate::agent::host::StoreEvent;
use crate::agent::machine::action::Suspicion;
use crate::agent::machine::state::Versioned;
use crate::clock;
use crate::store::{Connection, Hint, Store, StoreError, Value};
use crate::telemetry::Said;
use crate::topology::codec::{
    NodeInfo, Place, ProxyInfo, ShardConfig, ShardState, Suspect, SwitchRequest, Znode, decode, remedy,
};
use crate::topology::{Addr, NodeId, Phase, ShardId};

/// Until what could not be read is read again.
const AGAIN: Duration = Duration::from_millis(200);

pub(super) struct Reader {
    store: Store,
    shard: ShardId,
    events: mpsc::Sender<StoreEvent>,
    news: News,
    connection: watch::Receiver<Connection>,
    /// The version of the last state told.
    told: Option<i32>,
    /// A synchronised read met nonsense: the host still waits for one that it can be told.
    owed: bool,
    nodes: Vec<(NodeId, Addr, Addr)>,
    suspects: Vec<Suspicion>,
    wish: Option<SwitchRequest>,
    wanted: Option<ShardConfig>,
    /// None until they were read.
    proxies: Option<BTreeSet<String>>,
    said: Said,
}

/// What is to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Due {
    synced: bool,
    state: bool,
    nodes: bool,
    suspects: bool,
    wish: bool,
    wanted: bool,
    proxies: bool,
}

const ALL: Due = Due {
    synced: false,
    state: true,
    nodes: true,
    suspects: true,
    wish: true,
    wanted: true,
    proxies: true,
};

/// The host has ended.
struct Ended;

impl Reader {
    pub(super) fn new(store: Store, shard: ShardId, events: mpsc::Sender<StoreEvent>, news: News) -> Self {
        Self {
            connection: store.connection(),
            store,
            shard,
            events,
            news,
            told: None,
            owed: false,
            nodes: Vec::new(),
            suspects: Vec::new(),
            wish: None,
            wanted: None,
            proxies: None,
            said: Said::default(),
        }
    }

    pub(super) async fn run(mut self, asked: mpsc::Receiver<()>) {
        // The host has ended, and this with it.
        let _ended = self.read_on(asked).await;
    }

    async fn read_on(&mut self, mut asked: mpsc::Receiver<()>) -> Result<(), Ended> {
        let mut watch = self.store.watch(&format!("{}/{}", Place::Shards, self.shard));
        let mut proxies = self.store.watch(&Place::Proxies.to_string());
        let mut due = Due::default();
        self.connection.mark_changed();
        loop {
            tokio::select! {
                biased;
                changed = self.connection.changed() => {
                    changed.map_err(|_| Ended)?;
                    if *self.connection.borrow_and_update() == Connection::Away {
                        self.tell(StoreEvent::Lost).await?;
                        due = Due::default();
                    } else {
                        due = Due { synced: true, ..ALL };
                    }
                }
                read = asked.recv() => {
                    read.ok_or(Ended)?;
                    due.synced = true;
                }
                hint = watch.changed() => due = self.due(&hint, due),
                _ = proxies.changed() => due.proxies = true,
                () = sleep(AGAIN), if due != Due::default() => {}
            }
            if *self.connection.borrow() != Connection::Away {
                due = self.read(due).await?;
            }
        }
    }

    fn due(&self, hint: &Hint, mut due: Due) -> Due {
        let Hint::Paths(paths) = hint else {
            return Due {
                synced: due.synced,
                proxies: due.proxies,
                ..ALL
            };
        };
        for path in paths {
            match Place::parse(path) {
                Some(Place::State(shard)) if shard == self.shard => due.state = true,
                Some(Place::Node(..) | Place::Nodes(_)) => due.nodes = true,
                Some(Place::Suspect(..) | Place::Suspects(_)) => due.suspects = true,
                Some(Place::Switch(_)) => due.wish = true,
                Some(Place::ShardConfig(_)) => due.wanted = true,
                _ => {}
            }
        }
        due
    }

    /// Reads what is due; what could not be read stays due. What the operator wants comes first: a node whose seat is gone is
    /// not to take it again only because it has not heard yet why.
    async fn read(&mut self, mut due: Due) -> Result<Due, Ended> {
        if due.wanted {
            match self.read_wanted().await? {
                Ok(()) => due.wanted = false,
                Err(error) => self.complain(&error),
            }
        }
        if due.synced || due.state {
            let synced = due.synced;
            match self.read_state(synced).await? {
                Ok(()) => (due.synced, due.state) = (false, false),
                Err(error) => self.complain(&error),
            }
        }
        if due.nodes {
            match self.read_nodes().await? {
                Ok(()) => due.nodes = false,
                Err(error) => self.complain(&error),
            }
        }
        if due.suspects {
            match self.read_suspects().await? {
                Ok(()) => due.suspects = false,
                Err(error) => self.complain(&error),
            }
        }
        if due.proxies {
            match self.read_proxies().await? {
                Ok(()) => due.proxies = false,
                Err(error) => self.complain(&error),
            }
        }
        if due.wish {
            match self.read_wish().await? {
                Ok(()) => due.wish = false,
                Err(error) => self.complain(&error),
            }
        }
        Ok(due)
    }

    async fn read_state(&mut self, synced: bool) -> Result<Result<(), StoreError>, Ended> {
        let path = Place::State(self.shard.clone()).to_string();
        let synced = synced || self.owed;
        if synced && let Err(error) = self.store.sync().await {
            return Ok(Err(error));
        }
        let found = match self.store.get(&path).await {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let state = match &found {
            // Absent is a fact only after a `sync`.
            None if synced => None,
            None => return Ok(Ok(())),
            Some(value) => match self.decode::<ShardState>(value, &path) {
                // Not told at all: nonsense must not look like a shard yet to be founded.
                None => {
                    self.owed = synced;
                    return Ok(Ok(()));
                }
                Some(state) => Some((value.version, state)),
            },
        };
        self.owed = false;
        self.tell_state(state, synced).await?;
        Ok(Ok(()))
    }

    async fn tell_state(&mut self, read: Option<(i32, ShardState)>, synced: bool) -> Result<(), Ended> {
        let version = read.as_ref().map(|(version, _)| *version);
        let newer = version > self.told;
        self.told = self.told.max(version);
        if let Some((version, state)) = &read
            && newer
            && state.phase == Phase::Serving
        {
            self.news.tell(*version, state);
        }
        let read = read.map(|(version, state)| Versioned {
            version,
            state: znode::to_state(state),
        });
        match read {
            read if synced => self.tell(StoreEvent::Synced(read)).await,
            Some(read) if newer => self.tell(StoreEvent::State(read)).await,
            Some(_) | None => Ok(()),
        }
    }

    async fn read_nodes(&mut self) -> Result<Result<(), StoreError>, Ended> {
        let read = self.read_all::<NodeInfo>(&Place::Nodes(self.shard.clone())).await;
        let nodes = match read {
            Ok(nodes) => nodes,
            Err(error) => return Ok(Err(error)),
        };
        let nodes: Vec<_> = nodes
            .into_iter()
            .map(|(node, info)| (node, info.redis, info.peer))
            .collect();
        if nodes != self.nodes {
            self.nodes.clone_from(&nodes);
            self.tell(StoreEvent::Nodes(nodes)).await?;
        }
        Ok(Ok(()))
    }

    async fn read_suspects(&mut self) -> Result<Result<(), StoreError>, Ended> {
        let read = self.read_all::<Suspect>(&Place::Suspects(self.shard.clone())).await;
        let suspects = match read {
            Ok(suspects) => suspects,
            Err(error) => return Ok(Err(error)),
        };
        let suspects: Vec<_> = suspects
            .into_iter()
            .map(|(node, suspect)| znode::to_suspicion(node, suspect))
            .collect();
        if suspects != self.suspects {
            self.suspects.clone_from(&suspects);
            self.tell(StoreEvent::Suspects(suspects)).await?;
        }
        Ok(Ok(()))
    }

    /// A request that cannot be read is none: nobody can be told what became of it.
    async fn read_wish(&mut self) -> Result<Result<(), StoreError>, Ended> {
        let path = Place::Switch(self.shard.clone()).to_string();
        let found = match self.store.get(&path).await {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let wish = found.and_then(|value| self.decode::<SwitchRequest>(&value, &path));
        if wish != self.wish {
            self.wish.clone_from(&wish);
            self.tell(StoreEvent::Wish(wish)).await?;
        }
        Ok(Ok(()))
    }

    /// Settings that are away or cannot be read change nothing.
    async fn read_wanted(&mut self) -> Result<Result<(), StoreError>, Ended> {
        let path = Place::ShardConfig(self.shard.clone()).to_string();
        let found = match self.store.get(&path).await {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let wanted = found.and_then(|value| self.decode::<ShardConfig>(&value, &path));
        if let Some(wanted) = wanted.filter(|wanted| self.wanted.as_ref() != Some(wanted)) {
            self.wanted = Some(wanted.clone());
            self.tell(StoreEvent::Wanted(wanted)).await?;
        }
        Ok(Ok(()))
    }

    async fn read_proxies(&mut self) -> Result<Result<(), StoreError>, Ended> {
        let read = self.read_all::<ProxyInfo>(&Place::Proxies).await;
        let proxies: BTreeSet<String> = match read {
            Ok(read) => read
                .into_iter()
                .filter(|(_, info)| info.drains)
                .map(|(id, _)| id.to_string())
                .collect(),
            Err(error) => return Ok(Err(error)),
        };
        if self.proxies.as_ref() != Some(&proxies) {
            self.proxies = Some(proxies.clone());
            self.tell(StoreEvent::Proxies(proxies)).await?;
        }
        Ok(Ok(()))
    }

    /// All children of `parent` that can be read, by name.
    async fn read_all<Z: Znode>(&mut self, parent: &Place) -> Result<Vec<(NodeId, Z)>, StoreError> {
        let names = self.store.children(&parent.to_string()).await?;
        let paths: Vec<String> = names.iter().map(|name| format!("{parent}/{name}")).collect();
        let values = join_all(paths.iter().map(|path| self.store.get(path))).await;
        let mut all = Vec::with_capacity(names.len());
        for ((name, path), value) in names.iter().zip(&paths).zip(values) {
            let Some(value) = value? else { continue };
            if let Some(znode) = self.decode(&value, path) {
                all.push((NodeId::from(name.as_str()), znode));
            }
        }
        Ok(all)
    }

    /// The value, or a complaint that is made once.
    fn decode<Z: Znode>(&mut self, value: &Value, path: &str) -> Option<Z> {
        match decode(&value.bytes, path) {
            Ok(znode) => Some(znode),
            Err(error) => {
                let about = format!("{path} {} {}", value.created, value.version);
                if self.said.first(clock::now(), &about) {
                    tracing::warn!("{error}; what was known before stays; {}", remedy(path));
                }
                None
            }
        }
    }

    fn complain(&mut self, error: &StoreError) {
        let sentence = error.to_string();
        let expected = matches!(error, StoreError::Away | StoreError::Unknown);
        if !expected && self.said.first(clock::now(), &sentence) {
            tracing::warn!("{sentence}");
        }
    }

    async fn tell(&self, event: StoreEvent) -> Result<(), Ended> {
        self.events.send(event).await.map_err(|_| Ended)
    }
}
