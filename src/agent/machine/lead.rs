//! Claiming an epoch and executing its election.
//!
//! Owns: when this agent claims, in which order agents come forward, and carrying out an election's orders.
//! Refuses: touching any Redis but through its agent. Invariant: a claim is a compare-and-set on the state
//! that the verdict was about, so a verdict that is out of date loses.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::topology::codec::Ending;
use crate::topology::{Addr, NodeId, Phase};

use super::action::{Action, AskId, Level, Reply, Suspicion};
use super::course::Course;
use super::detector::Verdict;
use super::election::{Election, Order};
use super::facts::Role;
use super::obedience::Ask;
use super::outcome::Outcome;
use super::quorum::{Grounds, Stakes};
use super::state::{MasterOf, State, Versioned};
use super::writing::{Pending, Purpose};
use super::{Knowledge, Machine, Question, Source};

impl Machine {
    pub(super) fn consider_claim(&mut self, now: Instant) {
        let free = self.pending.is_none() && self.course.is_none() && now >= self.claim_again;
        if !free || !self.connected || !self.ready() {
            return;
        }
        let unfinished = self
            .state()
            .is_some_and(|known| known.state.phase != Phase::Serving && known.state.executor == self.me.node);
        if self.leaving && !unfinished {
            return;
        }
        match &self.knowledge {
            Knowledge::Unread => {}
            Knowledge::Absent => self.consider_founding(now),
            Knowledge::Known(known, since) => {
                let (state, since) = (known.state.clone(), *since);
                match state.phase {
                    Phase::Serving => self.consider_failover(now, &state),
                    Phase::Electing | Phase::Switching => self.consider_takeover(now, &state, since),
                }
            }
        }
    }

    /// The agent is to end: what can be taken back is, the rest comes to its end.
    pub(super) fn wind_down(&mut self, now: Instant) {
        if self.leaving
            && let Some(course) = &mut self.course
            && let Some(order) = course.interrupt(now, "its agent stops".to_owned())
        {
            self.asks.clear();
            self.carry_out(now, vec![order]);
        }
    }

    /// Whether nobody is left waiting if this agent ends now.
    pub fn at_rest(&self, now: Instant) -> bool {
        let writing = self.pending.as_ref().is_some_and(Pending::of_course);
        let over = self
            .course
            .as_ref()
            .is_none_or(|course| course.dispensable(now, &self.timings));
        let state = self.state().map(|known| &known.state);
        // What it gave up it takes up again itself: nobody else knows as soon.
        let left = state.is_some_and(|state| state.phase != Phase::Serving && state.executor == self.me.node);
        let resumes = left && self.course.is_none() && self.connected;
        over && !writing && !resumes
    }

    /// The shard has no state yet: whoever creates it holds the first election.
    fn consider_founding(&mut self, now: Instant) {
        let Some(synced) = self.synced else { return };
        let wanted = &self.wanted.members;
        let everybody = !wanted.is_empty() && wanted.is_subset(&self.registered);
        let waited = now.saturating_duration_since(synced);
        let late = self.head_start(None);
        let due = if everybody {
            waited >= late
        } else {
            waited >= self.timings.founding + late
        };
        if !due || !self.registered.contains(&self.me.node) || self.detector.own_life().is_none() {
            return;
        }
        let members = if self.wanted.members.is_empty() {
            self.registered.clone()
        } else {
            self.wanted.members.clone()
        };
        let nonce = format!("{:016x}", self.draw());
        let state = State {
            epoch: crate::topology::Epoch(1),
            phase: Phase::Electing,
            executor: self.me.node.clone(),
            nonce,
            master: None,
            lineage: Vec::new(),
            members,
            valid: Default::default(),
            ack_replicas: self.wanted.ack_replicas,
            switch: None,
            shrunk_from: 0,
            accept: None,
            moved: None,
        };
        self.begin(now, state, None, "the shard is new".to_owned());
    }

