//! The snapshot: what the data path knows of the world, whole and immutable.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::addr::Addr;
use super::ids::{Course, Epoch, NodeId, RunId, ShardId};
use super::slots::SlotMap;

/// A shard's place in [`Snapshot::shards`]; stable while the set of shards is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardIndex(pub u16);

/// What a shard is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// A master takes writes. Next: electing or switching.
    Serving,
    /// No master: one is being chosen. Next: serving, or electing again at a higher epoch.
    Electing,
    /// The master is being moved on purpose; new writes are held. Next: serving or electing.
    Switching,
}

/// A move of the master that is under way: what a `switching` state says beside its epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// The node that is to be master.
    pub to: NodeId,
    /// The epoch reserved for it; the state keeps the old one until the new master is published, so that a
    /// rollback goes back to nothing.
    pub epoch: Epoch,
    /// The request that it answers.
    #[serde(default)]
    pub request: String,
    /// Which of several claims it is, in a snapshot; in ZooKeeper the nonce of the state says it.
    #[serde(skip)]
    pub course: Option<Course>,
}

/// The master that a `serving` state names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// Which node it is.
    pub node: NodeId,
    /// Where it listens.
    pub addr: Addr,
    /// The life that was promoted; a process with another one is not this master. `None` where the
    /// source cannot know (flags, file): then the role it reports decides.
    pub run_id: Option<RunId>,
}

/// A node of a shard, master or replica, as far as it is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its stable name.
    pub id: NodeId,
    /// Where its Redis listens.
    pub addr: Addr,
    /// Where its agent's peer port listens.
    pub peer: Option<Addr>,
    /// The life of its Redis, where known.
    pub run_id: Option<RunId>,
    /// Its zone, empty when none is configured.
    pub zone: Arc<str>,
    /// Whether it counts: what it has is acknowledged, and it is among those that elect and are elected.
    pub is_member: bool,
}

/// One shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its name.
    pub id: ShardId,
    /// Its fencing number.
    pub epoch: Epoch,
    /// What it is doing.
    pub phase: Phase,
    /// The master of the last `serving` state, also while another one is being elected.
    pub master: Option<Master>,
    /// The move under way, while switching.
    pub switch: Option<Switch>,
    /// The node whose agent made the last claim: it wants to hear of drains.
    pub executor: Option<NodeId>,
    /// The registered nodes, the master included.
    pub nodes: Vec<Node>,
    /// Replicas that must acknowledge a write before the client is told (W).
    pub ack_replicas: u32,
}

/// The immutable picture of all shards at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// All shards; a [`ShardIndex`] points in here.
    pub shards: Vec<Shard>,
    /// Which shard owns which slot.
    pub slots: SlotMap,
}

impl Snapshot {
    /// Nothing known yet: no shards.
    pub fn empty() -> Self {
        Self {
            shards: Vec::new(),
            slots: SlotMap::single(),
        }
    }

    /// The shard at an index handed out by this snapshot's slot map.
    pub fn shard(&self, index: ShardIndex) -> &Shard {
        &self.shards[usize::from(index.0)]
    }

    /// The snapshot to use after `self` when a source offers `offered`: each shard that would go back
    /// to a lower epoch keeps what it had, so that a lagging source never revives a deposed master.
    /// The names of the shards kept back come second.
    pub fn advance(&self, mut offered: Snapshot) -> (Snapshot, Vec<ShardId>) {
        let mut kept = Vec::new();
        for shard in &mut offered.shards {
            let Some(known) = self.shards.iter().find(|known| known.id == shard.id) else {
                continue;
            };
            if known.epoch > shard.epoch {
                *shard = known.clone();
                kept.push(known.id.clone());
            }
        }
        (offered, kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(epochs: &[(&str, u64)]) -> Snapshot {
        let shards = epochs
            .iter()
            .map(|(id, epoch)| Shard {
                id: ShardId::from(*id),
                epoch: Epoch(*epoch),
                phase: Phase::Serving,
                master: None,
                switch: None,
                executor: None,
                nodes: Vec::new(),
                ack_replicas: 0,
            })
            .collect();
        Snapshot {
            shards,
            slots: SlotMap::single(),
        }
    }

    #[test]
    fn an_older_epoch_never_replaces_a_newer_one() {
        let known = snapshot(&[("s1", 5), ("s2", 2)]);
        let (next, kept) = known.advance(snapshot(&[("s1", 4), ("s2", 3)]));
        assert_eq!(next, snapshot(&[("s1", 5), ("s2", 3)]));
        assert_eq!(kept, [ShardId::from("s1")]);
    }
}
