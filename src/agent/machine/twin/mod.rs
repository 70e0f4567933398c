//! A world in memory: machines, simulated Redis servers, a store, virtual time, faults by seed.
//!
//! Owns: delivery (delays, losses, partitions), the compare-and-set with lost outcomes, clients that write
//! through snapshots of any age, and the invariants:
//! I1 no acknowledged write missing on a published master (W >= 1); I2 no acknowledgement of a write issued
//! after a newer epoch was published; I3 epochs grow; I4 partial resynchronisation only over a true
//! prefix; L once faults end, a master serves and every member is valid again.

mod redis;
mod runs;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use super::action::{Action, Input, Job, Registered, Reply, Suspicion, Ticket, Written};
use super::detector::{PeerSeen, Seen};
use super::facts::Role;
use super::obedience::Ask;
use super::state::{State, Versioned};
use super::timings::Timings;
use super::{Identity, Machine};
use crate::clock;
use crate::topology::{Epoch, NodeId, Phase, RunId};

use redis::{Life, SimRedis};

const STEP: Duration = Duration::from_millis(2);

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
    Write {
        node: NodeId,
        life: u32,
        expect: Option<i32>,
        state: Box<State>,
    },
    /// Try to read the store again.
    Read(NodeId, u32),
    Step,
    Fault(Fault),
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    KillRedis(NodeId),
    StartRedis(NodeId, bool),
    Freeze(NodeId),
    Thaw(NodeId),
    KillAgent(NodeId),
    StartAgent(NodeId),
    StoreAway,
    StoreBack,
    Isolate(NodeId),
    Heal(NodeId),
}

struct Agent {
    machine: Machine,
    life: u32,
    /// Questions of others we owe an answer.
    tickets: BTreeMap<Ticket, ((NodeId, u32), super::action::AskId)>,
    acting: Option<Job>,
}

struct Issued {
    id: u64,
    by: (NodeId, RunId),
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
    w: u32,
    agents: BTreeMap<NodeId, Option<Agent>>,
    disks: BTreeMap<NodeId, Epoch>,
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
}

