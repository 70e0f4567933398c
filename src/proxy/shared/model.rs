//! A model of one shard, to search for an order of events in which a read on a replica misses what was shown before.
//!
//! Everything that decides is the real code: fences, logs, stream, progress, facts, bonds, choice. Modelled is the
//! world: a master and two replicas that apply its writes when they please, restart with old data, lose their link;
//! lanes that are lost with a write in flight; questions and answers of the sampler that are slow or lost. One seed is
//! one order of events; a failure names it.
//!
//! Checked of each read on a replica: it shows nothing older than what any client was shown before it was asked
//! (as one Redis would), for keys written through this proxy; and for keys written elsewhere nothing older than what
//! the same session was shown on a replica.

use std::sync::Arc;

use super::control::Answer;
use super::follow::{Feed, Progress, leave_service};
use super::info::{Identity, Replication, Role};
use super::replicas::{Bond, ReplicaFacts, Replicas};
use super::stream::ClockReading;
use crate::route::{
    Ask, Choice, FenceLog, Fences, Footprint, Need, ReadPolicy, SampleNumber, ShardFences, Standing, Stickiness, choose,
};
use crate::topology::{Epoch, ReplOffset, RunId};

const SEEDS: u64 = 600;
const STEPS: usize = 4_000;
const REPLICAS: usize = 2;
const CLIENTS: usize = 3;
/// Keys written through this proxy; the next one is written elsewhere.
const KEYS: usize = 3;
const MAX_LAG_MS: u64 = 1_000;
const NOON: ClockReading = ClockReading {
    server_ms: 0,
    asked_ms: 0,
    answered_ms: 0,
};

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// A value is the place of its write in the master's log, from 1; 0 is none.
type Value = usize;

#[derive(Default)]
struct Replica {
    life: u32,
    applied: usize,
    saved: usize,
    link_up: bool,
}

enum Writing {
    Idle,
    Sent { key: usize },
    Executed { key: usize, value: Value },
}

enum Reading {
    Idle,
    Sent {
        key: usize,
        choice: Choice,
        life: u32,
        floor: Value,
    },
    Executed {
        key: usize,
        choice: Choice,
        floor: Value,
        value: Value,
    },
}

struct Client {
    log: FenceLog,
    writing: Writing,
    reading: Reading,
    sticky: Stickiness,
    seen_on_replicas: [Value; KEYS + 1],
    /// To each replica: the life it leads to, and the bond.
    lanes: [Option<(u32, Bond)>; REPLICAS],
}

/// The sampler's question to a node.
enum Question<A> {
    None,
    Asked { number: SampleNumber, life: u32 },
    Answered { number: SampleNumber, life: u32, answer: A },
}

