//! Whether this proxy would have heard of another master: what `stale_reads` rests on (rule C7). Pure.
//!
//! ```text
//!  agents --Word, good until--\
//!  ZooKeeper --read at--------+--> Hearing --until--> liaison --Order::Hear--> every worker's shard
//!  a new epoch, begun at-----/
//! ```
//! Owns: until when a shard's master may be believed in. Refuses: asking, and what follows for clients. Invariants: whatever
//! is heard counts from when it was asked for; a word about another epoch than the one that is served counts for nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::peer::Word;
use crate::topology::{Epoch, NodeId};

/// What was said of one shard's master in one epoch.
#[derive(Debug)]
pub struct Hearing {
    epoch: Epoch,
    begun: Instant,
    words: HashMap<NodeId, (Instant, usize)>,
}

impl Hearing {
    /// Nothing was said yet; that the epoch was published has just been heard.
    pub fn new(epoch: Epoch, now: Instant) -> Self {
        Self {
            epoch,
            begun: now,
            words: HashMap::new(),
        }
    }

    /// Which epoch it is about.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The agent of `node` answered what it was asked at `asked_at`. No word is good for longer than `suspicion`.
    pub fn note(&mut self, node: &NodeId, asked_at: Instant, word: Option<Word>, suspicion: Duration) {
        // One that has nothing to say any more is bound by what it said before, until that is over.
        if let Some(word) = word.filter(|word| word.epoch == self.epoch && word.enough > 0) {
            let good = Duration::from_millis(word.good_ms).min(suspicion);
            self.words.insert(node.clone(), (asked_at + good, word.enough));
        }
    }

    /// Until when enough agents let the master go on.
    pub fn said_until(&self) -> Option<Instant> {
        let holds = |(until, enough): &(Instant, usize)| {
            let others = self.words.values().filter(|(other, _)| other >= until).count();
            (others >= *enough).then_some(*until)
        };
        self.words.values().filter_map(holds).max()
    }

    /// Until when the master may be believed in. `read_at`: when ZooKeeper was last asked something that it answered.
    pub fn until(&self, read_at: Option<Instant>, suspicion: Duration) -> Instant {
        let read = read_at.map(|asked| asked + suspicion);
        let known = [read, self.said_until()].into_iter().flatten();
        known.fold(self.begun + suspicion, Instant::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const SUSPICION: Duration = Duration::from_millis(1000);
    const MS: Duration = Duration::from_millis(1);

    fn word(epoch: u64, good_ms: u64, enough: usize) -> Option<Word> {
        Some(Word {
            epoch: Epoch(epoch),
            good_ms,
            enough,
        })
    }

    fn bench() -> (Hearing, Instant) {
        let now = clock::now();
        (Hearing::new(Epoch(3), now), now)
    }

    #[test]
    fn an_epoch_that_was_just_published_is_believed_in_for_the_time_of_suspicion() {
        let (hearing, now) = bench();
        assert_eq!(hearing.until(None, SUSPICION), now + SUSPICION);
        assert_eq!(hearing.until(Some(now + 300 * MS), SUSPICION), now + 1300 * MS);
    }

    #[test]
    fn as_many_agents_have_to_say_so_as_they_say_themselves() {
        let (mut hearing, now) = bench();
        let later = now + 5000 * MS;
        hearing.note(&"b".into(), later, word(3, 900, 2), SUSPICION);
        assert_eq!(hearing.until(None, SUSPICION), now + SUSPICION, "one of two");
        hearing.note(&"c".into(), later, word(3, 700, 2), SUSPICION);
        assert_eq!(hearing.until(None, SUSPICION), later + 700 * MS, "the shorter of both");
        hearing.note(&"a".into(), later, word(3, 800, 1), SUSPICION);
        assert_eq!(hearing.until(None, SUSPICION), later + 800 * MS, "its own is enough");
    }

    #[test]
    fn a_word_counts_from_when_it_was_asked_for_and_no_longer_than_suspicion() {
        let (mut hearing, now) = bench();
        hearing.note(&"a".into(), now + 100 * MS, word(3, 60_000, 1), SUSPICION);
        assert_eq!(hearing.until(None, SUSPICION), now + 1100 * MS);
    }

    #[test]
    fn words_of_another_epoch_and_of_nobody_count_for_nothing() {
        let (mut hearing, now) = bench();
        let later = now + 5000 * MS;
        hearing.note(&"a".into(), later, word(4, 900, 1), SUSPICION);
        hearing.note(&"b".into(), later, word(2, 900, 1), SUSPICION);
        hearing.note(&"c".into(), later, word(3, 900, 0), SUSPICION);
        hearing.note(&"d".into(), later, None, SUSPICION);
        assert_eq!(hearing.until(None, SUSPICION), now + SUSPICION);
    }
}
