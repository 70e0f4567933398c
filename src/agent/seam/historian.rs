//! Writes what happened, once each, and forgets the oldest.
//!
//! ```text
//!  outcome --> open: waits for the proxies' reports, 300 ms at most --append--> written: late reports --set--> closed
//!  report ---> tally
//! ```
//!
//! Owns: the records of the operations that this agent executed, and ending the requests that they answer. Refuses:
//! what the records say (`znode`, `tally`). Invariants: one record per operation: one whose writing had no known outcome
//! is looked for before it is written again; records are written in the order in which operations ended; a request is
//! deleted only after the record that answers it stands.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until};

use super::reports::Reports;
use super::{request, znode};
use crate::agent::machine::outcome::Outcome;
use crate::clock;
use crate::store::{Store, StoreError};
use crate::topology::codec::{Ending, Kind, Place, ProxyInfo, Record, decode, encode};
use crate::topology::{Epoch, NodeId, ShardId};

/// Records kept per shard.
pub(super) const RECORDS_MAX: usize = 1000;
/// Until a record that could not be written is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How far back an own record of unknown outcome is looked for.
const LOOK_BACK: usize = 8;
/// How long a record waits for the reports of proxies.
const REPORTS_LIMIT: Duration = Duration::from_millis(300);
/// Losses that wait for their records.
const LOSSES_MAX: usize = 8;
/// How often adding a loss to a record is tried.
const LOSS_TRIES: usize = 5;
/// How long later reports are added to it.
const LATE_LIMIT: Duration = Duration::from_secs(2);

/// Our Redis, master before, had this much of the stream that the master of this epoch did not have.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    pub(super) epoch: Epoch,
    pub(super) bytes: u64,
}

pub(super) struct Historian {
    store: Store,
    shard: ShardId,
    node: NodeId,
    reports: Reports,
    open: VecDeque<Open>,
    losses: VecDeque<Loss>,
}

/// What our Redis had lost, on its way into a record that somebody else writes.
struct Loss {
    epoch: Epoch,
    bytes: u64,
    /// How often it may still be tried, and when.
    tries: usize,
    due: Instant,
}

/// An operation whose record may still change.
struct Open {
    /// Without what proxies say.
    record: Record,
    /// The proxies that are to report.
    awaited: BTreeSet<String>,
    since: Instant,
    stage: Stage,
}

/// Where its record is.
enum Stage {
    /// Not written yet. Next: written, refused.
    Awaiting,
    /// It stands under this number, like this. Next: closed.
    Written(u64, Box<Record>),
    /// The store refuses it. Next: closed.
    Refused,
}

impl Open {
    /// Until when reports are waited for.
    fn due(&self) -> Instant {
        self.since
            + match self.stage {
                Stage::Awaiting => REPORTS_LIMIT,
                Stage::Written(..) | Stage::Refused => LATE_LIMIT,
            }
    }

    fn closed(&self, now: Instant) -> bool {
        match self.stage {
            Stage::Awaiting => false,
            Stage::Written(..) => now >= self.due(),
            Stage::Refused => true,
        }
    }
}

impl Historian {
    pub(super) fn new(store: Store, shard: ShardId, node: NodeId, reports: Reports) -> Self {
        Self {
            store,
            shard,
            node,
            reports,
            open: VecDeque::new(),
            losses: VecDeque::new(),
        }
    }

    pub(super) async fn run(mut self, mut outcomes: mpsc::Receiver<Box<Outcome>>, mut losses: mpsc::Receiver<Lost>) {
        loop {
            let due = self.losses.iter().map(|loss| loss.due);
            let due = self.open.iter().map(Open::due).chain(due).min();
            tokio::select! {
                biased;
                () = self.reports.noted() => {}
                Some(lost) = losses.recv() => self.note_loss(lost),
                outcome = outcomes.recv() => match outcome {
                    Some(outcome) => self.begin(znode::record(&self.shard, *outcome, clock::unix_ms())).await,
                    None => return self.write_all().await,
                },
                () = moment(due) => {}
            }
            self.advance().await;
        }
    }

    /// Takes a record on. The one before it waits no longer, so that records stand in order.
    async fn begin(&mut self, record: Record) {
        self.write_all().await;
        let awaited = match (&record.result, &record.kind) {
            (Ending::Done, Kind::Failover | Kind::Switchover) => self.reporting().await,
            // A seat that was taken concerns no proxy.
            (Ending::Done, Kind::Members) if !record.phases_ms.0.is_empty() => self.reporting().await,
            _ => BTreeSet::new(),
        };
        self.open.push_back(Open {
            record,
            awaited,
            since: clock::now(),
            stage: Stage::Awaiting,
        });
    }

