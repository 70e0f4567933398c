//! How far replicas are, judged by offsets inside one replication stream (rules A9, A11, B12).
//!
//! Owns: the master's sampled offsets of one shard under one epoch. Refuses to ask anybody. Pure. Invariant: a replica
//! has passed a sample only if it follows the very stream the sample was taken of, and has applied at least its offset.

use std::collections::VecDeque;

use super::info::{Identity, Replication, Role, Unfit};
use crate::route::SampleNumber;
use crate::topology::{ReplOffset, RunId};

/// Samples that are remembered at most: ten seconds of the sampler's fast pace.
const SAMPLES_MAX: usize = 1_024;
/// How far a replica's clock may be from its master's.
const SKEW_MAX_MS: u64 = 50;

/// One sample of the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// Its number; no write settled with a higher one is in it for sure.
    pub(super) number: SampleNumber,
    /// What the master had written.
    pub(super) offset: ReplOffset,
    /// When it was requested.
    pub(super) asked_ms: u64,
}

/// A server's wall clock against our monotonic one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClockReading {
    /// Its milliseconds since 1970.
    pub(super) server_ms: u64,
    /// Our milliseconds when it was asked.
    pub(super) asked_ms: u64,
    /// Our milliseconds when it had answered.
    pub(super) answered_ms: u64,
}

impl ClockReading {
    /// Whether the two clocks certainly differ by more than allowed: a slow answer proves nothing.
    fn is_skewed(&self, other: &Self) -> bool {
        let ahead =
            |reading: &Self| i128::from(reading.server_ms) * 2 - i128::from(reading.asked_ms + reading.answered_ms);
        let doubled = ahead(self).abs_diff(ahead(other));
        doubled > u128::from(SKEW_MAX_MS * 2 + self.trip_ms() + other.trip_ms())
    }

    fn trip_ms(&self) -> u64 {
        self.answered_ms.saturating_sub(self.asked_ms)
    }
}

/// The stream that one shard's master writes.
#[derive(Debug)]
pub(super) struct Stream {
    max_lag_ms: u64,
    master: Option<Identity>,
    clock: Option<ClockReading>,
    samples: VecDeque<Sample>,
}

impl Stream {
    /// Nothing sampled yet. Samples that are older than `max_lag_ms` help no replica and are forgotten.
    pub(super) fn new(max_lag_ms: u64) -> Self {
        Self {
            max_lag_ms,
            master: None,
            clock: None,
            samples: VecDeque::new(),
        }
    }

    /// The master answered the request for sample `number`. Another process, another stream or an offset that went
    /// back means that earlier samples are of a world that is gone.
    pub(super) fn master_says(
        &mut self,
        run_id: &RunId,
        reading: &Replication,
        clock: ClockReading,
        number: SampleNumber,
    ) -> Result<(), Unfit> {
        let Role::Master(offset) = reading.role else {
            self.samples.clear();
            return Err(Unfit::NotTheMaster);
        };
        let same = |known: &Identity| known.run_id == *run_id && known.replid == reading.replid;
        let went_back = self.samples.back().is_some_and(|last| offset < last.offset);
        if went_back || !self.master.as_ref().is_some_and(same) {
            self.samples.clear();
            self.master = Some(Identity {
                run_id: run_id.clone(),
                replid: reading.replid.clone(),
            });
        }
        self.clock = Some(clock);
        self.push(Sample {
            number,
            offset,
            asked_ms: clock.asked_ms,
        });
        Ok(())
    }

    /// The newest sample that a replica has passed, by its own answer. `Ok(None)`: nothing new, it keeps what it had.
    pub(super) fn judge(&self, reading: &Replication, clock: ClockReading) -> Result<Option<Sample>, Unfit> {
        let Role::Replica {
            applied,
            link_up,
            syncing,
        } = reading.role
        else {
            return Err(Unfit::NotAReplica);
        };
        if syncing {
            return Err(Unfit::Syncing);
        }
        let (Some(master), Some(master_clock)) = (&self.master, &self.clock) else {
            return Ok(None);
        };
        if master.replid != reading.replid {
            return Err(Unfit::OtherStream);
        }
        if clock.is_skewed(master_clock) {
            return Err(Unfit::Clock);
        }
        // Without its master it is no worse than it was, until that is too long ago; but it passes nothing new.
        if !link_up {
            return Ok(None);
        }
        let passed = self.samples.partition_point(|sample| sample.offset <= applied);
        Ok(passed.checked_sub(1).and_then(|at| self.samples.get(at)).copied())
    }

    /// The newest sample.
    pub(super) fn newest(&self) -> Option<&Sample> {
        self.samples.back()
    }

