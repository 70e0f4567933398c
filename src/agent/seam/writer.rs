//! Compare-and-set of the shard's state.
//!
//! Invariant: each request is answered exactly once, and "conflict" only if a server said so.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::znode;
use crate::agent::host::StoreEvent;
use crate::agent::machine::action::Written;
use crate::agent::machine::state::State;
use crate::store::{Effect, Lifetime, Store, StoreError};
use crate::topology::ShardId;
use crate::topology::codec::{Place, encode};

/// How long the agent waits after a server refused (rights, quota): it will ask again, and should not do so
/// thousands of times.
const REFUSED_PAUSE: Duration = Duration::from_millis(500);

/// A state to write if the znode has this version; `None`: to create.
pub(super) struct Write {
    pub(super) expect: Option<i32>,
    pub(super) state: State,
}

pub(super) struct Writer {
    store: Store,
    path: String,
    events: mpsc::Sender<StoreEvent>,
    /// The last refusal, so that each is said once.
    said: Option<StoreError>,
}

impl Writer {
    pub(super) fn new(store: Store, shard: &ShardId, events: mpsc::Sender<StoreEvent>) -> Self {
        let path = Place::State(shard.clone()).to_string();
        Self {
            store,
            path,
            events,
            said: None,
        }
    }

    pub(super) async fn run(mut self, mut writes: mpsc::Receiver<Write>) {
        while let Some(write) = writes.recv().await {
            let written = self.write(write).await;
            if self.events.send(StoreEvent::Written(written)).await.is_err() {
                return;
            }
        }
    }

    async fn write(&mut self, write: Write) -> Written {
        let bytes = encode(&znode::from_state(&write.state));
        let done = match write.expect {
            Some(version) => self.store.set(&self.path, bytes, version).await,
            None => {
                let created = self.store.create(&self.path, bytes, Lifetime::Persistent).await;
                created.map(|()| 0)
            }
        };
        match done {
            Ok(version) => {
                self.said = None;
                Written::Done(version)
            }
            Err(StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::Missing(_)) => Written::Conflict,
            Err(error) => {
                if error.effect() == Effect::NotWritten && error != StoreError::Away {
                    if self.said.as_ref() != Some(&error) {
                        tracing::warn!("{error}; until then the shard cannot get another master");
                        self.said = Some(error);
                    }
                    sleep(REFUSED_PAUSE).await;
                }
                // Also when it was not sent: what to do next is decided by the next synchronised read.
                Written::Unknown
            }
        }
    }
}