    /// Writes what is not written yet, without waiting for more reports.
    async fn write_all(&mut self) {
        for index in 0..self.open.len() {
            self.write_open(index).await;
        }
    }

    /// The proxies that say what a change cost them. If they cannot be read, nobody is waited for.
    async fn reporting(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for id in self
            .store
            .children(&Place::Proxies.to_string())
            .await
            .unwrap_or_default()
        {
            let path = Place::Proxy(id.clone()).to_string();
            let found = self.store.get(&path).await.ok().flatten();
            let info = found.and_then(|found| decode::<ProxyInfo>(&found.bytes, &path).ok());
            if info.is_some_and(|info| info.drains) {
                all.insert(id);
            }
        }
        all
    }

    /// Writes what is due and closes what is over.
    async fn advance(&mut self) {
        for index in 0..self.open.len() {
            let open = &self.open[index];
            let complete = self.reports.tally().complete(open.record.epoch, &open.awaited);
            if complete || clock::now() >= open.due() {
                self.write_open(index).await;
                self.revise(index).await;
            }
        }
        let now = clock::now();
        self.open.retain(|open| !open.closed(now));
        self.add_losses(now).await;
    }

    /// Writes a record that is not written yet.
    async fn write_open(&mut self, index: usize) {
        let Some(open) = self.open.get_mut(index) else { return };
        let Stage::Awaiting = open.stage else { return };
        let record = self.reports.tally().fill(open.record.clone());
        open.stage = match keep(&self.store, &self.shard, &self.node, &record).await {
            Some(seq) => Stage::Written(seq, Box::new(record)),
            None => Stage::Refused,
        };
    }

    /// Adds to a record what was reported since it was written.
    async fn revise(&mut self, index: usize) {
        let Some(open) = self.open.get_mut(index) else { return };
        let Stage::Written(seq, stands) = &mut open.stage else {
            return;
        };
        let record = self.reports.tally().fill(open.record.clone());
        if **stands == record {
            return;
        }
        let path = Place::Record(self.shard.clone(), *seq).to_string();
        let done = async {
            let found = self.store.get(&path).await?;
            let found = found.ok_or_else(|| StoreError::Missing(path.clone()))?;
            // Whoever lost something may have said so meanwhile.
            let lost_bytes = decode::<Record>(&found.bytes, &path)
                .ok()
                .and_then(|found| found.lost_bytes);
            let whole = Record {
                lost_bytes: record.lost_bytes.or(lost_bytes),
                ..record.clone()
            };
            self.store.set(&path, encode(&whole), found.version).await
        };
        match done.await {
            Ok(_) => **stands = record,
            // Setting the same twice changes nothing: a later look may try again.
            Err(error) => tracing::debug!(%error, epoch = %record.epoch, "late reports are not in the history yet"),
        }
    }

    /// Completes the record of the failover that put another in our place. One of our own writing takes it in at once; one of
    /// somebody else's, who could not know, once it stands.
    fn note_loss(&mut self, Lost { epoch, bytes }: Lost) {
        let tells = |record: &Record| record.epoch == epoch && record.from.as_ref() == Some(&self.node);
        if let Some(open) = self.open.iter_mut().find(|open| tells(&open.record)) {
            if open.record.kind == Kind::Failover {
                open.record.lost_bytes.get_or_insert(bytes);
            }
            return;
        }
        if self.losses.len() == LOSSES_MAX {
            self.losses.pop_front();
        }
        self.losses.push_back(Loss {
            epoch,
            bytes,
            tries: LOSS_TRIES,
            due: clock::now(),
        });
    }

    async fn add_losses(&mut self, now: Instant) {
        for mut loss in std::mem::take(&mut self.losses) {
            if now < loss.due {
                self.losses.push_back(loss);
                continue;
            }
            if let Err(error) = self.try_add_loss(loss.epoch, loss.bytes).await {
                tracing::debug!(%error, epoch = %loss.epoch, "the history does not tell of a loss yet");
                loss.tries -= 1;
                loss.due = now + AGAIN;
                if loss.tries > 0 {
                    self.losses.push_back(loss);
                }
            }
        }
    }

