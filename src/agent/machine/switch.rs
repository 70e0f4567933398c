//! One switchover, seen from its executor, the agent of the present master: the steps S0 to S5 as rule R8 has them.
//!
//! ```text
//! sounding -> claiming -> draining -> looking -> catching up
//!    |                       |           |            |  \
//!  retreat                   +-----------+------------+   +-> fencing -> reaching -> attaching -> promoting -> proving
//!                                        |                       |          |            |            |           |   \
//!                                   rolling back                 +----------+------------+------------+-----------+    |
//!                                                                                        |                   publishing
//!                                                                        abandoned: an election follows
//! ```
//! The sounding asks what looking and catching up ask, before anybody waits: a target that hangs, or to which the stream
//! does not flow yet, costs clients nothing.
//!
//! Owns: the steps of one reserved epoch and the answers to them. Refuses: I/O, and deciding *whether* to move the
//! master (`wish`). Invariants:
//! 1. one target per epoch (rule R7), fixed before the claim: another target is another claim of another epoch;
//! 2. it is rolled back only before the fence was asked for, and only by the executor that made the claim. From then on
//!    it ends in a publication or in an election by a later claim, never in going on as before (rule R8);
//! 3. nobody is promoted before the old master was fenced and the target has applied everything the fenced master had:
//!    whatever proxies do or fail to do in between, nothing acknowledged is lost;
//! 4. the waits for proxies are bounded. They keep clients from noticing; a proxy that is late meets the fence.

mod wait;

use std::collections::BTreeSet;
use std::time::Instant;

use crate::topology::codec::{Ending, Kind, SwitchRequest};
use crate::topology::{Addr, Course, Epoch, NodeId, Phase, RunId, Switch};

use super::action::{Level, Reply};
use super::audience::Audience;
use super::election::Order;
use super::facts::{Facts, Role};
use super::obedience::{Ask, Mark};
use super::outcome::{Marks, Outcome};
use super::proving::{self, Proving};
use super::state::{MasterOf, State};
use super::timings::Timings;
use wait::Wait;

/// The node that is to be master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub node: NodeId,
    /// Where its Redis listens.
    pub addr: Addr,
    /// The life that follows the present master.
    pub run_id: RunId,
}

/// A switchover under way.
#[derive(Clone, Debug)]
pub struct Switchover {
    /// The state as we last wrote it; before the claim the one that was read.
    state: State,
    /// The reserved epoch.
    epoch: Epoch,
    request: SwitchRequest,
    old: MasterOf,
    target: Target,
    audience: Audience,
    step: Step,
    marks: Marks,
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one per agent; never in a collection")]
enum Step {
    /// Whether the target keeps up: its master's offset, then its own. Next: claiming.
    Sounding { mark: Option<Mark>, wait: Wait },
    /// The claim is being written. Next: draining.
    Claiming,
    /// Proxies hold, and tell when nothing is in flight. Next: looking, rolling back.
    Draining { since: Instant },
    /// The master is asked how far its stream goes. Next: catching up, rolling back.
    Looking { wait: Wait },
    /// The target is to have applied that. Next: fencing, rolling back.
    CatchingUp { mark: Mark, wait: Wait },
    /// The master is being fenced. Next: reaching. No way back from here on.
    Fencing,
    /// The target is to have applied everything the fenced master had. Next: attaching.
    Reaching { mark: Mark, wait: Wait },
    /// Those who hear move to the target. Next: promoting.
    Attaching { mark: Mark, since: Instant },
    /// The target was told. Next: proving.
    Promoting { mark: Mark },
    /// The others attach to it. Next: publishing.
    Proving { mark: Mark, proving: Proving },
    /// The `serving` state is being written. Next: done.
    Publishing { mark: Mark },
    /// The old `serving` state is being written again. Next: done.
    RollingBack { why: String },
}

impl Switchover {
    /// Begins by sounding out the target. None if `state` has no master to be moved.
    pub fn new(now: Instant, state: State, epoch: Epoch, request: SwitchRequest, target: Target) -> Option<Self> {
        let old = state.serving()?.clone();
        Some(Self {
            state,
            epoch,
            request,
            old,
            target,
            audience: Audience::new(epoch),
            step: Step::Sounding {
                mark: None,
                wait: Wait::due(now),
            },
            marks: Marks::new(now),
        })
    }

