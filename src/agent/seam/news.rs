//! What is told to everyone connected to the peer port, faster than their own watch of ZooKeeper.
//!
//! Invariant: only states that stand in ZooKeeper are told, and never an older one after a newer.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::peer::{self, Attach, Relayed};
use crate::topology::ShardId;
use crate::topology::codec::{ShardState, encode};

/// The sender's end; clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct News {
    shard: ShardId,
    told: Arc<watch::Sender<Option<peer::News>>>,
    /// The version of the last state told, which other news may have replaced.
    version: Arc<Mutex<Option<i32>>>,
}

impl News {
    pub(super) fn new(shard: ShardId) -> (Self, watch::Receiver<Option<peer::News>>) {
        let (told, heard) = watch::channel(None);
        let news = Self {
            shard,
            told: Arc::new(told),
            version: Arc::default(),
        };
        (news, heard)
    }

    /// Tells a state that stands in ZooKeeper at `version`.
    pub(super) fn tell(&self, version: i32, state: &ShardState) {
        let mut last = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last >= version) {
            return;
        }
        *last = Some(version);
        // Sent while the version is held, so that another teller cannot come between.
        self.told.send_replace(Some(peer::News::State(Relayed {
            shard: self.shard.clone(),
            version,
            state: encode(state).into(),
        })));
    }

    /// Tells where those who hear are to move, until the next state is told.
    pub(super) fn attach(&self, attach: Attach) {
        self.told.send_replace(Some(peer::News::Attach(attach)));
    }
}
