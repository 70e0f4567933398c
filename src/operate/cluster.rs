//! How a cluster is found: by the folder of an `up`, or by its place in ZooKeeper.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use thiserror::Error;

use super::circuit::{AUTH_FILE, Circuit, CircuitError, SECRET_FILE};
use crate::agent::petition::PetitionError;
use crate::config::{ConfigError, read_secret, read_user_and_password};
use crate::store::{self, Credentials, Store, StoreError};
use crate::topology::codec::{CodecError, Place, Slots, Znode, decode};
use crate::topology::{Addr, NodeId, ShardId};

/// Where an operator says it is.
#[derive(Clone, Debug)]
pub enum Where {
    /// What the `up` in this folder runs.
    Dir(PathBuf),
    /// A cluster in ZooKeeper, and the file of its secret if its agents are to be asked.
    ZooKeeper(store::Settings, Option<PathBuf>),
}

/// Why nothing can be said of a cluster.
#[derive(Debug, Error)]
pub enum OperateError {
    /// No `up` tells where it is.
    #[error(transparent)]
    Circuit(#[from] CircuitError),
    /// Its secret is unfit.
    #[error(transparent)]
    Secret(#[from] ConfigError),
    /// ZooKeeper does not tell.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It tells nonsense.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// There is no such cluster.
    #[error("ZooKeeper at {connect} knows no cluster {cluster}: correct the name with --cluster, or start its agents")]
    Unknown {
        /// Where it was looked for.
        connect: String,
        /// Its name.
        cluster: String,
    },
    /// It has no such shard; these there are.
    #[error("there is no shard {0}: {1}")]
    NoShard(ShardId, String),
    /// The shard has no such node; these there are.
    #[error("there is no node {0} in {1}: {2}")]
    NoNode(NodeId, ShardId, String),
    /// Its members or its W are not as they were asked to be.
    #[error("{0}: {1}")]
    Members(ShardId, String),
    /// No loss is accepted.
    #[error("{0}: {1}")]
    Accept(ShardId, String),
    /// A switchover cannot be asked for.
    #[error(transparent)]
    Petition(#[from] PetitionError),
}

/// Who we are for ZooKeeper, from the file that says so. What is created with that nobody else may read.
pub fn read_credentials(path: &Path) -> Result<Credentials, ConfigError> {
    let (user, password) = read_user_and_password(path)?;
    Ok(Credentials {
        user,
        password,
        world_reads: false,
    })
}

/// Who the `up` in `dir` is for ZooKeeper; none if it uses an ensemble of others.
pub fn own_credentials(dir: &Path) -> Result<Option<Credentials>, ConfigError> {
    let path = dir.join(AUTH_FILE);
    path.exists().then(|| read_credentials(&path)).transpose()
}

/// A cluster that was found.
#[derive(Debug)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    pub(super) secret: Option<Arc<[u8]>>,
    circuit: Option<Circuit>,
    store: Store,
}

impl Cluster {
    /// Finds a cluster. Fails if it is not there.
    pub async fn find(place: &Where) -> Result<Self, OperateError> {
        let (settings, secret, circuit) = match place {
            Where::Dir(dir) => {
                let circuit = Circuit::read(dir)?;
                let settings = store::Settings {
                    credentials: own_credentials(dir)?,
                    ..store::Settings::new(&circuit.zookeeper.connect, &circuit.cluster)
                };
                (settings, Some(dir.join(SECRET_FILE)), Some(circuit))
            }
            Where::ZooKeeper(settings, secret) => (settings.clone(), secret.clone(), None),
        };
        let secret = secret.as_deref().map(|path: &Path| read_secret(path)).transpose()?;
        let cluster = Self {
            store: Store::connect(&settings).await?,
            name: settings.cluster.clone(),
            secret,
            circuit,
        };
        if cluster.store.get(&Place::Config.to_string()).await?.is_none() {
            cluster.leave().await;
            let store::Settings { connect, cluster, .. } = settings;
            return Err(OperateError::Unknown { connect, cluster });
        }
        Ok(cluster)
    }

    /// Ends the session.
    pub async fn leave(&self) {
        self.store.close().await;
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// The shards' names.
    pub(super) async fn shards(&self) -> Result<Vec<ShardId>, OperateError> {
        let names = self.children(&Place::Shards).await?;
        Ok(names.into_iter().map(ShardId::new).collect())
    }

    /// Who owns which slots; where nothing says so there is one shard, and it owns all.
    pub(super) async fn slots(&self, shards: &[ShardId]) -> Result<Slots, OperateError> {
        let found = self.read(&Place::Slots).await?;
        Ok(found.unwrap_or_else(|| Slots::spread(&shards[..shards.len().min(1)])))
    }

    /// What stands at a place; none if nothing does.
    pub(super) async fn read<Z: Znode + DeserializeOwned>(&self, place: &Place) -> Result<Option<Z>, OperateError> {
        let path = place.to_string();
        match self.store.get(&path).await? {
            None => Ok(None),
            Some(found) => Ok(Some(decode(&found.bytes, &path)?)),
        }
    }

    /// The names below a place.
    pub(super) async fn children(&self, place: &Place) -> Result<Vec<String>, OperateError> {
        Ok(self.store.children(&place.to_string()).await?)
    }

    /// Where the Redis of a node should listen, by the `up` that started it.
    pub(super) fn started_at(&self, node: &NodeId) -> Option<&Addr> {
        let nodes = &self.circuit.as_ref()?.nodes;
        nodes
            .iter()
            .find(|known| known.id == *node)
            .map(|known| &known.redis.addr)
    }
}
