//! Asking through the store that a shard's master move, and hearing what became of that.
//!
//! ```text
//!  make: create /shards/<s>/switch --> answered: wait for the record with its id --> Recorded
//!          |                                        |            \--> Vanished
//!          v                                        v nobody took it, or it takes too long
//!         Busy                                withdraw: delete on its version --> Withdrawn
//! ```
//!
//! Owns: one request, from its making to its end; operators and agents that stop ask in the same way. Refuses: moving
//! anything, which is the executor's. Invariants: what was made is answered by a record or taken back; a request of
//! somebody else is never touched; a record counts only if it carries the request's id.

use std::time::Duration;

use thiserror::Error;
use tokio::time::{sleep, timeout};

use crate::clock;
use crate::store::{Lifetime, Store, StoreError};
use crate::topology::codec::{Place, Record, ShardState, SwitchRequest, Znode, decode, encode};
use crate::topology::{NodeId, Phase, ShardId};

/// Between two looks, should a hint be missed.
const LOOK: Duration = Duration::from_millis(200);
/// How often what the store did not answer is asked again.
const TRIES: usize = 10;

/// How long a request is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Until somebody has begun with it.
    pub take: Duration,
    /// Until it is over.
    pub whole: Duration,
}

/// A request that was made.
#[derive(Debug)]
pub struct Petition {
    store: Store,
    shard: ShardId,
    request: SwitchRequest,
    /// Records up to this one are older than the request.
    seen: Option<u64>,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// This is its record, whatever that says.
    Recorded(Box<Record>),
    /// Nobody began with it in time; it is taken back.
    Untaken,
    /// It was begun, but is not over in time; it is taken back, though what was begun may yet come to its end.
    Unfinished,
    /// Somebody deleted it without a record.
    Vanished,
}

/// Why no request could be made.
#[derive(Debug, Error)]
pub enum PetitionError {
    /// There is one already.
    #[error("a switchover of {shard} is asked for already, by {by}: wait until it is over")]
    Busy {
        /// Of which shard.
        shard: ShardId,
        /// By whom.
        by: String,
    },
    /// The store does not tell.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system has no randomness to give.
    #[error("no id could be drawn for the request: {0}")]
    Random(String),
}

impl Petition {
    /// Asks that `to`, or the best replica, become the master of `shard`. An ephemeral request does not outlive the session
    /// of `store`: for an asker that nobody answers once it is gone.
    pub async fn make(
        store: &Store,
        shard: &ShardId,
        to: Option<NodeId>,
        asked_by: String,
        lifetime: Lifetime,
    ) -> Result<Self, PetitionError> {
        let id = getrandom::u64().map_err(|error| PetitionError::Random(error.to_string()))?;
        let request = SwitchRequest {
            id: format!("{id:016x}"),
            to,
            asked_by,
        };
        let mut petition = Self {
            store: store.clone(),
            shard: shard.clone(),
            request,
            seen: None,
        };
        petition.seen = petition.records().await?.into_iter().max();
        petition.create(lifetime).await?;
        Ok(petition)
    }

    /// Waits for the end of it, at most for `patience`; a request that is given up is taken back.
    pub async fn answered(&mut self, patience: Patience) -> Result<Answer, StoreError> {
        let history = Place::History(self.shard.clone()).to_string();
        let mut watch = self.store.watch(&history);
        let start = clock::now();
        loop {
            if let Some(answer) = self.look().await? {
                return Ok(answer);
            }
            let waited = clock::now().saturating_duration_since(start);
            if waited >= patience.whole {
                return self.give_up(Answer::Unfinished).await;
            }
            if waited >= patience.take && !self.under_way().await {
                return self.give_up(Answer::Untaken).await;
            }
            // What was missed is looked at anyway.
            let _ = timeout(LOOK, watch.changed()).await;
        }
    }

    /// Takes the request back if it still stands. What was begun with may yet come to its end.
    pub async fn withdraw(&self) -> Result<(), StoreError> {
        self.again(|| async {
            let Some((version, request)) = self.standing().await? else {
                return Ok(());
            };
            if request.is_none_or(|request| request.id != self.request.id) {
                return Ok(());
            }
            let path = Place::Switch(self.shard.clone()).to_string();
            match self.store.delete(&path, Some(version)).await {
                Err(StoreError::Missing(_)) => Ok(()),
                other => other,
            }
        })
        .await
    }