    fn consider_failover(&mut self, now: Instant, state: &State) {
        let Some(master) = state.serving().cloned() else { return };
        if self.leaves_it_to_others(now, state) {
            return;
        }
        let verdict = self.verdict(now, &master, state);
        let why = match verdict {
            Verdict::Fine => {
                self.accused = None;
                return;
            }
            Verdict::Gone(why) => why,
            Verdict::Unreachable => {
                let silent = self.accusers(&master, state);
                let needed = accusers_needed(state);
                // Its replacement would lose what its replicas lack: at W = 0 its word in the store is enough.
                if silent < needed || self.is_denied(now, &master, state) {
                    return;
                }
                format!("{silent} agents hear neither it nor its agent")
            }
        };
        let since = match &self.accused {
            Some((accused, since)) if *accused == master => *since,
            _ => {
                self.accused = Some((master.clone(), now));
                now
            }
        };
        if now.saturating_duration_since(since) < self.head_start(Some(&master.node)) {
            return;
        }
        self.claim(now, state, format!("{} is gone: {why}", master.node));
    }

    fn verdict(&self, now: Instant, master: &MasterOf, state: &State) -> Verdict {
        let Knowledge::Known(_, since) = &self.knowledge else {
            return Verdict::Fine;
        };
        let read_since = self.own_reading.is_some_and(|read| read > *since);
        let own = self.detector.own_facts();
        let demoted = own.is_some_and(|facts| facts.run_id == master.run_id && facts.role == Role::Replica);
        let by_us = self.obedience.epoch() > state.epoch || self.running.is_some();
        if master.node == self.me.node && read_since && demoted && !by_us {
            let why = if self.lease.ended() {
                "it stood down while nobody was heard"
            } else {
                "it was made a replica by somebody else"
            };
            return Verdict::Gone(why.to_owned());
        }
        self.detector.verdict(now, master, &self.me.node)
    }

    /// How many agents, this one included, say that they hear neither the master nor its agent.
    fn accusers(&self, master: &MasterOf, state: &State) -> usize {
        let others = self.suspects.iter().filter(|suspect| {
            suspect.denial.is_none()
                && suspect.run_id == master.run_id
                && suspect.by != self.me.node
                && state.members.contains(&suspect.by)
        });
        others.count() + usize::from(state.members.contains(&self.me.node))
    }

    /// Puts our own evidence up, or takes it back.
    pub(super) fn accuse(&mut self, now: Instant) {
        let known = self.state().map(|known| known.state.clone());
        let accused = known.and_then(|state| {
            let master = state.serving()?.clone();
            let verdict = self.detector.verdict(now, &master, &self.me.node);
            (verdict == Verdict::Unreachable).then(|| Suspicion {
                by: self.me.node.clone(),
                master: master.node,
                run_id: master.run_id,
                denial: None,
            })
        });
        if self.connected && accused != self.suspicion {
            if let Some(suspicion) = &accused {
                let sentence = format!("neither {} nor its agent answers", suspicion.master);
                self.say(Level::Warn, sentence);
            }
            self.suspicion = accused.clone();
            self.actions.push_back(Action::Suspect(accused));
        }
    }

    /// An election was claimed and nobody published: its executor may be gone.
    fn consider_takeover(&mut self, now: Instant, state: &State, since: Instant) {
        let waited = now.saturating_duration_since(since);
        let mine = state.executor == self.me.node;
        let status = self.detector.status_of(now, &state.executor);
        let electing = status.is_some_and(|status| status.electing == Some(state.epoch));
        let patience = match status {
            _ if mine => Duration::ZERO,
            _ if electing => return,
            // It answers but holds no election: it gave up, or its answer is older than its claim.
            Some(_) => self.timings.probe * 4,
            // Clients wait, and an agent whose port refuses does not come to its end.
            None if state.phase == Phase::Switching && self.detector.refused_by(&state.executor) => self.timings.probe,
            None => self.timings.patience,
        };
        if waited
            >= patience
                + if mine {
                    Duration::ZERO
                } else {
                    self.head_start(Some(&state.executor))
                }
        {
            let (what, epoch) = match state.phase {
                Phase::Switching => ("switchover", state.reach()),
                Phase::Serving | Phase::Electing => ("election", state.epoch),
            };
            let why = format!("the {what} by {} for epoch {epoch} did not end", state.executor);
            self.claim(now, state, why);
        }
    }

