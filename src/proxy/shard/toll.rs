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

/// The cost of the change under way, and of the one before it until that is told.
#[derive(Debug, Default)]
pub(super) struct Toll {
    /// When the first sign of it was seen.
    since: Option<Instant>,
    /// Counts the changes, those that came to nothing included.
    number: u64,
    /// The epoch of the last master that served; what came before the first one is no change.
    served: Epoch,
    report: Report,
    /// What is to be told soon.
    ended: Option<Ended>,
}

/// A change that is over, but for what may still come back from the old master.
type Ended = (Epoch, Report);

/// What is to be done about the end of a change.
#[derive(Debug, Default, PartialEq, Eq)]
struct End {
    /// This is to be told at once: another change has ended already.
    now: Option<Ended>,
    /// The change is to be told a little later.
    later: bool,
}

impl Toll {
    fn begins(&mut self, now: Instant) {
        if self.since.is_none() {
            (self.since, self.number) = (Some(now), self.number + 1);
        }
    }

    /// There was no change after all; one that has ended before is still to be told.
    fn is_void(&mut self) {
        (self.since, self.report) = (None, Report::default());
    }

    /// A master of `epoch` gets requests. It may be the same as before: then there was no change.
    fn ends(&mut self, epoch: Epoch, now: Instant) -> End {
        let took = self.since.take().map_or(Duration::ZERO, |since| now - since);
        let before = std::mem::replace(&mut self.served, epoch);
        let mut report = std::mem::take(&mut self.report);
        if before == Epoch::default() || before == epoch {
            return End::default();
        }
        report.took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        End {
            now: self.ended.replace((epoch, report)),
            later: true,
        }
    }

    /// What the change to the master of `epoch` cost, once.
    fn told(&mut self, epoch: Epoch) -> Option<Report> {
        self.ended
            .take_if(|(ended, _)| *ended == epoch)
            .map(|(_, report)| report)
    }

    /// Where to count: what comes back after a change belongs to it, until the next one begins.
    fn report(&mut self) -> &mut Report {
        match &mut self.ended {
            Some((_, report)) if self.since.is_none() => report,
            Some(_) | None => &mut self.report,
        }
    }
}

impl Shard {
    pub(super) fn toll_begins(&self) {
        self.toll.borrow_mut().begins(clock::now());
    }

    /// There was no change after all.
    pub(super) fn toll_is_void(&self) {
        self.toll.borrow_mut().is_void();
    }

    pub(super) fn toll_ends(self: &Rc<Self>, worker: &Rc<Worker>, epoch: Epoch) {
        let end = self.toll.borrow_mut().ends(epoch, clock::now());
        if let Some((epoch, report)) = end.now {
            worker.tell(&self.id, epoch, What::Repointed(report));
        }
        if !end.later {
            return;
        }
        let (shard, worker) = (self.clone(), worker.clone());
        tokio::task::spawn_local(async move {
            tokio::time::sleep(TELL_AFTER).await;
            let told = shard.toll.borrow_mut().told(epoch);
            if let Some(report) = told {
                worker.tell(&shard.id, epoch, What::Repointed(report));
            }
        });
    }

    /// Tells the change under way, or the last one, from all others.
    pub fn change_number(&self) -> u64 {
        self.toll.borrow().number
    }

    /// So many requests wait for a master.
    pub fn count_held(&self, requests: u32) {
        self.toll.borrow_mut().report().held += u64::from(requests);
    }

    /// So many requests are sent again.
    pub fn count_resent(&self, requests: u32) {
        self.toll.borrow_mut().report().resent += u64::from(requests);
    }

    /// Of so many requests nobody knows whether they were executed.
    pub fn count_indoubt(&self, requests: u32) {
        self.toll.borrow_mut().report().indoubt += u64::from(requests);
    }

    /// So many requests are refused for want of a master.
    pub fn count_failed(&self, requests: u32) {
        self.toll.borrow_mut().report().failed += u64::from(requests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later(now: Option<Ended>) -> End {
        End { now, later: true }
    }

    #[test]
    fn the_first_master_is_no_change_and_the_same_one_neither() {
        let (mut toll, start) = (Toll::default(), clock::now());
        let end = start + Duration::from_millis(3);
        toll.report().held = 5;
        assert_eq!(toll.ends(Epoch(1), start), End::default());
        toll.begins(start);
        toll.report().held = 2;
        assert_eq!(toll.ends(Epoch(1), end), End::default(), "only connections were lost");
        toll.begins(start);
        toll.begins(end);
        toll.report().held = 4;
        assert_eq!(toll.ends(Epoch(2), end), later(None));
        let report = toll.told(Epoch(2)).unwrap();
        assert_eq!((report.held, report.took_us), (4, 3000));
        assert_eq!(toll.told(Epoch(2)), None, "once");
    }

    #[test]
    fn what_comes_back_late_belongs_to_the_change_that_it_comes_from() {
        let (mut toll, now) = (Toll::default(), clock::now());
        toll.ends(Epoch(1), now);
        toll.begins(now);
        toll.report().held = 1;
        assert_eq!(toll.ends(Epoch(2), now), later(None));
        toll.report().indoubt = 1;
        // The next one begins before that is told, and comes to nothing.
        let number = toll.number;
        toll.begins(now);
        toll.report().held = 7;
        toll.is_void();
        assert_eq!(toll.number, number + 1);
        // A connection alone is lost.
        toll.begins(now);
        toll.report().held = 8;
        assert_eq!(toll.ends(Epoch(2), now), End::default());
        let report = toll.told(Epoch(2)).unwrap();
        assert_eq!((report.held, report.indoubt), (1, 1));
    }

    #[test]
    fn two_changes_in_a_row_are_told_each() {
        let (mut toll, now) = (Toll::default(), clock::now());
        toll.ends(Epoch(1), now);
        for (epoch, held) in [(2, 3), (3, 4)] {
            toll.begins(now);
            toll.report().held = held;
            let end = toll.ends(Epoch(epoch), now);
            let before = end.now.map(|(epoch, report)| (epoch, report.held));
            assert_eq!(before, (epoch == 3).then_some((Epoch(2), 3)));
        }
        assert_eq!(toll.told(Epoch(2)), None);
        assert_eq!(toll.told(Epoch(3)).unwrap().held, 4);
    }
}
