//! Whether another agent works on the same Redis.
//!
//! Owns: comparing registrations: one Redis is one address and one life of a process, whatever its node is called.
//! Refuses: anything that touches Redis. Invariants: of two agents for one Redis exactly one goes on, the one that
//! registered first (ZooKeeper orders registrations, so both agree who that is); a registration that a dead agent left is
//! outwaited, not obeyed.

use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use crate::clock;
use crate::store::{Hint, Owner, Store, StoreError, Watch};
use crate::topology::codec::{NodeInfo, Place, decode};
use crate::topology::{NodeId, ShardId};

/// Between two looks at a rival, or at a store that is away.
const LOOK: Duration = Duration::from_millis(100);

/// Another agent for the same Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// Its shard.
    pub shard: ShardId,
    /// Its node.
    pub node: NodeId,
    /// What it says of itself.
    pub info: NodeInfo,
}

/// Looks for one.
#[derive(Debug)]
pub struct Rivals {
    store: Store,
    shard: ShardId,
    node: NodeId,
    watch: Watch,
    /// After this long a registration is that of somebody alive.
    patience: Duration,
    /// Why the registrations could not be read, so that it is said once.
    said: Option<StoreError>,
}

/// A registration, and its place in the order of all.
#[derive(Clone, Debug)]
struct Registered {
    rival: Rival,
    order: i64,
    owner: Owner,
}

impl Rivals {
    /// Of `node`; registrations outlive their agents by at most `patience`.
    pub fn new(store: &Store, shard: &ShardId, node: &NodeId, patience: Duration) -> Self {
        Self {
            store: store.clone(),
            shard: shard.clone(),
            node: node.clone(),
            watch: store.watch(&Place::Shards.to_string()),
            patience,
            said: None,
        }
    }

    /// The living agent that has the Redis of `info`, which is yet to be registered.
    pub async fn before(&mut self, info: &NodeInfo) -> Option<Rival> {
        self.outwait(Some(info), true).await
    }

    /// The living agent that has our Redis and was registered before us. Nothing may be done to Redis before this says
    /// that there is none.
    pub async fn after(&mut self) -> Option<Rival> {
        self.outwait(None, true).await
    }

    /// Waits for such an agent: it may come while our own registration is away.
    pub async fn appears(&mut self) -> Rival {
        loop {
            if let Some(rival) = self.outwait(None, false).await {
                return rival;
            }
        }
    }

    /// Looks until a rival has stood for as long as only a living one can; `once`: or until there is none.
    async fn outwait(&mut self, info: Option<&NodeInfo>, once: bool) -> Option<Rival> {
        let mut seen: Option<(NodeId, Instant)> = None;
        loop {
            match self.look(info).await {
                Ok(None) if once => return None,
                Ok(None) => {
                    seen = None;
                    self.registrations_change().await;
                }
                Ok(Some(rival)) => {
                    let now = clock::now();
                    let known = seen.take().filter(|(node, _)| *node == rival.node);
                    let (node, since) = known.unwrap_or((rival.node.clone(), now));
                    if now.saturating_duration_since(since) >= self.patience {
                        return Some(rival);
                    }
                    seen = Some((node, since));
                    // The time that has passed is looked at again, too.
                    let _ = timeout(LOOK, self.registrations_change()).await;
                }
                Err(error) => {
                    let expected = matches!(error, StoreError::Away | StoreError::Unknown);
                    if !expected && self.said.as_ref() != Some(&error) {
                        tracing::warn!("{error}; until then it is not known who else has this redis-server");
                        self.said = Some(error);
                    }
                    sleep(LOOK).await;
                }
            }
        }
    }

    async fn registrations_change(&mut self) {
        let concerns = |path: &String| matches!(Place::parse(path), Some(Place::Nodes(_) | Place::Node(..)));
        loop {
            match self.watch.changed().await {
                Hint::Everything => return,
                Hint::Paths(paths) if paths.iter().any(concerns) => return,
                Hint::Paths(_) => {}
            }
        }
    }

    async fn look(&self, info: Option<&NodeInfo>) -> Result<Option<Rival>, StoreError> {
        let all = self.registered().await?;
        let ours = |other: &&Registered| other.rival.shard == self.shard && other.rival.node == self.node;
        let registered = all.iter().filter(|other| other.owner == Owner::Us).find(ours);
        let (own, order) = match (info, registered) {
            // Whoever is registered was so before us.
            (Some(info), _) => (info, i64::MAX),
            (None, Some(own)) => (&own.rival.info, own.order),
            // Our registration will be back, and this looks again then.
            (None, None) => return Ok(None),
        };
        let others = all.iter().filter(|other| !ours(other));
        let mut earlier = others.filter(|other| other.order < order && same_redis(own, &other.rival.info));
        Ok(earlier.next().map(|other| other.rival.clone()))
    }

