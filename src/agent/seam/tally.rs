//! What proxies say a change of master cost them, for the history.
//!
//! Owns: the reports of the latest epochs. Refuses: waiting for them. Invariant: a proxy counts once per epoch, with
//! what it said last, so a report that is sent twice changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::peer::Report;
use crate::topology::Epoch;
use crate::topology::codec::{Ending, Kind, Phases, Record};

/// Epochs remembered: reports may come before the record they belong to, never long after it.
const EPOCHS_MAX: usize = 8;
/// Proxies remembered in one epoch.
const PROXIES_MAX: usize = 1024;

/// See the module's note.
#[derive(Debug, Default)]
pub(super) struct Tally {
    epochs: BTreeMap<Epoch, BTreeMap<String, Report>>,
}

impl Tally {
    /// Takes note of what `proxy` says of the change to `epoch`.
    pub(super) fn note(&mut self, proxy: String, epoch: Epoch, report: Report) {
        let reports = self.epochs.entry(epoch).or_default();
        if reports.len() < PROXIES_MAX || reports.contains_key(&proxy) {
            reports.insert(proxy, report);
        }
        while self.epochs.len() > EPOCHS_MAX {
            self.epochs.pop_first();
        }
    }

    /// Whether all of `proxies` have reported for `epoch`.
    pub(super) fn complete(&self, epoch: Epoch, proxies: &BTreeSet<String>) -> bool {
        let heard = |proxy| {
            self.epochs
                .get(&epoch)
                .is_some_and(|reports| reports.contains_key(proxy))
        };
        proxies.iter().all(heard)
    }

    /// The record with what is known by now. Without a report nothing is known, which is not the same as nothing held.
    pub(super) fn fill(&self, mut record: Record) -> Record {
        // What was refused or taken back in an epoch is not what changed to it.
        let unmoved = record.kind == Kind::Members && record.phases_ms.0.is_empty();
        if record.result != Ending::Done || unmoved {
            return record;
        }
        let Some(reports) = self.epochs.get(&record.epoch).filter(|reports| !reports.is_empty()) else {
            return record;
        };
        let sum = |of: fn(&Report) -> u64| Some(reports.values().map(of).fold(0, u64::saturating_add));
        record.held = sum(|report| report.held);
        record.resent = sum(|report| report.resent);
        record.indoubt = sum(|report| report.indoubt);
        record.failed = sum(|report| report.failed);
        let slowest = reports.values().map(|report| report.took_us).max().unwrap_or(0);
        let repoint = Duration::from_micros(slowest);
        record.phases_ms.0.push((Phases::REPOINT.to_owned(), repoint));
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::seam::historian::tests::record;

    fn report(held: u64, took_us: u64) -> Report {
        Report {
            held,
            took_us,
            ..Report::default()
        }
    }

    fn proxies(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn reports_are_added_up_and_the_slowest_gives_the_phase() {
        let mut tally = Tally::default();
        let (epoch, both) = (Epoch(2), proxies(&["p1", "p2"]));
        assert!(tally.complete(epoch, &proxies(&[])));
        assert_eq!(tally.fill(record(2)), record(2), "nothing known is not nothing held");
        let refused = || Record {
            result: Ending::Refused,
            ..record(2)
        };
        tally.note("p1".to_owned(), epoch, report(3, 900));
        tally.note("p1".to_owned(), epoch, report(4, 1000));
        assert!(!tally.complete(epoch, &both));
        tally.note("p2".to_owned(), epoch, report(5, 12_345));
        tally.note("p2".to_owned(), Epoch(3), report(50, 1));
        assert!(tally.complete(epoch, &both));
        assert_eq!(
            tally.fill(refused()),
            refused(),
            "what changed to its epoch was another operation"
        );
        let filled = tally.fill(record(2));
        assert_eq!((filled.held, filled.failed), (Some(9), Some(0)));
        let repoint = filled.phases_ms.of(Phases::REPOINT);
        assert_eq!(repoint, Some(Duration::from_micros(12_345)));
        assert_eq!(filled.phases_ms.took(), record(2).phases_ms.took());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut tally = Tally::default();
        for number in 0..=PROXIES_MAX {
            tally.note(format!("p{number}"), Epoch(1), report(1, 1));
        }
        assert_eq!(tally.fill(record(1)).held, Some(PROXIES_MAX as u64));
        for epoch in 2..=EPOCHS_MAX as u64 + 1 {
            tally.note("p".to_owned(), Epoch(epoch), report(1, 1));
        }
        assert_eq!(tally.fill(record(1)).held, None, "the oldest epoch goes");
        assert_eq!(tally.fill(record(2)).held, Some(1));
    }
}
