//! Moving a shard's master on purpose: asking for it, and what is said of how it went.

use std::time::Duration;

use super::cluster::{Cluster, OperateError};
use super::history::{counts, phases, took};
use crate::agent::petition::{Answer, Patience, Petition};
use crate::store::Lifetime;
use crate::topology::codec::{Ending, Place, Record, ShardConfig, ShardState};
use crate::topology::{NodeId, ShardId};

/// How long a request waits for the master's agent, and for its end.
const PATIENCE: Patience = Patience {
    take: Duration::from_secs(5),
    whole: Duration::from_secs(30),
};

/// A switchover that was asked for and is over.
#[derive(Clone, Debug, PartialEq)]
pub enum Switchover {
    /// As its record says.
    Recorded(Box<Record>),
    /// Nothing is known of it, for this reason.
    Unanswered(String),
}

impl Cluster {
    /// Asks that `to`, or the best replica, become the master of `shard`, and waits for the end of that, or until
    /// `stop` ends: then the request is taken back.
    pub async fn switchover(
        &self,
        shard: &ShardId,
        to: Option<&NodeId>,
        asked_by: String,
        stop: impl Future<Output = ()>,
    ) -> Result<Switchover, OperateError> {
        let state = self.known(shard, to).await?;
        let mut petition = Petition::make(self.store(), shard, to.cloned(), asked_by, Lifetime::Persistent).await?;
        let answer = tokio::select! {
            answer = petition.answered(PATIENCE) => Some(answer?),
            () = stop => None,
        };
        let why = match answer {
            Some(Answer::Recorded(record)) => return Ok(Switchover::Recorded(record)),
            Some(Answer::Untaken) => {
                let master = state.and_then(|state| state.master);
                let who = master.map_or("the master".to_owned(), |master| master.to_string());
                let seconds = PATIENCE.take.as_secs();
                format!("nobody took the request within {seconds} s: see whether {who}'s agent runs; it is taken back")
            }
            Some(Answer::Unfinished) => format!(
                "it is not over after {} s: the request is taken back, 'pointsman history' tells what comes of it",
                PATIENCE.whole.as_secs()
            ),
            Some(Answer::Vanished) => "somebody deleted the request, and no record tells of it".to_owned(),
            None => {
                petition.withdraw().await?;
                "the request is taken back; 'pointsman history' tells whether it was begun".to_owned()
            }
        };
        Ok(Switchover::Unanswered(why))
    }

    /// Refuses shards that there are not.
    pub(super) async fn must_exist(&self, shard: &ShardId) -> Result<(), OperateError> {
        let shards = self.shards().await?;
        match shards.contains(shard) {
            true => Ok(()),
            false => Err(OperateError::NoShard(shard.clone(), list(&shards))),
        }
    }

    /// Refuses shards and nodes that there are not; gives the state of the shard.
    async fn known(&self, shard: &ShardId, to: Option<&NodeId>) -> Result<Option<ShardState>, OperateError> {
        self.must_exist(shard).await?;
        let state: Option<ShardState> = self.read(&Place::State(shard.clone())).await?;
        let Some(to) = to else { return Ok(state) };
        let config: Option<ShardConfig> = self.read(&Place::ShardConfig(shard.clone())).await?;
        let registered = self.children(&Place::Nodes(shard.clone())).await?;
        let mut nodes: Vec<NodeId> = registered.into_iter().map(NodeId::new).collect();
        nodes.extend(config.into_iter().flat_map(|config| config.members));
        nodes.extend(state.iter().flat_map(|state| state.members.iter().cloned()));
        nodes.sort_unstable();
        nodes.dedup();
        match nodes.contains(to) {
            true => Ok(state),
            false => Err(OperateError::NoNode(to.clone(), shard.clone(), list(&nodes))),
        }
    }
}

fn list(names: &[impl ToString]) -> String {
    match names {
        [] => "there are none".to_owned(),
        names => {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            format!("there is {}", names.join(", "))
        }
    }
}

impl Switchover {
    /// One line for people: what moved, or why nothing did.
    pub fn sentence(&self, shard: &ShardId) -> Result<String, String> {
        match self {
            Self::Recorded(record) => sentence(record),
            Self::Unanswered(why) => Err(format!("the master of {shard} was not seen to move: {why}")),
        }
    }
}

fn sentence(record: &Record) -> Result<String, String> {
    let (shard, why) = (&record.shard, &record.why);
    let shown = |node: &Option<NodeId>| node.as_ref().map_or("nobody".to_owned(), ToString::to_string);
    match &record.result {
        Ending::Done => Ok(format!(
            "{shard}: {} -> {} in epoch {}, {} ({}); {}",
            shown(&record.from),
            shown(&record.to),
            record.epoch,
            took(record),
            phases(record),
            counts(record)
        )),
        Ending::Refused => Err(format!("the master of {shard} was not moved: {why}")),
        Ending::RolledBack => Err(format!("the master of {shard} was not moved, all is as before: {why}")),
        Ending::Failed => Err(format!(
            "the switchover of {shard} failed, an election follows, see 'pointsman history': {why}"
        )),
        Ending::Other(word) => Err(format!("the switchover of {shard} ended '{word}': {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::tests::switchover;
    use super::*;

    #[test]
    fn each_ending_is_one_sentence() {
        let ending = |result: Ending| {
            let record = Record {
                result,
                why: "s1-b lags".to_owned(),
                ..switchover()
            };
            Switchover::Recorded(Box::new(record)).sentence(&ShardId::from("s1"))
        };
        assert_eq!(
            ending(Ending::Done).unwrap(),
            "s1: s1-a -> s1-b in epoch 4, 8.8 ms (claim 3.0, fence 0.5, publish 5.3, repoint 7.2 ms); held 12, resent 3, \
             in doubt 0, failed 0"
        );
        assert_eq!(
            ending(Ending::Refused).unwrap_err(),
            "the master of s1 was not moved: s1-b lags"
        );
        assert!(ending(Ending::RolledBack).unwrap_err().contains("all is as before"));
        assert!(ending(Ending::Failed).unwrap_err().contains("an election follows"));
        assert!(
            ending(Ending::Other("later".to_owned()))
                .unwrap_err()
                .contains("'later'")
        );
    }
}
