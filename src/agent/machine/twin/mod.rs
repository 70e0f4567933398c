//! A world in memory: machines, simulated Redis servers, a store, virtual time, faults by seed.
//!
//! Owns: delivery (delays, losses, partitions), the compare-and-set with lost outcomes, clients that write
//! through snapshots of any age, and the invariants:
//! I1 no acknowledged write missing on a published master (W >= 1); I2 no acknowledgement of a write issued
//! after a newer epoch was published; I3 epochs grow; I4 partial resynchronisation only over a true
//! prefix; L once faults end, a master serves and every member is valid again.

mod abandoned;
mod clients;
mod faults;
pub(super) mod redis;
mod reforms;
mod runs;
mod store;
mod strangers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use super::Machine;
use super::action::{Action, Input, Job, Reply, Suspicion, Ticket};
use super::detector::{PeerSeen, Seen};
use super::facts::Role;
use super::obedience::Ask;
use super::outcome::Outcome;
use super::state::{State, Versioned};
use super::timings::Timings;
use crate::clock;
use crate::topology::codec::{ShardConfig, SwitchRequest};
use crate::topology::{Epoch, NodeId, RunId};

use redis::{Life, SimRedis};

const STEP: Duration = Duration::from_millis(2);
/// How long an agent waits for a replica's link.
const LINKING: Duration = Duration::from_millis(8);
/// The one proxy that tells of drains, mostly in time. Clients write on as if there were others that do not.
const PROXY: &str = "p";

enum Event {
    /// Inputs for one life of an agent.
    Tell(NodeId, u32, Input),
    Wake(NodeId, u32),
    Probe(NodeId, u32),
    Asked {
        from: (NodeId, u32),
        id: super::action::AskId,
        to: NodeId,
        ask: Ask,
    },
    Acting {
        node: NodeId,
        life: u32,
        job: Job,
        ask: Ask,
    },
    /// An agent's command reaches the Redis of another, whose agent is gone.
    Deputised {
        from: (NodeId, u32),
        id: super::action::AskId,
        to: NodeId,
        ask: Ask,
    },
    Write {
        node: NodeId,
        life: u32,
        expect: Option<i32>,
        state: Box<State>,
    },
    /// A replica was pointed at its master a while ago.
    Linked {
        node: NodeId,
        life: u32,
        job: Job,
    },
    /// Try to read the store again.
    Read(NodeId, u32),
    Step,
    Fault(Fault),
    /// A proxy tells the executor something.
    Proxied(Input),
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    KillRedis(NodeId),
    StartRedis(NodeId, bool),
    /// It starts with the data of another cluster.
    StartForeign(NodeId),
    Freeze(NodeId),
    Thaw(NodeId),
    KillAgent(NodeId),
    /// It is asked to end.
    StopAgent(NodeId),
    StartAgent(NodeId),
    StoreAway,
    StoreBack,
    Isolate(NodeId),
    Heal(NodeId),
    /// Somebody asks for a switchover.
    Wish(Option<NodeId>),
    /// The operator wants something else of the shard.
    Want(Box<ShardConfig>),
}

struct Agent {
    machine: Machine,
    life: u32,
    /// Questions of others we owe an answer.
    tickets: BTreeMap<Ticket, ((NodeId, u32), super::action::AskId)>,
    acting: Option<Job>,
    /// When it looks at the time by itself.
    wakes: Instant,
    /// It was asked to end.
    stops: bool,
}

struct Issued {
    id: u64,
    by: (NodeId, RunId),
    /// The stream it is in: a master that was demoted in between has another.
    replid: String,
    at: Instant,
}

