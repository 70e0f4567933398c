//! The znodes of a cluster as a source.
//!
//! Owns: when to read and to offer, and the proxy's registration. Invariants: while the store is away nothing is read or
//! taken back; what agents tell meanwhile is taken as a read would be (rule C8), also while a read does not come back.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::offer::Offer;
use super::picture::Gap;
use super::reader::{Due, Reader};
use super::{Identity, SourceError};
use crate::peer::Relayed;
use crate::store::{Connection, Ephemeral, Hint, Settings, Store, StoreError, Watch};
use crate::topology::Phase;
use crate::topology::codec::{ClusterConfig, Place, ProxyInfo, ShardState, check_name, decode, encode};

/// Until what could not be read is read again.
const AGAIN: Duration = Duration::from_millis(200);

pub(super) async fn follow(
    settings: Settings,
    identity: Identity,
    relays: mpsc::Receiver<Relayed>,
    offer: Offer,
    stop: CancellationToken,
) -> Result<(), SourceError> {
    check_name(&settings.cluster)?;
    check_name(&identity.id)?;
    let Some(store) = stop.run_until_cancelled(Store::await_connect(&settings)).await else {
        return Ok(());
    };
    let store = store?;
    let following = async {
        check_schema(&store).await?;
        Source::new(store.clone(), identity, offer).run(relays).await;
        Ok(())
    };
    let ended = stop.run_until_cancelled(following).await;
    store.close().await;
    ended.unwrap_or(Ok(()))
}

/// A cluster laid out by another version is not ours to read.
async fn check_schema(store: &Store) -> Result<(), SourceError> {
    let path = Place::Config.to_string();
    match store.get(&path).await {
        Ok(Some(found)) => {
            decode::<ClusterConfig>(&found.bytes, &path)?;
            Ok(())
        }
        // Nobody has laid anything out yet, or it cannot be known now.
        Ok(None) | Err(StoreError::Away | StoreError::Unknown) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

struct Source {
    reader: Reader,
    offer: Offer,
    identity: Identity,
    registered: Ephemeral,
    connection: watch::Receiver<Connection>,
    shards: Watch,
    slots: Watch,
}

enum Wake {
    Connection,
    Hint(Hint),
    Again,
}

impl Source {
    fn new(store: Store, identity: Identity, offer: Offer) -> Self {
        let addr = identity.addr.clone();
        let path = Place::Proxy(identity.id.clone()).to_string();
        // Clients connect to one proxy at an address, so whoever left this one there was us.
        let ours = move |left: &[u8]| decode::<ProxyInfo>(left, "").is_ok_and(|left| left.addr == addr);
        Self {
            registered: Ephemeral::keep(&store, path, ours),
            connection: store.connection(),
            shards: store.watch(&Place::Shards.to_string()),
            slots: store.watch(&Place::Slots.to_string()),
            reader: Reader::new(store),
            offer,
            identity,
        }
    }

    async fn run(&mut self, mut relays: mpsc::Receiver<Relayed>) {
        let mut due = Due::everything();
        self.register();
        loop {
            // What was due stays due when a relay comes first.
            tokio::select! {
                biased;
                Some(relayed) = relays.recv() => self.take_in(relayed),
                () = self.go_on(&mut due) => {}
            }
        }
    }

    /// Reads what is due, and waits until something else may be.
    async fn go_on(&mut self, due: &mut Due) {
        if *self.connection.borrow() != Connection::Away && !due.is_empty() {
            self.read(due).await;
        }
        match self.wake(!due.is_empty()).await {
            Wake::Connection => *due = Due::everything(),
            Wake::Hint(hint) => due.add(&hint, &self.reader.picture.shards()),
            Wake::Again => {}
        }
    }

    /// A state told by an agent, which stands in ZooKeeper: as good as if it had been read. Of an election there is nothing
    /// to know before its end.
    fn take_in(&mut self, relayed: Relayed) {
        let Relayed { shard, version, state } = relayed;
        let path = Place::State(shard.clone()).to_string();
        match decode::<ShardState>(&state, &path) {
            Ok(state) if state.phase != Phase::Electing => {
                if self.reader.picture.set_state(&shard, version, state) {
                    self.publish();
                }
            }
            Ok(_) => {}
            Err(error) => self.reader.say(
                &format!("{path} {version}"),
                &format!("an agent tells nonsense: {error}"),
            ),
        }
    }

    async fn wake(&mut self, waiting: bool) -> Wake {
        tokio::select! {
            biased;
            Ok(()) = self.connection.changed() => Wake::Connection,
            hint = self.shards.changed() => Wake::Hint(hint),
            hint = self.slots.changed() => Wake::Hint(hint),
            () = sleep(AGAIN), if waiting => Wake::Again,
        }
    }

    /// Reads what is due and offers what follows: states at once, nodes after.
    async fn read(&mut self, due: &mut Due) {
        if let Err(error) = self.reader.read_states(due).await {
            return self.complain(&error);
        }
        self.publish();
        if let Err(error) = self.reader.read_nodes(due).await {
            return self.complain(&error);
        }
        self.publish();
    }

    fn publish(&mut self) {
        match self.reader.picture.snapshot() {
            Ok(snapshot) => {
                if self.offer.make(snapshot) {
                    self.register();
                }
            }
            Err(Gap::NoShards) => tracing::debug!("the cluster has no shards yet"),
            Err(Gap::Slots(what)) => {
                let sentence = format!("/slots: {what}; the topology stays as it was");
                self.reader.say(&sentence, &sentence);
            }
        }
    }

    fn register(&self) {
        let info = ProxyInfo {
            addr: self.identity.addr.clone(),
            admin: self.identity.admin.clone(),
            zone: self.identity.zone.clone(),
            epochs: self.offer.epochs(),
            drains: self.identity.drains,
        };
        self.registered.set(Some(encode(&info)));
    }

    fn complain(&mut self, error: &StoreError) {
        if !matches!(error, StoreError::Away | StoreError::Unknown) {
            let sentence = error.to_string();
            self.reader.say(&sentence, &sentence);
        }
    }
}
