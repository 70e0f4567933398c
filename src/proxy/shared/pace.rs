//! When to sample: often while somebody waits for it, rarely else (rule C6).
//!
//! Owns the decision. Pure: time is an argument. Invariant: rounds are never further apart than a quarter of the lag
//! that is tolerated, so that a replica that keeps up never stops serving.

use crate::route::SampleNumber;

/// How often the sampler looks, and samples, while it is busy.
const BUSY_MS: u64 = 10;
/// How often it looks after a second without anything new.
const QUIET_MS: u64 = 50;
/// How often it samples when nobody waits.
const IDLE_MS: u64 = 200;
/// How long it goes on often for replicas that have not passed what is wanted.
const CATCH_UP_MS: u64 = 1_000;

/// The sampler's sense of time.
#[derive(Debug)]
pub(super) struct Pace {
    idle_ms: u64,
    last_ms: Option<u64>,
    wanted: SampleNumber,
    wanted_since_ms: u64,
}

impl Pace {
    /// The pace for a tolerated lag.
    pub(super) fn new(max_lag_ms: u64) -> Self {
        Self {
            idle_ms: (max_lag_ms / 4).clamp(BUSY_MS, IDLE_MS),
            last_ms: None,
            wanted: SampleNumber(0),
            wanted_since_ms: 0,
        }
    }

    /// Whether a round begins now. `wanted` and `requested` are those of the fences; `behind`: a replica in service
    /// has not passed what is wanted.
    pub(super) fn is_due(&mut self, now_ms: u64, wanted: SampleNumber, requested: SampleNumber, behind: bool) -> bool {
        if wanted > self.wanted {
            (self.wanted, self.wanted_since_ms) = (wanted, now_ms);
        }
        let is_idle_over = match self.last_ms {
            None => true,
            Some(last_ms) => now_ms.saturating_sub(last_ms) >= self.idle_ms,
        };
        let due = is_idle_over || wanted > requested || (behind && self.is_recent(now_ms));
        if due {
            self.last_ms = Some(now_ms);
        }
        due
    }

    /// How long to wait before looking again.
    pub(super) fn look_again_ms(&self, now_ms: u64) -> u64 {
        if self.is_recent(now_ms) {
            BUSY_MS
        } else {
            QUIET_MS.min(self.idle_ms)
        }
    }

    fn is_recent(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.wanted_since_ms) < CATCH_UP_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(pace: &mut Pace, now_ms: u64, wanted: u64, requested: u64, behind: bool) -> bool {
        pace.is_due(now_ms, SampleNumber(wanted), SampleNumber(requested), behind)
    }

    #[test]
    fn the_first_round_begins_at_once() {
        assert!(due(&mut Pace::new(1_000), 0, 0, 0, false));
    }

    #[test]
    fn a_write_is_sampled_soon_and_until_replicas_have_it() {
        let mut pace = Pace::new(1_000);
        assert!(due(&mut pace, 0, 5, 4, false));
        assert!(!due(&mut pace, 10, 5, 5, false), "passed everywhere");
        assert!(due(&mut pace, 20, 5, 5, true), "a replica is behind");
        assert!(due(&mut pace, 30, 7, 6, false), "another write");
        assert_eq!(pace.look_again_ms(30), BUSY_MS);
    }

    #[test]
    fn a_replica_that_stays_behind_does_not_keep_the_pace_up() {
        let mut pace = Pace::new(1_000);
        assert!(due(&mut pace, 0, 5, 4, true));
        assert!(due(&mut pace, CATCH_UP_MS - 1, 5, 5, true));
        assert!(!due(&mut pace, CATCH_UP_MS, 5, 5, true));
        assert_eq!(pace.look_again_ms(CATCH_UP_MS), QUIET_MS);
    }

    #[test]
    fn without_traffic_rounds_are_rare_but_never_too_rare() {
        for (max_lag_ms, idle_ms) in [(1_000, 200), (100, 25), (60_000, 200), (1, BUSY_MS)] {
            let mut pace = Pace::new(max_lag_ms);
            assert!(due(&mut pace, 5_000, 0, 9, false));
            assert!(!due(&mut pace, 5_000 + idle_ms - 1, 0, 9, false), "{max_lag_ms}");
            assert!(due(&mut pace, 5_000 + idle_ms, 0, 9, false), "{max_lag_ms}");
            assert!(pace.look_again_ms(5_000) <= idle_ms);
        }
    }
}
