//! The failover machine of one agent: pure decisions, no await, clock, socket or global.
//!
//! ```text
//!  probes, other agents, store events, timers --Input--> handle() --> settle() --> poll_actions() --Action--> I/O
//!                                                            |
//!        detector (is the master gone?) -> lead (claim?) -> election (park, choose, promote, publish)
//!        wish (may the master be moved?) -----------------> switch (drain, fence, reach, promote, publish)
//!        membership (is all as the operator wants?) -------> reform (drain, renew, re-attach, publish)
//!        obedience (may I do as told?) <- follow (what my own Redis should be doing)
//! ```
//!
//! Owns: what this agent knows and decides. Refuses: I/O; an agent does things only to its own Redis, and
//! asks the agents of the others (`deputy` has the one exception). Invariants (`obedience`, `quorum`, `election` state their own):
//! 1. the epoch obeyed never goes back, and nothing but a park is obeyed before the agent knows what it
//!    obeyed in an earlier life (rule R10);
//! 2. at most one write to the state is outstanding, conditional on the version it was derived from, and
//!    while its outcome is unknown nothing is done that assumes one;
//! 3. nobody is demoted because the store is away: without it there is no claim.

pub mod action;
mod audience;
#[cfg(test)]
mod check;
mod course;
mod deputy;
pub mod detector;
pub mod election;
pub mod facts;
mod follow;
mod lead;
mod membership;
pub mod obedience;
mod origin;
pub mod outcome;
mod patience;
mod proving;
pub mod quorum;
pub mod reform;
pub mod state;
mod stray;
pub mod switch;
pub mod timings;
#[cfg(test)]
mod twin;
pub mod wanted;
mod wish;
mod writing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use crate::topology::codec::ShardConfig;
use crate::topology::{Addr, Epoch, NodeId, RunId};

use action::{Action, AskId, Input, Job, Level, Registered, Suspicion, Ticket};
use course::Course;
use detector::{Detector, Health, PeerSeen, Seen, Status};
use facts::Cleanliness;
use obedience::{Ask, Obedience, Step};
use origin::Origin;
use state::{MasterOf, Versioned};
use stray::Stray;
use timings::Timings;
use wish::Wish;
use writing::Pending;

/// Who this agent is; does not change during its life.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its node.
    pub node: NodeId,
    /// Where its Redis listens.
    pub addr: Addr,
    /// The operator's preference, see [`facts::Facts::priority`].
    pub priority: u32,
    /// The members the operator wanted when this agent started; empty if they are whoever registers.
    pub members: BTreeSet<NodeId>,
    /// W, likewise.
    pub ack_replicas: u32,
}

/// What the store is known to say.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one per agent; never in a collection")]
enum Knowledge {
    /// Never read.
    Unread,
    /// There is no state: the shard is yet to be founded.
    Absent,
    /// This, read or learnt at this moment.
    Known(Versioned, Instant),
}

/// Who waits for a piece of work on our own Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Another agent.
    Ticket(Ticket),
    /// The election or switchover this agent itself executes.
    Course(AskId),
    /// Nobody: we follow the published master.
    Published,
}

/// A piece of work on our own Redis.
#[derive(Clone, Debug)]
struct Running {
    job: Job,
    ask: Ask,
    source: Source,
}

/// A question to another agent, or to the Redis of one that is gone.
#[derive(Clone, Debug)]
struct Question {
    node: NodeId,
    ask: Ask,
    /// When it is given up.
    until: Instant,
    /// Whether it went past the agent.
    direct: bool,
}

/// See the module's note.
#[derive(Clone, Debug)]
pub struct Machine {
    me: Identity,
    timings: Timings,
    random: u64,
    ids: u64,

    connected: bool,
    knowledge: Knowledge,
    /// The store contradicts what this agent obeyed (an ensemble restored from a backup): no step is taken.
    distrusted: bool,
    /// A first synchronised read went back; the next one decides.
    doubted: bool,
    /// Whether a `sync` and read succeeded in this life, and when the last one did.
    synced: Option<Instant>,
    addrs: BTreeMap<NodeId, Addr>,
    registered: BTreeSet<NodeId>,
    suspects: Vec<Suspicion>,
    suspicion: Option<Suspicion>,
    pending: Option<Pending>,
    write_again: Instant,

    detector: Detector,
    /// The last reading of the published master and when it was asked for.
    master_reading: Option<(facts::Facts, Instant)>,
    /// Since when the published master is held to be gone.
    accused: Option<(MasterOf, Instant)>,
    /// The election or switchover this agent executes.
    course: Option<Course>,
    wish: Option<Wish>,
    /// What the operator wants of the shard.
    wanted: ShardConfig,
    /// What the way there waits for, as it was said.
    planned: Option<String>,
    /// Since when our Redis, the master, hears fewer than W replicas.
    short_since: Option<Instant>,
    reform_again: Instant,
    /// How far the stream of a published master's life was seen to go, by any agent.
    seen: Option<(RunId, i64)>,
    /// The highest epoch this agent reserved for a switchover: after a rollback it is not used again.
    reserved: Epoch,
    /// The proxies that tell of drains; none before they were read.
    proxies: Option<BTreeSet<String>>,
    claim_again: Instant,
    asks: BTreeMap<AskId, Question>,
    /// The node whose Redis this agent parked in place of its own agent, and in which epoch.
    deputy: Option<(NodeId, Epoch)>,

