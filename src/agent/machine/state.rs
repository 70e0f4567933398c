//! The shard's `state` as the machine reasons about it.
//!
//! Owns: [`State`] (the value of `/shards/<s>/state`), [`Versioned`] and the questions asked of them. Refuses:
//! the JSON (that is `topology::codec`) and every write (that is a compare-and-set of the store).
//! Invariant: a state is only ever replaced by one with a higher version, and versions never go back
//! because the znode is never deleted.

use std::collections::{BTreeMap, BTreeSet};

use crate::topology::codec::Accept;
use crate::topology::{Addr, Epoch, NodeId, Phase, RunId, Switch};

/// What the shard has agreed on: who is master in which epoch, and whose data counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The fencing number; a claim takes the next one.
    pub epoch: Epoch,
    /// Serving, or on the way to it.
    pub phase: Phase,
    /// The agent that made the last claim.
    pub executor: NodeId,
    /// Drawn anew at each claim, so that an executor recognises its own write when the outcome of a
    /// compare-and-set was lost.
    pub nonce: String,
    /// The master of the last `serving` state; none before the first.
    pub master: Option<MasterOf>,
    /// Replication ids whose data counts. The first is that of the last published master, the others
    /// belong to promotions that were never published (rule R6).
    pub lineage: Vec<String>,
    /// The nodes that count: n is their number.
    pub members: BTreeSet<NodeId>,
    /// Members proven to hold this epoch's data, by the life of their process (rule R2).
    pub valid: BTreeMap<NodeId, RunId>,
    /// Replicas that must acknowledge a write (W).
    pub ack_replicas: u32,
    /// The move of the master under way; there exactly while the phase is `switching`.
    pub switch: Option<Switch>,
    /// W before it was lowered because too few replicas were there; 0 if it was not.
    pub shrunk_from: u32,
    /// The operator's word that the election under way may lose acknowledged writes.
    pub accept: Option<Accept>,
    /// The last move that was claimed, whatever became of it: its request is not begun again by who did not see it.
    pub moved: Option<Switch>,
}

/// A published master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasterOf {
    /// Which node.
    pub node: NodeId,
    /// Where its Redis listens.
    pub addr: Addr,
    /// Which life of it was promoted.
    pub run_id: RunId,
}

/// A state and the version of the znode it was read at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The znode's version, the condition of the next compare-and-set.
    pub version: i32,
    /// What it said.
    pub state: State,
}

impl State {
    /// The master, if the shard is serving.
    pub fn serving(&self) -> Option<&MasterOf> {
        match self.phase {
            Phase::Serving => self.master.as_ref(),
            Phase::Electing | Phase::Switching => None,
        }
    }

    /// The highest epoch in which anything may have been done: that of a switchover is reserved before it is published.
    pub fn reach(&self) -> Epoch {
        self.switch
            .as_ref()
            .map_or(self.epoch, |switch| switch.epoch.max(self.epoch))
    }

    /// Whether no master was ever published: nothing can have been acknowledged to a client, and there
    /// is no lineage to keep.
    pub fn founding(&self) -> bool {
        self.lineage.is_empty()
    }

    /// Whether members, valid lives, lineage and W are the same.
    pub fn same_seats(&self, other: &Self) -> bool {
        let w = (self.ack_replicas, self.shrunk_from) == (other.ack_replicas, other.shrunk_from);
        w && self.members == other.members && self.valid == other.valid && self.lineage == other.lineage
    }

    /// Whether nothing may be lost but by the operator's word: writes are acknowledged by replicas, or were until too few of
    /// them were there.
    pub fn keeps(&self) -> bool {
        self.ack_replicas.max(self.shrunk_from) > 0
    }

    /// The state after `executor` claims the next epoch. What counts (members, valid, lineage, W) is
    /// carried over untouched: only a publication changes it.
    pub fn claimed_by(&self, executor: &NodeId, nonce: String) -> Self {
        Self {
            epoch: self.reach().next(),
            phase: Phase::Electing,
            executor: executor.clone(),
            nonce,
            switch: None,
            ..self.clone()
        }
    }

    /// The state in which `executor` moves the master to a node. The epoch stays: that of the switchover is reserved.
    pub fn switched_by(&self, executor: &NodeId, nonce: String, switch: Switch) -> Self {
        Self {
            phase: Phase::Switching,
            executor: executor.clone(),
            nonce,
            moved: Some(switch.clone()),
            switch: Some(switch),
            ..self.clone()
        }
    }
}
