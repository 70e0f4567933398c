//! What the agent shows of itself: its registration, and its evidence against a master.
//!
//! Owns: the two ephemerals and what stands in them. Refuses: taking a node's name from a living agent; one that
//! is left by this node's own earlier life is known by its peer port, which is ours now, on the same boot of the
//! same machine.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::znode;
use crate::agent::host::Described;
use crate::agent::machine::action::Suspicion;
use crate::agent::machine::facts::Role;
use crate::clock;
use crate::store::{Ephemeral, Standing, Store};
use crate::topology::codec::{self, NodeInfo, Place, decode, encode};
use crate::topology::{NodeId, ShardId};

/// Between two looks at a name that is taken.
const LOOK: Duration = Duration::from_millis(50);

/// How much later than it should a session may end on a busy server.
const EXPIRY_SLACK: Duration = Duration::from_millis(500);

/// See the module's note.
#[derive(Debug)]
pub struct Presence {
    info: Mutex<NodeInfo>,
    registered: Ephemeral,
    suspicion: Ephemeral,
}

/// Watches over the registration.
#[derive(Debug)]
pub struct Registration {
    standing: watch::Receiver<Standing>,
    /// After this long a name that is taken belongs to somebody alive.
    patience: Duration,
}

/// After this long what a dead agent left is gone.
pub fn patience(store: &Store) -> Duration {
    // A server ends sessions at its next tick, which may be half a timeout late.
    let timeout = store.session_timeout();
    timeout + timeout / 2 + EXPIRY_SLACK
}

impl Presence {
    /// Registers `node`.
    pub fn start(store: &Store, shard: &ShardId, node: &NodeId, info: NodeInfo) -> (Self, Registration) {
        let path = Place::Node(shard.clone(), node.clone()).to_string();
        let (peer, boot_id) = (info.peer.clone(), info.boot_id.clone());
        let ours = move |left: &[u8]| {
            let left: Option<NodeInfo> = decode(left, "").ok();
            left.is_some_and(|left| left.peer == peer && !boot_id.is_empty() && left.boot_id == boot_id)
        };
        let registered = Ephemeral::keep(store, path, ours);
        registered.set(Some(encode(&info)));
        // The registration guards the name, so whatever evidence stands under it was ours.
        let path = Place::Suspect(shard.clone(), node.clone()).to_string();
        let suspicion = Ephemeral::keep(store, path, |_| true);
        let registration = Registration {
            standing: registered.standing(),
            patience: patience(store),
        };
        let presence = Self {
            info: Mutex::new(info),
            registered,
            suspicion,
        };
        (presence, registration)
    }

    /// Says what the agent's Redis is by now.
    pub(super) fn describe(&self, described: &Described) {
        let mut info = self.info.lock().unwrap_or_else(PoisonError::into_inner);
        info.run_id = Some(described.run_id.clone());
        info.replid = Some(described.replid.clone());
        info.role = Some(match described.role {
            Role::Master => codec::Role::Master,
            Role::Replica => codec::Role::Replica,
        });
        self.registered.set(Some(encode(&*info)));
    }

    /// Puts evidence up, or takes it back.
    pub(super) fn suspect(&self, suspicion: Option<&Suspicion>) {
        self.suspicion
            .set(suspicion.map(|suspicion| encode(&znode::from_suspicion(suspicion))));
    }
}

impl Registration {
    /// Waits until the node is registered; false if its name belongs to somebody alive.
    pub async fn held(&mut self) -> bool {
        loop {
            if *self.standing.borrow_and_update() == Standing::Settled {
                return true;
            }
            if self.is_lost() {
                return false;
            }
            // The time that has passed is looked at again, too.
            let _ = timeout(LOOK, self.standing.changed()).await;
        }
    }

    /// Waits until the name belongs to somebody else who is alive.
    pub async fn lost(&mut self) {
        while !self.is_lost() {
            let taken = matches!(*self.standing.borrow_and_update(), Standing::Taken(_));
            if taken {
                let _ = timeout(LOOK, self.standing.changed()).await;
            } else if self.standing.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn is_lost(&self) -> bool {
        match *self.standing.borrow() {
            Standing::Taken(since) => clock::now().saturating_duration_since(since) >= self.patience,
            Standing::Settled | Standing::Unsettled => false,
        }
    }
}
