//! Where what proxies report lies until the historian looks at it.
//!
//! Owns: one place per proxy and epoch, and waking the historian. Refuses: making anybody wait: a crowd of proxies that report
//! at once shares no queue with what the machine writes, and loses nothing while the historian waits for the store. Invariant:
//! what is kept is bounded (`tally`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::tally::Tally;
use crate::peer::Report;
use crate::topology::Epoch;

/// Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Reports(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    tally: Mutex<Tally>,
    news: Notify,
}

impl Reports {
    /// Takes note of what a proxy says of the change to an epoch; it replaces what that proxy said before of the same.
    pub fn note(&self, proxy: String, epoch: Epoch, report: Report) {
        self.tally().note(proxy, epoch, report);
        self.0.news.notify_one();
    }

    /// Waits until something was noted since this last ended. One waits at a time; may be dropped at any point.
    pub(super) async fn noted(&self) {
        self.0.news.notified().await;
    }

    /// What was noted; not to be held while anything is waited for.
    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.0.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
