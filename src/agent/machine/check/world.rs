//! What a state consists of, and its fingerprint.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::print;
use crate::agent::machine::action::{AskId, Job, Reply, Ticket};
use crate::agent::machine::facts::Role;
use crate::agent::machine::obedience::Ask;
use crate::agent::machine::state::{State, Versioned};
use crate::agent::machine::timings::Timings;
use crate::agent::machine::twin::redis::SimRedis;
use crate::agent::machine::{Identity, Machine};
use crate::topology::codec::{ShardConfig, SwitchRequest};
use crate::topology::{Epoch, NodeId, Phase, RunId};

pub(super) const NODES: usize = 3;

/// An agent in one of its lives.
#[derive(Clone)]
pub(super) struct Agent {
    pub machine: Machine,
    /// Its own clock: it shares none with the others.
    pub now: Instant,
    pub life: u32,
    pub tickets: BTreeMap<Ticket, (Place, AskId)>,
    pub asked: u64,
    pub acting: Option<Job>,
    print: u64,
}

/// An agent's node and life.
pub(super) type Place = (usize, u32);

/// What is on its way.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "always behind a pointer")]
pub(super) enum Mail {
    Ask {
        from: Place,
        id: AskId,
        to: usize,
        ask: Ask,
    },
    Answer {
        to: Place,
        id: AskId,
        reply: Reply,
    },
    Write {
        by: Place,
        expect: Option<i32>,
        state: State,
    },
    Read {
        by: Place,
    },
    Act {
        by: Place,
        job: Job,
        ask: Ask,
    },
    /// A command to the Redis of another node, whose agent is gone.
    Deputise {
        by: Place,
        id: AskId,
        to: usize,
        ask: Ask,
    },
    /// A replica was pointed at its master; how that stands is read when this arrives.
    Linked {
        by: Place,
        job: Job,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Status {
    Pending,
    /// It was promised to stay.
    Acked,
    /// It may be lost: the client got no answer, or one for which no replica was asked.
    Doubt,
}

#[derive(Clone, Debug, Hash)]
pub(super) struct Write {
    pub id: u64,
    pub node: usize,
    pub run_id: RunId,
    pub epoch: Epoch,
    /// A newer epoch was published before it was issued.
    pub late: bool,
    pub status: Status,
}

/// How often what may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Budget {
    pub writes: u32,
    pub kills: u32,
    pub starts: u32,
    pub agent_kills: u32,
    pub hangs: u32,
    /// Answers and outcomes that are lost.
    pub losses: u32,
    /// Times an agent is stopped for long.
    pub passes: u32,
    pub wishes: u32,
    /// Times the operator wants something else of the shard.
    pub wants: u32,
}

#[derive(Clone)]
pub(super) struct World {
    pub agents: [Option<Arc<Agent>>; NODES],
    pub disks: [Epoch; NODES],
    /// What each agent keeps on disk of the names of its data.
    pub streams: [Arc<Vec<String>>; NODES],
    pub lives: [u32; NODES],
    pub redis: [Arc<SimRedis>; NODES],
    pub store: Option<Arc<Versioned>>,
    pub store_print: u64,
    /// The first `serving` state of each epoch, with the lowest W and all the members of those that came after it: proxies
    /// may use any of them.
    pub published: Vec<Arc<State>>,
    /// What the operator wants.
    pub wanted: Arc<ShardConfig>,
    pub mail: Vec<(u64, Arc<Mail>)>,
    pub wish: Option<SwitchRequest>,
    pub writes: Vec<Write>,
    pub left: Budget,
    /// The invariant that the last step broke.
    pub broken: Option<&'static str>,
    /// What the agents said in the last step.
    pub said: Vec<String>,
    pub print: u64,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("store", &self.store)
            .field("redis", &self.redis)
            .field("writes", &self.writes)
            .field("mail", &self.mail)
            .finish_non_exhaustive()
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.print.hash(hasher);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        self.print == other.print
    }
}

pub(super) fn id(node: usize) -> NodeId {
    NodeId::from(["a", "b", "c"][node])
}

pub(super) fn index(node: &NodeId) -> usize {
    (0..NODES).find(|index| id(*index) == *node).unwrap_or(0)
}

pub(super) fn timings() -> Timings {
    Timings {
        // All come forward at once.
        stagger: Duration::ZERO,
        // A long stop is time like any other.
        stall: Duration::MAX,
        ..Timings::default()
    }
}

