//! Whether the published master is gone: detection classes 1 to 3.
//!
//! Owns: what this agent last saw of its own Redis, of the published master and of the other agents, and
//! the verdict that follows. Refuses: sockets, /proc, and acting on the verdict.
//!
//! 1. **Death** is certain: the process is exiting (seen by its own agent in /proc), a reconnect was
//!    refused, or another process answers (`run_id`). An end of file alone is no death.
//! 2. **Hang**: no answer of any kind for `suspicion`, also not to a fresh connection. `-LOADING`, `-BUSY`
//!    and a paused server are answers.
//! 3. **Host gone**: Redis and its agent both silent for `suspicion`. Unlike the others this may be our own
//!    network, so it needs other agents that say the same (`/suspects`).
//!
//! While the master's own agent is reachable its word decides: it sits beside the process, we do not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::topology::{Epoch, NodeId, RunId};

use super::facts::Facts;
use super::state::MasterOf;
use super::timings::Timings;

/// What a probe found out about a Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It answered; the reading was asked for at this moment.
    Up {
        /// The reading.
        facts: Facts,
        /// When it was asked for, before the first byte was sent.
        asked_at: Instant,
    },
    /// It answered, but nothing we can read (loading, paused, out of connections): alive.
    Alive,
    /// The connection or the answer is overdue.
    Silent,
    /// The process is gone, or its port refuses.
    Dead,
}

/// How an agent finds its own Redis, for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not probed yet.
    Unknown,
    /// It answers.
    Alive,
    /// It does not answer, and may yet.
    Hung,
    /// The process is gone.
    Dead,
}

/// What another agent says of itself when asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its node.
    pub node: NodeId,
    /// How it finds its Redis.
    pub health: Health,
    /// The last reading of that Redis, if any.
    pub facts: Option<Facts>,
    /// The highest epoch it obeyed.
    pub epoch: Epoch,
    /// The epoch it is electing a master for, if it is.
    pub electing: Option<Epoch>,
    /// How far the stream of a published master's life was seen to go, by this agent or one that told it.
    #[serde(default)]
    pub seen: Option<(RunId, i64)>,
    /// What keeps the shard from being as it is wanted; only the master's agent knows.
    #[serde(default)]
    pub delay: Option<String>,
    /// Its Redis holds data that never was this shard's.
    #[serde(default)]
    pub foreign: bool,
}

/// What is known of another agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerSeen {
    /// It answered.
    Up(Box<Status>),
    /// Its port refuses or its connection broke and could not be restored.
    Unreachable,
}

/// The verdict on the published master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No reason to act.
    Fine,
    /// Gone beyond doubt (classes 1 and 2); the sentence says why.
    Gone(String),
    /// Neither it nor its agent answers us (class 3): act only with enough others.
    Unreachable,
}

/// One Redis, seen over time.
#[derive(Clone, Debug)]
struct Sight {
    health: Health,
    facts: Option<Facts>,
    /// The last moment at which it answered, or at which we began to look.
    answered: Instant,
}

impl Sight {
    fn new(now: Instant) -> Self {
        Self {
            health: Health::Unknown,
            facts: None,
            answered: now,
        }
    }

    fn update(&mut self, now: Instant, seen: &Seen, suspicion: Duration) {
        match seen {
            Seen::Up { facts, .. } => {
                self.facts = Some(facts.clone());
                self.answered = now;
                self.health = Health::Alive;
            }
            Seen::Alive => {
                self.answered = now;
                self.health = Health::Alive;
            }
            Seen::Silent if self.health == Health::Dead => {}
            Seen::Silent => self.age(now, suspicion),
            Seen::Dead => self.health = Health::Dead,
        }
    }

    fn age(&mut self, now: Instant, suspicion: Duration) {
        if self.health != Health::Dead && now.saturating_duration_since(self.answered) >= suspicion {
            self.health = Health::Hung;
        }
    }

    /// A life that is not the published one proves that the published one ended.
    fn other_life(&self, run_id: &RunId) -> bool {
        self.health == Health::Alive && self.facts.as_ref().is_some_and(|facts| facts.run_id != *run_id)
    }
}

#[derive(Clone, Debug)]
struct PeerSight {
    status: Option<Status>,
    answered: Instant,
    refused: bool,
}

