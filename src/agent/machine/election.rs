//! One election, seen from its executor: claim, park, choose, promote, prove, publish (F1 to F6).
//!
//! ```text
//! claiming -> parking -> [adopting] -> promoting -> proving -> publishing -> done
//!     |          |           |             |            |           |
//!     +----------+-----------+-------------+------------+-----------+--> abandoned (a newer claim follows)
//! ```
//!
//! Owns: the steps of one epoch and the answers to them. Refuses: I/O, deciding *whether* to elect
//! (`machine`), and a second candidate: another one is another claim (rule R7). Invariants: nobody is
//! promoted before the quorum is parked; at most one node is promoted per epoch; nothing is published
//! but what was promoted; each compare-and-set is conditional on the version of the one before it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::topology::{Addr, Epoch, NodeId, Phase, RunId};

use super::action::{Level, Reply};
use super::facts::{Facts, Role};
use super::obedience::Ask;
use super::quorum::{self, Answer, Choice, Grounds, Resolution};
use super::state::{MasterOf, State};
use super::timings::Timings;

/// An election under way.
#[derive(Clone, Debug)]
pub struct Election {
    /// The state as we last wrote it.
    state: State,
    /// The phase the claim started from; from `electing` a half-promoted node may exist (rule R6).
    from: Option<Phase>,
    /// The master published before.
    old: Option<NodeId>,
    why: String,
    answers: BTreeMap<NodeId, Answer>,
    /// When each member that could not be parked is asked again.
    again: BTreeMap<NodeId, Instant>,
    step: Step,
    marks: Marks,
    said: Option<String>,
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one per agent; never in a collection")]
enum Step {
    /// The claim is being written. Next: parking.
    Claiming,
    /// Members are being parked. Next: adopting, promoting.
    Parking { since: Instant },
    /// The candidate's stream is being added to the lineage. Next: promoting.
    Adopting { choice: Choice },
    /// The candidate was told. Next: proving.
    Promoting { choice: Choice },
    /// The others attach to it. Next: publishing.
    Proving {
        choice: Choice,
        promoted: MasterOf,
        facts: Facts,
        awaited: BTreeSet<NodeId>,
        /// Run id and stream of each replica that proved itself.
        proven: BTreeMap<NodeId, (RunId, String)>,
        since: Instant,
    },
    /// The `serving` state is being written. Next: done.
    Publishing { choice: Choice },
}

/// What the executor wants done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Ask a node's agent.
    Ask(NodeId, Ask),
    /// Write this state over the last one.
    Write(State),
    /// Give up this epoch; claim another.
    Abandon(String),
    /// Tell people.
    Say(Level, String),
}

/// When each phase ended.
#[derive(Clone, Debug)]
struct Marks {
    alive: Option<Instant>,
    began: Instant,
    ends: Vec<(&'static str, Instant)>,
}

/// What an election came to, for the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The published epoch.
    pub epoch: Epoch,
    /// The master before, if any.
    pub from: Option<NodeId>,
    /// The master now.
    pub to: NodeId,
    /// Why it was held.
    pub why: String,
    /// On what grounds the new master was chosen.
    pub grounds: Grounds,
    /// What the new master held of the accepted stream, in bytes.
    pub offset: i64,
    /// How long each phase took, in order; the first is the time from the master's last answer.
    pub phases: Vec<(&'static str, Duration)>,
}

impl Election {
    /// Begins with the claim `state`, which is yet to be written. `alive` is when the old master last
    /// answered, `from` the phase the shard was in.
    pub fn new(now: Instant, state: State, from: Option<Phase>, why: String, alive: Option<Instant>) -> Self {
        Self {
            old: state.master.as_ref().map(|master| master.node.clone()),
            state,
            from,
            why,
            answers: BTreeMap::new(),
            again: BTreeMap::new(),
            step: Step::Claiming,
            marks: Marks {
                alive,
                began: now,
                ends: Vec::new(),
            },
            said: None,
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
            | Step::Proving { .. }
            | Step::Publishing { .. } => self.owns(read),
        }
    }

    fn owns(&self, read: &State) -> bool {
        read.epoch == self.state.epoch && read.nonce == self.state.nonce
    }

    /// The last order to write was carried out. Gives the outcome if that ends the election.
    pub fn handle_written(&mut self, now: Instant, written: &State) -> Option<Outcome> {
        self.state = written.clone();
        match &self.step {
            Step::Claiming => {
                self.marks.ends.push(("claim", now));
                self.step = Step::Parking { since: now };
            }
            Step::Adopting { choice } => {
                let choice = choice.clone();
                self.step = Step::Promoting { choice };
            }
            Step::Publishing { choice } => {
                self.marks.ends.push(("publish", now));
                return Some(self.outcome(choice));
            }
            Step::Parking { .. } | Step::Promoting { .. } | Step::Proving { .. } => {}
        }
        None
    }