struct World {
    dice: Dice,
    fences: Arc<Fences>,
    shard: Arc<ShardFences>,
    feed: Feed,
    facts: [Arc<ReplicaFacts>; REPLICAS],
    progress: [Progress; REPLICAS],
    to_master: Question<usize>,
    to_replica: [Question<Replication>; REPLICAS],
    /// The process that the sampler's connection leads to.
    connected: [Option<u32>; REPLICAS],
    /// Which key each write of the master changed.
    written: Vec<usize>,
    /// Sent on lanes that are lost, and not executed yet; and the sample from which on they never are.
    lost: Vec<(usize, u64)>,
    replicas: [Replica; REPLICAS],
    clients: Vec<Client>,
    shown: [Value; KEYS + 1],
    reads_on_replicas: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let fences = Arc::new(Fences::new());
        let known = Replicas::new(fences.clone());
        let shard = fences.shard(&"s1".into());
        let addr = "127.0.0.1:1".parse().unwrap();
        let facts = ["a", "b"].map(|node| known.facts(&"s1".into(), &node.into(), &addr, Epoch(1)));
        let client = || Client {
            log: FenceLog::new(fences.clone(), shard.clone()),
            writing: Writing::Idle,
            reading: Reading::Idle,
            sticky: Stickiness::default(),
            seen_on_replicas: [0; KEYS + 1],
            lanes: [None, None],
        };
        Self {
            dice: Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            feed: Feed::new(fences.clone(), MAX_LAG_MS),
            clients: (0..CLIENTS).map(|_| client()).collect(),
            fences,
            shard,
            facts,
            progress: Default::default(),
            to_master: Question::None,
            to_replica: [Question::None, Question::None],
            connected: [None, None],
            written: Vec::new(),
            lost: Vec::new(),
            replicas: Default::default(),
            shown: [0; KEYS + 1],
            reads_on_replicas: 0,
        }
    }

    fn step(&mut self) {
        let (client, at) = (self.dice.below(CLIENTS), self.dice.below(REPLICAS));
        match self.dice.below(100) {
            0..20 => self.write(client),
            20..50 => self.read(client),
            50..64 => self.apply(at),
            64..66 => self.begin_rounds(),
            66..77 => self.ask_master(),
            77..90 => self.ask_replica(at),
            90..93 => self.connect_lane(client, at),
            93..95 => self.written.push(KEYS),
            95 => self.replicas[at].saved = self.replicas[at].applied,
            96 => self.replicas[at].link_up = true,
            97 => self.execute_lost(),
            98 => self.lose_lane(client),
            99 if self.dice.below(3) == 0 => self.disturb(at),
            _ => {}
        }
    }

    /// Not every node is asked in every round.
    fn begin_rounds(&mut self) {
        for _ in 0..=self.dice.below(20) {
            self.fences.request();
        }
    }

    fn execute(&mut self, key: usize) -> Value {
        self.written.push(key);
        self.written.len()
    }

    fn value(&self, key: usize, applied: usize) -> Value {
        self.written[..applied]
            .iter()
            .rposition(|written| *written == key)
            .map_or(0, |at| at + 1)
    }

    fn write(&mut self, client: usize) {
        match self.clients[client].writing {
            Writing::Idle if self.dice.below(8) > 0 => {}
            Writing::Idle => {
                let key = self.dice.below(KEYS);
                let mut footprint = Footprint::default();
                match self.dice.below(8) {
                    0 => footprint.writes_every_key(0),
                    _ => footprint.writes_key(&self.fences, 0, &[b'k', u8::try_from(key).unwrap()]),
                }
                self.clients[client].log.appended(1, &footprint);
                self.clients[client].writing = Writing::Sent { key };
            }
            // Requests and replies take their time: others may see a write long before its client does.
            Writing::Sent { .. } | Writing::Executed { .. } if self.dice.below(6) > 0 => {}
            Writing::Sent { key } => {
                let value = self.execute(key);
                self.clients[client].writing = Writing::Executed { key, value };
            }
            Writing::Executed { key, value } => {
                self.clients[client].log.answered(1);
                self.clients[client].writing = Writing::Idle;
                self.shown[key] = self.shown[key].max(value);
            }
        }
    }

    /// The lane of a client's writes is lost; what is on its way may still be executed for a while.
    fn lose_lane(&mut self, client: usize) {
        if let Writing::Sent { key } = self.clients[client].writing {
            self.lost.push((key, self.fences.requested().0 + 90));
        }
        self.clients[client].writing = Writing::Idle;
        self.clients[client].log = FenceLog::new(self.fences.clone(), self.shard.clone());
    }

    fn execute_lost(&mut self) {
        if let Some((key, until)) = self.lost.pop()
            && self.fences.requested().0 < until
        {
            self.execute(key);
        }
    }

    fn read(&mut self, client: usize) {
        match std::mem::replace(&mut self.clients[client].reading, Reading::Idle) {
            Reading::Idle => self.send_read(client),
            Reading::Sent {
                key,
                choice,
                life,
                floor,
            } => {
                let applied = match choice {
                    Choice::Master => self.written.len(),
                    // A restart closed the connection: no answer comes.
                    Choice::Replica(at) if self.replicas[at].life != life => {
                        self.clients[client].lanes[at] = None;
                        return;
                    }
                    Choice::Replica(at) => self.replicas[at].applied,
                };
                let value = self.value(key, applied);
                self.clients[client].reading = Reading::Executed {
                    key,
                    choice,
                    floor,
                    value,
                };
            }
            Reading::Executed {
                key,
                choice,
                floor,
                value,
            } => {
                let requested = self.fences.requested();
                let client = &mut self.clients[client];
                if key < KEYS {
                    assert!(
                        value >= floor,
                        "key {key} from {choice:?}: {value} after {floor} was shown"
                    );
                    self.shown[key] = self.shown[key].max(value);
                }
                if matches!(choice, Choice::Replica(_)) {
                    self.reads_on_replicas += 1;
                    client.sticky.answered(requested);
                    let seen = &mut client.seen_on_replicas[key];
                    assert!(
                        value >= *seen,
                        "key {key} from {choice:?}: {value} after the session saw {seen}"
                    );
                    *seen = value;
                }
            }
        }
    }

    fn send_read(&mut self, client: usize) {
        let key = self.dice.below(KEYS + 1);
        let need = match self.dice.below(8) {
            0 => self.shard.need_of_any(),
            _ if key < KEYS => {
                let own = self.fences.need_of(&[b'k', u8::try_from(key).unwrap()]);
                own.and(self.shard.need_of_keyed())
            }
            _ => Need::NONE,
        };
        // MULTI, GET, EXEC of anybody is a read on the master whatever the fences say (A9).
        let policy = match self.dice.below(6) {
            0 => ReadPolicy::Master,
            _ => ReadPolicy::Causal,
        };
        let ask = Ask {
            policy,
            need,
            requested: self.fences.requested(),
            now_ms: 0,
            max_lag_ms: MAX_LAG_MS,
            session: u64::try_from(client).unwrap(),
        };
        let floor = self.shown[key];
        let client = &mut self.clients[client];
        let lanes = &client.lanes;
        let standing = |at: usize| lanes[at].as_ref().map_or(Standing::NONE, |(_, bond)| bond.standing());
        let choice = choose(&ask, &mut client.sticky, REPLICAS, standing);
        let life = match choice {
            Choice::Master => 0,
            Choice::Replica(at) => client.lanes[at].as_ref().map_or(0, |(life, _)| *life),
        };
        client.reading = Reading::Sent {
            key,
            choice,
            life,
            floor,
        };
    }

    fn connect_lane(&mut self, client: usize, at: usize) {
        let life = self.replicas[at].life;
        let is_connected = self.clients[client].lanes[at]
            .as_ref()
            .is_some_and(|(known, _)| *known == life);
        if !is_connected && self.replicas[at].link_up {
            let identity = Identity {
                run_id: run_id(life),
                replid: "r1".into(),
            };
            self.clients[client].lanes[at] = Some((life, Bond::new(self.facts[at].clone(), identity)));
        }
    }

    fn apply(&mut self, at: usize) {
        let (written, replica) = (self.written.len(), &mut self.replicas[at]);
        if replica.link_up && replica.applied < written {
            replica.applied += 1 + self.dice.below(written - replica.applied);
        }
    }

    /// A replica loses its link, or comes back empty or with what it had saved.
    fn disturb(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        replica.link_up = false;
        match self.dice.below(3) {
            0 => return,
            1 => replica.saved = 0,
            _ => {}
        }
        replica.applied = replica.saved;
        replica.life += 1;
    }

    fn ask_master(&mut self) {
        let number = self.fences.requested();
        self.to_master = match std::mem::replace(&mut self.to_master, Question::None) {
            Question::None => Question::Asked { number, life: 0 },
            Question::Asked { number, life } => Question::Answered {
                number,
                life,
                answer: self.written.len(),
            },
            Question::Answered { number, answer, .. } => {
                let said = reading(Role::Master(ReplOffset(i64::try_from(answer).unwrap())));
                let taken = self.feed.stream().master_says(&"master".into(), &said, NOON, number);
                taken.unwrap();
                Question::None
            }
        };
    }

    fn ask_replica(&mut self, at: usize) {
        let replica = &self.replicas[at];
        self.to_replica[at] = match (
            std::mem::replace(&mut self.to_replica[at], Question::None),
            self.connected[at],
        ) {
            (_, None) => {
                self.connected[at] = Some(replica.life);
                self.progress[at] = Progress::default();
                Question::None
            }
            (Question::None, Some(life)) => Question::Asked {
                number: self.fences.requested(),
                life,
            },
            // The process is gone, and this is when the sampler hears of it.
            (Question::Asked { life, .. }, _) if life != replica.life => {
                leave_service(&self.feed, &self.facts[at]);
                self.connected[at] = None;
                Question::None
            }
            (Question::Asked { number, life }, _) => Question::Answered {
                number,
                life,
                answer: reading(Role::Replica {
                    applied: ReplOffset(i64::try_from(replica.applied).unwrap()),
                    link_up: replica.link_up,
                    syncing: false,
                }),
            },
            // The answer may come long after, also from a process that is gone since.
            (Question::Answered { life, answer, .. }, _) => {
                let answer = Answer {
                    replication: answer,
                    clock: NOON,
                };
                self.progress[at].take(&self.feed, &run_id(life), &answer, &self.facts[at]);
                Question::None
            }
        };
    }
}

fn run_id(life: u32) -> RunId {
    RunId::new(format!("life-{life}"))
}

fn reading(role: Role) -> Replication {
    Replication {
        replid: "r1".into(),
        role,
    }
}

#[test]
fn in_no_order_of_events_does_a_replica_miss_what_was_shown_before() {
    let mut reads_on_replicas = 0;
    for seed in 0..SEEDS {
        let run = std::panic::AssertUnwindSafe(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            world.reads_on_replicas
        });
        reads_on_replicas += std::panic::catch_unwind(run).unwrap_or_else(|_| panic!("seed {seed}"));
    }
    assert!(
        reads_on_replicas > 10_000,
        "ONLY {reads_on_replicas} reads went to replicas"
    );
}
