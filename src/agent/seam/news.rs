//! What is told to everyone connected to the peer port, faster than their own watch of ZooKeeper.
//!
//! Invariant: only states that stand in ZooKeeper are told, and never an older one after a newer.

use std::sync::Arc;

use tokio::sync::watch;

use crate::peer::{self, Relayed};
use crate::topology::ShardId;
use crate::topology::codec::{ShardState, encode};

/// The sender's end; clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct News {
    shard: ShardId,
    told: Arc<watch::Sender<Option<peer::News>>>,
}

impl News {
    pub(super) fn new(shard: ShardId) -> (Self, watch::Receiver<Option<peer::News>>) {
        let (told, heard) = watch::channel(None);
        let told = Arc::new(told);
        (Self { shard, told }, heard)
    }

    /// Tells a state that stands in ZooKeeper at `version`.
    pub(super) fn tell(&self, version: i32, state: &ShardState) {
        self.told.send_if_modified(|last| {
            if matches!(last, Some(peer::News::State(last)) if last.version >= version) {
                return false;
            }
            *last = Some(peer::News::State(Relayed {
                shard: self.shard.clone(),
                version,
                state: encode(state).into(),
            }));
            true
        });
    }
}
