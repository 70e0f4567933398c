//! One election, seen from its executor: claim, park, choose, promote, prove, publish (F1 to F6).
//!
//! ```text
//! claiming -> parking -> [adopting] -> promoting -> [announcing] -> proving -> publishing -> done
//!     |          |           |             |             |             |           |
//!     +----------+-----------+-------------+-------------+-------------+-----------+--> abandoned (a newer claim follows)
//! ```
//!
//! Owns: the steps of one epoch and the answers to them. Refuses: I/O, deciding *whether* to elect
//! (`machine`), and a second candidate: another one is another claim (rule R7). Invariants: nobody is
//! promoted before the quorum is parked; at most one node is promoted per epoch; nothing is published
//! but what was promoted; each compare-and-set is conditional on the version of the one before it; over an
//! unfinished election nobody follows a stream that is not in the lineage yet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::topology::codec::{Ending, Kind};
use crate::topology::{Addr, Course, Epoch, NodeId, Phase};

use super::action::{Level, Reply};
use super::facts::Facts;
use super::obedience::Ask;
use super::outcome::{Marks, Outcome};
use super::proving::{self, Proving};
use super::quorum::{self, Answer, Choice, Grounds, Resolution, Stakes};
use super::state::{MasterOf, State};
use super::switch::Target;
use super::timings::Timings;

/// An election under way.
#[derive(Clone, Debug)]
pub struct Election {
    /// The state as we last wrote it.
    state: State,
    /// The phase the claim started from; from any but `serving` a half-promoted node may exist (rule R6).
    from: Option<Phase>,
    /// The master published before.
    before: Option<MasterOf>,
    /// The stream published before.
    accepted: Option<String>,
    why: String,
    answers: BTreeMap<NodeId, Answer>,
    /// When each member that could not be parked is asked again.
    again: BTreeMap<NodeId, Instant>,
    step: Step,
    /// When the old master last answered.
    alive: Option<Instant>,
    marks: Marks,
    said: Option<String>,
    stakes: Stakes,
    /// Who accepted the loss that the choice brings, and what is known of that.
    allowed: Option<(String, String)>,
    /// What follows from the last write.
    next: Vec<Order>,
}

#[derive(Clone, Debug)]
enum Step {
    /// The claim is being written. Next: parking.
    Claiming,
    /// Members are being parked. Next: adopting, promoting.
    Parking { since: Instant },
    /// The candidate's stream is being added to the lineage. Next: promoting.
    Adopting { choice: Choice },
    /// The candidate was told. Next: announcing, proving.
    Promoting { choice: Choice },
    /// The stream it began is being added to the lineage. Next: proving.
    Announcing { choice: Choice, addr: Addr, facts: Facts },
    /// The others attach to it. Next: publishing.
    Proving { choice: Choice, proving: Proving },
    /// The `serving` state is being written. Next: done.
    Publishing { choice: Choice },
}

/// What the executor wants done next.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a handful per election, never kept")]
pub enum Order {
    /// Ask a node's agent.
    Ask(NodeId, Ask),
    /// Write this state over the last one.
    Write(State),
    /// Tell proxies where those who hear are to move.
    Attach(Epoch, Course, Target),
    /// Claim the epoch of the switchover.
    Claim,
    /// Give up what was not begun yet, because of this, which may pass.
    Retreat(String),
    /// Give up this epoch; claim another.
    Abandon(String),
    /// Tell people.
    Say(Level, String),
}

impl Election {
    /// Begins with the claim `state`, which is yet to be written. `alive` is when the old master last
    /// answered, `from` the phase the shard was in, `stakes` what may be lost.
    pub fn new(
        now: Instant,
        state: State,
        from: Option<Phase>,
        why: String,
        alive: Option<Instant>,
        stakes: Stakes,
    ) -> Self {
        Self {
            before: state.master.clone(),
            accepted: state.lineage.first().cloned(),
            state,
            from,
            why,
            answers: BTreeMap::new(),
            again: BTreeMap::new(),
            step: Step::Claiming,
            alive,
            marks: Marks::new(now),
            said: None,
            stakes,
            allowed: None,
            next: Vec::new(),
        }
    }