    obedience: Obedience,
    remembered: Epoch,
    cleanliness: Cleanliness,
    origin: Origin,
    running: Option<Running>,
    /// Answers of our own Redis to what this agent executes, on their way back to it.
    own_answers: Vec<(AskId, action::Reply)>,
    /// Readings of our own Redis that were asked for before this are older than what we did to it.
    own_since: Instant,
    own_reading: Option<Instant>,
    follow_again: Instant,
    /// What our Redis held when it was told to follow, until it is known what of it the master lacks.
    stray: Option<Stray>,
    shouted: BTreeSet<String>,
    /// The agent is to end: what it executes comes to its end, and nothing is begun.
    leaving: bool,

    actions: VecDeque<Action>,
}

impl Machine {
    /// A machine that begins at `now`, having obeyed `epoch` in an earlier life (from disk). `seed` only
    /// feeds nonces and jitter.
    pub fn new(now: Instant, me: Identity, timings: Timings, epoch: Epoch, seed: u64) -> Self {
        Self {
            detector: Detector::new(now, timings),
            wanted: ShardConfig {
                ack_replicas: me.ack_replicas,
                members: me.members.clone(),
                ..ShardConfig::default()
            },
            me,
            timings,
            random: seed,
            ids: 0,
            connected: false,
            knowledge: Knowledge::Unread,
            distrusted: false,
            doubted: false,
            synced: None,
            addrs: BTreeMap::new(),
            registered: BTreeSet::new(),
            suspects: Vec::new(),
            suspicion: None,
            pending: None,
            write_again: now,
            master_reading: None,
            accused: None,
            course: None,
            wish: None,
            planned: None,
            short_since: None,
            reform_again: now,
            seen: None,
            reserved: Epoch::default(),
            proxies: None,
            claim_again: now,
            asks: BTreeMap::new(),
            deputy: None,
            obedience: Obedience::new(epoch),
            remembered: epoch,
            cleanliness: Cleanliness::default(),
            origin: Origin::default(),
            running: None,
            own_answers: Vec::new(),
            own_since: now,
            own_reading: None,
            follow_again: now,
            stray: None,
            shouted: BTreeSet::new(),
            leaving: false,
            actions: VecDeque::new(),
        }
    }

    /// Takes an input into account; what follows is then in [`Machine::poll_actions`].
    pub fn handle(&mut self, now: Instant, input: Input) {
        self.detector.handle_time(now);
        match input {
            Input::Tick => {}
            Input::Leave => self.leaving = true,
            Input::Synced(state) => self.handle_synced(now, state),
            Input::StoreLost => self.handle_store_lost(now),
            Input::State(state) => self.learn(now, state),
            Input::Nodes(nodes) => self.handle_nodes(nodes),
            Input::Suspects(suspects) => self.suspects = suspects,
            Input::Wish(request) => self.handle_wish(now, request),
            Input::Wanted(wanted) => self.handle_wanted(wanted),
            Input::Proxies(proxies) => self.proxies = Some(proxies),
            Input::Drained(proxy, epoch, name) => {
                if let Some(course) = &mut self.course {
                    course.handle_drained(proxy, epoch, name.as_ref());
                }
            }
            Input::Attached(proxy, epoch, name) => {
                if let Some(course) = &mut self.course {
                    course.handle_attached(proxy, epoch, name.as_ref());
                }
            }
            Input::Written(written) => self.handle_written(now, written),
            Input::Own(seen) => self.handle_own(now, seen),
            Input::Master(master, seen) => self.handle_master(now, &master, &seen),
            Input::Peer(node, seen) => {
                if let PeerSeen::Up(status) = &seen {
                    self.note_status(status);
                }
                self.detector.handle_peer(now, node, seen);
            }
            Input::Asked(ticket, ask) => self.obey(Source::Ticket(ticket), ask),
            Input::Answered(id, reply) => self.handle_answered(now, id, reply),
            Input::Acted(job, result) => self.handle_acted(now, job, result),
        }
        self.settle(now);
    }

