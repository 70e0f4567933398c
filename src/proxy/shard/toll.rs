//! What a change of master costs the clients of one worker.
//!
//! Pure but for the clock of who calls it. It is told once the new master gets requests, and a little later, because what
//! was in flight at the old one may still come back.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Shard;
use crate::clock;
use crate::peer::Report;
use crate::proxy::handover::What;
use crate::proxy::worker::Worker;
use crate::topology::Epoch;

/// Until it is told.
const TELL_AFTER: Duration = Duration::from_millis(200);

/// The cost of the change under way.
#[derive(Debug, Default)]
pub(super) struct Toll {
    /// When the first sign of it was seen.
    since: Option<Instant>,
    /// The epoch of the last master that served; what came before the first one is no change.
    served: Epoch,
    report: Report,
}

impl Toll {
    fn begins(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// A master of `epoch` gets requests. Says whether it is another one than before.
    fn ends(&mut self, epoch: Epoch, now: Instant) -> bool {
        let took = self.since.take().map_or(Duration::ZERO, |since| now - since);
        let before = std::mem::replace(&mut self.served, epoch);
        if before == Epoch::default() || before == epoch {
            self.report = Report::default();
            return false;
        }
        self.report.took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        true
    }
}

impl Shard {
    pub(super) fn toll_begins(&self) {
        self.toll.borrow_mut().begins(clock::now());
    }

    /// There was no change after all.
    pub(super) fn toll_is_void(&self) {
        let mut toll = self.toll.borrow_mut();
        (toll.since, toll.report) = (None, Report::default());
    }

    pub(super) fn toll_ends(self: &Rc<Self>, worker: &Rc<Worker>, epoch: Epoch) {
        if !self.toll.borrow_mut().ends(epoch, clock::now()) {
            return;
        }
        let (shard, worker) = (self.clone(), worker.clone());
        tokio::task::spawn_local(async move {
            tokio::time::sleep(TELL_AFTER).await;
            let report = std::mem::take(&mut shard.toll.borrow_mut().report);
            worker.tell(&shard.id, epoch, What::Repointed(report));
        });
    }

    /// So many requests wait for a master.
    pub fn count_held(&self, requests: u32) {
        self.toll.borrow_mut().report.held += u64::from(requests);
    }

    /// So many requests are sent again.
    pub fn count_resent(&self, requests: u32) {
        self.toll.borrow_mut().report.resent += u64::from(requests);
    }

    /// Of so many requests nobody knows whether they were executed.
    pub fn count_indoubt(&self, requests: u32) {
        self.toll.borrow_mut().report.indoubt += u64::from(requests);
    }

    /// So many requests are refused for want of a master.
    pub fn count_failed(&self, requests: u32) {
        self.toll.borrow_mut().report.failed += u64::from(requests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_master_is_no_change_and_the_same_one_neither() {
        let (mut toll, start) = (Toll::default(), clock::now());
        let later = start + Duration::from_millis(3);
        toll.report.held = 5;
        assert!(!toll.ends(Epoch(1), start));
        assert_eq!(toll.report, Report::default());
        toll.begins(start);
        toll.report.held = 2;
        assert!(!toll.ends(Epoch(1), later), "only connections were lost");
        toll.begins(start);
        toll.begins(later);
        toll.report.held = 4;
        assert!(toll.ends(Epoch(2), later));
        assert_eq!((toll.report.held, toll.report.took_us), (4, 3000));
    }
}
