//! The one way in which a snapshot reaches the workers.
//!
//! Invariant: what is sent is what [`Snapshot::advance`] makes of it, and only if it differs.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::topology::{Epoch, Phase, ShardId, Snapshot};

/// See the module's note.
#[derive(Debug)]
pub(super) struct Offer {
    out: watch::Sender<Arc<Snapshot>>,
}

impl Offer {
    pub(super) fn new(out: watch::Sender<Arc<Snapshot>>) -> Self {
        Self { out }
    }

    /// What the workers have now.
    pub(super) fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.out.borrow())
    }

    /// Offers a snapshot; says whether the workers got something new.
    pub(super) fn make(&self, offered: Snapshot) -> bool {
        let known = self.current();
        let (next, kept) = known.advance(offered);
        for shard in kept {
            tracing::debug!(%shard, "the source lags behind: its lower epoch is not taken");
        }
        if next == *known {
            return false;
        }
        for shard in &next.shards {
            let before = known.shards.iter().find(|before| before.id == shard.id);
            let changed = before.is_none_or(|before| (before.epoch, before.phase) != (shard.epoch, shard.phase));
            if !changed {
                continue;
            }
            match (shard.phase, &shard.master) {
                (Phase::Serving, Some(master)) => tracing::info!(
                    shard = %shard.id, epoch = %shard.epoch, master = %master.node, addr = %master.addr, "serving"
                ),
                (Phase::Switching, _) => tracing::info!(
                    shard = %shard.id, epoch = %shard.epoch, to = ?shard.switch, "the master is being moved"
                ),
                (Phase::Serving | Phase::Electing, _) => {
                    tracing::info!(shard = %shard.id, epoch = %shard.epoch, phase = ?shard.phase, "no master");
                }
            }
        }
        self.out.send_replace(Arc::new(next));
        true
    }

    /// The epoch of each shard that the workers route by.
    pub(super) fn epochs(&self) -> BTreeMap<ShardId, Epoch> {
        let current = self.current();
        current
            .shards
            .iter()
            .map(|shard| (shard.id.clone(), shard.epoch))
            .collect()
    }
}