    /// All registrations of the cluster. One that holds nonsense names no Redis.
    async fn registered(&self) -> Result<Vec<Registered>, StoreError> {
        let mut all = Vec::new();
        for shard in self.store.children(&Place::Shards.to_string()).await? {
            let shard = ShardId::new(shard);
            for node in self.store.children(&Place::Nodes(shard.clone()).to_string()).await? {
                let node = NodeId::new(node);
                let path = Place::Node(shard.clone(), node.clone()).to_string();
                let Some(found) = self.store.get(&path).await? else {
                    continue;
                };
                if let Ok(info) = decode(&found.bytes, &path) {
                    let shard = shard.clone();
                    all.push(Registered {
                        rival: Rival { shard, node, info },
                        order: found.created,
                        owner: found.owner,
                    });
                }
            }
        }
        Ok(all)
    }
}

/// Whether two registrations are for one Redis. One whose peer port is ours was left by an earlier life of this agent,
/// under another name.
fn same_redis(own: &NodeInfo, other: &NodeInfo) -> bool {
    let left = own.peer == other.peer && !own.boot_id.is_empty() && own.boot_id == other.boot_id;
    let same_life = own.run_id.is_some() && own.run_id == other.run_id;
    !left && (own.redis == other.redis || same_life)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Lifetime, Memory};
    use crate::topology::codec::encode;
    use crate::topology::{Addr, RunId};

    const PATIENCE: Duration = Duration::from_millis(150);
    const LIMIT: Duration = Duration::from_secs(10);

    fn info(redis: u16, peer: u16, run_id: Option<&str>) -> NodeInfo {
        NodeInfo {
            host: "h".to_owned(),
            redis: Addr::new("127.0.0.1", redis),
            peer: Addr::new("127.0.0.1", peer),
            run_id: run_id.map(RunId::from),
            role: None,
            replid: None,
            zone: String::new(),
            priority: 100,
            boot_id: "boot".to_owned(),
        }
    }

    #[test]
    fn one_redis_is_one_address_or_one_life() {
        let own = info(1, 10, Some("r1"));
        assert!(same_redis(&own, &info(1, 11, None)));
        assert!(same_redis(&own, &info(2, 11, Some("r1"))));
        assert!(!same_redis(&own, &info(2, 11, Some("r2"))));
        assert!(!same_redis(&info(1, 10, None), &info(2, 11, None)));
        assert!(!same_redis(&own, &info(1, 10, Some("r1"))), "our own earlier life");
    }

    async fn register(store: &Store, shard: &str, node: &str, info: &NodeInfo) {
        let path = format!("/shards/{shard}/nodes/{node}");
        store.create(&path, encode(info), Lifetime::Ephemeral).await.unwrap();
    }

    fn rivals(store: &Store, node: &str) -> Rivals {
        Rivals::new(store, &ShardId::from("s1"), &NodeId::from(node), PATIENCE)
    }

    #[tokio::test]
    async fn of_two_that_register_at_once_the_first_stays_whatever_they_are_called() {
        for (first, second) in [("a", "b"), ("b", "a")] {
            let ensemble = Memory::default();
            let (one, other) = (ensemble.store(), ensemble.store());
            let (mut stays, mut leaves) = (rivals(&one, first), rivals(&other, second));
            // Neither sees the other before both are registered.
            assert_eq!(stays.before(&info(1, 10, Some("r"))).await, None);
            assert_eq!(leaves.before(&info(2, 11, Some("r"))).await, None);
            register(&one, "s1", first, &info(1, 10, Some("r"))).await;
            register(&other, "s1", second, &info(2, 11, Some("r"))).await;
            assert_eq!(stays.after().await, None);
            let rival = leaves.after().await.unwrap();
            assert_eq!(rival.node.as_str(), first);
        }
    }

    #[tokio::test]
    async fn another_shards_agent_is_a_rival_and_one_that_died_is_outwaited() {
        let ensemble = Memory::default();
        let (left, own) = (ensemble.store(), ensemble.store());
        register(&left, "s2", "x", &info(1, 10, None)).await;
        let mut rivals = rivals(&own, "a");
        let us = info(1, 11, None);
        assert_eq!(rivals.before(&us).await.unwrap().shard.as_str(), "s2");
        let (found, ()) = tokio::join!(rivals.before(&us), left.close());
        assert_eq!(found, None);
    }

    #[tokio::test]
    async fn one_that_came_while_our_registration_was_away_is_noticed() {
        let ensemble = Memory::default();
        let (own, other) = (ensemble.store(), ensemble.store());
        register(&own, "s1", "a", &info(1, 10, None)).await;
        let mut rivals = rivals(&own, "a");
        assert_eq!(rivals.after().await, None);
        let looking = tokio::spawn(async move { rivals.appears().await });
        ensemble.expire();
        register(&other, "s1", "b", &info(1, 11, None)).await;
        register(&own, "s1", "a", &info(1, 10, None)).await;
        let rival = timeout(LIMIT, looking).await.unwrap().unwrap();
        assert_eq!(rival.node.as_str(), "b");
    }
}