    /// A state that stands was read: the operator may have accepted a loss.
    pub fn note(&mut self, read: &State) {
        if self.owns(read) {
            self.state.accept.clone_from(&read.accept);
        }
    }

    /// The epoch being elected for.
    pub fn epoch(&self) -> Epoch {
        self.state.epoch
    }

    /// Whether a state read from the store still is what we wrote: nobody claimed after us.
    pub fn stands(&self, read: &State) -> bool {
        match self.step {
            Step::Claiming => read.epoch < self.state.epoch || self.owns(read),
            Step::Parking { .. }
            | Step::Adopting { .. }
            | Step::Promoting { .. }
            | Step::Announcing { .. }
            | Step::Proving { .. }
            | Step::Publishing { .. } => self.owns(read),
        }
    }

    /// Whether it has waited for members for long and has promoted nobody.
    pub fn stuck(&self, now: Instant, timings: &Timings) -> bool {
        matches!(self.step, Step::Parking { since } if now.saturating_duration_since(since) >= timings.patience)
    }

    fn owns(&self, read: &State) -> bool {
        read.epoch == self.state.epoch && read.nonce == self.state.nonce
    }

    /// The last order to write was carried out. Gives the outcome if that ends the election.
    pub fn handle_written(&mut self, now: Instant, written: &State) -> Option<Outcome> {
        self.state = written.clone();
        match &self.step {
            Step::Claiming => {
                self.marks.end("claim", now);
                self.step = Step::Parking { since: now };
            }
            Step::Adopting { choice } => {
                let choice = choice.clone();
                self.next.push(self.promotion(&choice));
                self.step = Step::Promoting { choice };
            }
            Step::Announcing { choice, addr, facts } => {
                let (choice, addr, facts) = (choice.clone(), addr.clone(), facts.clone());
                self.next = self.prove(now, choice, addr, facts);
            }
            Step::Publishing { choice } => {
                self.marks.end("publish", now);
                return Some(self.outcome(choice));
            }
            Step::Parking { .. } | Step::Promoting { .. } | Step::Proving { .. } => {}
        }
        None
    }