    /// The actions that follow from the inputs so far, in order.
    pub fn poll_actions(&mut self) -> impl Iterator<Item = Action> + '_ {
        self.actions.drain(..)
    }

    /// What we tell other agents when asked.
    pub fn status(&self) -> Status {
        Status {
            node: self.me.node.clone(),
            health: self.detector.health(),
            facts: self.detector.own_facts().cloned(),
            epoch: self.obedience.epoch(),
            // Without the store it comes to no end: others may claim over it.
            electing: self.course.as_ref().filter(|_| self.connected).map(Course::epoch),
            seen: self.seen.clone(),
            delay: self.planned.clone(),
            foreign: self.is_foreign(),
        }
    }

    /// The last reading of our own Redis.
    pub fn own_facts(&self) -> Option<&facts::Facts> {
        self.detector.own_facts()
    }

    /// The published master to be probed from here; none if it is our own.
    pub fn master_to_watch(&self) -> Option<&MasterOf> {
        let master = self.state()?.state.master.as_ref()?;
        (master.node != self.me.node).then_some(master)
    }

    /// The epoch in which our own Redis is the master and replicas acknowledge, if it is.
    pub fn reign(&self) -> Option<Epoch> {
        let state = &self.state()?.state;
        let ours = state.serving().is_some_and(|master| master.node == self.me.node);
        (ours && state.ack_replicas > 0).then_some(state.epoch)
    }

    /// The state as last known.
    pub fn state(&self) -> Option<&Versioned> {
        match &self.knowledge {
            Knowledge::Known(state, _) => Some(state),
            Knowledge::Absent | Knowledge::Unread => None,
        }
    }

    /// Whether this agent knows what it obeyed in earlier lives and what the store says (rule R10).
    pub fn ready(&self) -> bool {
        let own_known = self.detector.own_facts().is_some() || self.detector.health() == Health::Dead;
        self.synced.is_some() && own_known && !self.distrusted
    }

    /// Draws conclusions. Every handler ends here, so it does not matter which input came first.
    fn settle(&mut self, now: Instant) {
        self.expire_asks(now);
        self.doubt_on(now);
        self.hear_own_answers(now);
        self.wind_down(now);
        self.advance_course(now);
        self.hear_own_answers(now);
        self.consider_wish(now);
        self.consider_claim(now);
        self.hear_own_answers(now);
        self.accuse(now);
        self.follow_published(now);
        self.catch_up_ahead(now);
        self.leave_shard(now);
        self.consider_seat(now);
        self.consider_reform(now);
        let epoch = self.obedience.epoch();
        if epoch > self.remembered {
            self.remembered = epoch;
            self.actions.push_front(Action::Remember(epoch));
        }
    }

    fn hear_own_answers(&mut self, now: Instant) {
        while let Some((id, reply)) = self.own_answers.pop() {
            self.handle_answered(now, id, reply);
        }
    }

    fn handle_nodes(&mut self, nodes: Vec<Registered>) {
        self.registered = nodes.iter().map(|node| node.node.clone()).collect();
        // Addresses outlive a registration: an agent whose session expired still answers.
        self.addrs.extend(nodes.into_iter().map(|node| (node.node, node.addr)));
    }

    fn handle_own(&mut self, now: Instant, mut seen: Seen) {
        if let Seen::Up { facts, asked_at } = &mut seen {
            if self.running.is_some() || *asked_at < self.own_since {
                seen = Seen::Alive;
            } else {
                facts.priority = self.me.priority;
                self.cleanliness.judge(facts);
                self.note_origin(&facts.clone());
                self.own_reading = Some(*asked_at);
                let step = match facts.role {
                    facts::Role::Master => Step::Promoted,
                    facts::Role::Replica if facts.parked() => Step::Parked(facts.run_id.clone()),
                    facts::Role::Replica => Step::Following,
                };
                self.obedience.learn(facts.epoch, step);
                let (facts, asked_at) = (facts.clone(), *asked_at);
                self.count_replicas(&facts, asked_at);
                self.note_master(&facts.run_id, facts.offset, facts.role);
            }
        }
        self.detector.handle_own(now, &seen);
    }

    fn handle_master(&mut self, now: Instant, master: &MasterOf, seen: &Seen) {
        if self.master_to_watch() != Some(master) {
            return;
        }
        if let Seen::Up { facts, asked_at } = seen {
            self.master_reading = Some((facts.clone(), *asked_at));
            self.note_master(&facts.run_id, facts.offset, facts.role);
            self.tell_stray(facts);
        }
        self.detector.handle_master(now, master, seen);
    }

    /// How far the stream of the published master goes at least.
    fn note_master(&mut self, life: &RunId, offset: i64, role: facts::Role) {
        let published = self.state().and_then(|known| known.state.master.as_ref());
        if role != facts::Role::Master || published.is_none_or(|master| master.run_id != *life) {
            return;
        }
        let known = self.seen.take().filter(|(known, _)| known == life);
        let offset = known.map_or(offset, |(_, seen)| seen.max(offset));
        self.seen = Some((life.clone(), offset));
    }

    fn note_status(&mut self, status: &Status) {
        if let Some((life, offset)) = &status.seen {
            self.note_master(life, *offset, facts::Role::Master);
        }
        if let Some(facts) = &status.facts {
            self.note_master(&facts.run_id, facts.offset, facts.role);
        }
    }

    fn say(&mut self, level: Level, sentence: String) {
        self.actions.push_back(Action::Say(level, sentence));
    }

    /// Says something that stays true once only.
    fn shout(&mut self, level: Level, sentence: String) {
        if self.shouted.len() < 64 && self.shouted.insert(sentence.clone()) {
            self.say(level, sentence);
        }
    }

    fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// splitmix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
