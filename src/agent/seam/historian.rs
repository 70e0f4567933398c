//! Writes what happened, once each, and forgets the oldest.
//!
//! Invariant: a record whose writing had no known outcome is looked for before it is written again.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::{request, znode};
use crate::agent::machine::outcome::Outcome;
use crate::clock;
use crate::store::{Store, StoreError};
use crate::topology::codec::{Place, Record, encode};
use crate::topology::{NodeId, ShardId};

/// Records kept per shard.
pub(super) const RECORDS_MAX: usize = 1000;
/// Until a record that could not be written is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How far back an own record of unknown outcome is looked for.
const LOOK_BACK: usize = 8;

pub(super) struct Historian {
    store: Store,
    shard: ShardId,
    node: NodeId,
}

impl Historian {
    pub(super) fn new(store: Store, shard: ShardId, node: NodeId) -> Self {
        Self { store, shard, node }
    }

    pub(super) async fn run(self, mut outcomes: mpsc::Receiver<Box<Outcome>>) {
        while let Some(outcome) = outcomes.recv().await {
            let record = znode::record(&self.shard, *outcome, clock::unix_ms());
            self.keep(&record).await;
            if let Some(request) = &record.request {
                request::end(&self.store, &self.shard, request).await;
            }
        }
    }

    async fn keep(&self, record: &Record) {
        let mut doubtful = false;
        loop {
            match self.write(record, doubtful).await {
                Ok(()) => break,
                Err(StoreError::Unknown) => doubtful = true,
                Err(StoreError::Away) => {}
                Err(error) => {
                    tracing::warn!(%error, epoch = %record.epoch, "a history record cannot be written");
                    return;
                }
            }
            sleep(AGAIN).await;
        }
        if let Err(error) = self.trim().await {
            // The next record's trimming takes these along.
            tracing::debug!(%error, node = %self.node, "old history records stay for now");
        }
    }

    async fn write(&self, record: &Record, doubtful: bool) -> Result<(), StoreError> {
        let bytes = encode(record);
        if doubtful && self.stands(&bytes).await? {
            return Ok(());
        }
        let parent = Place::History(self.shard.clone()).to_string();
        self.store.append(&parent, bytes).await.map(|_| ())
    }

    async fn stands(&self, bytes: &[u8]) -> Result<bool, StoreError> {
        let parent = Place::History(self.shard.clone()).to_string();
        self.store.sync().await?;
        let names = self.store.children(&parent).await?;
        for name in names.iter().rev().take(LOOK_BACK) {
            let value = self.store.get(&format!("{parent}/{name}")).await?;
            if value.is_some_and(|value| value.bytes == bytes) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn trim(&self) -> Result<(), StoreError> {
        let parent = Place::History(self.shard.clone()).to_string();
        let names = self.store.children(&parent).await?;
        let spare = names.len().saturating_sub(RECORDS_MAX);
        for name in names.iter().take(spare) {
            match self.store.delete(&format!("{parent}/{name}"), None).await {
                // Another agent trims too.
                Ok(()) | Err(StoreError::Missing(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::machine::quorum::Grounds;
    use crate::store::{Loss, Memory};
    use crate::topology::Epoch;
    use crate::topology::codec::{Ending, Kind};

    fn outcome(epoch: u64) -> Outcome {
        Outcome {
            kind: Kind::Failover,
            result: Ending::Done,
            epoch: Epoch(epoch),
            from: None,
            to: Some(NodeId::from("a")),
            why: "a test".to_owned(),
            grounds: Some(Grounds::Quorum),
            offset: Some(0),
            lost_bytes: None,
            asked_by: None,
            request: None,
            phases: vec![("claim", Duration::from_millis(2))],
        }
    }

    fn historian(ensemble: &Memory) -> (Historian, Store) {
        let store = ensemble.store();
        let historian = Historian::new(store.clone(), ShardId::from("s1"), NodeId::from("a"));
        (historian, store)
    }

    #[tokio::test]
    async fn a_record_of_unknown_outcome_is_written_once() {
        let ensemble = Memory::default();
        let (historian, store) = historian(&ensemble);
        for loss in [Loss::Done, Loss::NotDone] {
            ensemble.lose_next_write(loss);
            historian
                .keep(&znode::record(&ShardId::from("s1"), outcome(1), 1))
                .await;
            assert_eq!(store.children("/history/s1").await.unwrap().len(), 1, "{loss:?}");
            store.delete("/history/s1/0000000000", None).await.ok();
            store.delete("/history/s1", None).await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_oldest_records_go_at_the_limit_and_one_past_it() {
        let ensemble = Memory::default();
        let (historian, store) = historian(&ensemble);
        for _ in 0..RECORDS_MAX - 1 {
            store.append("/history/s1", b"{}".to_vec()).await.unwrap();
        }
        let record = znode::record(&ShardId::from("s1"), outcome(1), 1);
        historian.keep(&record).await;
        let names = store.children("/history/s1").await.unwrap();
        assert_eq!((names.len(), names[0].as_str()), (RECORDS_MAX, "0000000000"));
        historian.keep(&record).await;
        let names = store.children("/history/s1").await.unwrap();
        assert_eq!((names.len(), names[0].as_str()), (RECORDS_MAX, "0000000001"));
    }
}
