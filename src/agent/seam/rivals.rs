//! Whether another agent works on the same Redis.
//!
//! Owns: comparing registrations: one Redis is one address and one life of a process, whatever its node is called; granting
//! a life to work on. Refuses: anything that touches Redis. Invariants: of two agents for one Redis exactly one goes on, the one
//! that registered first (ZooKeeper orders registrations, so both agree who that is); a registration that a dead agent left is
//! outwaited, not obeyed. A life is granted only after our registration named it and nobody else's did then: two agents that
//! call one Redis by different names first write what they see and then look, so at least one sees the other, and none works
//! on it before the other is gone.

use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use super::claim::Grant;
use crate::clock;
use crate::store::{Hint, Owner, Store, StoreError, Watch};
use crate::topology::codec::{NodeInfo, Place, decode};
use crate::topology::{NodeId, RunId, ShardId};

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

/// What the registrations say.
#[derive(Clone, Debug, Default)]
struct View {
    /// Who has our Redis and was registered before us.
    rival: Option<Rival>,
    /// The life that our registration names, if no other is for the same Redis.
    alone_with: Option<RunId>,
}

/// Whether a rival lives.
enum Stood {
    Nobody,
    /// It may have died just before.
    Maybe,
    Alive(Rival),
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
        self.outwait(Some(info)).await
    }

    /// The living agent that has our Redis and was registered before us. Nothing may be done to Redis before this says
    /// that there is none.
    pub async fn after(&mut self) -> Option<Rival> {
        self.outwait(None).await
    }

    /// Grants the lives of our Redis that nobody else has, until there is an agent that has it and was registered before us: it
    /// may come while our own registration is away, or be known only once Redis says who it is.
    pub async fn stand_guard(&mut self, mut grant: Grant) -> Rival {
        let mut seen = None;
        loop {
            let life = grant.seen.borrow_and_update().clone();
            let wanted = life.filter(|life| grant.granted.borrow().as_ref() != Some(life));
            match self.view(None, wanted.is_some()).await {
                Ok(view) => {
                    if wanted.is_some() && view.alone_with == wanted {
                        grant.granted.send_replace(wanted);
                    }
                    let limit = match self.outlived(&mut seen, view.rival) {
                        Stood::Nobody => Duration::MAX,
                        Stood::Maybe => LOOK,
                        Stood::Alive(rival) => return rival,
                    };
                    tokio::select! {
                        () = self.registrations_change() => {}
                        () = grant.another() => {}
                        () = sleep(limit) => {}
                    }
                }
                Err(error) => self.wait_for_store(error).await,
            }
        }
    }

    /// Looks until a rival has stood for as long as only a living one can, or until there is none.
    async fn outwait(&mut self, info: Option<&NodeInfo>) -> Option<Rival> {
        let mut seen = None;
        loop {
            match self.view(info, false).await {
                Ok(view) => match self.outlived(&mut seen, view.rival) {
                    Stood::Nobody => return None,
                    Stood::Alive(rival) => return Some(rival),
                    // The time that has passed is looked at again, too.
                    Stood::Maybe => drop(timeout(LOOK, self.registrations_change()).await),
                },
                Err(error) => self.wait_for_store(error).await,
            }
        }
    }

    /// Whether a rival has stood for longer than one that is dead can. `seen`: the one of the last look, and since when.
    fn outlived(&self, seen: &mut Option<(NodeId, Instant)>, rival: Option<Rival>) -> Stood {
        let Some(rival) = rival else {
            *seen = None;
            return Stood::Nobody;
        };
        let now = clock::now();
        let known = seen.take().filter(|(node, _)| *node == rival.node);
        let (node, since) = known.unwrap_or((rival.node.clone(), now));
        *seen = Some((node, since));
        if now.saturating_duration_since(since) >= self.patience {
            Stood::Alive(rival)
        } else {
            Stood::Maybe
        }
    }

    async fn wait_for_store(&mut self, error: StoreError) {
        let expected = matches!(error, StoreError::Away | StoreError::Unknown);
        if !expected && self.said.as_ref() != Some(&error) {
            tracing::warn!("{error}; until then it is not known who else has this redis-server");
            self.said = Some(error);
        }
        sleep(LOOK).await;
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

    /// `info`: ours, if we are not registered yet. `synced`: whatever was written before this call is seen.
    async fn view(&self, info: Option<&NodeInfo>, synced: bool) -> Result<View, StoreError> {
        if synced {
            self.store.sync().await?;
        }
        let all = self.registered().await?;
        let ours = |other: &&Registered| other.rival.shard == self.shard && other.rival.node == self.node;
        let registered = all.iter().filter(|other| other.owner == Owner::Us).find(ours);
        let (own, order) = match (info, registered) {
            // Whoever is registered was so before us.
            (Some(info), _) => (info, i64::MAX),
            (None, Some(own)) => (&own.rival.info, own.order),
            // Our registration will be back, and this looks again then.
            (None, None) => return Ok(View::default()),
        };
        let others = all.iter().filter(|other| !ours(other));
        let mut sharing: Vec<_> = others.filter(|other| same_redis(own, &other.rival.info)).collect();
        sharing.sort_by_key(|other| other.order);
        let first = sharing.first().filter(|other| other.order < order);
        Ok(View {
            rival: first.map(|other| other.rival.clone()),
            alone_with: own.run_id.clone().filter(|_| sharing.is_empty()),
        })
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
    use crate::agent::seam::claim::claim;
    use crate::store::{Lifetime, Memory};
    use crate::topology::Addr;
    use crate::topology::codec::encode;

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
        let (_claim, grant) = claim();
        let looking = tokio::spawn(async move { rivals.stand_guard(grant).await });
        ensemble.expire();
        register(&other, "s1", "b", &info(1, 11, None)).await;
        register(&own, "s1", "a", &info(1, 10, None)).await;
        let rival = timeout(LIMIT, looking).await.unwrap().unwrap();
        assert_eq!(rival.node.as_str(), "b");
    }

    #[tokio::test]
    async fn a_life_is_granted_to_whom_registered_first_and_only_once_the_other_is_gone() {
        let ensemble = Memory::default();
        let (one, other) = (ensemble.store(), ensemble.store());
        let life = RunId::from("r");
        register(&one, "s1", "b", &info(1, 10, None)).await;
        register(&other, "s1", "a", &info(2, 11, None)).await;
        let name = async |store: &Store, node: &str, info: NodeInfo| {
            store
                .set(&format!("/shards/s1/nodes/{node}"), encode(&info), 0)
                .await
                .unwrap();
        };
        let ((mut first, to_first), (second, to_second)) = (claim(), claim());
        let (mut stays, mut leaves) = (rivals(&one, "b"), rivals(&other, "a"));
        assert_eq!((stays.after().await, leaves.after().await), (None, None), "it is down");
        let staying = tokio::spawn(async move { stays.stand_guard(to_first).await });
        let leaving = tokio::spawn(async move { leaves.stand_guard(to_second).await });
        for claim in [&first, &second] {
            claim.see(&life);
        }
        let granted = timeout(PATIENCE, first.granted()).await;
        assert!(granted.is_err() && !first.holds(&life), "no registration names it");
        name(&other, "a", info(2, 11, Some("r"))).await;
        name(&one, "b", info(1, 10, Some("r"))).await;
        let rival = timeout(LIMIT, leaving).await.unwrap().unwrap();
        assert_eq!(rival.node.as_str(), "b");
        assert!(!first.holds(&life), "the other may be at work");
        other.close().await;
        timeout(LIMIT, first.granted()).await.unwrap();
        assert!(first.holds(&life));
        assert!(!first.holds(&RunId::from("another")));
        assert!(!staying.is_finished());
    }
}
