//! What is known of replicas, written by the sampler and read by every worker (rule A11).
//!
//! Owns: one [`ReplicaFacts`] per replica, address and epoch, and the bond between it and a worker's own connection.
//! Refuses to ask anybody: the sampler does. Invariant: what was passed belongs to one life, that is one unbroken time
//! of one process under one replication id; a connection that is not proven to lead to that process sees nothing.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::info::Identity;
use crate::route::{Fences, Life, Need, SampleNumber, ShardFences, Standing};
use crate::topology::{Addr, Epoch, NodeId, Phase, Shard, ShardId, Snapshot};

const NUMBER_BITS: u32 = 40;
const NUMBER_MASK: u64 = (1 << NUMBER_BITS) - 1;
const LIFE_MAX: u32 = (1 << 24) - 1;

/// The epoch whose facts serve while `shard` is what the snapshot says: that of the last master that served. During
/// an election the replicas of the last epoch go on serving what they have. `previous` is what this gave before.
pub fn serving_epoch(previous: Option<Epoch>, shard: &Shard) -> Option<Epoch> {
    match shard.phase {
        Phase::Serving => Some(shard.epoch),
        Phase::Electing | Phase::Switching => previous,
    }
}

/// What is known of one replica under one epoch.
#[derive(Debug)]
pub struct ReplicaFacts {
    epoch: Epoch,
    shard: Arc<ShardFences>,
    /// The life in the upper 24 bits, the newest sample passed in it in the lower 40; 0 when out of service. Together,
    /// so that no reader sees what was passed in another life.
    word: AtomicU64,
    /// When that sample was requested. Read after `word`, and written after it.
    passed_at_ms: AtomicU64,
    identity: Mutex<Option<Identity>>,
    lives: Arc<AtomicU32>,
}

impl ReplicaFacts {
    fn new(epoch: Epoch, shard: Arc<ShardFences>, lives: Arc<AtomicU32>) -> Self {
        Self {
            epoch,
            shard,
            word: AtomicU64::new(0),
            passed_at_ms: AtomicU64::new(0),
            identity: Mutex::new(None),
            lives,
        }
    }

    /// What is known now; nothing once anybody has gone over to a later master.
    #[inline]
    pub fn standing(&self) -> Standing {
        let word = self.word.load(Ordering::Acquire);
        if word == 0 || !self.shard.is_newest(self.epoch) {
            return Standing::NONE;
        }
        Standing {
            life: life_of(word),
            passed: SampleNumber(word & NUMBER_MASK),
            passed_at_ms: self.passed_at_ms.load(Ordering::Acquire),
        }
    }

    /// Whether a read with this need may go there over a connection that belongs to `life`.
    pub fn eligible(&self, life: Life, need: Need, now_ms: u64, max_lag_ms: u64) -> bool {
        let standing = self.standing();
        standing.life == life && standing.is_fresh(now_ms, max_lag_ms) && need.met_by(standing.passed)
    }

    /// The process that `identity` describes has passed `number`, which was requested at `at_ms`. A new life begins
    /// if there was none, or that of another process. Only the sampler calls this.
    pub fn pass(&self, identity: &Identity, number: SampleNumber, at_ms: u64) {
        let mut known = self.identity();
        let mut life = life_of(self.word.load(Ordering::Acquire));
        if life == Life::NONE || known.as_ref() != Some(identity) {
            self.word.store(0, Ordering::Release);
            *known = Some(identity.clone());
            life = self.new_life();
        }
        let word = (u64::from(life.0) << NUMBER_BITS) | (number.0 & NUMBER_MASK);
        self.word.store(word, Ordering::Release);
        self.passed_at_ms.store(at_ms, Ordering::Release);
    }

    /// It serves nobody any more; when it passes again, that is another life. Only the sampler calls this.
    pub fn void(&self) {
        self.word.store(0, Ordering::Release);
    }

    /// Whether it is in service, however old what it passed may be.
    pub fn is_in_service(&self) -> bool {
        self.word.load(Ordering::Acquire) != 0
    }

    /// Whether `life` is the present one and is that of the process `identity` describes.
    fn is_life_of(&self, life: Life, identity: &Identity) -> bool {
        let known = self.identity();
        known.as_ref() == Some(identity) && life_of(self.word.load(Ordering::Acquire)) == life
    }

    fn identity(&self) -> MutexGuard<'_, Option<Identity>> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_life(&self) -> Life {
        Life(self.lives.fetch_add(1, Ordering::Relaxed) % LIFE_MAX + 1)
    }
}

fn life_of(word: u64) -> Life {
    Life(u32::try_from(word >> NUMBER_BITS).unwrap_or_default())
}

