//! What this agent's own Redis should be doing.
//!
//! Owns: carrying out what executors ask (within `obedience`), following the published master on its own,
//! and the node's seat among the members (rules R3, R4). Refuses: any other node's Redis. Invariants:
//! one piece of work at a time, and a newer one ends the older; a node that holds data of another origin
//! (`origin`) is left alone.

use std::time::{Duration, Instant};

use crate::topology::RunId;

use super::action::{Action, Job, Level, Reply};
use super::detector::{Health, Seen};
use super::facts::{Facts, Role};
use super::obedience::{Ask, Refusal};
use super::state::{MasterOf, State};
use super::stray::Stray;
use super::writing::Purpose;
use super::{Knowledge, Machine, Running, Source};

/// Between two attempts to attach our Redis to the published master.
const FOLLOW_AGAIN: Duration = Duration::from_millis(200);

impl Machine {
    /// Does as an executor asks, or says why not.
    pub(super) fn obey(&mut self, source: Source, ask: Ask) {
        let ready = self.ready();
        let life = self.detector.own_life().cloned();
        if let Err(refusal) = self.obedience.admit(&ask, ready, life.as_ref()) {
            return self.answer(source, Reply::Refused(refusal));
        }
        match ask {
            Ask::Reach { .. } => {}
            _ if self.is_foreign() => return self.answer(source, Reply::Refused(Refusal::Foreign)),
            _ if self.origin_unknown() && self.detector.health() != Health::Dead => {
                return self.answer(source, Reply::Refused(Refusal::NotReady));
            }
            Ask::Park { .. } | Ask::Fence { .. } | Ask::Promote { .. } | Ask::Follow { .. } => {}
        }
        match (&ask, self.running.as_ref().map(|running| &running.ask)) {
            (Ask::Follow { .. }, Some(Ask::Promote { .. })) => {
                return self.answer(source, Reply::Failed("a promotion is under way".to_owned()));
            }
            // Another look may be given up for this one, nothing else may.
            (Ask::Reach { .. }, Some(running)) if !matches!(running, Ask::Reach { .. }) => {
                return self.answer(source, Reply::Failed("its agent is busy with it".to_owned()));
            }
            _ => {}
        }
        self.obedience.begin(&ask);
        if self.detector.health() == Health::Dead {
            return self.answer(source, Reply::Gone);
        }
        self.act(source, ask);
    }

    fn act(&mut self, source: Source, ask: Ask) {
        let job = Job(self.next_id());
        let running = Running {
            job,
            ask: ask.clone(),
            source,
        };
        if let Some(ended) = self.running.replace(running) {
            self.answer(ended.source, Reply::Failed("a newer command came".to_owned()));
        }
        let epoch = self.obedience.epoch();
        if epoch > self.remembered {
            self.remembered = epoch;
            self.actions.push_back(Action::Remember(epoch));
        }
        self.actions.push_back(Action::Act { job, ask });
    }

    fn answer(&mut self, source: Source, reply: Reply) {
        match source {
            Source::Ticket(ticket) => self.actions.push_back(Action::Answer { ticket, reply }),
            Source::Course(id) => self.own_answers.push((id, reply)),
            Source::Published => {}
        }
    }

    pub(super) fn handle_acted(&mut self, now: Instant, job: Job, result: Result<Box<Facts>, String>) {
        let Some(running) = self.running.take_if(|running| running.job == job) else {
            return;
        };
        self.own_since = now;
        let reply = match result {
            Ok(mut facts) => {
                facts.priority = self.me.priority;
                self.cleanliness.judge(&mut facts);
                self.note_origin(&facts);
                if let Ask::Park { epoch } | Ask::Fence { epoch, .. } = &running.ask {
                    self.obedience.parked(*epoch, facts.run_id.clone());
                }
                self.own_reading = Some(now);
                let seen = Seen::Up {
                    facts: (*facts).clone(),
                    asked_at: now,
                };
                self.detector.handle_own(now, &seen);
                if matches!(running.ask, Ask::Park { .. }) && self.is_foreign() {
                    // It was restarted with it just before.
                    Reply::Refused(Refusal::Foreign)
                } else {
                    Reply::Done(facts)
                }
            }
            Err(why) => {
                if running.source == Source::Published {
                    self.shout(Level::Warn, format!("could not attach to the master: {why}"));
                }
                Reply::Failed(why)
            }
        };
        self.answer(running.source, reply);
    }

