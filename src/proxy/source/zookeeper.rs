//! The znodes of a cluster as a source.
//!
//! Owns: when to read and to offer, and the proxy's registration. Invariant: while the store is away nothing is
//! read, offered or taken back.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::offer::Offer;
use super::picture::Gap;
use super::reader::{Due, Reader};
use super::{Identity, SourceError};
use crate::store::{Connection, Ephemeral, Hint, Settings, Store, StoreError, Watch};
use crate::topology::codec::{ClusterConfig, Place, ProxyInfo, check_name, decode, encode};

/// Until what could not be read is read again.
const AGAIN: Duration = Duration::from_millis(200);

pub(super) async fn follow(
    settings: Settings,
    identity: Identity,
    offer: Offer,
    stop: CancellationToken,
) -> Result<(), SourceError> {
    check_name(&settings.cluster)?;
    check_name(&identity.id)?;
    let Some(store) = stop.run_until_cancelled(Store::connect(&settings)).await else {
        return Ok(());
    };
    let store = store?;
    let following = async {
        check_schema(&store).await?;
        Source::new(store.clone(), identity, offer).run().await;
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

    async fn run(&mut self) {
        let mut due = Due::everything();
        self.register();
        loop {
            if *self.connection.borrow() != Connection::Away && !due.is_empty() {
                self.read(&mut due).await;
            }
            match self.wake(!due.is_empty()).await {
                Wake::Connection => due = Due::everything(),
                Wake::Hint(hint) => due.add(&hint, &self.reader.picture.shards()),
                Wake::Again => {}
            }
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
            drains: false,
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