/// A worker's connection to a replica, bound to the facts about the process at its other end.
///
/// Made once, from what that connection itself answered ([`super::identify`]); it stays true as long as the connection
/// lives, because a connection has one process behind it.
#[derive(Debug)]
pub struct Bond {
    facts: Arc<ReplicaFacts>,
    identity: Identity,
    /// The life that was looked at last, and whether it is that of our process.
    seen: Cell<(Life, bool)>,
}

impl Bond {
    /// Binds a connection that proved to lead to `identity`.
    pub fn new(facts: Arc<ReplicaFacts>, identity: Identity) -> Self {
        Self {
            facts,
            identity,
            seen: Cell::new((Life::NONE, false)),
        }
    }

    /// What is known of the replica, if what is known concerns the process behind this connection. Takes a lock once
    /// per life, else three loads.
    #[inline]
    pub fn standing(&self) -> Standing {
        let standing = self.facts.standing();
        let (life, ours) = self.seen.get();
        if standing.life == life {
            return if ours { standing } else { Standing::NONE };
        }
        self.look_again(standing)
    }

    /// The facts it is bound to.
    pub fn facts(&self) -> &Arc<ReplicaFacts> {
        &self.facts
    }

    fn look_again(&self, standing: Standing) -> Standing {
        if standing.life == Life::NONE {
            return Standing::NONE;
        }
        let ours = self.facts.is_life_of(standing.life, &self.identity);
        self.seen.set((standing.life, ours));
        if ours { standing } else { Standing::NONE }
    }
}

type Key = (ShardId, NodeId, Addr, Epoch);

/// The facts about all replicas of one proxy.
#[derive(Debug)]
pub struct Replicas {
    fences: Arc<Fences>,
    lives: Arc<AtomicU32>,
    known: Mutex<HashMap<Key, Arc<ReplicaFacts>>>,
}

impl Replicas {
    /// Nothing known yet.
    pub fn new(fences: Arc<Fences>) -> Self {
        Self {
            fences,
            lives: Arc::default(),
            known: Mutex::default(),
        }
    }

    /// The fences that go with them.
    pub fn fences(&self) -> &Arc<Fences> {
        &self.fences
    }

    /// The facts about a node at an address under an epoch (see [`serving_epoch`]), made if need be: workers and the
    /// sampler ask once per snapshot, in any order, and get the same ones.
    pub fn facts(&self, shard: &ShardId, node: &NodeId, addr: &Addr, epoch: Epoch) -> Arc<ReplicaFacts> {
        let key = (shard.clone(), node.clone(), addr.clone(), epoch);
        let make = || {
            let fences = self.fences.shard(shard);
            Arc::new(ReplicaFacts::new(epoch, fences, self.lives.clone()))
        };
        self.lock().entry(key).or_insert_with(make).clone()
    }

    /// Forgets what belongs to epochs before those of `snapshot` and is held by nobody else.
    pub fn forget_old(&self, snapshot: &Snapshot) {
        let is_current = |(shard, node, addr, epoch): &Key| {
            let shard = snapshot.shards.iter().find(|known| known.id == *shard);
            shard.is_some_and(|shard| {
                let listed = shard.nodes.iter().any(|known| known.id == *node && known.addr == *addr);
                listed && (shard.epoch == *epoch || shard.phase != Phase::Serving)
            })
        };
        self.lock()
            .retain(|key, facts| is_current(key) || Arc::strong_count(facts) > 1);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<ReplicaFacts>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Node, RunId, SlotMap};

    fn identity(run_id: &str) -> Identity {
        Identity {
            run_id: RunId::from(run_id),
            replid: "r1".into(),
        }
    }

    fn replicas() -> Replicas {
        Replicas::new(Arc::new(Fences::new()))
    }

    fn facts_of(replicas: &Replicas, epoch: u64) -> Arc<ReplicaFacts> {
        let addr = "127.0.0.1:7001".parse().unwrap();
        replicas.facts(&"s1".into(), &"a".into(), &addr, Epoch(epoch))
    }

    const NEED: Need = Need::NONE;

    #[test]
    fn workers_and_the_sampler_get_the_same_facts() {
        let replicas = replicas();
        assert!(Arc::ptr_eq(&facts_of(&replicas, 1), &facts_of(&replicas, 1)));
        assert!(!Arc::ptr_eq(&facts_of(&replicas, 1), &facts_of(&replicas, 2)));
    }

    #[test]
    fn a_replica_serves_from_its_first_sample_until_it_is_void() {
        let facts = facts_of(&replicas(), 1);
        assert_eq!(facts.standing(), Standing::NONE);
        facts.pass(&identity("x"), SampleNumber(5), 100);
        let life = facts.standing().life;
        assert!(facts.eligible(life, NEED, 100, 50));
        assert!(facts.eligible(life, Need::after(SampleNumber(4)), 150, 50));
        assert!(!facts.eligible(life, Need::after(SampleNumber(5)), 150, 50));
        assert!(!facts.eligible(life, NEED, 151, 50));
        facts.void();
        assert!(!facts.eligible(life, NEED, 100, 50) && !facts.is_in_service());
        facts.pass(&identity("x"), SampleNumber(6), 110);
        assert_ne!(facts.standing().life, life);
    }

