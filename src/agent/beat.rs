//! When an agent looks: all its looks fall on one beat.
//!
//! Owns: the moments. Refuses: waiting for them. Invariant: two looks that are due in one interval are due at the same moment, so
//! that an idle agent wakes once for all of them.

use std::time::{Duration, Instant};

use crate::clock;

/// See the module's note.
#[derive(Clone, Copy, Debug)]
pub struct Beat {
    first: Instant,
    interval: Duration,
}

impl Beat {
    /// One that begins now. An interval of nothing counts as a millisecond.
    pub fn new(interval: Duration) -> Self {
        Self {
            first: clock::now(),
            interval: interval.max(Duration::from_millis(1)),
        }
    }

    /// How long it is between two of its moments.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Its first moment after `now`, at most one interval later.
    pub fn after(&self, now: Instant) -> Instant {
        let passed = now.saturating_duration_since(self.first).as_nanos();
        let left = self.interval.as_nanos() - passed % self.interval.as_nanos();
        now + Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_are_due_in_one_interval_are_due_at_once() {
        let beat = Beat::new(Duration::from_millis(100));
        let at = |ms| beat.first + Duration::from_millis(ms);
        for (now, next) in [(0, 100), (1, 100), (99, 100), (100, 200), (1234, 1300)] {
            assert_eq!(beat.after(at(now)), at(next));
        }
    }
}