    /// How long this agent lets others go first: none beside the master, then by name. Only avoids duels.
    fn head_start(&self, subject: Option<&NodeId>) -> Duration {
        if subject == Some(&self.me.node) {
            return Duration::ZERO;
        }
        let before = |id: &&NodeId| **id < self.me.node && Some(*id) != subject;
        let rank = u32::try_from(self.registered.iter().filter(before).count()).unwrap_or(u32::MAX);
        let beside = subject.is_some_and(|subject| self.registered.contains(subject));
        self.timings
            .stagger
            .saturating_mul(rank.saturating_add(if beside { 2 } else { 0 }))
    }

    fn claim(&mut self, now: Instant, state: &State, why: String) {
        let nonce = format!("{:016x}", self.draw());
        let claimed = state.claimed_by(&self.me.node, nonce);
        self.begin(now, claimed, Some(state.phase), why);
    }

    fn begin(&mut self, now: Instant, state: State, from: Option<Phase>, why: String) {
        self.say(Level::Info, format!("claiming epoch {}: {why}", state.epoch));
        let alive = state.master.as_ref();
        let alive = alive.and_then(|master| self.detector.last_answer(master, &self.me.node));
        let life = state.master.as_ref().map(|master| &master.run_id);
        let seen = self.seen.as_ref().filter(|(seen, _)| Some(seen) == life);
        let stakes = Stakes {
            seen: seen.map(|(_, offset)| *offset),
            max_loss: self.wanted.max_loss_bytes,
        };
        let election = Election::new(now, state.clone(), from, why, alive, stakes);
        self.course = Some(Course::Election(election));
        self.write(state, Purpose::Course);
    }

    pub(super) fn handle_course_written(&mut self, now: Instant, written: Versioned) {
        let Some(course) = &mut self.course else { return };
        let outcome = course.handle_written(now, &written.state);
        let next = course.resume();
        self.accused = None;
        match outcome {
            Some(outcome) => self.finish(written, outcome),
            None => {
                if written.state.phase == Phase::Switching {
                    self.actions.push_back(Action::Relay(written));
                }
                self.carry_out(now, next);
            }
        }
    }

    fn finish(&mut self, written: Versioned, outcome: Outcome) {
        self.course = None;
        self.asks.clear();
        let master = written.state.master.as_ref();
        let master = master.map_or("nobody".to_owned(), |master| master.node.to_string());
        let (epoch, timeline) = (outcome.epoch, outcome.timeline());
        let sentence = match outcome.result {
            Ending::RolledBack => format!("{master} stays the master: {} ({timeline})", outcome.why),
            _ => format!("{master} is the master of epoch {epoch} ({timeline})"),
        };
        let lossy = matches!(outcome.grounds, Some(Grounds::LastResort | Grounds::Accepted));
        let level = if lossy || outcome.result == Ending::RolledBack {
            Level::Warn
        } else {
            Level::Info
        };
        self.say(level, sentence);
        self.actions.push_back(Action::Relay(written));
        self.record(outcome);
    }

    /// Gives up what this agent executes. A switchover that was begun is over with it: an election follows.
    pub(super) fn drop_course(&mut self, why: String) {
        let Some(course) = self.course.take() else { return };
        self.asks.clear();
        if !course.untouched()
            && let Some(outcome) = course.failed(why)
        {
            self.record(outcome);
        }
    }

    pub(super) fn advance_course(&mut self, now: Instant) {
        if let Some(course) = &self.course
            && course.reversible()
            && !course.untouched()
            && let Some(why) = self.master_lost(now)
        {
            return self.carry_out(now, vec![Order::Abandon(why)]);
        }
        let Some(course) = &mut self.course else { return };
        let proxies = self.proxies.as_ref().unwrap_or(const { &BTreeSet::new() });
        let orders = course.advance(now, &self.timings, proxies);
        self.carry_out(now, orders);
    }