    #[test]
    fn a_connection_to_another_process_sees_nothing() {
        let facts = facts_of(&replicas(), 1);
        let (old, new) = (
            Bond::new(facts.clone(), identity("x")),
            Bond::new(facts.clone(), identity("y")),
        );
        facts.pass(&identity("x"), SampleNumber(5), 100);
        assert_eq!(old.standing().passed, SampleNumber(5));
        assert_eq!(
            new.standing(),
            Standing::NONE,
            "the restarted process has passed nothing"
        );
        facts.pass(&identity("y"), SampleNumber(6), 110);
        assert_eq!(old.standing(), Standing::NONE);
        assert_eq!(new.standing().passed, SampleNumber(6));
        facts.void();
        assert_eq!(new.standing(), Standing::NONE);
        facts.pass(&identity("y"), SampleNumber(7), 120);
        assert_eq!(new.standing().passed, SampleNumber(7));
    }

    #[test]
    fn another_replication_id_is_another_identity() {
        let facts = facts_of(&replicas(), 1);
        let mut other = identity("x");
        other.replid = "r2".into();
        let bond = Bond::new(facts.clone(), other);
        facts.pass(&identity("x"), SampleNumber(5), 100);
        assert_eq!(bond.standing(), Standing::NONE);
    }

    #[test]
    fn a_later_master_ends_what_was_known_under_the_earlier() {
        let replicas = replicas();
        let (before, after) = (facts_of(&replicas, 1), facts_of(&replicas, 2));
        before.pass(&identity("x"), SampleNumber(5), 100);
        after.pass(&identity("x"), SampleNumber(5), 100);
        replicas.fences().shard(&"s1".into()).enter(Epoch(2));
        assert_eq!(before.standing(), Standing::NONE);
        assert_eq!(after.standing().passed, SampleNumber(5));
    }

    #[test]
    fn lives_are_drawn_from_one_count_and_are_never_none() {
        let replicas = replicas();
        replicas.lives.store(LIFE_MAX - 1, Ordering::Relaxed);
        let (one, two) = (facts_of(&replicas, 1), facts_of(&replicas, 2));
        one.pass(&identity("x"), SampleNumber(5), 100);
        two.pass(&identity("x"), SampleNumber(5), 100);
        assert_eq!((one.standing().life, two.standing().life), (Life(LIFE_MAX), Life(1)));
    }

    #[test]
    fn facts_of_old_epochs_are_forgotten_once_nobody_holds_them() {
        let replicas = replicas();
        let held = facts_of(&replicas, 1);
        facts_of(&replicas, 2);
        facts_of(&replicas, 3);
        replicas.forget_old(&snapshot(3, Phase::Serving));
        assert_eq!(replicas.lock().len(), 2);
        drop(held);
        replicas.forget_old(&snapshot(4, Phase::Electing));
        assert_eq!(replicas.lock().len(), 2, "an election goes on with what served before");
        replicas.forget_old(&snapshot(4, Phase::Serving));
        assert_eq!(replicas.lock().len(), 0);
    }

    #[test]
    fn an_election_leaves_the_last_serving_epoch_in_use() {
        let shard = |epoch, phase| snapshot(epoch, phase).shards.remove(0);
        assert_eq!(serving_epoch(None, &shard(5, Phase::Electing)), None);
        assert_eq!(serving_epoch(None, &shard(5, Phase::Serving)), Some(Epoch(5)));
        assert_eq!(
            serving_epoch(Some(Epoch(5)), &shard(6, Phase::Electing)),
            Some(Epoch(5))
        );
        assert_eq!(
            serving_epoch(Some(Epoch(5)), &shard(6, Phase::Switching)),
            Some(Epoch(5))
        );
        assert_eq!(serving_epoch(Some(Epoch(5)), &shard(6, Phase::Serving)), Some(Epoch(6)));
    }

    fn snapshot(epoch: u64, phase: Phase) -> Snapshot {
        let node = Node {
            id: "a".into(),
            addr: "127.0.0.1:7001".parse().unwrap(),
            peer: None,
            run_id: None,
            zone: "".into(),
            is_member: true,
        };
        let shard = Shard {
            id: "s1".into(),
            epoch: Epoch(epoch),
            phase,
            master: None,
            nodes: vec![node],
            ack_replicas: 0,
            switch: None,
            executor: None,
        };
        Snapshot {
            shards: vec![shard],
            slots: SlotMap::single(),
        }
    }
}
