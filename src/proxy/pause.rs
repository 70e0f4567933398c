//! CLIENT PAUSE: until when the clients of this proxy are kept from writing, or from everything (rule B4).
//!
//! Never forwarded: a paused Redis would keep agents and replicas waiting, too. Shared by all workers; the path of
//! commands reads one atomic, which is zero while nobody pauses.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// Whom a pause concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What may change something.
    Writes,
    /// Everything.
    All,
}

/// The pause of one proxy.
#[derive(Debug)]
pub struct Pause {
    /// 0, or twice the millisecond at which it ends, and 1 more if it is for everything.
    word: AtomicU64,
    changes: watch::Sender<()>,
}

impl Default for Pause {
    fn default() -> Self {
        Self {
            word: AtomicU64::new(0),
            changes: watch::Sender::new(()),
        }
    }
}

impl Pause {
    /// Whether there may be a pause.
    #[inline]
    pub fn is_set(&self) -> bool {
        self.word.load(Ordering::Relaxed) != 0
    }

    /// How long what writes, or what does not, is kept waiting from `now_ms` on.
    pub fn left(&self, writes: bool, now_ms: u64) -> Option<Duration> {
        let word = self.word.load(Ordering::Relaxed);
        let (until_ms, all) = (word >> 1, word & 1 == 1);
        let left_ms = until_ms.saturating_sub(now_ms);
        (left_ms > 0 && (writes || all)).then(|| Duration::from_millis(left_ms))
    }

    /// Pauses until `until_ms`. Of two pauses the longer time and the larger extent hold, as in Redis.
    pub fn until(&self, until_ms: u64, extent: Extent, now_ms: u64) {
        let raise = |word: u64| {
            let (before_ms, all) = if word >> 1 > now_ms {
                (word >> 1, word & 1)
            } else {
                (0, 0)
            };
            let all = all | u64::from(extent == Extent::All);
            Some((before_ms.max(until_ms) << 1) | all)
        };
        self.word
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, raise)
            .unwrap_or_default();
        self.changes.send_replace(());
    }

    /// Ends it.
    pub fn end(&self) {
        self.word.store(0, Ordering::Relaxed);
        self.changes.send_replace(());
    }

    /// Tells of changes.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_pauses_the_longer_time_and_the_larger_extent_hold() {
        let pause = Pause::default();
        assert!(!pause.is_set() && pause.left(true, 0).is_none());
        pause.until(100, Extent::Writes, 0);
        assert_eq!(
            (pause.left(true, 40), pause.left(false, 40)),
            (Some(Duration::from_millis(60)), None)
        );
        pause.until(50, Extent::All, 0);
        assert_eq!(pause.left(false, 40), Some(Duration::from_millis(60)));
        assert_eq!(pause.left(true, 100), None);
        pause.until(200, Extent::Writes, 100);
        assert_eq!(
            (pause.left(true, 150), pause.left(false, 150)),
            (Some(Duration::from_millis(50)), None)
        );
        pause.end();
        assert!(!pause.is_set());
    }
}
