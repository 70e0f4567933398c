//! How long the machine can be left alone.
//!
//! Owns: that answer. Refuses: what is then done. Invariant: whatever time alone brings about (a silence that becomes a
//! suspicion, an attempt that may be repeated) is at most as late as it was with a tick each [`UNSETTLED`]: a machine that has
//! nothing under way names the next such moment, any other is asked again soon. Everything else comes as an input.

use std::time::{Duration, Instant};

use super::Machine;
use super::detector::Health;

/// While something is being executed, or a master is held to be gone.
const BUSY: Duration = Duration::from_millis(2);
/// While something is not as it should be, or not known.
const UNSETTLED: Duration = Duration::from_millis(20);

impl Machine {
    /// How long the machine can be left without an [`super::action::Input::Tick`] from `now` on.
    pub fn patience(&self, now: Instant) -> Duration {
        if self.course.is_some() || self.accused.is_some() || !self.asks.is_empty() {
            return BUSY;
        }
        if !self.is_calm() {
            return UNSETTLED;
        }
        let again = [self.write_again, self.claim_again, self.reform_again, self.follow_again];
        let dues = again.into_iter().filter(|at| *at > now).chain(self.detector.due(now));
        // A longer sleep would look as if we had been stopped.
        let longest = self.timings.stall / 4;
        let due = dues.min().map(|due| due.saturating_duration_since(now));
        due.map_or(longest, |due| due.min(longest))
    }

    /// Whether the shard serves, our Redis lives, all is known, and nothing is wanted or under way.
    fn is_calm(&self) -> bool {
        let serving = self.state().is_some_and(|known| known.state.serving().is_some());
        let wished = self.wish.as_ref().is_some_and(|wish| !wish.is_over());
        let waiting = self.pending.is_some() || self.running.is_some() || self.planned.is_some() || wished;
        let suspicious = self.suspicion.is_some() || self.short_since.is_some();
        let known = self.connected && self.ready() && self.detector.health() == Health::Alive;
        serving && known && !waiting && !suspicious && !self.leaving
    }
}
