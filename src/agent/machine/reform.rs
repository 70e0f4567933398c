//! One change of members or of W, seen from its executor, the agent of the master, which stays (rule R5).
//!
//! ```text
//! claiming -> draining -> renewing -> settling -> publishing -> done
//!                 |           |           |            |
//!           rolling back      +-----------+------------+--> abandoned: an election by the old members, W and lineage
//! ```
//! To proxies it is a planned move whose target is the master itself: they hold, drain, and go on in the next epoch. What it
//! costs is a short wait.
//!
//! Owns: the steps of one reserved epoch and the answers to them. Refuses: I/O, and deciding *what* is to change
//! (`wanted`). Invariants:
//! 1. the state names the old members and W until the new ones are published: whoever elects in between counts by them;
//! 2. what proxies and replicas of the old epoch log in with goes before anything counts by the new rules (ha-rules d6), in
//!    one block that also tells how far the stream goes;
//! 3. only those who proved in the new epoch that they have all of that are valid in it (ha-rules d3);
//! 4. it is taken back only before the renewal was asked for.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::topology::codec::{Ending, Kind};
use crate::topology::{Course, Epoch, NodeId, Phase, Switch};

use super::action::{Level, Reply};
use super::audience::Audience;
use super::election::Order;
use super::facts::Role;
use super::obedience::Ask;
use super::outcome::{Marks, Outcome};
use super::proving::Proving;
use super::state::{MasterOf, State};
use super::switch::Target;
use super::timings::Timings;

/// What is to be published in the next epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    /// The nodes that count.
    pub members: BTreeSet<NodeId>,
    /// W.
    pub ack_replicas: u32,
    /// W that is wanted, if this one is lower because too few replicas are there.
    pub shrunk_from: u32,
    /// What changes and why, for people.
    pub why: String,
    /// Who wants it, if somebody does.
    pub asked_by: Option<String>,
}

impl Goal {
    /// The state with what is to be published in its place; valid, lineage and epoch are untouched.
    pub fn over(&self, state: &State) -> State {
        State {
            members: self.members.clone(),
            ack_replicas: self.ack_replicas,
            shrunk_from: self.shrunk_from,
            ..state.clone()
        }
    }
}

/// A change under way.
#[derive(Clone, Debug)]
pub struct Reform {
    /// The state as we last wrote it.
    state: State,
    epoch: Epoch,
    master: MasterOf,
    goal: Goal,
    /// Who is told to attach anew.
    followers: BTreeSet<NodeId>,
    audience: Audience,
    step: Step,
    marks: Marks,
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one per agent; never in a collection")]
enum Step {
    /// The claim is being written. Next: draining.
    Claiming,
    /// Proxies hold, and tell when nothing is in flight. Next: renewing, rolling back.
    Draining { since: Instant },
    /// The master's users are being made anew. Next: settling. No way back from here on.
    Renewing,
    /// Replicas attach anew, and those who hear through proxies do. Next: publishing.
    Settling {
        offset: i64,
        proving: Proving,
        since: Instant,
    },
    /// The `serving` state is being written. Next: done.
    Publishing { offset: i64 },
    /// The old `serving` state is being written again. Next: done.
    RollingBack { why: String },
}

impl Reform {
    /// Begins with the claim, which is to be written over `known`. None if that has no master.
    pub fn new(
        now: Instant,
        known: &State,
        epoch: Epoch,
        goal: Goal,
        followers: BTreeSet<NodeId>,
        nonce: String,
    ) -> Option<(Self, State)> {
        let master = known.serving()?.clone();
        let switch = Switch {
            to: master.node.clone(),
            epoch,
            request: String::new(),
            course: None,
        };
        let state = State {
            // No request is met by this, and what the last one led to is still to be known.
            moved: known.moved.clone(),
            ..known.switched_by(&master.node, nonce, switch)
        };
        let reform = Self {
            state: state.clone(),
            epoch,
            master,
            goal,
            followers,
            audience: Audience::new(epoch),
            step: Step::Claiming,
            marks: Marks::new(now),
        };
        Some((reform, state))
    }

    /// The epoch of the state it stands on, which is not the reserved one.
    pub fn epoch(&self) -> Epoch {
        self.state.epoch
    }

    /// Whether a state read from the store still is what we wrote, or what we are about to write over.
    pub fn stands(&self, read: &State) -> bool {
        let same = read.epoch == self.state.epoch && read.phase == Phase::Serving;
        read.nonce == self.state.nonce || (self.untouched() && same)
    }

    /// Whether nothing was written yet.
    pub fn untouched(&self) -> bool {
        matches!(self.step, Step::Claiming)
    }

    /// Whether the master may still go on as if nothing had been.
    pub fn reversible(&self) -> bool {
        matches!(self.step, Step::Claiming | Step::Draining { .. })
    }

    /// A proxy has nothing in flight that may change something.
    pub fn handle_drained(&mut self, proxy: String, epoch: Epoch, course: Option<&Course>) {
        self.audience.handle_drained(proxy, epoch, course, &self.state.nonce);
    }

    /// Those who hear through a proxy hear it by the new epoch's connections.
    pub fn handle_attached(&mut self, proxy: String, epoch: Epoch, course: Option<&Course>) {
        self.audience.handle_attached(proxy, epoch, course, &self.state.nonce);
    }

