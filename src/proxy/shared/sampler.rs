//! The sampler: rounds of questions to all nodes, from the proxy's control thread.
//!
//! Owns: which nodes are followed under which epoch, and when a round begins. Refuses: everything a single node says
//! (`follow`). Invariant: facts of one epoch are fed by tasks of that epoch only; they end with it, so an answer that
//! comes after a change of epoch meets nobody.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span, warn};

use super::control::ControlLogin;
use super::follow::{self, Feed, follow_master, follow_replica};
use super::pace::Pace;
use super::replicas::{ReplicaFacts, Replicas};
use crate::clock;
use crate::route::SampleNumber;
use crate::topology::{Addr, Epoch, Master, NodeId, Phase, Shard, ShardId, Snapshot};

/// How to log in to a shard's nodes under an epoch with this master.
pub type LoginOf = Arc<dyn Fn(&ShardId, Epoch, &Master) -> ControlLogin + Send + Sync>;

/// What the sampler is started with.
#[derive(Clone)]
pub struct SamplerSettings {
    /// How old the newest sample that a replica has passed may be.
    pub max_lag_ms: u64,
    /// Whose rights it acts with.
    pub login: LoginOf,
}

impl fmt::Debug for SamplerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SamplerSettings")
            .field("max_lag_ms", &self.max_lag_ms)
            .finish_non_exhaustive()
    }
}

/// Samples the nodes of the newest snapshot until `shutdown`. Its tasks run on the runtime that calls it.
pub async fn sample(
    replicas: Arc<Replicas>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    settings: SamplerSettings,
    shutdown: CancellationToken,
) {
    let mut pace = Pace::new(settings.max_lag_ms);
    let mut sampler = Sampler::new(replicas, settings);
    sampler.take(&snapshots.borrow_and_update().clone());
    let mut source_is_there = true;
    loop {
        let look_again = Duration::from_millis(pace.look_again_ms(clock::monotonic_ms()));
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = snapshots.changed(), if source_is_there => {
                source_is_there = changed.is_ok();
                sampler.take(&snapshots.borrow_and_update().clone());
            }
            () = tokio::time::sleep(look_again) => sampler.look(&mut pace),
        }
    }
}

struct Sampler {
    replicas: Arc<Replicas>,
    settings: SamplerSettings,
    rounds: watch::Sender<SampleNumber>,
    groups: HashMap<ShardId, Group>,
}

/// The followers of one shard under one epoch.
struct Group {
    epoch: Epoch,
    master: Master,
    feed: Arc<Feed>,
    _master_follower: Follower,
    replicas: HashMap<(NodeId, Addr), (Arc<ReplicaFacts>, Follower)>,
}

/// A task that ends when it is no longer wanted.
struct Follower(AbortHandle);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Sampler {
    fn new(replicas: Arc<Replicas>, settings: SamplerSettings) -> Self {
        Self {
            replicas,
            settings,
            rounds: watch::Sender::new(SampleNumber(0)),
            groups: HashMap::new(),
        }
    }

    fn look(&self, pace: &mut Pace) {
        let fences = self.replicas.fences();
        let wanted = fences.wanted();
        if pace.is_due(
            clock::monotonic_ms(),
            wanted,
            fences.requested(),
            self.is_behind(wanted),
        ) {
            self.rounds.send_replace(fences.request());
        }
    }

    fn is_behind(&self, wanted: SampleNumber) -> bool {
        let mut standings = self.groups.values().flat_map(Group::standings);
        standings.any(|standing| standing.passed.0 != 0 && standing.passed < wanted)
    }

    /// Follows what a new snapshot names, and nothing else.
    fn take(&mut self, snapshot: &Snapshot) {
        self.groups
            .retain(|id, _| snapshot.shards.iter().any(|shard| shard.id == *id));
        for shard in &snapshot.shards {
            // During an election the nodes of the last epoch go on being asked: reads may go on.
            if shard.phase == Phase::Serving
                && let Some(master) = &shard.master
            {
                self.serve(shard, master);
            }
        }
        self.replicas.forget_old(snapshot);
    }

    fn serve(&mut self, shard: &Shard, master: &Master) {
        let known = self.groups.get(&shard.id);
        if known.is_none_or(|group| group.epoch != shard.epoch || group.master != *master) {
            if known.is_some_and(|group| group.epoch > shard.epoch) {
                warn!(shard = %shard.id, epoch = %shard.epoch, "an older epoch is not sampled");
                return;
            }
            self.replicas.fences().shard(&shard.id).enter(shard.epoch);
            let group = self.begin(shard, master);
            self.groups.insert(shard.id.clone(), group);
        }
        if let Some(mut group) = self.groups.remove(&shard.id) {
            self.follow_replicas(shard, &mut group);
            self.groups.insert(shard.id.clone(), group);
        }
    }

    fn begin(&self, shard: &Shard, master: &Master) -> Group {
        let feed = Arc::new(Feed::new(self.replicas.fences().clone(), self.settings.max_lag_ms));
        let node = follow::Node {
            addr: master.addr.clone(),
            login: (self.settings.login)(&shard.id, shard.epoch, master),
            run_id: master.run_id.clone(),
        };
        let span = info_span!("master", shard = %shard.id, node = %master.node);
        let task = tokio::spawn(follow_master(feed.clone(), node, self.rounds.subscribe()).instrument(span));
        Group {
            epoch: shard.epoch,
            master: master.clone(),
            feed,
            _master_follower: Follower(task.abort_handle()),
            replicas: HashMap::new(),
        }
    }

    fn follow_replicas(&self, shard: &Shard, group: &mut Group) {
        let is_replica = |node: &&crate::topology::Node| node.id != group.master.node && node.addr != group.master.addr;
        let listed: HashMap<_, _> = shard
            .nodes
            .iter()
            .filter(is_replica)
            .map(|node| ((node.id.clone(), node.addr.clone()), node))
            .collect();
        group.replicas.retain(|key, (facts, _)| {
            let stays = listed.contains_key(key);
            if !stays {
                facts.void();
            }
            stays
        });
        for (key, node) in listed {
            let replicas = &self.replicas;
            group.replicas.entry(key).or_insert_with(|| {
                let facts = replicas.facts(&shard.id, &node.id, &node.addr, shard.epoch);
                let target = follow::Node {
                    addr: node.addr.clone(),
                    login: (self.settings.login)(&shard.id, shard.epoch, &group.master),
                    run_id: None,
                };
                let feed = group.feed.clone();
                let span = info_span!("replica", shard = %shard.id, node = %node.id);
                let following = follow_replica(feed, target, facts.clone(), self.rounds.subscribe());
                let task = tokio::spawn(following.instrument(span));
                (facts, Follower(task.abort_handle()))
            });
        }
    }
}

impl Group {
    fn standings(&self) -> impl Iterator<Item = crate::route::Standing> + '_ {
        self.replicas.values().map(|(facts, _)| facts.standing())
    }
}

impl Drop for Group {
    /// Nobody feeds these facts any more.
    fn drop(&mut self) {
        for (facts, _) in self.replicas.values() {
            facts.void();
        }
    }
}