    /// The target keeps up: what to write over `known`, the state of this moment. None if that is another master's.
    pub fn claim(&mut self, now: Instant, known: &State, executor: &NodeId, nonce: String) -> Option<State> {
        let same = known.epoch == self.state.epoch && known.serving() == Some(&self.old);
        if !same {
            return None;
        }
        let switch = Switch {
            to: self.target.node.clone(),
            epoch: self.epoch,
            request: self.request.id.clone(),
            course: None,
        };
        self.state = known.switched_by(executor, nonce, switch);
        self.marks = Marks::new(now);
        self.step = Step::Claiming;
        Some(self.state.clone())
    }

    /// What is about to be done, for people.
    pub fn sentence(&self) -> String {
        let asker = match self.request.asked_by.as_str() {
            "" => "somebody",
            asker => asker,
        };
        format!(
            "moving the master of epoch {} from {} to {} for epoch {}, as {asker} asks",
            self.state.epoch, self.old.node, self.target.node, self.epoch
        )
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

    /// Whether nothing was written yet: it may be tried again as if it had not been.
    pub fn untouched(&self) -> bool {
        matches!(self.step, Step::Sounding { .. } | Step::Claiming)
    }

    /// Whether it is still being found out if the target keeps up.
    pub fn sounding(&self) -> bool {
        matches!(self.step, Step::Sounding { .. })
    }

    /// The id of the request that it meets.
    pub fn request(&self) -> &String {
        &self.request.id
    }

    /// Whether the old master may still go on as if nothing had been.
    pub fn reversible(&self) -> bool {
        let begun = matches!(
            self.step,
            Step::Draining { .. } | Step::Looking { .. } | Step::CatchingUp { .. }
        );
        self.untouched() || begun
    }

    /// The last order to write was carried out. Gives the outcome if that ends the switchover.
    pub fn handle_written(&mut self, now: Instant, written: &State) -> Option<Outcome> {
        self.state = written.clone();
        match &self.step {
            Step::Claiming => {
                self.marks.end("claim", now);
                self.step = Step::Draining { since: now };
                None
            }
            Step::Publishing { mark } => {
                let offset = mark.offset;
                self.marks.end("publish", now);
                Some(Outcome {
                    offset: Some(offset),
                    lost_bytes: Some(0),
                    ..self.outcome(Ending::Done, self.reason())
                })
            }
            Step::RollingBack { why } => {
                let why = why.clone();
                self.marks.end("roll-back", now);
                Some(self.outcome(Ending::RolledBack, why))
            }
            Step::Sounding { .. }
            | Step::Draining { .. }
            | Step::Looking { .. }
            | Step::CatchingUp { .. }
            | Step::Fencing
            | Step::Reaching { .. }
            | Step::Attaching { .. }
            | Step::Promoting { .. }
            | Step::Proving { .. } => None,
        }
    }

    /// What it came to when it was given up.
    pub fn failed(&self, why: String) -> Outcome {
        self.outcome(Ending::Failed, why)
    }

    /// A proxy has nothing in flight that may change something.
    pub fn handle_drained(&mut self, proxy: String, epoch: Epoch, course: Option<&Course>) {
        self.audience.handle_drained(proxy, epoch, course, &self.state.nonce);
    }

    /// Those who hear through a proxy hear the target.
    pub fn handle_attached(&mut self, proxy: String, epoch: Epoch, course: Option<&Course>) {
        self.audience.handle_attached(proxy, epoch, course, &self.state.nonce);
    }

    /// An agent answered, or the question was given up.
    pub fn handle_reply(
        &mut self,
        now: Instant,
        node: &NodeId,
        ask: &Ask,
        reply: Reply,
        at: Option<&Addr>,
    ) -> Vec<Order> {
        if ask.epoch() != self.epoch {
            return Vec::new();
        }
        match ask {
            Ask::Reach { mark: None, .. } => {
                if let Step::Proving { proving, .. } = &mut self.step {
                    proving.handle_look(node, reply);
                    return Vec::new();
                }
                self.handle_look(now, reply)
            }
            Ask::Reach { mark: Some(mark), .. } => self.handle_reach(now, mark, reply),
            Ask::Fence { .. } => self.handle_fenced(now, reply),
            Ask::Promote { .. } => self.handle_promoted(now, node, reply, at),
            Ask::Follow { .. } => {
                if let Step::Proving { proving, .. } = &mut self.step {
                    proving.handle_following(node, reply);
                }
                Vec::new()
            }
            // Only an election and a reform ask these.
            Ask::Park { .. } | Ask::Renew { .. } => Vec::new(),
        }
    }

    fn handle_look(&mut self, now: Instant, reply: Reply) -> Vec<Order> {
        let (Step::Looking { wait } | Step::Sounding { mark: None, wait }) = &mut self.step else {
            return Vec::new();
        };
        let node = &self.old.node;
        let facts = match reply {
            Reply::Done(facts) if facts.role == Role::Master && facts.run_id == self.old.run_id => facts,
            Reply::Gone => return vec![Order::Abandon(format!("{node} died"))],
            Reply::Done(_) => return vec![Order::Abandon(format!("{node} is not the master it was"))],
            Reply::Failed(why) => {
                wait.failed(now, format!("{node}: {why}"));
                return Vec::new();
            }
            Reply::Refused(why) => {
                wait.failed(now, format!("{node}: {why}"));
                return Vec::new();
            }
        };
        let mark = Mark {
            replid: facts.replid,
            offset: facts.offset,
        };
        let wait = wait.asked();
        let reach = self.reach(mark.clone());
        self.step = match self.step {
            Step::Sounding { .. } => Step::Sounding { mark: Some(mark), wait },
            _ => Step::CatchingUp { mark, wait },
        };
        vec![reach]
    }

    fn handle_reach(&mut self, now: Instant, asked: &Mark, reply: Reply) -> Vec<Order> {
        let (Step::Sounding { mark: Some(mark), wait }
        | Step::CatchingUp { mark, wait }
        | Step::Reaching { mark, wait }) = &mut self.step
        else {
            return Vec::new();
        };
        if mark != asked {
            return Vec::new();
        }
        let node = &self.target.node;
        let trouble = match reply {
            Reply::Done(facts) => match obstacle(&facts, &self.target, mark) {
                None => return self.reached(now),
                Some(why) => why,
            },
            Reply::Gone => {
                let why = format!("{node} died");
                return vec![self.give_up(now, why)];
            }
            Reply::Refused(why) => why.to_string(),
            Reply::Failed(why) => why,
        };
        wait.failed(now, format!("{node}: {trouble}"));
        Vec::new()
    }

    /// The target has what it was to have.
    fn reached(&mut self, now: Instant) -> Vec<Order> {
        match &self.step {
            Step::Sounding { .. } => vec![Order::Claim],
            Step::CatchingUp { .. } => {
                self.marks.end("catch-up", now);
                self.step = Step::Fencing;
                let fence = Ask::Fence {
                    epoch: self.epoch,
                    run_id: self.old.run_id.clone(),
                };
                vec![Order::Ask(self.old.node.clone(), fence)]
            }
            Step::Reaching { mark, .. } => {
                let mark = mark.clone();
                self.marks.end("reach", now);
                self.step = Step::Attaching { mark, since: now };
                let course = Course::from(self.state.nonce.as_str());
                vec![Order::Attach(self.epoch, course, self.target.clone())]
            }
            _ => Vec::new(),
        }
    }

    fn handle_fenced(&mut self, now: Instant, reply: Reply) -> Vec<Order> {
        let Step::Fencing = self.step else {
            return Vec::new();
        };
        let node = &self.old.node;
        let facts = match reply {
            Reply::Done(facts) if facts.parked() && facts.run_id == self.old.run_id => facts,
            Reply::Done(_) => {
                return vec![Order::Abandon(format!(
                    "{node} is not the process that was to be fenced"
                ))];
            }
            Reply::Refused(why) => return vec![Order::Abandon(format!("{node} refused the fence: {why}"))],
            Reply::Gone => return vec![Order::Abandon(format!("{node} died"))],
            // It may be fenced or not: nobody may assume either.
            Reply::Failed(why) => return vec![Order::Abandon(format!("{node} could not be fenced: {why}"))],
        };
        self.marks.end("fence", now);
        let mark = Mark {
            replid: facts.replid,
            offset: facts.offset,
        };
        self.step = Step::Reaching {
            mark: mark.clone(),
            wait: Wait::new(now),
        };
        vec![self.reach(mark)]
    }

    fn handle_promoted(&mut self, now: Instant, node: &NodeId, reply: Reply, at: Option<&Addr>) -> Vec<Order> {
        let Step::Promoting { mark } = &self.step else {
            return Vec::new();
        };
        let facts = match proving::promoted(node, &self.target.run_id, reply) {
            Ok(facts) => facts,
            Err(why) => return vec![Order::Abandon(why)],
        };
        let addr = at.cloned().unwrap_or_else(|| self.target.addr.clone());
        self.marks.end("promote", now);
        let mark = mark.clone();
        let (proving, orders) = Proving::begin(now, self.epoch, node, addr, facts, self.others());
        self.step = Step::Proving { mark, proving };
        orders
    }

    /// Those who follow the new master at once: the old one, and whoever holds the old epoch's data.
    fn others(&self) -> BTreeSet<NodeId> {
        let valid = self.state.valid.keys().filter(|id| self.state.members.contains(*id));
        valid
            .chain([&self.old.node])
            .filter(|id| **id != self.target.node)
            .cloned()
            .collect()
    }

    /// What is to be done now that time has passed or answers came. `proxies`: those that tell of drains.
    pub fn advance(&mut self, now: Instant, timings: &Timings, proxies: &BTreeSet<String>) -> Vec<Order> {
        match &mut self.step {
            Step::Sounding { mark, wait } => {
                if wait.over(now, timings.catch_up) {
                    return vec![Order::Retreat(wait.last.clone())];
                }
                let due = wait.take(now).then(|| mark.clone());
                let ask = due.map(|mark| mark.map_or_else(|| self.look(), |mark| self.reach(mark)));
                ask.into_iter().collect()
            }
            Step::Draining { since } => {
                let late = now.saturating_duration_since(*since) >= timings.drain_max;
                if !late && !self.audience.has_drained(proxies) {
                    return Vec::new();
                }
                self.drain_ended(now, proxies)
            }
            Step::Looking { wait } => {
                if wait.over(now, timings.catch_up) {
                    let why = wait.last.clone();
                    return vec![self.roll_back(now, why)];
                }
                let ask = wait.take(now);
                ask.then(|| self.look()).into_iter().collect()
            }
            Step::CatchingUp { mark, wait } => {
                if wait.over(now, timings.catch_up) {
                    let why = wait.last.clone();
                    return vec![self.roll_back(now, why)];
                }
                let mark = wait.take(now).then(|| mark.clone());
                mark.map(|mark| self.reach(mark)).into_iter().collect()
            }
            Step::Reaching { mark, wait } => {
                if wait.over(now, timings.catch_up) {
                    return vec![Order::Abandon(wait.last.clone())];
                }
                let mark = wait.take(now).then(|| mark.clone());
                mark.map(|mark| self.reach(mark)).into_iter().collect()
            }
            Step::Attaching { mark, since } => {
                let late = now.saturating_duration_since(*since) >= timings.drain_max;
                if !late && !self.audience.has_attached(proxies) {
                    return Vec::new();
                }
                let mark = mark.clone();
                self.marks.end("attach", now);
                self.step = Step::Promoting { mark: mark.clone() };
                let promote = Ask::Promote {
                    epoch: self.epoch,
                    run_id: self.target.run_id.clone(),
                    mark: Some(mark),
                };
                vec![Order::Ask(self.target.node.clone(), promote)]
            }
            Step::Proving { mark, proving } => {
                let Some(order) = proving.advance(now, timings, &self.state) else {
                    return Vec::new();
                };
                if let Order::Write(_) = order {
                    let mark = mark.clone();
                    self.marks.end("prove", now);
                    self.step = Step::Publishing { mark };
                }
                vec![order]
            }
            Step::Claiming
            | Step::Fencing
            | Step::Promoting { .. }
            | Step::Publishing { .. }
            | Step::RollingBack { .. } => Vec::new(),
        }
    }

    fn drain_ended(&mut self, now: Instant, proxies: &BTreeSet<String>) -> Vec<Order> {
        self.marks.end("drain", now);
        let mut wait = Wait::due(now);
        wait.take(now);
        self.step = Step::Looking { wait };
        let mut orders = Vec::new();
        if let Some(late) = self.audience.undrained(proxies) {
            let sentence =
                format!("not waiting any longer for writes of {late} to be answered: the fence will meet them");
            orders.push(Order::Say(Level::Warn, sentence));
        }
        orders.push(self.look());
        orders
    }

    fn look(&self) -> Order {
        let look = Ask::Reach {
            epoch: self.epoch,
            mark: None,
        };
        Order::Ask(self.old.node.clone(), look)
    }

    fn reach(&self, mark: Mark) -> Order {
        let reach = Ask::Reach {
            epoch: self.epoch,
            mark: Some(mark),
        };
        Order::Ask(self.target.node.clone(), reach)
    }

    /// Takes back what can be. A claim that is being written is left to its outcome.
    pub fn interrupt(&mut self, now: Instant, why: String) -> Option<Order> {
        let now_or_never = self.reversible() && !matches!(self.step, Step::Claiming);
        now_or_never.then(|| self.give_up(now, why))
    }

    /// Ends it as this step allows.
    fn give_up(&mut self, now: Instant, why: String) -> Order {
        if self.untouched() {
            Order::Retreat(why)
        } else if self.reversible() {
            self.roll_back(now, why)
        } else {
            Order::Abandon(why)
        }
    }

    fn roll_back(&mut self, now: Instant, why: String) -> Order {
        self.marks.end("catch-up", now);
        let state = State {
            phase: Phase::Serving,
            switch: None,
            ..self.state.clone()
        };
        self.step = Step::RollingBack { why };
        Order::Write(state)
    }

    fn reason(&self) -> String {
        match self.request.to {
            Some(_) => format!("{} was asked for", self.target.node),
            None => format!("{} was the best replica", self.target.node),
        }
    }

    fn outcome(&self, result: Ending, why: String) -> Outcome {
        Outcome {
            kind: Kind::Switchover,
            phases: self.marks.phases(),
            ..Outcome::unmoved(
                &self.request,
                result,
                self.state.epoch,
                Some(self.old.node.clone()),
                Some(self.target.node.clone()),
                why,
            )
        }
    }
}

/// What keeps the target from having reached `mark`.
fn obstacle(facts: &Facts, target: &Target, mark: &Mark) -> Option<String> {
    if facts.run_id != target.run_id {
        Some("it was restarted".to_owned())
    } else if facts.role != Role::Replica {
        Some("it is no replica".to_owned())
    } else if facts.replid != mark.replid {
        Some("it follows another stream".to_owned())
    } else if facts.syncing || facts.dirty || facts.loading {
        Some("it is being synchronised as a whole".to_owned())
    } else if facts.offset < mark.offset {
        Some(format!("it lacks {} bytes", mark.offset - facts.offset))
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