pub(super) struct World {
    pub now: Instant,
    start: Instant,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    events: BTreeMap<u64, Event>,
    sequence: u64,
    random: u64,
    timings: Timings,
    /// What the operator wants.
    pub wanted: ShardConfig,
    /// The lowest W that any serving state of an epoch ever had: proxies use one of them.
    stated: BTreeMap<Epoch, u32>,
    agents: BTreeMap<NodeId, Option<Agent>>,
    disks: BTreeMap<NodeId, Epoch>,
    streams: BTreeMap<NodeId, Vec<String>>,
    lives: u32,
    pub redis: BTreeMap<NodeId, SimRedis>,
    isolated: BTreeSet<NodeId>,
    store: Option<Versioned>,
    store_up: bool,
    suspects: BTreeMap<NodeId, Suspicion>,
    /// Every `serving` state ever written, with its time.
    published: Vec<(Instant, State)>,
    issued: Vec<Issued>,
    acked: BTreeSet<u64>,
    writes: u64,
    /// Crash an agent after this many more of its actions, whoever acts.
    pub crash_after: Option<u32>,
    pub crashed: Option<NodeId>,
    pub log: Vec<String>,
    pub wish: Option<SwitchRequest>,
    wishes: u32,
    /// Requests stay though their records stand: who executed them has not deleted them yet.
    pub keeps_requests: bool,
    /// The histories' records.
    pub records: Vec<Outcome>,
    /// Each question between agents arrives once more, later.
    pub duplicates: bool,
    /// As before Redis 7: a master that is made a replica cuts its replicas' links.
    pub cuts: bool,
    /// Nothing goes wrong: without acknowledgements, too, nothing may be lost.
    pub strict: bool,
    /// The operator accepted a loss.
    pub lossy: bool,
}

impl World {
    pub fn new(seed: u64, w: u32, timings: Timings) -> Self {
        let wanted = ShardConfig {
            ack_replicas: w,
            members: ["a", "b", "c"].map(NodeId::from).into(),
            ..ShardConfig::default()
        };
        Self::wanting(seed, wanted, timings)
    }

    /// Three nodes, of which some may be no members.
    pub fn wanting(seed: u64, wanted: ShardConfig, timings: Timings) -> Self {
        let now = clock::now();
        let mut world = Self {
            now,
            start: now,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            random: seed,
            timings,
            wanted,
            stated: BTreeMap::new(),
            agents: BTreeMap::new(),
            disks: BTreeMap::new(),
            streams: BTreeMap::new(),
            lives: 0,
            redis: BTreeMap::new(),
            isolated: BTreeSet::new(),
            store: None,
            store_up: true,
            suspects: BTreeMap::new(),
            published: Vec::new(),
            issued: Vec::new(),
            acked: BTreeSet::new(),
            writes: 0,
            crash_after: None,
            crashed: None,
            log: Vec::new(),
            wish: None,
            wishes: 0,
            keeps_requests: false,
            records: Vec::new(),
            duplicates: false,
            cuts: false,
            strict: false,
            lossy: false,
        };
        for (port, id) in (7001..).zip(["a", "b", "c"]) {
            let id = NodeId::from(id);
            world.redis.insert(id.clone(), SimRedis::new(&id, port));
            world.start_agent(&id);
        }
        world.at(STEP, Event::Step);
        world
    }