impl World {
    pub fn new(seed: u64, w: u32, timings: Timings) -> Self {
        let now = clock::now();
        let mut world = Self {
            now,
            start: now,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            random: seed,
            timings,
            w,
            agents: BTreeMap::new(),
            disks: BTreeMap::new(),
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
                if let Some(agent) = self.agent(&node, life) {
                    let patience = agent.machine.patience();
                    self.tell(&node, life, Input::Tick);
                    self.at(patience, Event::Wake(node, life));
                }
            }
            Event::Probe(node, life) => self.probe(&node, life),
            Event::Asked { from, id, to, ask } => self.asked(from, id, &to, ask),
            Event::Acting { node, life, job, ask } => self.acting(&node, life, job, &ask),
            Event::Write {
                node,
                life,
                expect,
                state,
            } => self.write(&node, life, expect, *state),
            Event::Read(node, life) => self.read(&node, life),
            Event::Step => self.step(),
            Event::Fault(fault) => self.fail(fault),
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
        for action in actions {
            if !matches!(action, Action::Say(..)) && self.crashes(node) {
                return;
            }
            self.act(node, life, action);
        }
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
                self.soon(Event::Asked { from, id, to, ask });
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
            Action::Relay(state) => self.spread(&state),
            Action::Record(_) => {}
            Action::Say(level, sentence) => {
                let at = self.now.duration_since(self.start);
                self.log.push(format!("{at:?} {node} {level:?} {sentence}"));
            }
        }
    }

    fn connected(&self, a: &NodeId, b: &NodeId) -> bool {
        !self.isolated.contains(a) && !self.isolated.contains(b)
    }

    fn sees_store(&self, node: &NodeId) -> bool {
        self.store_up && !self.isolated.contains(node)
    }

    fn spread(&mut self, state: &Versioned) {
        let agents: Vec<(NodeId, u32)> = self.living();
        for (node, life) in agents {
            if self.sees_store(&node) {
                self.soon(Event::Tell(node, life, Input::State(state.clone())));
            }
        }
    }

    fn living(&self) -> Vec<(NodeId, u32)> {
        let living = self
            .agents
            .iter()
            .filter_map(|(id, agent)| Some((id.clone(), agent.as_ref()?.life)));
        living.collect()
    }

    fn read(&mut self, node: &NodeId, life: u32) {
        if self.sees_store(node) {
            let state = self.store.clone();
            self.soon(Event::Tell(node.clone(), life, Input::Synced(state)));
        } else {
            self.tell(node, life, Input::StoreLost);
            self.at(Duration::from_millis(50), Event::Read(node.clone(), life));
        }
    }

    fn suspect(&mut self, node: &NodeId, suspicion: Option<Suspicion>) {
        if !self.sees_store(node) {
            return;
        }
        match suspicion {
            Some(suspicion) => self.suspects.insert(node.clone(), suspicion),
            None => self.suspects.remove(node),
        };
        let suspects: Vec<Suspicion> = self.suspects.values().cloned().collect();
        for (node, life) in self.living() {
            self.soon(Event::Tell(node, life, Input::Suspects(suspects.clone())));
        }
    }

    fn write(&mut self, node: &NodeId, life: u32, expect: Option<i32>, state: State) {
        let reachable = self.sees_store(node);
        // A write that was on its way when the connection broke may have arrived or not.
        let arrives = reachable || (self.store_up && self.draw(2) == 0);
        let lost = !reachable || self.draw(20) == 0;
        let mut outcome = Written::Unknown;
        if arrives {
            let version = self.store.as_ref().map(|known| known.version);
            outcome = if version == expect {
                let version = version.map_or(0, |version| version + 1);
                self.written(Versioned { version, state });
                Written::Done(version)
            } else {
                Written::Conflict
            };
        }
        let outcome = if lost { Written::Unknown } else { outcome };
        self.soon(Event::Tell(node.clone(), life, Input::Written(outcome)));
    }

    fn written(&mut self, next: Versioned) {
        if let Some(known) = &self.store {
            assert!(next.state.epoch >= known.state.epoch, "I3: {next:?} over {known:?}");
        }
        if next.state.phase == Phase::Serving
            && self
                .published
                .last()
                .is_none_or(|(_, last)| last.epoch < next.state.epoch)
        {
            self.check_published(&next.state);
            self.published.push((self.now, next.state.clone()));
        }
        self.store = Some(next.clone());
        self.spread(&next);
    }

    fn check_published(&self, state: &State) {
        let master = state.master.as_ref().unwrap();
        let Some(life) = self.redis[&master.node]
            .life
            .as_ref()
            .filter(|life| life.run_id == master.run_id)
        else {
            return;
        };
        if self.w > 0 {
            let held: BTreeSet<u64> = life.log.iter().copied().collect();
            let missing: Vec<&u64> = self.acked.difference(&held).collect();
            assert!(
                missing.is_empty(),
                "I1: {} lacks {missing:?} in epoch {}\n{}",
                master.node,
                state.epoch,
                self.story()
            );
        }
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
        let result = self.redis.get_mut(node).unwrap().act(ask);
        let waits = result.is_err() || matches!(ask, Ask::Follow { .. });
        if let (Ok(_), true) = (&result, waits) {
            // The agent reads again until the link is up: once more after a while stands for that.
            self.at(Duration::from_millis(8), Event::Tell(node.clone(), life, Input::Tick));
        }
        let delay = if waits {
            Duration::from_millis(8)
        } else {
            Duration::from_micros(300)
        };
        let facts = result.map(|_| ());
        let node = node.clone();
        self.at(delay, Event::Tell(node.clone(), life, Input::Tick));
        let now_facts = match facts {
            Ok(()) => Ok(Box::new(self.redis[&node].life.as_ref().unwrap().facts())),
            Err(why) => Err(why),
        };
        self.at(delay, Event::Tell(node, life, Input::Acted(job, now_facts)));
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
            Some(life) => Seen::Up {
                facts: life.facts(),
                asked_at: now,
            },
        }
    }

    /// Replication and clients.
    fn step(&mut self) {
        self.replicate();
        self.issue();
        self.acknowledge();
        self.at(STEP, Event::Step);
    }

    fn replicate(&mut self) {
        let ids: Vec<NodeId> = self.redis.keys().cloned().collect();
        for id in ids {
            let reach = self.draw(4) as usize;
            let redis = self.redis.get_mut(&id).unwrap();
            let Some(mut life) = redis.life.take_if(|_| !redis.frozen) else {
                continue;
            };
            self.ask_for_stream(&life, &id);
            let master = self
                .redis
                .values()
                .find(|redis| life.follows.as_ref() == Some(&redis.addr));
            let master = master.filter(|master| self.connected(&master.node, &id));
            match master.and_then(SimRedis::up) {
                Some(master) => life.replicate(master, reach),
                None => life.cut(),
            }
            self.redis.get_mut(&id).unwrap().life = Some(life);
        }
    }

    fn ask_for_stream(&mut self, replica: &Life, id: &NodeId) {
        let reachable: Vec<NodeId> = self
            .redis
            .keys()
            .filter(|other| self.connected(other, id))
            .cloned()
            .collect();
        let masters = self.redis.values_mut().filter(|redis| reachable.contains(&redis.node));
        for master in masters.filter(|redis| replica.follows.as_ref() == Some(&redis.addr)) {
            if master
                .up()
                .is_some_and(|life| life.role == Role::Master && life.feeds == Some(replica.epoch))
            {
                master.make_backlog();
            }
        }
    }

    /// Writes to whoever is master and was ever published: proxies may use snapshots of any age. A master that
    /// was not published only adds PINGs and expiries of its own.
    fn issue(&mut self) {
        let ids: Vec<NodeId> = self.redis.keys().cloned().collect();
        for id in ids {
            let dice = self.draw(3);
            let now = self.now;
            let next = self.writes + 1;
            let redis = self.redis.get_mut(&id).unwrap();
            let Some(life) = redis
                .life
                .as_mut()
                .filter(|life| !redis.frozen && life.role == Role::Master)
            else {
                continue;
            };
            let known = self.published.iter().any(|(_, state)| {
                state
                    .master
                    .as_ref()
                    .is_some_and(|master| master.node == id && master.run_id == life.run_id)
            });
            if !known || dice == 0 {
                life.log.push(0);
                continue;
            }
            self.writes = next;
            life.log.push(next);
            let by = (id.clone(), life.run_id.clone());
            self.issued.push(Issued { id: next, by, at: now });
        }
    }

    fn acknowledge(&mut self) {
        let needed = self.w as usize;
        let issued = std::mem::take(&mut self.issued);
        for write in issued {
            let master = self.redis[&write.by.0].up();
            let Some(master) = master.filter(|life| life.run_id == write.by.1 && life.role == Role::Master) else {
                continue;
            };
            if !master.holds(write.id) {
                continue;
            }
            let addr = &self.redis[&write.by.0].addr;
            let holders = self.redis.values().filter(|redis| {
                let linked = redis
                    .life
                    .as_ref()
                    .filter(|life| life.linked && life.follows.as_ref() == Some(addr));
                linked.is_some_and(|life| life.holds(write.id))
            });
            if holders.count() < needed {
                if self.now.duration_since(write.at) < Duration::from_millis(100) {
                    self.issued.push(write);
                }
                continue;
            }
            self.check_acknowledged(&write, master.epoch);
            if needed > 0 {
                self.acked.insert(write.id);
            }
        }
    }

    fn check_acknowledged(&self, write: &Issued, epoch: Epoch) {
        let superseded = self
            .published
            .iter()
            .any(|(at, state)| *at < write.at && state.epoch > epoch);
        assert!(
            self.w == 0 || !superseded,
            "I2: {} acknowledged in epoch {epoch}\n{}",
            write.by.0,
            self.story()
        );
    }

    pub fn fail(&mut self, fault: Fault) {
        self.log
            .push(format!("{:?} ---- {fault:?}", self.now.duration_since(self.start)));
        match fault {
            Fault::KillRedis(id) => self.redis.get_mut(&id).unwrap().life = None,
            Fault::StartRedis(id, empty) => self.start_redis(&id, empty),
            Fault::Freeze(id) => self.redis.get_mut(&id).unwrap().frozen = true,
            Fault::Thaw(id) => self.redis.get_mut(&id).unwrap().frozen = false,
            Fault::KillAgent(id) => {
                self.agents.insert(id.clone(), None);
                self.suspects.remove(&id);
                self.announce_nodes();
            }
            Fault::StartAgent(id) if self.agents[&id].is_none() => self.start_agent(&id),
            Fault::StartAgent(_) => {}
            Fault::StoreAway => {
                self.store_up = false;
                for (node, life) in self.living() {
                    self.soon(Event::Tell(node, life, Input::StoreLost));
                }
            }
            Fault::StoreBack => {
                self.store_up = true;
                self.reconnect();
            }
            Fault::Isolate(id) => {
                self.isolated.insert(id);
            }
            Fault::Heal(id) => {
                self.isolated.remove(&id);
                self.reconnect();
            }
        }
    }

    fn start_redis(&mut self, id: &NodeId, empty: bool) {
        let stream = self
            .store
            .as_ref()
            .and_then(|known| known.state.lineage.first().cloned());
        let redis = self.redis.get_mut(id).unwrap();
        if redis.life.is_some() {
            return;
        }
        // Old data: some writes that were replicated long ago, under the stream's true name.
        let old = if empty { Vec::new() } else { vec![0; 1] };
        redis.start(
            old,
            if empty {
                None
            } else {
                stream.map(|name| format!("{name}-old"))
            },
        );
    }

    fn reconnect(&mut self) {
        for (node, life) in self.living() {
            if self.sees_store(&node) {
                let state = self.store.clone();
                self.soon(Event::Tell(node, life, Input::Synced(state)));
            }
        }
        self.announce_nodes();
    }

    fn announce_nodes(&mut self) {
        let nodes: Vec<Registered> = self
            .living()
            .into_iter()
            .map(|(node, _)| Registered {
                addr: self.redis[&node].addr.clone(),
                node,
            })
            .collect();
        for (node, life) in self.living() {
            self.soon(Event::Tell(node, life, Input::Nodes(nodes.clone())));
        }
    }

    fn start_agent(&mut self, id: &NodeId) {
        self.lives += 1;
        let life = self.lives;
        let me = Identity {
            node: id.clone(),
            addr: self.redis[id].addr.clone(),
            priority: 100,
            members: ["a", "b", "c"].map(NodeId::from).into(),
            ack_replicas: self.w,
        };
        let epoch = self.disks.get(id).copied().unwrap_or_default();
        let seed = self.draw(u64::MAX);
        let machine = Machine::new(self.now, me, self.timings, epoch, seed);
        let agent = Agent {
            machine,
            life,
            tickets: BTreeMap::new(),
            acting: None,
        };
        self.agents.insert(id.clone(), Some(agent));
        self.at(Duration::ZERO, Event::Probe(id.clone(), life));
        self.at(Duration::ZERO, Event::Wake(id.clone(), life));
        self.read(id, life);
        self.announce_nodes();
    }

    /// L: a master serves, everybody follows it and is valid.
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
        let linked = self
            .redis
            .values()
            .filter(|redis| redis.node != master.node)
            .all(|redis| {
                redis
                    .up()
                    .is_some_and(|up| up.linked && up.follows.as_ref() == Some(&master.addr))
            });
        let lives = self.redis.values().all(|redis| {
            redis
                .life
                .as_ref()
                .is_some_and(|life| state.valid.get(&redis.node) == Some(&life.run_id))
        });
        life.role == Role::Master && linked && lives
    }

    pub fn master(&self) -> Option<NodeId> {
        Some(self.store.as_ref()?.state.serving()?.node.clone())
    }

    pub fn epoch(&self) -> Epoch {
        self.store.as_ref().map_or(Epoch(0), |known| known.state.epoch)
    }
}
