//! Asking until the answer is good, or the time for it is up.

use std::time::{Duration, Instant};

/// Until a node that has not caught up, or whose agent did not answer, is asked again.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(2);

/// A question that is asked until the answer is good, or the time for the step is up.
#[derive(Clone, Debug)]
pub(super) struct Wait {
    since: Instant,
    /// When to ask again; none while an answer is awaited.
    again: Option<Instant>,
    /// What stood in the way last.
    pub(super) last: String,
}

impl Wait {
    /// The first question is on its way.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            again: None,
            last: "it does not answer".to_owned(),
        }
    }

    /// The question is yet to be asked.
    pub(super) fn due(now: Instant) -> Self {
        Self {
            again: Some(now),
            ..Self::new(now)
        }
    }

    /// The next question is on its way, in the time that is left.
    pub(super) fn asked(&self) -> Self {
        Self::new(self.since)
    }

    pub(super) fn failed(&mut self, now: Instant, why: String) {
        self.again = Some(now + ASK_AGAIN);
        self.last = why;
    }

    pub(super) fn over(&self, now: Instant, limit: Duration) -> bool {
        now.saturating_duration_since(self.since) >= limit
    }

    /// Whether to ask now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.again.take_if(|again| now >= *again).is_some()
    }
}
