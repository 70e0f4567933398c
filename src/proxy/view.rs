//! What a running proxy shows of itself to its admin pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

use super::census::Census;
use super::pause::Pause;
use super::roll::Roll;
use super::scripts::Scripts;
use super::vocabulary::Vocabulary;
use crate::topology::Snapshot;

/// A view of a running proxy; cheap to clone.
#[derive(Clone, Debug)]
pub struct View {
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) unserved: Arc<AtomicUsize>,
    pub(super) monitors: Arc<AtomicUsize>,
    pub(super) roll: Roll,
    pub(super) pause: Arc<Pause>,
    pub(super) census: Arc<Census>,
    pub(super) scripts: Arc<Scripts>,
    pub(super) vocabulary: Vocabulary,
}

impl View {
    /// The topology in use.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// Whether every shard is known and has a master that every worker has greeted; if not, what is missing.
    pub fn ready(&self) -> Result<(), String> {
        if self.snapshot().shards.is_empty() {
            return Err("no topology is known yet".to_owned());
        }
        match self.unserved.load(Ordering::Relaxed) {
            0 => Ok(()),
            count => Err(format!(
                "{count} shards (counted in each worker) have no master that answers"
            )),
        }
    }
}
