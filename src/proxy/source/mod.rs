//! Where a proxy's topology comes from: ZooKeeper, a file, or flags.
//!
//! ```text
//!  flags ------------------------\
//!  file --> ROLE of each node ----+--> offer --> Snapshot::advance --> watch<Arc<Snapshot>> --> workers
//!  /slots, /shards/* --> picture -/
//!  agents' relays ------/
//! ```
//!
//! Owns: [`Topology`], [`run`], and the only writer of the snapshot. Refuses: serving clients; the data path
//! cannot tell which source it has. Invariants: a shard never goes back to a lower epoch; a source that is away
//! or holds nonsense changes nothing; nonsense is said once.

mod file;
mod offer;
mod picture;
mod reader;
mod role;
mod zookeeper;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::peer::Relayed;
use crate::proxy::shared::ControlLogin;
use crate::store::{self, StoreError};
use crate::topology::codec::{CodecError, FileError, NameError};
use crate::topology::{Addr, Epoch, Master, Node, NodeId, Phase, Shard, ShardId, SlotMap, Snapshot};

use offer::Offer;

/// Where the topology comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One shard, given by flags; its master does not change.
    Fixed {
        /// The master.
        master: Addr,
        /// Its replicas.
        replicas: Vec<Addr>,
    },
    /// A TOML file, read again when it changes. The master is found among the listed nodes by ROLE,
    /// asked with this login.
    File(PathBuf, ControlLogin),
    /// The znodes of a cluster.
    ZooKeeper(store::Settings),
}

/// What a proxy says of itself in `/proxies/<id>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub id: String,
    /// Where clients connect.
    pub addr: Addr,
    /// Where its admin pages are.
    pub admin: Option<Addr>,
    /// Its zone, empty for none.
    pub zone: String,
    /// Whether it tells agents when it has no write in flight.
    pub drains: bool,
}

/// Why there is no topology.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The file cannot be read.
    #[error("cannot read the topology file {0}: {1}")]
    Unreadable(PathBuf, io::Error),
    /// The file is not what it should be.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store does not answer, or refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster's settings are of another version.
    #[error(transparent)]
    Cluster(#[from] CodecError),
    /// The proxy's or the cluster's name is none.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Whether the store is heard: the end of who wants to know.
#[derive(Debug)]
pub struct Earshot {
    /// Whether it is to be asked, now and then.
    pub wants: watch::Sender<bool>,
    /// When it was last asked something that it has answered since.
    pub heard: watch::Receiver<Option<Instant>>,
}

/// The source's end of an [`Earshot`].
#[derive(Debug)]
pub struct Listens {
    wanted: watch::Receiver<bool>,
    heard: watch::Sender<Option<Instant>>,
    every: Duration,
}

/// Both ends; the store is asked each `every` while that is wanted.
pub fn ear(every: Duration) -> (Earshot, Listens) {
    let (wants, wanted) = watch::channel(false);
    let (sender, heard) = watch::channel(None);
    let listens = Listens {
        wanted,
        heard: sender,
        every,
    };
    (Earshot { wants, heard }, listens)
}

/// The snapshot before anything is known: no shards.
pub fn nothing() -> Arc<Snapshot> {
    Arc::new(Snapshot {
        shards: Vec::new(),
        slots: SlotMap::single(),
    })
}

/// Keeps `out` at what the source says, and what agents relay of it, until `stop`. Fails only at the start: what goes wrong later is said and
/// waited out.
pub async fn run(
    topology: Topology,
    identity: Identity,
    relays: mpsc::Receiver<Relayed>,
    listens: Listens,
    out: watch::Sender<Arc<Snapshot>>,
    stop: CancellationToken,
) -> Result<(), SourceError> {
    let offer = Offer::new(out);
    match topology {
        Topology::Fixed { master, replicas } => {
            offer.make(fixed(&master, &replicas));
            stop.cancelled().await;
            Ok(())
        }
        Topology::File(path, login) => file::follow(path, login, offer, stop).await,
        Topology::ZooKeeper(settings) => zookeeper::follow(settings, identity, relays, listens, offer, stop).await,
    }
}

/// One shard that always serves. Its epoch is 1 and stays so.
fn fixed(master: &Addr, replicas: &[Addr]) -> Snapshot {
    let shard = Shard {
        id: ShardId::from("s1"),
        epoch: Epoch(1),
        phase: Phase::Serving,
        master: Some(unproven_master(master)),
        nodes: std::iter::once(master).chain(replicas).map(unproven_node).collect(),
        ack_replicas: 0,
        switch: None,
        executor: None,
    };
    Snapshot {
        shards: vec![shard],
        slots: SlotMap::single(),
    }
}

/// A master known by its address only.
fn unproven_master(addr: &Addr) -> Master {
    Master {
        node: NodeId::new(addr.to_string()),
        addr: addr.clone(),
        run_id: None,
    }
}

/// A node known by its address only, which is its name as well.
fn unproven_node(addr: &Addr) -> Node {
    Node {
        id: NodeId::new(addr.to_string()),
        addr: addr.clone(),
        peer: None,
        run_id: None,
        zone: "".into(),
        is_member: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn flags_give_one_shard_that_serves() {
        let (out, mut heard) = watch::channel(nothing());
        let (master, replica) = (Addr::new("127.0.0.1", 7001), Addr::new("127.0.0.1", 7002));
        let topology = Topology::Fixed {
            master: master.clone(),
            replicas: vec![replica],
        };
        let identity = Identity {
            id: "proxy-1".to_owned(),
            addr: Addr::new("127.0.0.1", 6400),
            admin: None,
            zone: String::new(),
            drains: false,
        };
        let (_relays, relayed) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(
            topology,
            identity,
            relayed,
            ear(Duration::from_millis(250)).1,
            out,
            stop.clone(),
        ));
        let snapshot = heard.wait_for(|now| !now.shards.is_empty()).await.unwrap().clone();
        let shard = &snapshot.shards[0];
        assert_eq!(
            (shard.epoch, shard.phase, shard.nodes.len()),
            (Epoch(1), Phase::Serving, 2)
        );
        assert_eq!(shard.master.as_ref().map(|found| &found.addr), Some(&master));
        stop.cancel();
        running.await.unwrap().unwrap();
    }
}