    /// Attaches our Redis to the published master if it is not.
    pub(super) fn follow_published(&mut self, now: Instant) {
        if !self.ready() || self.running.is_some() || now < self.follow_again {
            return;
        }
        let Some(known) = self.state() else { return };
        let state = &known.state;
        let Some(master) = state.serving().cloned() else { return };
        let epoch = state.epoch;
        let mine = master.node == self.me.node || !state.members.contains(&self.me.node);
        if mine || epoch < self.obedience.epoch() {
            return;
        }
        let Some(facts) = self
            .detector
            .own_facts()
            .filter(|_| self.detector.health() == Health::Alive)
        else {
            return;
        };
        let current = self.own_reading.is_some_and(|read| read >= self.own_since);
        if !current || facts.loading || facts.follows_in(&master.addr, epoch) {
            return;
        }
        if self.holds_foreign_data(facts, state) {
            return;
        }
        let ask = Ask::Follow {
            epoch,
            master: master.node.clone(),
            addr: master.addr.clone(),
            run_id: master.run_id.clone(),
            fence: 0,
        };
        self.stray = Stray::of(state, facts);
        self.follow_again = now + FOLLOW_AGAIN;
        self.obedience.follow_published(epoch);
        self.say(
            Level::Info,
            format!("{} follows {} in epoch {epoch}", self.me.node, master.node),
        );
        self.act(Source::Published, ask);
    }

    /// The master was read: says what we held and it did not have, which its stream now replaces.
    pub(super) fn tell_stray(&mut self, master: &Facts) {
        let Some(stray) = self.stray.take_if(|stray| stray.concerns(master)) else {
            return;
        };
        let Some(bytes) = stray.bytes(master) else { return };
        let epoch = stray.epoch;
        if bytes > 0 {
            let node = &self.me.node;
            let sentence = format!(
                "{node} held {bytes} bytes of the stream that the master of epoch {epoch} does not have: they are dropped"
            );
            self.say(Level::Warn, sentence);
        }
        self.actions.push_back(Action::Lost { epoch, bytes });
    }

    /// Takes a seat (R4) or proves that our Redis holds this epoch's data (R3).
    pub(super) fn consider_membership(&mut self, now: Instant) {
        let free = self.pending.is_none() && self.course.is_none() && now >= self.write_again;
        if !free || !self.connected || !self.ready() || self.detector.health() != Health::Alive {
            return;
        }
        let Knowledge::Known(known, since) = &self.knowledge else {
            return;
        };
        let state = &known.state;
        let (Some(master), Some(facts)) = (state.serving(), self.detector.own_facts()) else {
            return;
        };
        if master.node == self.me.node {
            return self.keep_lineage(now, *since, master.clone(), state.clone());
        }
        let next = if !state.members.contains(&self.me.node) {
            self.with_seat(state, facts)
        } else if state.valid.get(&self.me.node) != Some(&facts.run_id) && self.caught_up(*since, master, state, facts)
        {
            self.with_valid(state, &facts.run_id)
        } else {
            None
        };
        if let Some(next) = next {
            self.write_again = now + self.timings.probe;
            self.write(next, Purpose::Seat);
        }
    }

    /// Our Redis is the master and its stream has a new name: it had no backlog (new, or an hour without
    /// replicas), so nobody was linked when it was renamed, and whoever follows has the new name. The seats of
    /// those who hold only the old one stop counting by that (rule R6).
    fn keep_lineage(&mut self, now: Instant, since: Instant, master: MasterOf, state: State) {
        let Some(facts) = self.detector.own_facts() else { return };
        let current = self.own_reading.is_some_and(|read| read > since);
        let ours = facts.run_id == master.run_id && facts.role == Role::Master;
        if !current || !ours || state.lineage.first() == Some(&facts.replid) {
            return;
        }
        let lineage = vec![facts.replid.clone()];
        self.write_again = now + self.timings.probe;
        self.write(State { lineage, ..state }, Purpose::Seat);
    }

    fn with_seat(&self, state: &State, facts: &Facts) -> Option<State> {
        if self.holds_foreign_data(facts, state) {
            return None;
        }
        let mut next = state.clone();
        next.members.insert(self.me.node.clone());
        Some(next)
    }

    fn with_valid(&self, state: &State, run_id: &RunId) -> Option<State> {
        let mut next = state.clone();
        next.valid.insert(self.me.node.clone(), run_id.clone());
        Some(next)
    }

    /// Linked with this epoch's credential, and past the offset that the master had after the state was
    /// read at the version the write is conditional on.
    fn caught_up(&self, since: Instant, master: &MasterOf, state: &State, facts: &Facts) -> bool {
        let Some((theirs, asked_at)) = &self.master_reading else {
            return false;
        };
        let fresh = *asked_at >= since && self.own_reading.is_some_and(|read| read >= *asked_at);
        let right = theirs.run_id == master.run_id && theirs.role == Role::Master;
        let linked = facts.follows_in(&master.addr, state.epoch) && facts.link_up && !facts.dirty && !facts.syncing;
        let stream = facts.replid == theirs.replid && state.lineage.first() == Some(&facts.replid);
        fresh && right && linked && stream && facts.offset >= theirs.offset
    }
}
