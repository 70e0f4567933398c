//! Giving a master away before its agent stops.
//!
//! Owns: asking for it and waiting for it, for a bounded time. Refuses: insisting: a handover that is refused or late is
//! said, and the agent leaves all the same. Invariants: a node that is no master asks for nothing; a request does not outlive
//! the agent that asked.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::petition::{Answer, Patience, Petition, PetitionError};
use crate::clock;
use crate::store::{Lifetime, Store, StoreError};
use crate::topology::codec::{Ending, Place, ShardState, decode};
use crate::topology::{NodeId, Phase, ShardId};

/// Between two looks at a shard that is on its way to something.
const LOOK: Duration = Duration::from_millis(50);

/// Where the master is, seen from one node.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// Here.
    Ours,
    /// At another node, or nowhere yet: nothing to give away.
    Elsewhere(Option<NodeId>),
    /// It is being moved or chosen.
    Unsettled,
}

/// Has the master of `shard` moved away from `node` if it is there, within `patience`.
pub async fn hand_over(store: &Store, shard: &ShardId, node: &NodeId, patience: Duration) {
    let deadline = clock::now() + patience;
    let mut asked = false;
    while clock::now() < deadline {
        match standing(store, shard, node).await {
            Ok(Standing::Elsewhere(Some(master))) if asked => {
                return tracing::info!("{master} is the master of {shard} now: this agent stops");
            }
            Ok(Standing::Elsewhere(_)) => return,
            Ok(Standing::Ours) => {
                if !asked {
                    tracing::info!("this agent is to stop, and {node} is the master of {shard}: it is handed over");
                }
                asked = true;
                match ask(store, shard, node, deadline).await {
                    Ok(Asked::Again) => {}
                    Ok(Asked::Refused(why)) => {
                        return tracing::warn!("{node} stays the master of {shard}, this agent stops: {why}");
                    }
                    Err(error) => tracing::debug!(%error, "the handover is not asked for yet"),
                }
            }
            Ok(Standing::Unsettled) => {}
            Err(error) => tracing::debug!(%error, "the state of the shard is not known"),
        }
        sleep(LOOK).await;
    }
    tracing::warn!("{shard} was not handed over within {patience:?}: this agent stops");
}

/// What came of asking.
enum Asked {
    /// It moved, or somebody else has it moved: the state tells.
    Again,
    /// It does not move.
    Refused(String),
}

async fn ask(store: &Store, shard: &ShardId, node: &NodeId, deadline: Instant) -> Result<Asked, PetitionError> {
    // It ends with this agent's session: who is gone hands nothing over.
    let asked_by = format!("node {node} stops");
    let mut petition = match Petition::make(store, shard, None, asked_by, Lifetime::Ephemeral).await {
        Err(PetitionError::Busy { .. }) => return Ok(Asked::Again),
        other => other?,
    };
    let left = deadline.saturating_duration_since(clock::now());
    let patience = Patience {
        take: left,
        whole: left,
    };
    Ok(match petition.answered(patience).await? {
        Answer::Recorded(record) => match record.result {
            Ending::Done | Ending::Failed => Asked::Again,
            Ending::Refused | Ending::RolledBack | Ending::Other(_) => Asked::Refused(record.why),
        },
        Answer::Untaken | Answer::Unfinished => Asked::Again,
        Answer::Vanished => Asked::Refused("the request was deleted".to_owned()),
    })
}

