//! What was said lately, so that something that stays true is said once.
//!
//! Owns: a bounded memory of complaints ([`Said`]), and when one is made again ([`Repeated`]). Refuses: saying them.
//! Invariant: the memory never falls silent for good, and never forgets
//! faster than it can tell: a full memory forgets its oldest entry, once that is [`OLD`].

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Entries remembered.
const SAID_MAX: usize = 256;
/// So old the oldest entry must be to be forgotten for another one: whoever finds more than [`SAID_MAX`] things to complain
/// about at once says so many of them in this time.
const OLD: Duration = Duration::from_secs(60);

/// See the module's note.
#[derive(Debug, Default)]
pub struct Said {
    known: HashMap<String, Instant>,
    order: VecDeque<String>,
}

impl Said {
    /// Whether `about` is to be said at `now`: it was not, as far as is remembered, and can be remembered from now on.
    pub fn first(&mut self, now: Instant, about: &str) -> bool {
        if self.known.contains_key(about) {
            return false;
        }
        if self.order.len() >= SAID_MAX {
            let oldest = self.order.front().and_then(|oldest| self.known.get(oldest));
            if oldest.is_some_and(|at| now.saturating_duration_since(*at) < OLD) {
                return false;
            }
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
        self.known.insert(about.to_owned(), now);
        self.order.push_back(about.to_owned());
        true
    }
}

/// Something that is said at once, and again after each `every` that it stays true.
#[derive(Debug)]
pub struct Repeated {
    every: Duration,
    next: Option<Instant>,
}

impl Repeated {
    /// Not said yet.
    pub fn new(every: Duration) -> Self {
        Self { every, next: None }
    }

    /// Whether it is to be said at `now`, at which it is true.
    pub fn due(&mut self, now: Instant) -> bool {
        let due = self.next.is_none_or(|next| now >= next);
        if due {
            self.next = Some(now + self.every);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn the_same_is_said_once() {
        let (mut said, now) = (Said::default(), clock::now());
        assert!(said.first(now, "a") && said.first(now, "b"));
        assert!(!said.first(now, "a") && !said.first(now + 10 * OLD, "b"));
    }

    #[test]
    fn a_full_memory_forgets_the_oldest_and_goes_on() {
        let (mut said, now) = (Said::default(), clock::now());
        for number in 0..SAID_MAX {
            assert!(said.first(now, &number.to_string()));
        }
        assert!(!said.first(now + OLD - Duration::from_millis(1), "one more"));
        let later = now + OLD;
        assert!(said.first(later, "one more"));
        assert!(!said.first(later, "1") && !said.first(later, "one more"));
        // What was forgotten is said once more.
        assert!(said.first(later, "0"));
        assert_eq!((said.known.len(), said.order.len()), (SAID_MAX, SAID_MAX));
    }

    #[test]
    fn what_stays_true_is_said_each_minute() {
        let (minute, ms, now) = (Duration::from_secs(60), Duration::from_millis(1), clock::now());
        let mut repeated = Repeated::new(minute);
        assert!(repeated.due(now) && !repeated.due(now) && !repeated.due(now + minute - ms));
        assert!(repeated.due(now + minute) && !repeated.due(now + 2 * minute - ms));
        // Nobody asked for long: it is said once, not once for each minute.
        assert!(repeated.due(now + 10 * minute) && !repeated.due(now + 11 * minute - ms));
    }

    #[test]
    fn a_flood_is_as_long_as_the_memory() {
        let (mut said, now) = (Said::default(), clock::now());
        let heard = |said: &mut Said, at| {
            (0..3 * SAID_MAX)
                .filter(|number| said.first(at, &number.to_string()))
                .count()
        };
        assert_eq!(heard(&mut said, now), SAID_MAX);
        assert_eq!(heard(&mut said, now + OLD / 2), 0);
        assert_eq!(heard(&mut said, now + OLD), SAID_MAX);
    }
}
