//! Seats and W: the node's own seat (rules R3, R4), and what the master's agent does about what the operator wants (R5).
//!
//! Owns: catching up for a seat, taking it, proving it, leaving the shard, beginning reforms. Refuses: the steps of a reform (`reform`) and
//! what is to come next (`wanted`). Invariants: a node takes a seat only if it is wanted and holds no data of another
//! origin; where replicas acknowledge it has caught up before, behind a replica, whom no WAIT at the master counts: so its
//! seat never weighs on an election before it can help it; only the agent of the serving master changes W or takes seats away, and only from `serving`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::topology::codec::{Ending, Kind, ShardConfig, SwitchRequest};
use crate::topology::{Addr, NodeId, RunId};

use super::action::Level;
use super::course::Course;
use super::detector::{Health, Status};
use super::facts::{Facts, Role};
use super::obedience::Ask;
use super::outcome::Outcome;
use super::reform::{Goal, Reform};
use super::state::{MasterOf, State};
use super::wanted::{Plan, There, plan};
use super::writing::Purpose;
use super::{Knowledge, Machine, Source};

/// Until a change that came to nothing is tried again.
const REFORM_AGAIN: Duration = Duration::from_secs(1);
/// Between two attempts to leave the shard, or to catch up for a seat.
const LEAVE_AGAIN: Duration = Duration::from_millis(200);

impl Machine {
    pub(super) fn handle_wanted(&mut self, wanted: ShardConfig) {
        if wanted != self.wanted {
            self.wanted = wanted;
            self.planned = None;
        }
    }

    /// Whether a node is to have a seat.
    fn is_wanted(&self, node: &NodeId) -> bool {
        self.wanted.members.is_empty() || self.wanted.members.contains(node)
    }