async fn standing(store: &Store, shard: &ShardId, node: &NodeId) -> Result<Standing, StoreError> {
    let path = Place::State(shard.clone()).to_string();
    let found = store.get(&path).await?;
    let state: Option<ShardState> = found.and_then(|found| decode(&found.bytes, &path).ok());
    Ok(match state {
        None => Standing::Elsewhere(None),
        Some(state) if state.phase != Phase::Serving => Standing::Unsettled,
        Some(state) if state.master.as_ref() == Some(node) => Standing::Ours,
        Some(state) => Standing::Elsewhere(state.master),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Memory;
    use crate::topology::codec::{Record, SwitchRequest, bare_record, encode};

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(120);

    /// A shard in memory, and an executor that the test plays.
    struct Bench {
        ensemble: Memory,
        store: Store,
    }

    impl Bench {
        async fn start(master: &str) -> Self {
            let ensemble = Memory::default();
            let store = ensemble.store();
            let path = "/shards/s1/state";
            store.create(path, state(master), Lifetime::Persistent).await.unwrap();
            Self { ensemble, store }
        }

        /// Waits for a request and answers it, once the master is `master`.
        async fn answer(&self, result: Ending, master: &str) {
            let store = self.ensemble.store();
            let path = "/shards/s1/switch";
            let mut watch = store.watch(path);
            let request: SwitchRequest = loop {
                if let Some(found) = store.get(path).await.unwrap() {
                    break decode(&found.bytes, path).unwrap();
                }
                watch.changed().await;
            };
            assert_eq!((request.to, request.asked_by.as_str()), (None, "node a stops"));
            let version = store.get("/shards/s1/state").await.unwrap().unwrap().version;
            store.set("/shards/s1/state", state(master), version).await.unwrap();
            let record = Record {
                request: Some(request.id),
                result,
                why: "no replica is fit".to_owned(),
                ..bare_record()
            };
            store.append("/history/s1", encode(&record)).await.unwrap();
            store.delete(path, None).await.unwrap();
        }

        async fn hand_over(&self, patience: Duration) {
            hand_over(&self.store, &ShardId::from("s1"), &NodeId::from("a"), patience).await;
            let left = self.store.get("/shards/s1/switch").await.unwrap();
            assert_eq!(left, None, "no request of ours stays");
        }
    }

    fn state(master: &str) -> Vec<u8> {
        let text = format!(
            r#"{{"epoch":1,"phase":"serving","executor":"a","nonce":"n","master":"{master}","addr":"h:1","run_id":"r",
            "lineage":["l"],"members":["a","b"],"valid":{{"a":"r"}},"w":0}}"#
        );
        text.into_bytes()
    }

    #[tokio::test]
    async fn a_master_is_handed_over_and_a_replica_asks_for_nothing() {
        let bench = Bench::start("a").await;
        let start = clock::now();
        tokio::join!(bench.hand_over(LONG), bench.answer(Ending::Done, "b"));
        bench.hand_over(LONG).await;
        assert!(clock::now() - start < LONG, "it ends when the master is elsewhere");
        assert_eq!(bench.store.children("/history/s1").await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_handover_that_is_refused_or_late_does_not_keep_the_agent() {
        let bench = Bench::start("a").await;
        let start = clock::now();
        tokio::join!(bench.hand_over(LONG), bench.answer(Ending::Refused, "a"));
        assert!(clock::now() - start < LONG, "a refusal is an answer");
        bench.hand_over(SHORT).await;
    }

    #[tokio::test]
    async fn a_request_does_not_outlive_the_agent_that_asked() {
        let bench = Bench::start("a").await;
        let asker = bench.ensemble.store();
        let path = "/shards/s1/switch";
        let mut watch = bench.store.watch(path);
        let (shard, node) = (ShardId::from("s1"), NodeId::from("a"));
        let asked = async {
            while bench.store.get(path).await.unwrap().is_none() {
                watch.changed().await;
            }
        };
        tokio::select! {
            () = hand_over(&asker, &shard, &node, LONG) => panic!("nobody answers"),
            () = asked => {}
        }
        asker.close().await;
        assert_eq!(bench.store.get(path).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_switchover_of_somebody_else_is_waited_for() {
        let bench = Bench::start("a").await;
        let theirs = SwitchRequest {
            id: "r1".to_owned(),
            to: None,
            asked_by: "node a stops".to_owned(),
        };
        let path = "/shards/s1/switch";
        bench
            .store
            .create(path, encode(&theirs), Lifetime::Persistent)
            .await
            .unwrap();
        tokio::join!(bench.hand_over(LONG), bench.answer(Ending::Done, "b"));
    }
}