    /// The last order to write was carried out. Gives the outcome if that ends it.
    pub fn handle_written(&mut self, now: Instant, written: &State) -> Option<Outcome> {
        self.state = written.clone();
        match &self.step {
            Step::Claiming => {
                self.marks.end("claim", now);
                self.step = Step::Draining { since: now };
                None
            }
            Step::Publishing { offset } => {
                let offset = *offset;
                self.marks.end("publish", now);
                Some(Outcome {
                    offset: Some(offset),
                    lost_bytes: Some(0),
                    ..self.outcome(Ending::Done, self.goal.why.clone())
                })
            }
            Step::RollingBack { why } => {
                let why = format!("{}: {why}", self.goal.why);
                self.marks.end("roll-back", now);
                Some(self.outcome(Ending::RolledBack, why))
            }
            Step::Draining { .. } | Step::Renewing | Step::Settling { .. } => None,
        }
    }

    /// What it came to when it was given up.
    pub fn failed(&self, why: &str) -> Outcome {
        self.outcome(Ending::Failed, format!("{}: {why}", self.goal.why))
    }

    /// An agent answered, or the question was given up.
    pub fn handle_reply(&mut self, now: Instant, node: &NodeId, ask: &Ask, reply: Reply) -> Vec<Order> {
        if ask.epoch() != self.epoch {
            return Vec::new();
        }
        match (ask, &mut self.step) {
            (Ask::Renew { .. }, Step::Renewing) => self.renewed(now, reply),
            (Ask::Follow { .. }, Step::Settling { proving, .. }) => {
                proving.handle_following(node, reply);
                Vec::new()
            }
            (Ask::Reach { mark: None, .. }, Step::Settling { proving, .. }) => {
                proving.handle_look(node, reply);
                Vec::new()
            }
            (
                Ask::Renew { .. }
                | Ask::Follow { .. }
                | Ask::Reach { .. }
                | Ask::Park { .. }
                | Ask::Fence { .. }
                | Ask::Promote { .. },
                _,
            ) => Vec::new(),
        }
    }

    fn renewed(&mut self, now: Instant, reply: Reply) -> Vec<Order> {
        let node = &self.master.node;
        let facts = match reply {
            Reply::Done(facts) if facts.role == Role::Master && facts.run_id == self.master.run_id => *facts,
            Reply::Done(_) => return vec![Order::Abandon(format!("{node} is not the master it was"))],
            Reply::Refused(why) => return vec![Order::Abandon(format!("{node} refused the new epoch: {why}"))],
            Reply::Gone => return vec![Order::Abandon(format!("{node} died"))],
            // Its users may be new or not: nobody may assume either.
            Reply::Failed(why) => return vec![Order::Abandon(format!("{node} did not begin the new epoch: {why}"))],
        };
        self.marks.end("renew", now);
        let offset = facts.offset;
        let addr = self.master.addr.clone();
        let (proving, mut orders) = Proving::begin(now, self.epoch, node, addr, facts, self.followers.clone());
        let target = Target {
            node: node.clone(),
            addr: self.master.addr.clone(),
            run_id: self.master.run_id.clone(),
        };
        let course = Course::from(self.state.nonce.as_str());
        orders.push(Order::Attach(self.epoch, course, target));
        self.step = Step::Settling {
            offset,
            proving,
            since: now,
        };
        orders
    }

    /// What is to be done now that time has passed or answers came. `proxies`: those that tell of drains.
    pub fn advance(&mut self, now: Instant, timings: &Timings, proxies: &BTreeSet<String>) -> Vec<Order> {
        match &mut self.step {
            Step::Draining { since } => {
                let late = now.saturating_duration_since(*since) >= timings.drain_max;
                if !late && !self.audience.has_drained(proxies) {
                    return Vec::new();
                }
                self.marks.end("drain", now);
                self.step = Step::Renewing;
                let renew = Ask::Renew {
                    epoch: self.epoch,
                    run_id: self.master.run_id.clone(),
                };
                let mut orders = Vec::new();
                if let Some(late) = self.audience.undrained(proxies) {
                    let sentence = format!("not waiting any longer for writes of {late} to be answered");
                    orders.push(Order::Say(Level::Warn, sentence));
                }
                orders.push(Order::Ask(self.master.node.clone(), renew));
                orders
            }
            Step::Settling { offset, proving, since } => {
                let late = now.saturating_duration_since(*since) >= timings.drain_max;
                if !late && !self.audience.has_attached(proxies) {
                    return Vec::new();
                }
                let base = self.goal.over(&self.state);
                let Some(order) = proving.advance(now, timings, &base) else {
                    return Vec::new();
                };
                if let Order::Write(_) = order {
                    let offset = *offset;
                    self.marks.end("prove", now);
                    self.step = Step::Publishing { offset };
                }
                vec![order]
            }
            Step::Claiming | Step::Renewing | Step::Publishing { .. } | Step::RollingBack { .. } => Vec::new(),
        }
    }

    /// Takes it back if it can be. A claim that is being written is left to its outcome.
    pub fn interrupt(&mut self, why: String) -> Option<Order> {
        let Step::Draining { .. } = self.step else {
            return None;
        };
        self.step = Step::RollingBack { why };
        Some(Order::Write(State {
            phase: Phase::Serving,
            switch: None,
            ..self.state.clone()
        }))
    }

    fn outcome(&self, result: Ending, why: String) -> Outcome {
        let master = Some(self.master.node.clone());
        Outcome {
            kind: Kind::Members,
            result,
            epoch: self.state.epoch,
            from: master.clone(),
            to: master,
            why,
            grounds: None,
            offset: None,
            lost_bytes: None,
            asked_by: self.goal.asked_by.clone(),
            request: None,
            phases: self.marks.phases(),
        }
    }
}