    async fn create(&self, lifetime: Lifetime) -> Result<(), PetitionError> {
        let path = Place::Switch(self.shard.clone()).to_string();
        let bytes = encode(&self.request);
        let create = || self.again(|| self.store.create(&path, bytes.clone(), lifetime));
        let mut created = create().await;
        if let Err(StoreError::Exists(_)) = created
            && self.remove_nonsense(&path).await?
        {
            created = create().await;
        }
        match created {
            Err(StoreError::Exists(_)) => {}
            other => return Ok(other?),
        }
        // It may be our own: the answer to an earlier attempt was lost.
        let standing = self.again(|| self.standing()).await?;
        let by = match standing {
            Some((_, Some(request))) if request.id == self.request.id => return Ok(()),
            Some((_, Some(request))) if !request.asked_by.is_empty() => request.asked_by,
            Some(_) | None => "somebody".to_owned(),
        };
        let shard = self.shard.clone();
        Err(PetitionError::Busy { shard, by })
    }

    /// What no agent can read, none will ever answer: it gives way. Says whether it did.
    async fn remove_nonsense(&self, path: &str) -> Result<bool, StoreError> {
        let Some((version, None)) = self.again(|| self.standing()).await? else {
            return Ok(false);
        };
        tracing::warn!("{path} holds nonsense and gives way");
        match self.store.delete(path, Some(version)).await {
            Ok(()) | Err(StoreError::Missing(_)) => Ok(true),
            Err(StoreError::Conflict(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The request that stands now and its version; the request is none if it is nonsense.
    async fn standing(&self) -> Result<Option<(i32, Option<SwitchRequest>)>, StoreError> {
        let path = Place::Switch(self.shard.clone()).to_string();
        let found = self.store.get(&path).await?;
        Ok(found.map(|found| (found.version, decode(&found.bytes, &path).ok())))
    }

    /// The answer, if there is one by now. While the store is away there is none.
    async fn look(&mut self) -> Result<Option<Answer>, StoreError> {
        let looking = async {
            let ours = |request: &SwitchRequest| request.id == self.request.id;
            let gone = match self.standing().await? {
                Some((_, request)) => !request.as_ref().is_some_and(ours),
                None => true,
            };
            if gone {
                // It is deleted after its record was written, but not every server has both at once.
                self.store.sync().await?;
            }
            Ok((self.record().await?, gone))
        };
        match looking.await {
            Ok((Some(record), _)) => Ok(Some(Answer::Recorded(Box::new(record)))),
            Ok((None, true)) => Ok(Some(Answer::Vanished)),
            Ok((None, false)) | Err(StoreError::Away | StoreError::Unknown) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn give_up(&mut self, answer: Answer) -> Result<Answer, StoreError> {
        self.withdraw().await?;
        // It may have ended just before.
        self.store.sync().await?;
        let record = self.record().await?;
        Ok(record.map_or(answer, |record| Answer::Recorded(Box::new(record))))
    }

    /// The record that answers the request.
    async fn record(&mut self) -> Result<Option<Record>, StoreError> {
        let mut numbers = self.records().await?;
        numbers.retain(|number| Some(*number) > self.seen);
        for number in numbers {
            let place = Place::Record(self.shard.clone(), number);
            if let Some(record) = self.read::<Record>(&place).await?
                && record.request.as_ref() == Some(&self.request.id)
            {
                return Ok(Some(Record { seq: number, ..record }));
            }
            self.seen = self.seen.max(Some(number));
        }
        Ok(None)
    }

    async fn records(&self) -> Result<Vec<u64>, StoreError> {
        let path = Place::History(self.shard.clone()).to_string();
        let names = self.again(|| self.store.children(&path)).await?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Whether the shard is on its way to something. What cannot be read may be.
    async fn under_way(&self) -> bool {
        match self.read::<ShardState>(&Place::State(self.shard.clone())).await {
            Ok(state) => state.is_none_or(|state| state.phase != Phase::Serving),
            Err(_) => true,
        }
    }

    /// What stands at a place; none if nothing does, or nonsense.
    async fn read<Z: Znode>(&self, place: &Place) -> Result<Option<Z>, StoreError> {
        let path = place.to_string();
        let found = self.store.get(&path).await?;
        Ok(found.and_then(|found| decode(&found.bytes, &path).ok()))
    }

    /// Tries again what the store did not answer. Only for what may be done twice.
    async fn again<T, F>(&self, step: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut last = step().await;
        for _ in 1..TRIES {
            match last {
                Err(StoreError::Away | StoreError::Unknown | StoreError::Conflict(_)) => {}
                other => return other,
            }
            sleep(LOOK).await;
            last = step().await;
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Loss, Memory};
    use crate::topology::codec::{Ending, bare_record};

    const SOON: Patience = Patience {
        take: Duration::from_millis(50),
        whole: Duration::from_millis(400),
    };
    const LONG: Patience = Patience {
        take: Duration::from_secs(10),
        whole: Duration::from_secs(10),
    };

    async fn make(store: &Store) -> Result<Petition, PetitionError> {
        let asked_by = "a test".to_owned();
        Petition::make(store, &ShardId::from("s1"), None, asked_by, Lifetime::Persistent).await
    }

    fn record(request: Option<&str>) -> Record {
        Record {
            request: request.map(str::to_owned),
            result: Ending::Refused,
            why: "it lags".to_owned(),
            ..bare_record()
        }
    }

    async fn append(store: &Store, request: Option<&str>) {
        store.append("/history/s1", encode(&record(request))).await.unwrap();
    }

    async fn stands(store: &Store) -> bool {
        store.get("/shards/s1/switch").await.unwrap().is_some()
    }

    #[tokio::test]
    async fn only_the_record_with_its_id_answers_a_request() {
        let ensemble = Memory::default();
        let (store, executor) = (ensemble.store(), ensemble.store());
        append(&store, None).await;
        let mut petition = make(&store).await.unwrap();
        let id = petition.request.id.clone();
        tokio::spawn(async move {
            append(&executor, Some("other")).await;
            executor.append("/history/s1", b"nonsense".to_vec()).await.unwrap();
            append(&executor, Some(&id)).await;
            executor.delete("/shards/s1/switch", None).await.unwrap();
        });
        let Answer::Recorded(answer) = petition.answered(LONG).await.unwrap() else {
            panic!("it is recorded");
        };
        assert_eq!((answer.seq, answer.why.as_str()), (3, "it lags"));
    }

    #[tokio::test]
    async fn a_second_request_waits_its_turn_and_does_not_touch_the_first() {
        let store = Memory::default().store();
        let first = make(&store).await.unwrap();
        let refused = make(&store).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "a switchover of s1 is asked for already, by a test: wait until it is over"
        );
        assert!(stands(&store).await);
        first.withdraw().await.unwrap();
        let second = make(&store).await.unwrap();
        first.withdraw().await.unwrap();
        assert!(stands(&store).await, "that is the second one");
        second.withdraw().await.unwrap();
        second.withdraw().await.unwrap();
    }

    #[tokio::test]
    async fn what_nobody_takes_is_taken_back() {
        let store = Memory::default().store();
        let serving =
            br#"{"epoch":1,"phase":"serving","executor":"a","nonce":"n","master":"a","addr":"h:1","run_id":"r",
            "lineage":["l"],"members":["a"],"valid":{"a":"r"},"w":0}"#;
        let state = "/shards/s1/state";
        store
            .create(state, serving.to_vec(), Lifetime::Persistent)
            .await
            .unwrap();
        let mut petition = make(&store).await.unwrap();
        assert_eq!(petition.answered(SOON).await.unwrap(), Answer::Untaken);
        assert!(!stands(&store).await);
        let electing = String::from_utf8_lossy(serving).replace("serving", "electing");
        store.set(state, electing.into_bytes(), 0).await.unwrap();
        let mut petition = make(&store).await.unwrap();
        assert_eq!(petition.answered(SOON).await.unwrap(), Answer::Unfinished);
        assert!(!stands(&store).await);
        let mut petition = make(&store).await.unwrap();
        store.delete("/shards/s1/switch", None).await.unwrap();
        assert_eq!(petition.answered(LONG).await.unwrap(), Answer::Vanished);
    }

    #[tokio::test]
    async fn lost_answers_of_the_store_make_no_second_request() {
        let ensemble = Memory::default();
        let store = ensemble.store();
        for loss in [Loss::Done, Loss::NotDone] {
            ensemble.lose_next_write(loss);
            let petition = make(&store).await.unwrap();
            assert!(stands(&store).await, "{loss:?}");
            ensemble.lose_next_write(loss);
            petition.withdraw().await.unwrap();
            assert!(!stands(&store).await, "{loss:?}");
        }
    }
}