/// Watches the published master from this agent's place.
#[derive(Clone, Debug)]
pub struct Detector {
    timings: Timings,
    own: Sight,
    remote: Option<(MasterOf, Sight)>,
    peers: BTreeMap<NodeId, PeerSight>,
    last: Instant,
}

impl Detector {
    /// Begins to look; nothing is suspected before `suspicion` has passed.
    pub fn new(now: Instant, timings: Timings) -> Self {
        Self {
            timings,
            own: Sight::new(now),
            remote: None,
            peers: BTreeMap::new(),
            last: now,
        }
    }

    /// Time has passed. If more of it than we can have slept, we were stopped ourselves: silence during
    /// it accuses nobody.
    pub fn handle_time(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.last);
        self.last = now;
        if gap <= self.timings.stall {
            self.own.age(now, self.timings.suspicion);
            if let Some((_, sight)) = &mut self.remote {
                sight.age(now, self.timings.suspicion);
            }
            return;
        }
        let sights = [Some(&mut self.own), self.remote.as_mut().map(|(_, sight)| sight)];
        for sight in sights.into_iter().flatten() {
            sight.answered += gap;
        }
        for peer in self.peers.values_mut() {
            peer.answered += gap;
        }
    }

    /// What the probe of our own Redis found.
    pub fn handle_own(&mut self, now: Instant, seen: &Seen) {
        self.own.update(now, seen, self.timings.suspicion);
    }

    /// What the probe of the published master found; `master` says whom it probed.
    pub fn handle_master(&mut self, now: Instant, master: &MasterOf, seen: &Seen) {
        let suspicion = self.timings.suspicion;
        match &mut self.remote {
            Some((known, sight)) if known == master => sight.update(now, seen, suspicion),
            _ => {
                let mut sight = Sight::new(now);
                sight.update(now, seen, suspicion);
                self.remote = Some((master.clone(), sight));
            }
        }
    }

    /// What became of a question to another agent.
    pub fn handle_peer(&mut self, now: Instant, node: NodeId, seen: PeerSeen) {
        let peer = self.peers.entry(node).or_insert(PeerSight {
            status: None,
            answered: now,
            refused: false,
        });
        match seen {
            PeerSeen::Up(status) => {
                peer.status = Some(*status);
                peer.answered = now;
                peer.refused = false;
            }
            PeerSeen::Unreachable => peer.refused = true,
        }
    }

    /// The next moment after `now` at which silence alone changes what is thought of somebody.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let remote = self.remote.as_ref().map(|(_, sight)| sight);
        let sights = std::iter::once(&self.own).chain(remote);
        let listening = sights.filter(|sight| !matches!(sight.health, Health::Dead | Health::Hung));
        let hangs = listening.map(|sight| sight.answered + self.timings.suspicion);
        let peers = self.peers.values().filter(|peer| !peer.refused);
        let silences = peers.flat_map(|peer| {
            [self.timings.agent_silence, self.timings.suspicion].map(|silence| peer.answered + silence)
        });
        hangs.chain(silences).filter(|at| *at > now).min()
    }

    /// How we find our own Redis.
    pub fn health(&self) -> Health {
        self.own.health
    }

    /// The last reading of our own Redis; it may be of a life that has ended since.
    pub fn own_facts(&self) -> Option<&Facts> {
        self.own.facts.as_ref()
    }

    /// The life of our own Redis, if it is known to be there.
    pub fn own_life(&self) -> Option<&RunId> {
        match self.own.health {
            Health::Alive | Health::Hung => self.own.facts.as_ref().map(|facts| &facts.run_id),
            Health::Unknown | Health::Dead => None,
        }
    }

    /// When the master last answered us, as far as we watch it.
    pub fn last_answer(&self, master: &MasterOf, me: &NodeId) -> Option<Instant> {
        if master.node == *me {
            return Some(self.own.answered);
        }
        let (known, sight) = self.remote.as_ref()?;
        (known == master).then_some(sight.answered)
    }

    /// What another agent said last, unless it has fallen silent.
    pub fn status_of(&self, now: Instant, node: &NodeId) -> Option<&Status> {
        let peer = self.peers.get(node)?;
        let fresh = now.saturating_duration_since(peer.answered) < self.timings.agent_silence;
        if peer.refused || !fresh {
            None
        } else {
            peer.status.as_ref()
        }
    }

    /// Whether nobody listens where another agent should: it is not merely slow.
    pub fn refused_by(&self, node: &NodeId) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.refused)
    }

    /// The verdict on the published master.
    pub fn verdict(&self, now: Instant, master: &MasterOf, me: &NodeId) -> Verdict {
        if master.node == *me {
            return own_verdict(self.own.health, self.own.facts.as_ref(), &master.run_id);
        }
        if let Some(status) = self.status_of(now, &master.node) {
            let another = |facts: &Facts| facts.run_id != master.run_id;
            if status.health == Health::Dead && status.facts.as_ref().is_some_and(another) {
                // It is older than the promotion: the life that died is the one before.
                return Verdict::Fine;
            }
            return own_verdict(status.health, status.facts.as_ref(), &master.run_id);
        }
        let Some((known, sight)) = &self.remote else {
            return Verdict::Fine;
        };
        if known != master {
            return Verdict::Fine;
        }
        match sight.health {
            Health::Dead => Verdict::Gone("its port refuses and its agent does not answer".to_owned()),
            Health::Alive if sight.other_life(&master.run_id) => Verdict::Gone("it was restarted".to_owned()),
            Health::Hung if self.agent_silent(now, &master.node) => Verdict::Unreachable,
            Health::Alive | Health::Hung | Health::Unknown => Verdict::Fine,
        }
    }

    fn agent_silent(&self, now: Instant, node: &NodeId) -> bool {
        self.peers
            .get(node)
            .is_none_or(|peer| peer.refused || now.saturating_duration_since(peer.answered) >= self.timings.suspicion)
    }
}