impl World {
    /// Three nodes that know of nothing yet, of which some may be no members.
    pub fn new(now: Instant, wanted: ShardConfig) -> Self {
        let redis = |node: usize| Arc::new(SimRedis::new(&id(node), 7001 + u16::try_from(node).unwrap_or(0)));
        let mut world = Self {
            agents: [None, None, None],
            disks: [Epoch(0); NODES],
            streams: Default::default(),
            lives: [0; NODES],
            redis: [redis(0), redis(1), redis(2)],
            store: None,
            store_print: 0,
            published: Vec::new(),
            wanted: wanted.into(),
            mail: Vec::new(),
            wish: None,
            writes: Vec::new(),
            left: Budget::default(),
            broken: None,
            said: Vec::new(),
            print: 0,
        };
        for node in 0..NODES {
            world.start_agent(node, now);
        }
        world
    }

    pub fn start_agent(&mut self, node: usize, now: Instant) {
        self.lives[node] += 1;
        let me = Identity {
            node: id(node),
            addr: self.redis[node].addr.clone(),
            priority: 100,
            members: self.wanted.members.clone(),
            ack_replicas: self.wanted.ack_replicas,
        };
        let seed = u64::from(self.lives[node]) * 1000 + u64::try_from(node).unwrap_or(0);
        let life = self.lives[node];
        let held = self.streams[node].to_vec();
        let machine = Machine::new(now, me, timings(), self.disks[node], seed).having_held(held);
        self.agents[node] = Some(Arc::new(Agent {
            machine,
            now,
            life,
            tickets: BTreeMap::new(),
            asked: 0,
            acting: None,
            print: 0,
        }));
        self.post(Mail::Read { by: (node, life) });
    }

    pub fn post(&mut self, mail: Mail) {
        let mut hasher = DefaultHasher::new();
        format!("{mail:?}").hash(&mut hasher);
        let print = hasher.finish();
        let place = self.mail.partition_point(|(known, _)| *known <= print);
        self.mail.insert(place, (print, Arc::new(mail)));
    }

    pub fn agent_mut(&mut self, (node, life): Place) -> Option<&mut Agent> {
        let agent = self.agents[node].as_mut().filter(|agent| agent.life == life)?;
        Some(Arc::make_mut(agent))
    }

    pub fn agent(&self, (node, life): Place) -> Option<&Agent> {
        self.agents[node].as_deref().filter(|agent| agent.life == life)
    }

    pub fn redis_mut(&mut self, node: usize) -> &mut SimRedis {
        Arc::make_mut(&mut self.redis[node])
    }

    /// The fingerprint of an agent changed.
    pub fn print_agent(&mut self, node: usize) {
        let Some(agent) = &mut self.agents[node] else { return };
        let agent = Arc::make_mut(agent);
        let mut hasher = DefaultHasher::new();
        print::machine(&agent.machine, agent.now).hash(&mut hasher);
        format!("{:?} {:?}", agent.tickets, agent.acting).hash(&mut hasher);
        agent.life.hash(&mut hasher);
        agent.print = hasher.finish();
    }

    /// What every step ends with: who can no longer be acknowledged, what nobody waits for, the fingerprint.
    pub fn settle(&mut self) {
        for write in 0..self.writes.len() {
            let known = &self.writes[write];
            if known.status == Status::Pending && !self.connected(known) {
                self.writes[write].status = Status::Doubt;
            }
        }
        let agents = std::array::from_fn::<_, NODES, _>(|node| self.agents[node].as_ref().map(|agent| agent.life));
        let lives = |(node, life): Place| agents[node] == Some(life);
        // A question, a write, a command to another's Redis arrive although who sent them died; the rest is nobody's.
        self.mail.retain(|(_, mail)| match &**mail {
            Mail::Ask { to, .. } => agents[*to].is_some(),
            Mail::Write { .. } | Mail::Deputise { .. } => true,
            Mail::Answer { to: by, .. } | Mail::Read { by } | Mail::Act { by, .. } | Mail::Linked { by, .. } => {
                lives(*by)
            }
        });
        let mut hasher = DefaultHasher::new();
        for agent in &self.agents {
            agent.as_ref().map(|agent| agent.print).hash(&mut hasher);
        }
        for (print, _) in &self.mail {
            print.hash(&mut hasher);
        }
        (&self.redis, self.store_print).hash(&mut hasher);
        self.wish.as_ref().map(|wish| &wish.id).hash(&mut hasher);
        format!("{:?}", self.wanted).hash(&mut hasher);
        for known in &self.published {
            (known.epoch, known.ack_replicas, &known.members).hash(&mut hasher);
        }
        (&self.writes, &self.left, &self.disks, &self.streams, self.broken).hash(&mut hasher);
        self.print = hasher.finish();
    }