    fn push(&mut self, sample: Sample) {
        if self.samples.back().is_some_and(|last| last.number >= sample.number) {
            return;
        }
        let is_old = |first: &Sample| first.asked_ms.saturating_add(self.max_lag_ms) < sample.asked_ms;
        while self.samples.len() >= SAMPLES_MAX || self.samples.front().is_some_and(is_old) {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master(replid: &str, offset: i64) -> Replication {
        Replication {
            replid: replid.into(),
            role: Role::Master(ReplOffset(offset)),
        }
    }

    fn replica(replid: &str, applied: i64) -> Replication {
        Replication {
            replid: replid.into(),
            role: Role::Replica {
                applied: ReplOffset(applied),
                link_up: true,
                syncing: false,
            },
        }
    }

    fn at(ms: u64) -> ClockReading {
        ClockReading {
            server_ms: 1_000_000 + ms,
            asked_ms: ms,
            answered_ms: ms,
        }
    }

    fn sampled(samples: &[(u64, i64)]) -> Stream {
        let mut stream = Stream::new(1_000);
        for (number, offset) in samples {
            let number = SampleNumber(*number);
            stream
                .master_says(&"m".into(), &master("r1", *offset), at(number.0 * 10), number)
                .unwrap();
        }
        stream
    }

    fn passed(stream: &Stream, reading: &Replication) -> Result<Option<u64>, Unfit> {
        let passed = stream.judge(reading, at(100))?;
        Ok(passed.map(|sample| sample.number.0))
    }

    #[test]
    fn a_replica_has_passed_the_newest_sample_at_or_below_its_offset() {
        let stream = sampled(&[(1, 10), (2, 20), (3, 20), (4, 30)]);
        for (applied, number) in [(9, None), (10, Some(1)), (19, Some(1)), (20, Some(3)), (99, Some(4))] {
            assert_eq!(passed(&stream, &replica("r1", applied)), Ok(number), "{applied}");
        }
    }

    #[test]
    fn offsets_of_another_stream_are_never_compared() {
        let stream = sampled(&[(1, 10)]);
        assert_eq!(passed(&stream, &replica("r0", 99)), Err(Unfit::OtherStream));
    }

    #[test]
    fn before_the_master_was_sampled_nothing_is_passed() {
        assert_eq!(passed(&Stream::new(1_000), &replica("r1", 99)), Ok(None));
    }

    #[test]
    fn a_new_life_of_the_master_forgets_the_samples_of_the_old() {
        for (run_id, replid, offset) in [("n", "r1", 30), ("m", "r2", 30), ("m", "r1", 5)] {
            let mut stream = sampled(&[(1, 10), (2, 20)]);
            let reading = master(replid, offset);
            stream
                .master_says(&run_id.into(), &reading, at(30), SampleNumber(3))
                .unwrap();
            assert_eq!(
                passed(&stream, &replica(replid, 4)),
                Ok(None),
                "{run_id} {replid} {offset}"
            );
            assert_eq!(passed(&stream, &replica(replid, 30)), Ok(Some(3)));
        }
    }

    #[test]
    fn a_master_that_is_none_gives_no_samples() {
        let mut stream = sampled(&[(1, 10)]);
        let demoted = stream.master_says(&"m".into(), &replica("r1", 50), at(20), SampleNumber(2));
        assert_eq!(demoted, Err(Unfit::NotTheMaster));
        assert_eq!(passed(&stream, &replica("r1", 99)), Ok(None));
    }

    #[test]
    fn without_its_link_a_replica_keeps_what_it_had_but_passes_nothing_new() {
        let mut cut_off = replica("r1", 99);
        if let Role::Replica { link_up, .. } = &mut cut_off.role {
            *link_up = false;
        }
        assert_eq!(passed(&sampled(&[(1, 10)]), &cut_off), Ok(None));
        cut_off.replid = "r2".into();
        assert_eq!(passed(&sampled(&[(1, 10)]), &cut_off), Err(Unfit::OtherStream));
    }

    #[test]
    fn while_its_data_is_replaced_a_replica_serves_nobody() {
        let mut reading = replica("r1", 99);
        if let Role::Replica { syncing, .. } = &mut reading.role {
            *syncing = true;
        }
        assert_eq!(passed(&sampled(&[(1, 10)]), &reading), Err(Unfit::Syncing));
        assert_eq!(passed(&Stream::new(1_000), &reading), Err(Unfit::Syncing));
        assert_eq!(passed(&sampled(&[(1, 10)]), &master("r1", 99)), Err(Unfit::NotAReplica));
    }

    #[test]
    fn a_clock_too_far_from_the_masters_is_unfit() {
        let stream = sampled(&[(1, 10)]);
        for (server_ms, trip_ms, unfit) in [
            (1_000_150, 0, false),
            (1_000_151, 0, true),
            (1_000_050, 0, false),
            (1_000_049, 0, true),
            (1_000_160, 20, false),
            (1_000_171, 20, true),
        ] {
            let clock = ClockReading {
                server_ms,
                asked_ms: 100,
                answered_ms: 100 + trip_ms,
            };
            let judged = stream.judge(&replica("r1", 10), clock);
            assert_eq!(judged == Err(Unfit::Clock), unfit, "{server_ms} after {trip_ms} ms");
        }
    }

    #[test]
    fn samples_are_bounded_in_age_and_number() {
        let mut stream = sampled(&[(1, 10), (2, 20), (102, 30)]);
        assert_eq!(passed(&stream, &replica("r1", 10)), Ok(None), "1010 ms old");
        assert_eq!(passed(&stream, &replica("r1", 20)), Ok(Some(2)), "1000 ms old");
        for number in 0..2 * SAMPLES_MAX as u64 {
            let number = SampleNumber(103 + number);
            let reading = master("r1", 30);
            stream.master_says(&"m".into(), &reading, at(1_020), number).unwrap();
        }
        assert_eq!(stream.samples.len(), SAMPLES_MAX);
    }
}
