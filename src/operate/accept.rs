//! An election that waits because it might lose something, and the operator's word that it may.
//!
//! Owns: that word, a compare-and-set over the state of an election under way; what is known of the loss before and
//! after. Refuses: electing. Invariant: a shard that serves is left alone.

use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::sleep;

use super::ask::{ask, reading};
use super::cluster::{Cluster, OperateError};
use crate::agent::machine::detector::Status;
use crate::clock;
use crate::store::StoreError;
use crate::topology::codec::{Accept, Kind, NodeInfo, Place, Record, ShardState, decode, encode};
use crate::topology::{Epoch, NodeId, Phase, ShardId};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// How long a shard without a living master may go on being told as serving.
const CLAIM_LIMIT: Duration = Duration::from_secs(5);
/// How long the election may take then.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long its record may take to be written.
const RECORD_LIMIT: Duration = Duration::from_secs(2);

/// What came of a loss that was accepted.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Accepted {
    pub shard: ShardId,
    pub epoch: Epoch,
    pub master: Option<NodeId>,
    /// The failover's record, once it stands.
    pub record: Option<Record>,
}

impl Accepted {
    /// One line for people.
    pub fn sentence(&self) -> String {
        let master = self.master.as_ref().map_or("nobody", NodeId::as_str);
        let why = self.record.as_ref().map_or("", |record| record.why.as_str());
        format!("{}: {master} is the master of epoch {}; {why}", self.shard, self.epoch)
    }
}

impl Cluster {
    /// Lets the election of `shard` that is under way promote the best node that is there, whatever that lacks. `tell` hears
    /// what is known of it before.
    pub async fn accept_loss(
        &self,
        shard: &ShardId,
        asked_by: String,
        tell: impl Fn(&str),
        stop: impl Future<Output = ()>,
    ) -> Result<Accepted, OperateError> {
        self.must_exist(shard).await?;
        let electing = self.electing(shard).await?;
        for line in self.stakes(shard, &electing).await {
            tell(&line);
        }
        let from = self.permit(shard, asked_by).await?;
        tokio::select! {
            accepted = self.elected(shard, from) => accepted,
            () = stop => Err(OperateError::Accept(shard.clone(), "the loss stays accepted; see 'pointsman status'".to_owned())),
        }
    }

    /// The state of the election that is under way, once it is.
    async fn electing(&self, shard: &ShardId) -> Result<ShardState, OperateError> {
        let refused = |why: &str| OperateError::Accept(shard.clone(), why.to_owned());
        let end = clock::now() + CLAIM_LIMIT;
        loop {
            let state: Option<ShardState> = self.read(&Place::State(shard.clone())).await?;
            let state = state.ok_or_else(|| refused("it has had no master yet, so there is nothing to lose"))?;
            match state.phase {
                Phase::Electing if state.lineage.is_empty() => {
                    return Err(refused("it has had no master yet, so there is nothing to lose"));
                }
                Phase::Electing => return Ok(state),
                Phase::Serving if self.master_lives(shard, &state).await => {
                    return Err(refused(
                        "it has a master that serves, so nothing is lost: to make another node the master use 'pointsman \
                         switchover'",
                    ));
                }
                Phase::Serving | Phase::Switching if clock::now() >= end => {
                    return Err(refused("no election is under way: see 'pointsman status'"));
                }
                Phase::Serving | Phase::Switching => sleep(LOOK).await,
            }
        }
    }

    async fn master_lives(&self, shard: &ShardId, state: &ShardState) -> bool {
        let Some(master) = &state.master else { return false };
        let status = self.status_of(shard, master).await;
        let life = status.as_ref().and_then(reading).map(|facts| &facts.run_id);
        life.is_some() && life == state.run_id.as_ref()
    }

    async fn status_of(&self, shard: &ShardId, node: &NodeId) -> Option<Status> {
        let place = Place::Node(shard.clone(), node.clone());
        let info: NodeInfo = self.read(&place).await.ok().flatten()?;
        ask(&info.peer, self.secret.as_ref()?).await.ok()
    }

    /// What is known of what may be lost, in lines for people.
    async fn stakes(&self, shard: &ShardId, state: &ShardState) -> Vec<String> {
        let members: Vec<&NodeId> = state.members.iter().collect();
        let asked = join_all(members.iter().map(|node| self.status_of(shard, node))).await;
        let told = asked.iter().flatten().filter_map(|status| status.seen.as_ref());
        let seen = told
            .filter(|(life, _)| Some(life) == state.run_id.as_ref())
            .map(|(_, offset)| *offset)
            .max();
        let mut lines = vec![match (&state.master, seen) {
            (Some(master), Some(offset)) => {
                format!("{master}, the last master, was seen at offset {offset}; it may have gone further")
            }
            _ => "nobody knows how far the last master's stream went".to_owned(),
        }];
        for (node, status) in members.iter().zip(&asked) {
            let line = match status.as_ref().and_then(reading) {
                None => "does not answer".to_owned(),
                Some(facts) => {
                    let ours = state.lineage.contains(&facts.replid) || state.lineage.contains(&facts.replid2);
                    match seen.filter(|_| ours) {
                        Some(seen) => format!("is at {}, {} bytes less", facts.offset, (seen - facts.offset).max(0)),
                        None if ours => format!("is at {}", facts.offset),
                        None => format!("holds {} keys of a stream that cannot be compared", facts.keys),
                    }
                }
            };
            lines.push(format!("{node} {line}"));
        }
        lines
    }

    /// Writes the word over whatever the election has written; the epoch it was written in.
    async fn permit(&self, shard: &ShardId, asked_by: String) -> Result<Epoch, OperateError> {
        let path = Place::State(shard.clone()).to_string();
        loop {
            let Some(found) = self.store().get(&path).await? else {
                return Err(StoreError::Missing(path).into());
            };
            let mut state: ShardState = decode(&found.bytes, &path)?;
            if state.phase != Phase::Electing || state.accept.is_some() {
                // It came to an end without it, or has it.
                return Ok(state.epoch);
            }
            state.accept = Some(Accept {
                asked_by: asked_by.clone(),
            });
            match self.store().set(&path, encode(&state), found.version).await {
                Ok(_) => return Ok(state.epoch),
                Err(StoreError::Conflict(_) | StoreError::Unknown) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn elected(&self, shard: &ShardId, from: Epoch) -> Result<Accepted, OperateError> {
        let end = clock::now() + PATIENCE;
        let state = loop {
            let state: Option<ShardState> = self.read(&Place::State(shard.clone())).await?;
            match state {
                Some(state) if state.phase == Phase::Serving && state.epoch >= from => break state,
                _ if clock::now() >= end => {
                    let seconds = PATIENCE.as_secs();
                    let why = format!("nobody is the master after {seconds} s: is a node there that may be promoted?");
                    return Err(OperateError::Accept(shard.clone(), why));
                }
                _ => sleep(LOOK).await,
            }
        };
        let end = clock::now() + RECORD_LIMIT;
        let record = loop {
            let records = self.history().await?.0;
            let ours = |record: &Record| {
                record.shard == *shard && record.epoch == state.epoch && record.kind == Kind::Failover
            };
            let found = records.into_iter().find(ours);
            if found.is_some() || clock::now() >= end {
                break found;
            }
            sleep(LOOK).await;
        };
        Ok(Accepted {
            shard: shard.clone(),
            epoch: state.epoch,
            master: state.master,
            record,
        })
    }
}