    /// The first promotion order after an adoption; nothing otherwise.
    pub fn resume(&self) -> Option<Order> {
        match &self.step {
            Step::Promoting { choice } => Some(self.promotion(choice)),
            _ => None,
        }
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
                self.handle_following(node, reply);
                Vec::new()
            }
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
        let facts = match (reply, at) {
            (Reply::Done(facts), Some(_)) if facts.role == Role::Master && facts.run_id == choice.run_id => *facts,
            (Reply::Done(_), _) => return vec![Order::Abandon(format!("{node} is not the process that was parked"))],
            (Reply::Refused(why), _) => return vec![Order::Abandon(format!("{node} refused the promotion: {why}"))],
            (Reply::Gone, _) => return vec![Order::Abandon(format!("{node} died before it was promoted"))],
            (Reply::Failed(why), _) => return vec![Order::Abandon(format!("{node} could not be promoted: {why}"))],
        };
        let Some(addr) = at.cloned() else {
            return vec![Order::Abandon(format!("nobody knows where {node} listens"))];
        };
        self.marks.ends.push(("promote", now));
        let choice = choice.clone();
        let promoted = MasterOf {
            node: node.clone(),
            addr,
            run_id: facts.run_id.clone(),
        };
        let parked = self
            .answers
            .iter()
            .filter(|(_, answer)| matches!(answer, Answer::Parked(_)));
        let awaited: BTreeSet<NodeId> = parked.map(|(id, _)| id.clone()).filter(|id| id != node).collect();
        let follow = Ask::Follow {
            epoch: self.state.epoch,
            master: node.clone(),
            addr: promoted.addr.clone(),
            run_id: promoted.run_id.clone(),
            fence: facts.offset,
        };
        let orders = awaited
            .iter()
            .map(|id| Order::Ask(id.clone(), follow.clone()))
            .collect();
        self.step = Step::Proving {
            choice,
            promoted,
            facts,
            awaited,
            proven: BTreeMap::new(),
            since: now,
        };
        orders
    }

    /// A replica counts as proven when it is linked with this epoch's credential and has everything the
    /// master had at its promotion (rule R2). Its stream may have another name than the master reported: a
    /// master without a backlog renames its stream when the first replica attaches (`syncCommand` in
    /// Redis' replication.c), and what a linked replica follows is what the master feeds.
    fn handle_following(&mut self, node: &NodeId, reply: Reply) {
        let epoch = self.state.epoch;
        let Step::Proving {
            promoted,
            facts: master,
            awaited,
            proven,
            ..
        } = &mut self.step
        else {
            return;
        };
        awaited.remove(node);
        let Reply::Done(facts) = reply else { return };
        let linked = facts.follows_in(&promoted.addr, epoch) && facts.link_up && !facts.dirty && !facts.syncing;
        if linked && facts.offset >= master.offset {
            proven.insert(node.clone(), (facts.run_id.clone(), facts.replid.clone()));
        }
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
            Step::Claiming | Step::Adopting { .. } | Step::Promoting { .. } | Step::Publishing { .. } => Vec::new(),
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
        match quorum::resolve(&self.state, &self.answers, waited, timings) {
            Resolution::Choose(choice) => self.chosen(now, choice),
            Resolution::Wait(why) if waited >= timings.patience => self.complain(Level::Warn, why),
            Resolution::Wait(_) => Vec::new(),
            Resolution::Refuse(why) => self.complain(Level::Error, why),
        }
    }

    fn chosen(&mut self, now: Instant, choice: Choice) -> Vec<Order> {
        self.marks.ends.push(("park", now));
        let sentence = format!(
            "promoting {} at offset {} for epoch {}: {}",
            choice.node,
            choice.offset,
            self.state.epoch,
            grounds(&choice, &self.answers)
        );
        let level = match choice.grounds {
            Grounds::Quorum | Grounds::Founding => Level::Info,
            Grounds::LastResort => Level::Warn,
        };
        let unknown = !self.state.lineage.contains(&choice.replid);
        let adopt = self.from == Some(Phase::Electing) && unknown && !self.state.founding();
        let order = if adopt {
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
        let Step::Proving {
            choice,
            promoted,
            facts,
            awaited,
            proven,
            since,
        } = &self.step
        else {
            return None;
        };
        let waited = now.saturating_duration_since(*since);
        let needed = usize::try_from(self.state.ack_replicas).unwrap_or(usize::MAX);
        let patience = if proven.len() >= needed {
            timings.prove
        } else {
            timings.prove_needed
        };
        if !awaited.is_empty() && waited < patience {
            return None;
        }
        // If they disagree, the stream was renamed between them: the new name is the one not reported.
        let renamed = proven
            .values()
            .map(|(_, replid)| replid)
            .find(|replid| **replid != facts.replid);
        let replid = renamed.unwrap_or(&facts.replid).clone();
        let of_stream = proven.iter().filter(|(_, (_, stream))| *stream == replid);
        let mut valid: BTreeMap<NodeId, RunId> = of_stream.map(|(id, (life, _))| (id.clone(), life.clone())).collect();
        valid.insert(promoted.node.clone(), promoted.run_id.clone());
        let state = State {
            phase: Phase::Serving,
            master: Some(promoted.clone()),
            lineage: vec![replid],
            valid,
            ..self.state.clone()
        };
        let choice = choice.clone();
        self.marks.ends.push(("prove", now));
        self.step = Step::Publishing { choice };
        Some(Order::Write(state))
    }

    fn outcome(&self, choice: &Choice) -> Outcome {
        let mut phases = Vec::new();
        if let Some(alive) = self.marks.alive {
            phases.push(("detect", self.marks.began.saturating_duration_since(alive)));
        }
        let mut from = self.marks.began;
        for (name, end) in &self.marks.ends {
            phases.push((*name, end.saturating_duration_since(from)));
            from = *end;
        }
        Outcome {
            epoch: self.state.epoch,
            from: self.old.clone(),
            to: choice.node.clone(),
            why: self.why.clone(),
            grounds: choice.grounds,
            offset: choice.offset,
            phases,
        }
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
    }
}
