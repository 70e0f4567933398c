//! What workers and the control thread tell each other while a shard's master changes.
//!
//! ```text
//! agents --news--> liaison --Order--> every worker
//! agents <--once all workers have said so-- Tally <--Told-- a worker
//! ```
//! Owns: the channels and [`Tally`], which is pure. Refuses: talking to agents (`liaison`), and what an order means (the
//! shard). Invariant: agents hear of something only once every worker has said it about the same epoch.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::peer::{Attach, Report};
use crate::topology::{Course, Epoch, ShardId};

/// What workers have told and the control thread has not taken. Who finds it full waits, in a task of its own.
const TOLD_MAX: usize = 256;
/// Orders that one worker has not taken.
const ORDERS_MAX: usize = 64;
/// Changes that are counted at a time; the oldest goes when another begins.
const COUNTED_MAX: usize = 64;

/// What a worker is to do.
#[derive(Clone, Debug)]
pub enum Order {
    /// To bring what hears to another node.
    Attach(Arc<Attach>),
    /// This proxy hears of masters, or would not hear of the next one.
    Hear {
        /// Which shard's.
        shard: ShardId,
        /// Whether it hears.
        hears: bool,
    },
}

/// What a worker has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It has no write in flight at the old master, and sends it none; for which move.
    Drained(Option<Course>),
    /// What hears at it hears the next master; for which move.
    Attached(Option<Course>),
    /// Its requests go to the new master; this is what the change cost it.
    Repointed(Report),
}

/// What a worker tells.
#[derive(Clone, Debug)]
pub struct Told {
    /// Which worker.
    pub worker: usize,
    /// Of which shard.
    pub shard: ShardId,
    /// In which epoch there will be, or is, another master.
    pub epoch: Epoch,
    /// What it has done.
    pub what: What,
}

/// The control thread's ends.
#[derive(Debug)]
pub struct Desk {
    /// What workers tell.
    pub told: mpsc::Receiver<Told>,
    /// The inbox of each worker.
    pub orders: Vec<mpsc::Sender<Order>>,
}

/// One worker's way to the control thread.
#[derive(Clone, Debug)]
pub struct Teller {
    worker: usize,
    told: mpsc::Sender<Told>,
}

/// The ends of so many workers, and the control thread's.
pub fn desk(workers: usize) -> (Desk, Vec<(Teller, mpsc::Receiver<Order>)>) {
    let (sender, told) = mpsc::channel(TOLD_MAX);
    let (orders, inboxes): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::channel(ORDERS_MAX)).unzip();
    let teller = |worker| Teller {
        worker,
        told: sender.clone(),
    };
    let ends = inboxes.into_iter().enumerate();
    let ends = ends.map(|(worker, inbox)| (teller(worker), inbox)).collect();
    (Desk { told, orders }, ends)
}

impl Teller {
    /// Tells the control thread, if that wants to hear; to be called on the worker's thread.
    pub fn tell(&self, shard: ShardId, epoch: Epoch, what: What) {
        let told = Told {
            worker: self.worker,
            shard,
            epoch,
            what,
        };
        if let Err(mpsc::error::TrySendError::Full(told)) = self.told.try_send(told) {
            let sender = self.told.clone();
            tokio::task::spawn_local(async move {
                // A control thread that has ended concerns nobody any more.
                let _ = sender.send(told).await;
            });
        }
    }
}

/// Who has said what, until all have.
#[derive(Debug)]
pub struct Tally {
    workers: usize,
    open: BTreeMap<(ShardId, Epoch, Kind), Count>,
}

/// [`What`], without what it cost.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Drained(Option<Course>),
    Attached(Option<Course>),
    Repointed,
}

#[derive(Debug, Default)]
struct Count {
    said: Vec<usize>,
    report: Report,
}

