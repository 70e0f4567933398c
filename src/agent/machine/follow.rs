//! What this agent's own Redis should be doing.
//!
//! Owns: carrying out what executors ask (within `obedience`), and following the published master on its own.
//! Refuses: any other node's Redis, and the node's seat (`membership`). Invariants: one piece of work at a time, and a
//! newer one ends the older; a node that holds data of another origin (`origin`) is left alone.

use std::time::{Duration, Instant};

use super::action::{Action, Job, Level, Reply};
use super::detector::{Health, Seen};
use super::facts::Facts;
use super::obedience::{Ask, Refusal};
use super::stray::Stray;
use super::{Machine, Running, Source};

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
            Ask::Park { .. } | Ask::Fence { .. } | Ask::Promote { .. } | Ask::Renew { .. } | Ask::Follow { .. } => {}
        }
        match (&ask, self.running.as_ref().map(|running| &running.ask)) {
            (Ask::Follow { .. }, Some(Ask::Promote { .. } | Ask::Renew { .. })) => {
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

    pub(super) fn act(&mut self, source: Source, ask: Ask) {
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
            Source::Published | Source::Lease => {}
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
                match running.source {
                    Source::Published => self.shout(Level::Warn, format!("could not attach to the master: {why}")),
                    Source::Lease => self.shout(Level::Warn, format!("could not stand down: {why}")),
                    Source::Ticket(_) | Source::Course(_) => {}
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
        let (facts, state) = (facts.clone(), state.clone());
        if self.holds_foreign_data(&facts, &state) {
            return;
        }
        let ask = Ask::Follow {
            epoch,
            master: master.node.clone(),
            addr: master.addr.clone(),
            run_id: master.run_id.clone(),
            fence: 0,
        };
        self.stray = Stray::of(&state, &facts);
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
}