    /// Whether the published master, which is our own, is gone while it is being left.
    fn master_lost(&self, now: Instant) -> Option<String> {
        let state = &self.state()?.state;
        let master = state.master.as_ref()?;
        match self.verdict(now, master, state) {
            Verdict::Gone(why) => Some(format!("{} is gone: {why}", master.node)),
            Verdict::Fine | Verdict::Unreachable => None,
        }
    }

    pub(super) fn handle_answered(&mut self, now: Instant, id: AskId, reply: Reply) {
        let Some(Question { node, ask, direct, .. }) = self.asks.remove(&id) else {
            return;
        };
        let mut reply = reply;
        if direct {
            self.handle_deputy(&node, &ask, &mut reply);
        }
        let at = self.addr_of(&node);
        let Some(course) = &mut self.course else { return };
        let orders = course.handle_reply(now, &node, &ask, reply, at.as_ref());
        self.carry_out(now, orders);
    }

    pub(super) fn carry_out(&mut self, now: Instant, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Ask(node, ask) => self.ask(now, node, ask),
                Order::Write(state) => self.write(state, Purpose::Course),
                Order::Attach(epoch, course, target) => {
                    self.actions.push_back(Action::Attach(epoch, course, target));
                }
                Order::Say(level, sentence) => self.say(level, sentence),
                Order::Claim => self.claim_switchover(now),
                Order::Retreat(why) => self.retreat(now, why),
                Order::Abandon(why) => self.abandon(now, why),
            }
        }
    }

    fn abandon(&mut self, now: Instant, why: String) {
        let Some(course) = &self.course else { return };
        if course.untouched() {
            return self.retreat(now, why);
        }
        let what = course.name();
        let pause = match course {
            // Clients wait: the election begins at once.
            Course::Switchover(_) | Course::Reform(_) => Duration::ZERO,
            Course::Election(_) => Duration::from_millis(10 + self.draw() % 20),
        };
        self.say(Level::Warn, format!("giving up the {what}: {why}"));
        self.drop_course(why);
        self.claim_again = now + pause;
    }

    fn ask(&mut self, now: Instant, node: NodeId, ask: Ask) {
        let id = AskId(self.next_id());
        let past = self.deputises(&node, &ask).then(|| self.addr_of(&node)).flatten();
        let question = Question {
            node: node.clone(),
            ask: ask.clone(),
            until: now + self.timings.ask,
            direct: past.is_some(),
        };
        self.asks.insert(id, question);
        match past {
            _ if node == self.me.node => self.obey(Source::Course(id), ask),
            Some(addr) => self.actions.push_back(Action::Deputise { id, addr, ask }),
            None => self.actions.push_back(Action::Ask { id, node, ask }),
        }
    }

    pub(super) fn expire_asks(&mut self, now: Instant) {
        let late = self.asks.iter().filter(|(_, question)| now >= question.until);
        let late: Vec<AskId> = late.map(|(id, _)| *id).collect();
        for id in late {
            self.handle_answered(now, id, Reply::Failed("no answer in time".to_owned()));
        }
    }

    fn addr_of(&self, node: &NodeId) -> Option<Addr> {
        if *node == self.me.node {
            return Some(self.me.addr.clone());
        }
        self.addrs.get(node).cloned()
    }
}

/// How many agents must hear nothing before a silent host counts as gone: with acknowledgements those
/// that could elect (n-W), without them a majority, but never more than there are others.
pub(super) fn accusers_needed(state: &State) -> usize {
    let n = state.members.len();
    let w = usize::try_from(state.ack_replicas).unwrap_or(usize::MAX);
    let needed = if w == 0 { n / 2 + 1 } else { n.saturating_sub(w) };
    needed.min(n.saturating_sub(1)).max(1)
}