    /// Whether the connection on which a write was sent can still be there: its epoch's proxies are admitted.
    pub fn connected(&self, write: &Write) -> bool {
        let there = |life: &crate::agent::machine::twin::redis::Life| {
            life.run_id == write.run_id && life.role == Role::Master && life.feeds == Some(write.epoch)
        };
        self.redis[write.node].life.as_ref().is_some_and(there)
    }

    /// The published master's life, if it is there.
    pub fn serving(&self) -> Option<(&State, usize)> {
        let state = &self.store.as_ref()?.state;
        let master = state.serving()?;
        let node = index(&master.node);
        let life = self.redis[node].up()?;
        (life.run_id == master.run_id && life.role == Role::Master).then_some((state, node))
    }

    /// A state was written that proxies may use.
    pub fn publish(&mut self, state: &State) {
        if state.phase != Phase::Serving {
            return;
        }
        match self.published.last_mut() {
            Some(last) if last.epoch > state.epoch => {}
            Some(last) if last.epoch == state.epoch => {
                let last = Arc::make_mut(last);
                last.members.extend(state.members.iter().cloned());
                if state.ack_replicas < last.ack_replicas {
                    (last.ack_replicas, last.shrunk_from) = (state.ack_replicas, state.shrunk_from);
                }
            }
            Some(_) | None => self.published.push(state.clone().into()),
        }
    }

    /// What was published in an epoch.
    pub fn published_in(&self, epoch: Epoch) -> Option<&State> {
        let known = self.published.iter().find(|known| known.epoch == epoch);
        known.map(|known| &**known)
    }

    /// L: a master serves, and proxies of its epoch are admitted.
    pub fn is_served(&self) -> bool {
        self.serving().is_some_and(|(state, node)| {
            self.redis[node]
                .up()
                .is_some_and(|life| life.feeds == Some(state.epoch))
        })
    }

    /// L, too: the shard is as the operator wants it, and the loss of its master is survived at once.
    pub fn is_whole(&self) -> bool {
        let Some((state, master)) = self.serving() else {
            return false;
        };
        let as_wanted = state.members == self.wanted.members && state.ack_replicas == self.wanted.ack_replicas;
        let holds = |node: &NodeId| {
            let up = self.redis[index(node)].up();
            up.is_some_and(|life| state.valid.get(node) == Some(&life.run_id))
        };
        let linked = |node: usize| {
            let up = self.redis[node].up();
            up.is_some_and(|life| life.linked && life.follows.as_ref() == Some(&self.redis[master].addr))
        };
        let mut others = state.members.iter().map(index).filter(|node| *node != master);
        self.is_served() && as_wanted && state.members.iter().all(holds) && others.all(linked)
    }

    /// Whether the shard can be expected to go on: n-W valid members are there, by the state that stands and by each that is
    /// on its way over it. (A master may die between the look before its publication and that.)
    pub fn enough_left(&self) -> bool {
        let Some(known) = self.store.as_deref() else {
            return true;
        };
        let next = self.mail.iter().filter_map(|(_, mail)| match &**mail {
            Mail::Write { expect, state, .. } if *expect == Some(known.version) => Some(state),
            _ => None,
        });
        next.chain([&known.state]).all(|state| self.enough_of(state))
    }

    fn enough_of(&self, state: &State) -> bool {
        let there = |node: usize, run_id: &RunId| {
            let up = self.redis[node].up().is_some_and(|life| life.run_id == *run_id);
            up && self.agents[node].is_some()
        };
        let valid = state.valid.iter().filter(|(node, run_id)| there(index(node), run_id));
        valid.count() >= crate::agent::machine::quorum::required(state)
    }

    /// I1: nothing acknowledged is missing on a serving master.
    pub fn nothing_lost(&self) -> bool {
        let Some((_, node)) = self.serving() else { return true };
        let Some(life) = self.redis[node].up() else { return true };
        let mut acked = self.writes.iter().filter(|write| write.status == Status::Acked);
        acked.all(|write| life.log.contains(&write.id))
    }

    /// I2, its first half: one master acknowledges per epoch.
    pub fn one_acknowledges(&self) -> bool {
        let acked = || self.writes.iter().filter(|write| write.status == Status::Acked);
        acked().all(|one| {
            acked().all(|other| one.epoch != other.epoch || (one.node, &one.run_id) == (other.node, &other.run_id))
        })
    }
}
