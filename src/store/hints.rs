//! Hints that something changed.
//!
//! Invariant: whoever reads after a hint sees the change, and a change after that reading brings another hint.
//! Hints that wait coalesce, so a slow reader costs a bounded amount.

use std::collections::BTreeSet;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::DropGuard;

/// Paths kept apart; with more than that it is simpler to read everything.
const PATHS_MAX: usize = 256;

/// What may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Anything: the watch was just set, or changes were missed.
    Everything,
    /// These znodes, or the set of their children.
    Paths(BTreeSet<String>),
}

/// A stream of hints. Dropped, it costs nothing more.
#[derive(Debug)]
pub struct Watch {
    hints: Arc<Hints>,
    _stop: DropGuard,
}

impl Watch {
    pub(super) fn new(hints: Arc<Hints>, stop: DropGuard) -> Self {
        Self { hints, _stop: stop }
    }

    /// Waits for the next hint. May be dropped and called again without losing any.
    pub async fn changed(&mut self) -> Hint {
        loop {
            if let Some(hint) = self.hints.take() {
                return hint;
            }
            self.hints.bell.notified().await;
        }
    }
}

/// The hints that wait for one [`Watch`].
#[derive(Debug, Default)]
pub(super) struct Hints {
    waiting: Mutex<Option<Hint>>,
    bell: Notify,
}

impl Hints {
    pub(super) fn everything(&self) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(Hint::Everything);
        self.bell.notify_one();
    }

    pub(super) fn path(&self, path: String) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting = Some(match mem::take(&mut *waiting) {
            Some(Hint::Everything) => Hint::Everything,
            Some(Hint::Paths(paths)) if paths.len() >= PATHS_MAX => Hint::Everything,
            Some(Hint::Paths(mut paths)) => {
                paths.insert(path);
                Hint::Paths(paths)
            }
            None => Hint::Paths([path].into()),
        });
        drop(waiting);
        self.bell.notify_one();
    }

    fn take(&self) -> Option<Hint> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_coalesce_and_are_bounded() {
        let hints = Hints::default();
        hints.path("/a".to_owned());
        hints.path("/a".to_owned());
        assert_eq!(hints.take(), Some(Hint::Paths(["/a".to_owned()].into())));
        assert_eq!(hints.take(), None);
        for number in 0..PATHS_MAX {
            hints.path(format!("/{number}"));
        }
        assert!(matches!(hints.take(), Some(Hint::Paths(paths)) if paths.len() == PATHS_MAX));
        for number in 0..=PATHS_MAX {
            hints.path(format!("/{number}"));
        }
        assert_eq!(hints.take(), Some(Hint::Everything));
    }
}