impl Tally {
    /// Nothing said yet by any of so many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            workers,
            open: BTreeMap::new(),
        }
    }

    /// Takes in what a worker tells. Once all have told it, it is true of the proxy: reports come added up.
    pub fn take(&mut self, told: Told) -> Option<(ShardId, Epoch, What)> {
        let Told {
            worker,
            shard,
            epoch,
            what,
        } = told;
        let kind = match &what {
            What::Drained(course) => Kind::Drained(course.clone()),
            What::Attached(course) => Kind::Attached(course.clone()),
            What::Repointed(_) => Kind::Repointed,
        };
        let key = (shard, epoch, kind);
        if !self.open.contains_key(&key) && self.open.len() >= COUNTED_MAX {
            let oldest = self.open.keys().min_by_key(|(_, epoch, _)| *epoch).cloned();
            oldest.and_then(|oldest| self.open.remove(&oldest));
        }
        let count = self.open.entry(key.clone()).or_default();
        if !count.said.contains(&worker) {
            count.said.push(worker);
            if let What::Repointed(report) = &what {
                add(&mut count.report, report);
            }
        }
        if count.said.len() < self.workers {
            return None;
        }
        let report = self.open.remove(&key)?.report;
        let what = match what {
            What::Repointed(_) => What::Repointed(report),
            What::Drained(_) | What::Attached(_) => what,
        };
        Some((key.0, key.1, what))
    }

    /// The move of this shard is taken back, or over: what was said before it means nothing for the next.
    pub fn forget_move(&mut self, shard: &ShardId) {
        self.open
            .retain(|(known, _, kind), _| known != shard || *kind == Kind::Repointed);
    }
}

/// What two workers went through together.
fn add(sum: &mut Report, other: &Report) {
    sum.held += other.held;
    sum.resent += other.resent;
    sum.indoubt += other.indoubt;
    sum.failed += other.failed;
    sum.took_us = sum.took_us.max(other.took_us);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(worker: usize, epoch: u64, what: What) -> Told {
        Told {
            worker,
            shard: ShardId::from("s1"),
            epoch: Epoch(epoch),
            what,
        }
    }

    fn all(epoch: u64, what: What) -> Option<(ShardId, Epoch, What)> {
        Some((ShardId::from("s1"), Epoch(epoch), what))
    }

    #[test]
    fn it_is_true_of_the_proxy_once_every_worker_has_said_it() {
        let mut tally = Tally::new(2);
        assert_eq!(tally.take(told(0, 2, What::Drained(None))), None);
        assert_eq!(tally.take(told(0, 2, What::Drained(None))), None, "twice is not two");
        assert_eq!(tally.take(told(1, 3, What::Drained(None))), None, "another epoch");
        assert_eq!(tally.take(told(1, 2, What::Attached(None))), None, "another thing");
        assert_eq!(tally.take(told(1, 2, What::Drained(None))), all(2, What::Drained(None)));
        let named = |name: &str| What::Drained(Some(Course::from(name)));
        assert_eq!(tally.take(told(0, 2, named("c1"))), None);
        assert_eq!(
            tally.take(told(1, 2, named("c2"))),
            None,
            "another move to the same epoch"
        );
        assert_eq!(tally.take(told(1, 2, named("c1"))), all(2, named("c1")));
        // A move to the same epoch after a rollback is asked for anew.
        assert_eq!(tally.take(told(1, 2, What::Drained(None))), None);
        tally.forget_move(&ShardId::from("s1"));
        assert_eq!(tally.take(told(0, 2, What::Drained(None))), None);
    }

    #[test]
    fn what_a_change_cost_is_added_up_and_took_as_long_as_the_slowest() {
        let report = |held, took_us| {
            What::Repointed(Report {
                held,
                took_us,
                ..Report::default()
            })
        };
        let mut tally = Tally::new(2);
        assert_eq!(tally.take(told(1, 2, report(3, 700))), None);
        tally.forget_move(&ShardId::from("s1"));
        assert_eq!(tally.take(told(0, 2, report(4, 900))), all(2, report(7, 900)));
    }

    #[test]
    fn what_is_never_finished_is_forgotten() {
        let mut tally = Tally::new(2);
        for epoch in 0..=COUNTED_MAX as u64 {
            assert_eq!(tally.take(told(0, epoch, What::Drained(None))), None);
        }
        assert_eq!(tally.open.len(), COUNTED_MAX);
        assert_eq!(tally.take(told(1, 0, What::Drained(None))), None, "the oldest went");
        let newest = COUNTED_MAX as u64;
        assert_eq!(
            tally.take(told(1, newest, What::Drained(None))),
            all(newest, What::Drained(None))
        );
    }
}
