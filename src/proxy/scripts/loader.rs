//! The task that brings scripts to nodes, on the control thread.
//!
//! Each node has a task of its own, so that one that hangs delays no other. Replicas are held by a connection, which
//! tells of their end at once; a master's life is told by those who greet it, and it is connected to only when it lacks
//! something. Nothing is connected to as long as no script is known.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::Scripts;
use super::library::Batch;
use super::link::{Link, LinkError, Made};
use crate::proxy::shared::{ControlLogin, LoginOf};
use crate::topology::{Addr, Phase, RunId, Snapshot};

const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_LAST: Duration = Duration::from_secs(1);
/// How long the waits may have become before a node's refusals are worth a line.
const RETRIES_UNTOLD: Duration = Duration::from_millis(200);

/// Follows the nodes of the newest snapshot until `shutdown`; `login` says how to log in to them.
pub async fn load(
    scripts: Arc<Scripts>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    login: LoginOf,
    shutdown: CancellationToken,
) {
    let mut loader = Loader {
        scripts,
        login,
        followers: HashMap::new(),
    };
    loop {
        loader.take(&snapshots.borrow_and_update().clone());
        let changed = tokio::select! {
            () = shutdown.cancelled() => return,
            changed = snapshots.changed() => changed,
        };
        if changed.is_err() {
            return shutdown.cancelled().await;
        }
    }
}

struct Loader {
    scripts: Arc<Scripts>,
    login: LoginOf,
    followers: HashMap<Addr, Follower>,
}

/// What topology says of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    is_replica: bool,
    login: ControlLogin,
}

/// A task that ends when it is no longer wanted.
struct Follower {
    node: Node,
    task: AbortHandle,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Loader {
    fn take(&mut self, snapshot: &Snapshot) {
        let named = self.nodes(snapshot);
        let scripts = self.scripts.clone();
        self.followers.retain(|addr, _| named.contains_key(addr));
        scripts.change(|library| library.follow_no_others(|addr| named.contains_key(addr)));
        for (addr, node) in named {
            if self.followers.get(&addr).is_some_and(|known| known.node == node) {
                continue;
            }
            // Until it says which life it is in, a replica is not known to have anything.
            scripts.change(|library| {
                library.follow(&addr, node.is_replica);
                library.may_have_died(&addr);
            });
            let task = tokio::spawn(follow(scripts.clone(), addr.clone(), node.clone()));
            let follower = Follower {
                node,
                task: task.abort_handle(),
            };
            self.followers.insert(addr, follower);
        }
    }

    /// All nodes of all shards.
    fn nodes(&self, snapshot: &Snapshot) -> HashMap<Addr, Node> {
        let mut nodes = HashMap::new();
        for shard in &snapshot.shards {
            let serves = shard.phase == Phase::Serving;
            let login = shard
                .master
                .as_ref()
                .filter(|_| serves)
                .map(|master| (self.login)(&shard.id, shard.epoch, master));
            // Between two masters nobody has a new login.
            let login_at = |addr: &Addr| {
                let known = || self.followers.get(addr).map(|known| known.node.login.clone());
                login.clone().or_else(known).unwrap_or_default()
            };
            let node = |addr: &Addr, is_replica| {
                let login = login_at(addr);
                Node { is_replica, login }
            };
            for replica in &shard.nodes {
                nodes.insert(replica.addr.clone(), node(&replica.addr, true));
            }
            if let Some(master) = &shard.master {
                nodes.insert(master.addr.clone(), node(&master.addr, false));
            }
        }
        nodes
    }
}

async fn follow(scripts: Arc<Scripts>, addr: Addr, node: Node) {
    let is_replica = node.is_replica;
    let mut changes = scripts.changes.subscribe();
    let (mut wait, mut told) = (RETRY_FIRST, None);
    loop {
        let wanted = changes.wait_for(|_| {
            let library = scripts.library();
            library.lacks_something(&addr) || (is_replica && !library.is_empty())
        });
        if wanted.await.is_err() {
            return;
        }
        match serve(&scripts, &addr, &node).await {
            Ok(()) => {
                wait = RETRY_FIRST;
                continue;
            }
            Err(Ended { was_open: true, error }) => {
                wait = RETRY_FIRST;
                debug!("the scripts' connection ended: {error}");
            }
            Err(Ended { was_open: false, error }) => {
                let reason = error.to_string();
                // A node that is just becoming what topology says is one needs a moment.
                if wait > RETRIES_UNTOLD && told.as_ref() != Some(&reason) {
                    info!(node = %addr, "scripts are not loaded: {reason}; trying again");
                    told = Some(reason);
                }
            }
        }
        scripts.change(|library| library.may_have_died(&addr));
        sleep(wait).await;
        wait = (wait * 2).min(RETRY_LAST);
    }
}

/// How a connection ended.
struct Ended {
    was_open: bool,
    error: LinkError,
}

/// Brings a node everything it lacks; stays with a replica until that ends.
async fn serve(scripts: &Scripts, addr: &Addr, node: &Node) -> Result<(), Ended> {
    let unopened = |error| Ended { was_open: false, error };
    let mut link = Link::open(addr, &node.login).await.map_err(unopened)?;
    scripts.change(|library| library.lives(addr, &link.life));
    let mut changes = scripts.changes.subscribe();
    let opened = |error| Ended { was_open: true, error };
    loop {
        let loading = scripts.loading.read().await;
        let batch = scripts.library().missing(addr, &link.life);
        if !batch.is_empty() {
            let made = link.load(&batch).await.map_err(opened)?;
            let life = link.life.clone();
            note(scripts, addr, &life, &batch, made);
            continue;
        }
        drop(loading);
        if !node.is_replica {
            return Ok(());
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            error = link.closed() => return Err(opened(error)),
        }
    }
}

fn note(scripts: &Scripts, addr: &Addr, life: &RunId, batch: &Batch, made: Vec<Made>) {
    let mut forgets = false;
    scripts.change(|library| {
        for ((number, _), made) in batch.iter().zip(made) {
            match made {
                Made::Digest(digest) => library.has(addr, life, *number, digest),
                Made::Unreadable => {
                    info!(node = %addr, "a script cannot be read there, and is loaded nowhere");
                    library.forget(*number);
                    forgets = true;
                }
            }
        }
    });
    if forgets {
        scripts.shelves_are_stale();
    }
    scripts.digests_have_changed();
}