    pub fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn at(&mut self, delay: Duration, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + delay, self.sequence)));
        self.events.insert(self.sequence, event);
    }

    fn soon(&mut self, event: Event) {
        let delay = Duration::from_micros(100 + self.draw(3000));
        self.at(delay, event);
    }

    pub fn fault_at(&mut self, ms: u64, fault: Fault) {
        self.at(Duration::from_millis(ms), Event::Fault(fault));
    }

    /// Runs until `done` or for `limit` of virtual time; whether it was done.
    pub fn run(&mut self, limit: Duration, mut done: impl FnMut(&World) -> bool) -> bool {
        let end = self.now + limit;
        while let Some(Reverse((at, key))) = self.queue.pop() {
            self.now = at;
            let Some(event) = self.events.remove(&key) else {
                continue;
            };
            let step = matches!(event, Event::Step);
            self.happen(event);
            if step && done(self) {
                return true;
            }
            if at >= end {
                return false;
            }
        }
        false
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tell(node, life, input) => self.tell(&node, life, input),
            Event::Wake(node, life) => {
                let now = self.now;
                if self.agent(&node, life).is_some_and(|agent| agent.wakes <= now) {
                    self.tell(&node, life, Input::Tick);
                }
            }
            Event::Probe(node, life) => self.probe(&node, life),
            Event::Asked { from, id, to, ask } => self.asked(from, id, &to, ask),
            Event::Acting { node, life, job, ask } => self.acting(&node, life, job, &ask),
            Event::Deputised { from, id, to, ask } => self.deputised(from, id, &to, &ask),
            Event::Linked { node, life, job } => self.linked(node, life, job),
            Event::Write {
                node,
                life,
                expect,
                state,
            } => self.write(&node, life, expect, *state),
            Event::Read(node, life) => self.read(&node, life),
            Event::Step => self.step(),
            Event::Fault(fault) => self.fail(fault),
            Event::Proxied(input) => {
                for (node, life) in self.living() {
                    self.tell(&node, life, input.clone());
                }
            }
        }
    }

    fn agent(&mut self, node: &NodeId, life: u32) -> Option<&mut Agent> {
        self.agents.get_mut(node)?.as_mut().filter(|agent| agent.life == life)
    }

    fn tell(&mut self, node: &NodeId, life: u32, input: Input) {
        let now = self.now;
        let Some(agent) = self.agent(node, life) else { return };
        agent.machine.handle(now, input);
        let actions: Vec<Action> = agent.machine.poll_actions().collect();
        let ends = agent.stops && agent.machine.at_rest(now);
        for action in actions {
            if !matches!(action, Action::Say(..)) && self.crashes(node) {
                return;
            }
            self.act(node, life, action);
        }
        if ends {
            self.fail(Fault::KillAgent(node.clone()));
        }
        self.sleep(node, life);
    }

    /// As the host does, it sleeps anew after each input.
    fn sleep(&mut self, node: &NodeId, life: u32) {
        let now = self.now;
        let Some(agent) = self.agent(node, life) else { return };
        let patience = agent.machine.patience(now);
        agent.wakes = now + patience;
        self.at(patience, Event::Wake(node.clone(), life));
    }

    fn crashes(&mut self, node: &NodeId) -> bool {
        match &mut self.crash_after {
            Some(0) => {
                self.crash_after = None;
                self.crashed = Some(node.clone());
                self.fail(Fault::KillAgent(node.clone()));
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    fn act(&mut self, node: &NodeId, life: u32, action: Action) {
        match action {
            Action::Write { expect, state } => {
                let state = Box::new(state);
                self.soon(Event::Write {
                    node: node.clone(),
                    life,
                    expect,
                    state,
                });
            }
            Action::ReadState => self.read(node, life),
            Action::Suspect(Some(suspicion)) => self.suspect(node, Some(suspicion)),
            Action::Suspect(None) => self.suspect(node, None),
            Action::Ask { id, node: to, ask } => {
                let from = (node.clone(), life);
                if self.duplicates {
                    let delay = Duration::from_micros(self.draw(3_000_000));
                    let (from, to, ask) = (from.clone(), to.clone(), ask.clone());
                    self.at(delay, Event::Asked { from, id, to, ask });
                }
                self.soon(Event::Asked { from, id, to, ask });
            }
            Action::Deputise { id, addr, ask } => {
                let to = self
                    .redis
                    .values()
                    .find(|redis| redis.addr == addr)
                    .unwrap()
                    .node
                    .clone();
                let from = (node.clone(), life);
                self.soon(Event::Deputised { from, id, to, ask });
            }
            Action::Answer { ticket, reply } => {
                let owed = self.agent(node, life).and_then(|agent| agent.tickets.remove(&ticket));
                if let Some(((to, to_life), id)) = owed
                    && self.connected(node, &to)
                {
                    self.soon(Event::Tell(to, to_life, Input::Answered(id, reply)));
                }
            }
            Action::Act { job, ask } => {
                if let Some(agent) = self.agent(node, life) {
                    agent.acting = Some(job);
                }
                self.soon(Event::Acting {
                    node: node.clone(),
                    life,
                    job,
                    ask,
                });
            }
            Action::Remember(epoch) => {
                self.disks.insert(node.clone(), epoch);
            }
            Action::Keep(streams) => {
                self.streams.insert(node.clone(), streams);
            }
            Action::Relay(state) => self.spread(&state),
            Action::Lost { .. } => {}
            Action::Attach(epoch, course, _) => {
                self.soon(Event::Proxied(Input::Attached(PROXY.to_owned(), epoch, Some(course))));
            }
            Action::Record(outcome) => self.record(*outcome),
            Action::Say(level, sentence) => {
                let at = self.now.duration_since(self.start);
                self.log.push(format!("{at:?} {node} {level:?} {sentence}"));
            }
        }
    }

    fn connected(&self, a: &NodeId, b: &NodeId) -> bool {
        !self.isolated.contains(a) && !self.isolated.contains(b)
    }

    pub fn story(&self) -> String {
        let lives = self.redis.values().map(|redis| {
            let life = redis.life.as_ref().map(Life::facts);
            format!("{} frozen={} {life:?}", redis.node, redis.frozen)
        });
        let state = format!("{:?}", self.store);
        let lines: Vec<String> = self.log.iter().cloned().chain(lives).chain([state]).collect();
        lines.join("\n")
    }

    fn asked(&mut self, from: (NodeId, u32), id: super::action::AskId, to: &NodeId, ask: Ask) {
        let life = self.agents[to].as_ref().map(|agent| agent.life);
        let Some(life) = life.filter(|_| self.connected(&from.0, to)) else {
            let reply = Reply::Failed("not connected".into());
            return self.soon(Event::Tell(from.0, from.1, Input::Answered(id, reply)));
        };
        self.sequence += 1;
        let ticket = Ticket(self.sequence);
        if let Some(agent) = self.agent(to, life) {
            agent.tickets.insert(ticket, (from, id));
        }
        self.tell(to, life, Input::Asked(ticket, ask));
    }

    /// The agent's command reaches its Redis. A newer job has closed the older one's connection.
    fn acting(&mut self, node: &NodeId, life: u32, job: Job, ask: &Ask) {
        if self.agent(node, life).is_none_or(|agent| agent.acting != Some(job)) {
            return;
        }
        let redis = self.redis.get_mut(node).unwrap();
        let result = redis.act(ask);
        redis.deputy = None;
        if matches!(ask, Ask::Fence { .. }) && self.cuts {
            self.cut_links(node);
        }
        let node = node.clone();
        match (result, ask) {
            (Ok(_), Ask::Follow { .. }) => self.at(LINKING, Event::Linked { node, life, job }),
            (Ok(facts), _) => {
                let acted = Input::Acted(job, Ok(facts));
                self.at(Duration::from_micros(300), Event::Tell(node, life, acted));
            }
            (Err(why), _) => self.at(LINKING, Event::Tell(node, life, Input::Acted(job, Err(why)))),
        }
    }

    fn deputised(&mut self, from: (NodeId, u32), id: super::action::AskId, to: &NodeId, ask: &Ask) {
        let reached = self.connected(&from.0, to);
        let redis = self.redis.get_mut(to).unwrap();
        if matches!(ask, Ask::Park { .. }) && reached && redis.up().is_some() {
            redis.deputy = Some(from.clone());
        }
        // Whoever parked it since has ended the connection.
        let held = reached && redis.deputy.as_ref() == Some(&from);
        let result = if held {
            redis.act(ask)
        } else {
            Err("not connected".into())
        };
        let reply = result.map_or_else(Reply::Failed, Reply::Done);
        self.soon(Event::Tell(from.0, from.1, Input::Answered(id, reply)));
    }

    /// The agent read until the link was up, or for long enough.
    fn linked(&mut self, node: NodeId, life: u32, job: Job) {
        let facts = self.redis[&node].up().map(|up| Box::new(up.facts()));
        let facts = facts.ok_or_else(|| "no answer".to_owned());
        self.tell(&node, life, Input::Acted(job, facts));
    }

    fn probe(&mut self, node: &NodeId, life: u32) {
        let now = self.now;
        let Some(agent) = self.agent(node, life) else { return };
        let watch = agent.machine.master_to_watch().cloned();
        let seen = self.look(node, node, now);
        self.soon(Event::Tell(node.clone(), life, Input::Own(seen)));
        if let Some(master) = watch {
            let seen = self.look(node, &master.node, now);
            self.soon(Event::Tell(node.clone(), life, Input::Master(master, seen)));
        }
        for (other, _) in self
            .agents
            .iter()
            .map(|(id, agent)| (id.clone(), agent.is_some()))
            .collect::<Vec<_>>()
        {
            if other == *node {
                continue;
            }
            let status = self.agents[&other]
                .as_ref()
                .map(|agent| Box::new(agent.machine.status()));
            let seen = match status {
                Some(status) if self.connected(node, &other) => PeerSeen::Up(status),
                _ if !self.connected(node, &other) => continue,
                _ => PeerSeen::Unreachable,
            };
            self.soon(Event::Tell(node.clone(), life, Input::Peer(other, seen)));
        }
        self.at(Duration::from_millis(20), Event::Probe(node.clone(), life));
    }

    fn look(&self, from: &NodeId, at: &NodeId, now: Instant) -> Seen {
        let redis = &self.redis[at];
        match &redis.life {
            _ if from != at && !self.connected(from, at) => Seen::Silent,
            None => Seen::Dead,
            Some(_) if redis.frozen => Seen::Silent,
            Some(life) => {
                let linked = self.redis.values().filter_map(SimRedis::up);
                let linked = linked.filter(|other| other.linked && other.follows.as_ref() == Some(&redis.addr));
                let replicas = u32::try_from(linked.count()).unwrap();
                Seen::Up {
                    facts: super::facts::Facts {
                        replicas,
                        ..life.facts()
                    },
                    asked_at: now,
                }
            }
        }
    }

    /// L: a master serves, members and W are as wanted, every member follows and is valid, and nobody else follows.
    pub fn whole(&self) -> bool {
        let Some(state) = self.store.as_ref().map(|known| &known.state) else {
            return false;
        };
        let Some(master) = state.serving() else { return false };
        let Some(life) = self.redis[&master.node]
            .up()
            .filter(|life| life.run_id == master.run_id)
        else {
            return false;
        };
        let others = self.redis.values().filter(|redis| redis.node != master.node);
        let (members, strangers): (Vec<_>, Vec<_>) = others.partition(|redis| state.members.contains(&redis.node));
        let linked = members.iter().all(|redis| {
            redis
                .up()
                .is_some_and(|up| up.linked && up.follows.as_ref() == Some(&master.addr))
        });
        let parted = strangers
            .iter()
            .all(|redis| redis.life.as_ref().is_none_or(|life| life.facts().parked()));
        let lives = state.members.iter().all(|id| {
            let life = self.redis[id].life.as_ref();
            life.is_some_and(|life| state.valid.get(id) == Some(&life.run_id))
        });
        let as_wanted = state.members == self.wanted.members && state.ack_replicas == self.wanted.ack_replicas;
        life.role == Role::Master && linked && parted && lives && as_wanted && state.shrunk_from == 0
    }

    pub fn master(&self) -> Option<NodeId> {
        Some(self.store.as_ref()?.state.serving()?.node.clone())
    }

    /// Somebody claimed a switchover, and it goes on.
    pub fn switching(&self) -> bool {
        self.store.as_ref().is_some_and(|known| known.state.switch.is_some())
    }

    /// The agent of this node does not run.
    pub fn ended(&self, node: &NodeId) -> bool {
        self.agents[node].is_none()
    }

    pub fn epoch(&self) -> Epoch {
        self.store.as_ref().map_or(Epoch(0), |known| known.state.epoch)
    }
}