    /// Takes a seat (R4) or proves that our Redis holds this epoch's data (R3).
    pub(super) fn consider_seat(&mut self, now: Instant) {
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
            self.with_seat(now, *since, master, state, facts)
                .map(|next| (next, Purpose::Join))
        } else if state.valid.get(&self.me.node) != Some(&facts.run_id)
            && self.caught_up(*since, master, &master.addr, state, facts)
        {
            Some((self.with_valid(state, &facts.run_id), Purpose::Seat))
        } else {
            None
        };
        if let Some((next, purpose)) = next {
            self.write_again = now + self.timings.probe;
            self.write(next, purpose);
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

    fn with_seat(
        &self,
        now: Instant,
        since: Instant,
        master: &MasterOf,
        state: &State,
        facts: &Facts,
    ) -> Option<State> {
        if !self.is_wanted(&self.me.node) || self.holds_foreign_data(facts, state) {
            return None;
        }
        let mut next = state.clone();
        next.members.insert(self.me.node.clone());
        if let Some(feeder) = self.feeder(now, state, facts) {
            if !self.caught_up(since, master, &feeder, state, facts) {
                return None;
            }
            next.valid.insert(self.me.node.clone(), facts.run_id.clone());
        } else if self.feeder_may_come(now, state) {
            return None;
        }
        Some(next)
    }

    /// Whether there may soon be a replica that our node can catch up behind: what its agent last said is older than the
    /// epoch, if it said anything. A seat that is taken before could be in the way of the next election (n-W valid members)
    /// without being of use to it, and an agent that learns late that its seat is gone may not have heard yet that it is
    /// to have none.
    fn feeder_may_come(&self, now: Instant, state: &State) -> bool {
        let Some(master) = state.serving().filter(|_| state.keeps()) else {
            return false;
        };
        let late = |status: &Status| {
            let older = status.facts.as_ref().is_some_and(|facts| facts.epoch < state.epoch);
            status.health == Health::Alive && older
        };
        let mut others = state
            .members
            .iter()
            .filter(|id| **id != master.node && **id != self.me.node);
        others.any(|id| self.registered.contains(id) && self.detector.status_of(now, id).is_none_or(late))
    }

    /// Behind whom our node catches up before it takes a seat: a replica that is valid and linked. None where no replica
    /// acknowledges, or there is none.
    fn feeder(&self, now: Instant, state: &State, own: &Facts) -> Option<Addr> {
        let master = state.serving().filter(|_| state.keeps())?;
        let others = state
            .valid
            .iter()
            .filter(|(id, _)| **id != master.node && state.members.contains(*id));
        let mut feeders = others.filter_map(|(id, life)| {
            let status = self.detector.status_of(now, id)?;
            let facts = status.facts.as_ref().filter(|_| status.health == Health::Alive)?;
            let linked = facts.follows_in(&master.addr, state.epoch) && facts.link_up && facts.run_id == *life;
            self.addrs.get(id).filter(|_| linked && !facts.syncing)
        });
        let first = feeders.next()?;
        let follows = own.follows.as_ref();
        let kept = std::iter::once(first)
            .chain(feeders)
            .find(|addr| Some(*addr) == follows);
        Some(kept.unwrap_or(first).clone())
    }

    /// Our node is to have a seat where replicas acknowledge: it catches up for it (R4).
    pub(super) fn catch_up_ahead(&mut self, now: Instant) {
        if !self.ready() || self.running.is_some() || now < self.follow_again {
            return;
        }
        let Some(state) = self.state().map(|known| known.state.clone()) else {
            return;
        };
        let seated = state.members.contains(&self.me.node);
        if seated || !self.is_wanted(&self.me.node) || state.epoch < self.obedience.epoch() {
            return;
        }
        let current = self.own_reading.is_some_and(|read| read >= self.own_since);
        let alive = self.detector.health() == Health::Alive;
        let Some(facts) = self.detector.own_facts().filter(|_| current && alive).cloned() else {
            return;
        };
        let (Some(master), Some(feeder)) = (state.serving(), self.feeder(now, &state, &facts)) else {
            return;
        };
        let follows = facts.follows_in(&feeder, state.epoch);
        if follows || facts.loading || self.holds_foreign_data(&facts, &state) {
            return;
        }
        let ask = Ask::Follow {
            epoch: state.epoch,
            master: master.node.clone(),
            addr: feeder.clone(),
            run_id: master.run_id.clone(),
            fence: 0,
        };
        self.follow_again = now + LEAVE_AGAIN;
        self.obedience.follow_published(state.epoch);
        let sentence = format!(
            "{} is to join: it catches up behind the replica at {feeder}",
            self.me.node
        );
        self.say(Level::Info, sentence);
        self.act(Source::Published, ask);
    }

    fn with_valid(&self, state: &State, run_id: &RunId) -> State {
        let mut next = state.clone();
        next.valid.insert(self.me.node.clone(), run_id.clone());
        next
    }

    /// Linked to `at` (the master, or a replica of it) with this epoch's credential, and past the offset that the master had
    /// after the state was read at the version the write is conditional on.
    fn caught_up(&self, since: Instant, master: &MasterOf, at: &Addr, state: &State, facts: &Facts) -> bool {
        let Some((theirs, asked_at)) = &self.master_reading else {
            return false;
        };
        let fresh = *asked_at >= since && self.own_reading.is_some_and(|read| read >= *asked_at);
        let right = theirs.run_id == master.run_id && theirs.role == Role::Master;
        let linked = facts.follows_in(at, state.epoch) && facts.link_up && !facts.dirty && !facts.syncing;
        let stream = facts.replid == theirs.replid && state.lineage.first() == Some(&facts.replid);
        fresh && right && linked && stream && facts.offset >= theirs.offset
    }

    /// Our node lost its seat and is to have none: it follows nobody any more.
    pub(super) fn leave_shard(&mut self, now: Instant) {
        if !self.ready() || self.running.is_some() || now < self.follow_again {
            return;
        }
        let Some(known) = self.state() else { return };
        let state = &known.state;
        let seated = state.members.contains(&self.me.node) || self.is_wanted(&self.me.node);
        if seated || state.serving().is_none() || state.epoch < self.obedience.epoch() {
            return;
        }
        let epoch = state.epoch;
        let current = self.own_reading.is_some_and(|read| read >= self.own_since);
        let alive = self.detector.health() == Health::Alive;
        let Some(facts) = self.detector.own_facts().filter(|_| current && alive) else {
            return;
        };
        // One that never was of this shard is left as it is.
        if facts.parked() || facts.loading || facts.epoch.0 == 0 {
            return;
        }
        let ask = Ask::Park { epoch };
        let life = Some(facts.run_id.clone());
        self.follow_again = now + LEAVE_AGAIN;
        if self.obedience.admit(&ask, true, life.as_ref()).is_err() {
            return;
        }
        self.obedience.begin(&ask);
        let sentence = format!(
            "{} is no member of the shard any more: its Redis is parked",
            self.me.node
        );
        self.say(Level::Info, sentence);
        self.act(Source::Published, ask);
    }

    /// The replicas that our Redis, the master, hears.
    pub(super) fn count_replicas(&mut self, facts: &Facts, asked_at: Instant) {
        let short = self.state().is_some_and(|known| {
            let state = &known.state;
            let ours = |master: &MasterOf| master.node == self.me.node && master.run_id == facts.run_id;
            state.serving().is_some_and(ours) && facts.epoch == state.epoch && facts.replicas < state.ack_replicas
        });
        self.short_since = short.then(|| self.short_since.unwrap_or(asked_at));
    }

    /// As the master's agent: the next step towards what the operator wants.
    pub(super) fn consider_reform(&mut self, now: Instant) {
        let free = self.pending.is_none() && self.course.is_none() && now >= self.write_again.max(self.reform_again);
        let asked = self.wish.as_ref().is_some_and(|wish| !wish.is_over());
        if !free
            || asked
            || self.leaving
            || !self.connected
            || !self.ready()
            || self.proxies.is_none()
            || self.running.is_some()
        {
            return;
        }
        let Some(state) = self.state().map(|known| known.state.clone()) else {
            return;
        };
        let Some(master) = state.serving().filter(|master| master.node == self.me.node).cloned() else {
            self.planned = None;
            return;
        };
        let own = self.detector.own_facts();
        let own = own.filter(|own| own.role == Role::Master && own.run_id == master.run_id && own.epoch == state.epoch);
        let Some(own) = own.filter(|_| self.detector.health() == Health::Alive).cloned() else {
            return;
        };
        let there = self.there(now, &state, &master, &own);
        match plan(&state, &master.node, &self.wanted, &there) {
            Plan::Rest => self.planned = None,
            Plan::Wait(why) => self.wait_for(why),
            Plan::Move(to) => self.give_way(now, &state, &to),
            Plan::Shrink(goal) => {
                let mut alone = goal.over(&state);
                alone.valid.retain(|id, _| *id == master.node);
                self.write_again = now + self.timings.probe;
                self.write(alone, Purpose::Shrink(goal.why));
            }
            Plan::Reform(goal) => self.begin_reform(now, &state, &there, goal),
        }
    }

    fn wait_for(&mut self, why: String) {
        if self.planned.as_ref() != Some(&why) {
            self.say(Level::Info, format!("the shard is not as it is wanted yet: {why}"));
            self.planned = Some(why);
        }
    }

    /// Our node is to leave: another one is to be the master first.
    fn give_way(&mut self, now: Instant, state: &State, to: &BTreeSet<NodeId>) {
        self.reform_again = now + REFORM_AGAIN;
        let target = match self.successor(now, state, to) {
            Ok(target) => target,
            Err(why) => return self.wait_for(format!("{} is to leave and is the master: {why}", self.me.node)),
        };
        let request = SwitchRequest {
            id: format!("leave{:016x}", self.draw()),
            to: Some(target.node.clone()),
            asked_by: self.wanted.changed_by.clone(),
        };
        self.sound(now, state, request, target);
    }

    fn there(&self, now: Instant, state: &State, master: &MasterOf, own: &Facts) -> There {
        let linked = |id: &&NodeId| {
            let status = self.detector.status_of(now, id);
            status.is_some_and(|status| is_linked(status, state, master, own))
        };
        let long = Duration::from_millis(self.wanted.shrink_after_ms);
        let short = self
            .short_since
            .is_some_and(|since| now.saturating_duration_since(since) >= long);
        There {
            registered: self.registered.clone(),
            linked: state.members.iter().filter(linked).cloned().collect(),
            short: short.then_some(own.replicas),
        }
    }

    fn begin_reform(&mut self, now: Instant, state: &State, there: &There, goal: Goal) {
        let epoch = state.reach().max(self.reserved).next();
        let nonce = format!("{:016x}", self.draw());
        let followers = goal.members.intersection(&there.registered);
        let followers = followers.filter(|id| **id != self.me.node).cloned().collect();
        let why = goal.why.clone();
        let Some((reform, claimed)) = Reform::new(now, state, epoch, goal, followers, nonce) else {
            return;
        };
        self.say(Level::Info, format!("epoch {epoch} with the same master: {why}"));
        self.reserved = epoch;
        self.reform_again = now + REFORM_AGAIN;
        self.course = Some(Course::Reform(reform));
        self.write(claimed, Purpose::Course);
    }

    /// A change of seats that needed no epoch stands.
    pub(super) fn record_seats(&mut self, state: &State, why: String) {
        let master = state.master.as_ref().map(|master| master.node.clone());
        self.record(Outcome {
            kind: Kind::Members,
            result: Ending::Done,
            epoch: state.epoch,
            from: master.clone(),
            to: master,
            why,
            grounds: None,
            offset: None,
            lost_bytes: None,
            asked_by: None,
            request: None,
            phases: Vec::new(),
        });
    }
}

/// Whether a node's present life is valid and follows our Redis, the master.
fn is_linked(status: &Status, state: &State, master: &MasterOf, own: &Facts) -> bool {
    let Some(facts) = status.facts.as_ref().filter(|_| status.health == Health::Alive) else {
        return false;
    };
    let whole = !facts.syncing && !facts.dirty && !facts.loading && facts.replid == own.replid;
    let follows = facts.follows_in(&master.addr, state.epoch) && facts.link_up;
    whole && follows && state.valid.get(&status.node) == Some(&facts.run_id)
}
