//! What is told to everyone connected to the peer port, faster than their own watch of ZooKeeper.
//!
//! Invariant: only states that stand in ZooKeeper are told, and never an older one after a newer.

use std::sync::Arc;

use tokio::sync::watch;

use crate::peer::{Attach, Bulletin, News as Told, Relayed};
use crate::topology::ShardId;
use crate::topology::codec::{ShardState, encode};

/// The sender's end; clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct News {
    shard: ShardId,
    told: Arc<watch::Sender<Bulletin>>,
}

impl News {
    pub(super) fn new(shard: ShardId) -> (Self, watch::Receiver<Bulletin>) {
        let (told, heard) = watch::channel(Bulletin::default());
        let told = Arc::new(told);
        (Self { shard, told }, heard)
    }

    /// Tells a state that stands in ZooKeeper at `version`.
    pub(super) fn tell(&self, version: i32, state: &ShardState) {
        self.post(Told::State(Relayed {
            shard: self.shard.clone(),
            version,
            state: encode(state).into(),
        }));
    }

    /// Tells where those who hear are to move, until the next state is told.
    pub(super) fn attach(&self, attach: Attach) {
        self.post(Told::Attach(attach));
    }

    fn post(&self, news: Told) {
        self.told.send_if_modified(|bulletin| bulletin.post(news));
    }
}