    async fn try_add_loss(&self, epoch: Epoch, bytes: u64) -> Result<(), StoreError> {
        let parent = Place::History(self.shard.clone()).to_string();
        let names = self.store.children(&parent).await?;
        let mut stands = false;
        for name in names.iter().rev().take(LOOK_BACK) {
            let path = format!("{parent}/{name}");
            let Some(found) = self.store.get(&path).await? else {
                continue;
            };
            let Ok(record) = decode::<Record>(&found.bytes, &path) else {
                continue;
            };
            let ours = record.epoch == epoch && record.from.as_ref() == Some(&self.node);
            stands |= record.epoch == epoch;
            if ours && record.kind == Kind::Failover && record.lost_bytes.is_none() {
                let whole = Record {
                    lost_bytes: Some(bytes),
                    ..record
                };
                self.store.set(&path, encode(&whole), found.version).await?;
            }
        }
        // Its writer may be waiting for what proxies report.
        if stands {
            Ok(())
        } else {
            Err(StoreError::Missing(parent))
        }
    }
}

async fn moment(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Writes a record, however long that takes, and ends the request that it answers. None if the store refuses it.
async fn keep(store: &Store, shard: &ShardId, node: &NodeId, record: &Record) -> Option<u64> {
    // It only answers a request, and somebody else has: this agent was cut off when it did.
    if let (Some(request), true) = (&record.request, record.phases_ms.0.is_empty())
        && !request::stands(store, shard, request).await
    {
        return None;
    }
    if let Some(request) = &record.request
        && answered(store, shard, request).await
    {
        // Whoever executed it wrote that, and died before it deleted the request.
        request::end(store, shard, request).await;
        return None;
    }
    let mut doubtful = false;
    let seq = loop {
        match write(store, shard, record, doubtful).await {
            Ok(seq) => break seq,
            Err(StoreError::Unknown) => doubtful = true,
            Err(StoreError::Away) => {}
            Err(error) => {
                tracing::warn!(%error, epoch = %record.epoch, "a history record cannot be written");
                return None;
            }
        }
        sleep(AGAIN).await;
    };
    if let Some(request) = &record.request {
        request::end(store, shard, request).await;
    }
    if let Err(error) = trim(store, shard).await {
        // The next record's trimming takes these along.
        tracing::debug!(%error, %node, "old history records stay for now");
    }
    Some(seq)
}

async fn write(store: &Store, shard: &ShardId, record: &Record, doubtful: bool) -> Result<u64, StoreError> {
    let bytes = encode(record);
    if doubtful && let Some(seq) = stands(store, shard, &bytes).await? {
        return Ok(seq);
    }
    store.append(&Place::History(shard.clone()).to_string(), bytes).await
}

/// Whether a record answers this request already. Waits for the store.
async fn answered(store: &Store, shard: &ShardId, request: &str) -> bool {
    let parent = Place::History(shard.clone()).to_string();
    let looking = || async {
        store.sync().await?;
        for name in store.children(&parent).await?.iter().rev().take(LOOK_BACK) {
            let path = format!("{parent}/{name}");
            let found = store.get(&path).await?;
            let record = found.and_then(|found| decode::<Record>(&found.bytes, &path).ok());
            if record.is_some_and(|record| record.request.as_deref() == Some(request)) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    loop {
        match looking().await {
            Ok(found) => return found,
            Err(StoreError::Away | StoreError::Unknown) => sleep(AGAIN).await,
            Err(error) => {
                tracing::warn!(%error, "the history cannot be read");
                return false;
            }
        }
    }
}

async fn stands(store: &Store, shard: &ShardId, bytes: &[u8]) -> Result<Option<u64>, StoreError> {
    let parent = Place::History(shard.clone()).to_string();
    store.sync().await?;
    let names = store.children(&parent).await?;
    for name in names.iter().rev().take(LOOK_BACK) {
        let value = store.get(&format!("{parent}/{name}")).await?;
        if value.is_some_and(|value| value.bytes == bytes) {
            return Ok(name.parse().ok());
        }
    }
    Ok(None)
}

async fn trim(store: &Store, shard: &ShardId) -> Result<(), StoreError> {
    let parent = Place::History(shard.clone()).to_string();
    let names = store.children(&parent).await?;
    let spare = names.len().saturating_sub(RECORDS_MAX);
    for name in names.iter().take(spare) {
        match store.delete(&format!("{parent}/{name}"), None).await {
            // Another agent trims too.
            Ok(()) | Err(StoreError::Missing(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