/// The verdict of the agent beside the master.
fn own_verdict(health: Health, facts: Option<&Facts>, run_id: &RunId) -> Verdict {
    match health {
        Health::Dead => Verdict::Gone("its process is gone".to_owned()),
        Health::Hung => Verdict::Gone("it does not answer".to_owned()),
        Health::Alive if facts.is_some_and(|facts| facts.run_id != *run_id) => {
            Verdict::Gone("it was restarted".to_owned())
        }
        Health::Alive | Health::Unknown => Verdict::Fine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::machine::facts::sample;
    use crate::clock;

    const MS: Duration = Duration::from_millis(1);

    fn master() -> MasterOf {
        MasterOf {
            node: NodeId::from("a"),
            addr: "127.0.0.1:7001".parse().unwrap(),
            run_id: RunId::from("r"),
        }
    }

    fn status(health: Health) -> PeerSeen {
        PeerSeen::Up(Box::new(Status {
            node: NodeId::from("a"),
            health,
            facts: Some(sample("r", "x", 0)),
            epoch: Epoch(1),
            electing: None,
            seen: None,
            delay: None,
            foreign: false,
        }))
    }

    struct Bench {
        now: Instant,
        detector: Detector,
    }

    impl Bench {
        fn new() -> Self {
            let now = clock::now();
            let mut bench = Self {
                now,
                detector: Detector::new(now, Timings::default()),
            };
            let up = Seen::Up {
                facts: sample("r", "x", 0),
                asked_at: now,
            };
            bench.detector.handle_master(now, &master(), &up);
            bench.detector.handle_own(now, &up);
            bench
                .detector
                .handle_peer(now, NodeId::from("a"), status(Health::Alive));
            bench
        }

        fn pass(&mut self, ms: u32, mut each: impl FnMut(&mut Detector, Instant)) {
            for _ in 0..ms / 100 {
                self.now += 100 * MS;
                self.detector.handle_time(self.now);
                each(&mut self.detector, self.now);
            }
        }

        fn seen_afar(&self) -> Verdict {
            self.detector.verdict(self.now, &master(), &NodeId::from("b"))
        }

        fn seen_beside(&self) -> Verdict {
            self.detector.verdict(self.now, &master(), &NodeId::from("a"))
        }
    }

    #[test]
    fn the_word_of_the_agent_beside_the_master_decides() {
        let mut bench = Bench::new();
        bench.detector.handle_master(bench.now, &master(), &Seen::Dead);
        assert_eq!(
            bench.seen_afar(),
            Verdict::Fine,
            "a refusal may be a firewall between us"
        );
        bench
            .detector
            .handle_peer(bench.now, NodeId::from("a"), status(Health::Dead));
        assert!(matches!(bench.seen_afar(), Verdict::Gone(_)));
    }

    #[test]
    fn word_of_a_death_before_the_promotion_is_none_of_the_masters() {
        let mut bench = Bench::new();
        let PeerSeen::Up(mut before) = status(Health::Dead) else {
            unreachable!("it is up");
        };
        before.facts = Some(sample("before", "x", 0));
        bench
            .detector
            .handle_peer(bench.now, NodeId::from("a"), PeerSeen::Up(before));
        assert_eq!(bench.seen_afar(), Verdict::Fine);
    }

    #[test]
    fn a_refused_port_is_death_once_its_agent_is_away_too() {
        let mut bench = Bench::new();
        bench.detector.handle_master(bench.now, &master(), &Seen::Dead);
        bench
            .detector
            .handle_peer(bench.now, NodeId::from("a"), PeerSeen::Unreachable);
        assert!(matches!(bench.seen_afar(), Verdict::Gone(_)));
    }

    #[test]
    fn a_dead_agent_beside_a_living_master_is_no_reason() {
        let mut bench = Bench::new();
        bench
            .detector
            .handle_peer(bench.now, NodeId::from("a"), PeerSeen::Unreachable);
        bench.pass(5000, |detector, now| {
            detector.handle_master(now, &master(), &Seen::Alive)
        });
        assert_eq!(bench.seen_afar(), Verdict::Fine);
    }

    #[test]
    fn silence_of_both_is_only_a_suspicion() {
        let mut bench = Bench::new();
        bench.pass(900, |detector, now| {
            detector.handle_master(now, &master(), &Seen::Silent)
        });
        assert_eq!(bench.seen_afar(), Verdict::Fine);
        bench.pass(200, |detector, now| {
            detector.handle_master(now, &master(), &Seen::Silent)
        });
        assert_eq!(bench.seen_afar(), Verdict::Unreachable);
    }

    #[test]
    fn a_hang_is_found_by_its_own_agent_after_suspicion() {
        let mut bench = Bench::new();
        bench.pass(900, |detector, now| detector.handle_own(now, &Seen::Silent));
        assert_eq!(bench.seen_beside(), Verdict::Fine);
        bench.pass(100, |detector, now| detector.handle_own(now, &Seen::Silent));
        assert!(matches!(bench.seen_beside(), Verdict::Gone(_)));
    }

    #[test]
    fn a_paused_or_loading_server_is_alive() {
        let mut bench = Bench::new();
        bench.pass(5000, |detector, now| detector.handle_own(now, &Seen::Alive));
        assert_eq!(bench.seen_beside(), Verdict::Fine);
    }

    #[test]
    fn another_life_proves_the_death_of_the_published_one() {
        let mut bench = Bench::new();
        let up = Seen::Up {
            facts: sample("r'", "x", 0),
            asked_at: bench.now,
        };
        bench.detector.handle_own(bench.now, &up);
        assert!(matches!(bench.seen_beside(), Verdict::Gone(_)));
    }

    #[test]
    fn the_next_silence_to_be_looked_at_is_the_one_that_is_due_first() {
        let mut bench = Bench::new();
        let timings = Timings::default();
        let start = bench.now;
        assert_eq!(bench.detector.due(start), Some(start + timings.agent_silence));
        bench.pass(500, |detector, now| detector.handle_own(now, &Seen::Alive));
        assert_eq!(bench.detector.due(bench.now), Some(start + timings.suspicion));
        bench.pass(500, |detector, now| detector.handle_own(now, &Seen::Alive));
        assert_eq!(
            bench.detector.due(bench.now),
            Some(bench.now + timings.suspicion),
            "only ours is awaited"
        );
        bench.detector.handle_own(bench.now, &Seen::Dead);
        assert_eq!(bench.detector.due(bench.now), None);
    }

    #[test]
    fn having_been_stopped_ourselves_accuses_nobody() {
        let mut bench = Bench::new();
        bench.now += Duration::from_secs(60);
        bench.detector.handle_time(bench.now);
        bench.detector.handle_own(bench.now, &Seen::Silent);
        bench.detector.handle_master(bench.now, &master(), &Seen::Silent);
        assert_eq!(bench.seen_beside(), Verdict::Fine);
        assert_eq!(bench.seen_afar(), Verdict::Fine);
    }
}