    /// What follows at once from the last write.
    pub fn resume(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.next)
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
        if ask.epoch() != self.state.epoch {
            return Vec::new();
        }
        match ask {
            Ask::Park { .. } => {
                self.handle_parked(now, node, reply);
                Vec::new()
            }
            Ask::Promote { .. } => self.handle_promoted(now, node, reply, at),
            Ask::Follow { .. } => {
                if let Step::Proving { proving, .. } = &mut self.step {
                    proving.handle_following(node, reply);
                }
                Vec::new()
            }
            Ask::Reach { .. } => {
                if let Step::Proving { proving, .. } = &mut self.step {
                    proving.handle_look(node, reply);
                }
                Vec::new()
            }
            // Only a switchover fences.
            Ask::Fence { .. } | Ask::Renew { .. } => Vec::new(),
        }
    }

    fn handle_parked(&mut self, now: Instant, node: &NodeId, reply: Reply) {
        let Step::Parking { .. } = self.step else { return };
        let answer = match reply {
            Reply::Done(facts) => Answer::Parked(*facts),
            Reply::Refused(refusal) => Answer::Failed(refusal.to_string()),
            Reply::Failed(why) => Answer::Failed(why),
            Reply::Gone => Answer::Gone,
        };
        if let Answer::Failed(_) | Answer::Gone = answer {
            self.again.insert(node.clone(), now);
        }
        self.answers.insert(node.clone(), answer);
    }

    fn handle_promoted(&mut self, now: Instant, node: &NodeId, reply: Reply, at: Option<&Addr>) -> Vec<Order> {
        let Step::Promoting { choice } = &self.step else {
            return Vec::new();
        };
        if choice.node != *node {
            return Vec::new();
        }
        let facts = match proving::promoted(node, &choice.run_id, reply) {
            Ok(facts) => facts,
            Err(why) => return vec![Order::Abandon(why)],
        };
        let Some(addr) = at.cloned() else {
            return vec![Order::Abandon(format!("nobody knows where {node} listens"))];
        };
        self.marks.end("promote", now);
        let choice = choice.clone();
        if !self.over_unfinished() || self.state.lineage.contains(&facts.replid) {
            return self.prove(now, choice, addr, facts);
        }
        // Its stream does not go back to an accepted one in one step, so who attaches is synchronised as a whole and names
        // no other afterwards: were it unknown when this node dies, too few would count.
        let mut state = self.state.clone();
        state.lineage.push(facts.replid.clone());
        self.step = Step::Announcing { choice, addr, facts };
        vec![Order::Write(state)]
    }

    /// Whether a half-promoted node may exist, and there is a lineage to keep.
    fn over_unfinished(&self) -> bool {
        matches!(self.from, Some(Phase::Electing | Phase::Switching)) && !self.state.founding()
    }

    fn prove(&mut self, now: Instant, choice: Choice, addr: Addr, facts: Facts) -> Vec<Order> {
        let node = &choice.node;
        let parked = self
            .answers
            .iter()
            .filter(|(_, answer)| matches!(answer, Answer::Parked(_)));
        let awaited: BTreeSet<NodeId> = parked.map(|(id, _)| id.clone()).filter(|id| id != node).collect();
        let (proving, orders) = Proving::begin(now, self.state.epoch, node, addr, facts, awaited);
        self.step = Step::Proving { choice, proving };
        orders
    }

    /// What is to be done now that time has passed or answers came.
    pub fn advance(&mut self, now: Instant, timings: &Timings) -> Vec<Order> {
        match &self.step {
            Step::Parking { since } => {
                let since = *since;
                let mut orders = self.parks(now, timings);
                orders.extend(self.choose(now, since, timings));
                orders
            }
            Step::Proving { .. } => self.publish(now, timings).into_iter().collect(),
            Step::Claiming
            | Step::Adopting { .. }
            | Step::Promoting { .. }
            | Step::Announcing { .. }
            | Step::Publishing { .. } => Vec::new(),
        }
    }

    fn parks(&mut self, now: Instant, timings: &Timings) -> Vec<Order> {
        let epoch = self.state.epoch;
        let mut orders = Vec::new();
        for id in &self.state.members {
            let due = match self.answers.get(id) {
                None => true,
                Some(Answer::Failed(_) | Answer::Gone) => {
                    self.again.get(id).is_none_or(|at| now >= *at + timings.ask_again)
                }
                Some(Answer::Pending | Answer::Parked(_)) => false,
            };
            if due {
                // A member that was asked before keeps its failure as the answer that counts as settled.
                self.answers.entry(id.clone()).or_insert(Answer::Pending);
                self.again.insert(id.clone(), now + timings.ask);
                orders.push(Order::Ask(id.clone(), Ask::Park { epoch }));
            }
        }
        orders
    }

    fn choose(&mut self, now: Instant, since: Instant, timings: &Timings) -> Vec<Order> {
        let waited = now.saturating_duration_since(since);
        match quorum::resolve(&self.state, &self.answers, waited, timings, &self.stakes) {
            Resolution::Choose(choice) => self.chosen(now, choice),
            Resolution::Wait(why) if waited >= timings.patience => self.complain(Level::Warn, why),
            Resolution::Wait(_) => Vec::new(),
            Resolution::Refuse(why) => self.complain(Level::Error, why),
        }
    }

    fn chosen(&mut self, now: Instant, choice: Choice) -> Vec<Order> {
        self.marks.end("park", now);
        if let (Some(accept), Grounds::Accepted) = (&self.state.accept, choice.grounds) {
            let who = match accept.asked_by.as_str() {
                "" => "somebody",
                who => who,
            };
            self.allowed = Some((who.to_owned(), self.stakes.lack(&choice)));
        }
        let sentence = format!(
            "promoting {} at offset {} for epoch {}: {}",
            choice.node,
            choice.offset,
            self.state.epoch,
            grounds(&choice, &self.answers)
        );
        let level = match choice.grounds {
            Grounds::Quorum | Grounds::Founding => Level::Info,
            Grounds::LastResort | Grounds::Accepted => Level::Warn,
        };
        let unknown = !self.state.lineage.contains(&choice.replid);
        let order = if unknown && self.over_unfinished() {
            let mut state = self.state.clone();
            state.lineage.push(choice.replid.clone());
            self.step = Step::Adopting { choice };
            Order::Write(state)
        } else {
            let order = self.promotion(&choice);
            self.step = Step::Promoting { choice };
            order
        };
        vec![Order::Say(level, sentence), order]
    }

    fn promotion(&self, choice: &Choice) -> Order {
        let ask = Ask::Promote {
            epoch: self.state.epoch,
            run_id: choice.run_id.clone(),
            mark: None,
        };
        Order::Ask(choice.node.clone(), ask)
    }

    fn complain(&mut self, level: Level, why: String) -> Vec<Order> {
        if self.said.as_ref() == Some(&why) {
            return Vec::new();
        }
        self.said = Some(why.clone());
        vec![Order::Say(
            level,
            format!("no master for epoch {} yet: {why}", self.state.epoch),
        )]
    }

    fn publish(&mut self, now: Instant, timings: &Timings) -> Option<Order> {
        let Step::Proving { choice, proving } = &mut self.step else {
            return None;
        };
        let order = proving.advance(now, timings, &self.state)?;
        if let Order::Write(_) = order {
            let choice = choice.clone();
            self.marks.end("prove", now);
            self.step = Step::Publishing { choice };
        }
        Some(order)
    }

    fn outcome(&self, choice: &Choice) -> Outcome {
        let began = self.marks.began();
        let detect = self
            .alive
            .map(|alive| ("detect", began.saturating_duration_since(alive)));
        Outcome {
            kind: match choice.grounds {
                Grounds::Founding => Kind::Founding,
                Grounds::Quorum | Grounds::LastResort | Grounds::Accepted => Kind::Failover,
            },
            result: Ending::Done,
            epoch: self.state.epoch,
            from: self.before.as_ref().map(|master| master.node.clone()),
            to: Some(choice.node.clone()),
            why: match &self.allowed {
                Some((who, lack)) => format!("{}; {who} accepted the loss: {lack}", self.why),
                None => self.why.clone(),
            },
            grounds: Some(choice.grounds),
            offset: Some(choice.offset),
            lost_bytes: self.lost_bytes(choice),
            asked_by: self.allowed.as_ref().map(|(who, _)| who.clone()),
            request: None,
            phases: detect.into_iter().chain(self.marks.phases()).collect(),
        }
    }

    /// What the old master had of the accepted stream beyond the new one. Known only if it was parked in the life that
    /// was published, on the stream that was.
    fn lost_bytes(&self, choice: &Choice) -> Option<u64> {
        let old = self.before.as_ref()?;
        let Some(Answer::Parked(facts)) = self.answers.get(&old.node) else {
            return None;
        };
        let same = facts.run_id == old.run_id && !facts.dirty && self.accepted.as_ref() == Some(&facts.replid);
        same.then(|| u64::try_from(facts.offset - choice.offset).unwrap_or(0))
    }
}

fn grounds(choice: &Choice, answers: &BTreeMap<NodeId, Answer>) -> String {
    let parked = answers
        .values()
        .filter(|answer| matches!(answer, Answer::Parked(_)))
        .count();
    let all = answers.len();
    match choice.grounds {
        Grounds::Quorum => format!("it holds the most of the valid members ({parked} of {all} are parked)"),
        Grounds::Founding => format!("the shard's first master ({parked} of {all} are parked)"),
        Grounds::LastResort => format!("no valid member is left, writes may be lost ({parked} of {all} are parked)"),
        Grounds::Accepted => format!("its operator accepts what it lacks ({parked} of {all} are parked)"),
    }
}

#[cfg(test)]
mod tests;
