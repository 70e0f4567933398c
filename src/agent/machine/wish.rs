//! Somebody wants the master moved: whether it may be, and the end of every such request.
//!
//! Owns: the judgement of a request, and who ends it. Refuses: moving anything (`switch`), and the znode, which is
//! deleted by whoever keeps the history. Invariants: only the agent of the present master executes; each request ends with
//! a record that carries its id, also one whose executor died: whoever is the master's agent next ends that, or who
//! elected a master whose agent is gone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::topology::codec::{Ending, SwitchRequest};
use crate::topology::{NodeId, Switch};

use super::Machine;
use super::action::{Action, Level};
use super::course::Course;
use super::detector::{Health, Status};
use super::facts::{Facts, Role};
use super::outcome::Outcome;
use super::state::{MasterOf, State};
use super::switch::{Switchover, Target};
use super::writing::Purpose;

/// How long an executor that is still registered may take to say how what it began ended, once the shard serves.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(5);

/// Until a target that did not keep up is sounded out again.
const SOUND_AGAIN: Duration = Duration::from_millis(50);

/// A request as this agent knows it.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    request: SwitchRequest,
    /// Since when it is known, or the store is away.
    since: Instant,
    /// Who was seen executing it, and how.
    begun: Option<(NodeId, Switch)>,
    /// Why the target was found not to keep up, and when it is sounded out again.
    retreat: Option<(String, Instant)>,
    /// Since when the shard is known to serve again after it was begun.
    over: Option<Instant>,
    /// This agent has ended it; the znode is on its way out.
    ended: bool,
}

impl Wish {
    /// Whether this agent has answered it.
    pub(super) fn is_over(&self) -> bool {
        self.ended
    }
}

/// What is to be done about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Judgement {
    /// Move the master there.
    Go(Target),
    /// Not now, because of this, which may pass.
    Wait(String),
    /// Never, because of this.
    Refuse(String),
}

impl Machine {
    pub(super) fn handle_wish(&mut self, now: Instant, request: Option<SwitchRequest>) {
        let known = self.wish.as_ref().map(|wish| &wish.request);
        if known == request.as_ref() {
            return;
        }
        self.wish = request.map(|request| Wish {
            request,
            since: now,
            begun: None,
            retreat: None,
            over: None,
            ended: false,
        });
        let wanted = self.wish.as_ref().map(|wish| &wish.request.id);
        if let Some(Course::Switchover(switchover)) = &self.course
            && switchover.sounding()
            && wanted != Some(switchover.request())
        {
            self.say(
                Level::Info,
                "the switchover that was about to begin is not wanted any more".to_owned(),
            );
            self.course = None;
            self.asks.clear();
        }
        if let Some(known) = self.state().map(|known| known.state.clone()) {
            self.note_begun(&known);
        }
    }

    pub(super) fn handle_store_lost(&mut self, now: Instant) {
        self.connected = false;
        if let Some(wish) = &mut self.wish {
            wish.since = now;
            wish.over = None;
        }
        // Nobody is demoted because the store is away: what can be taken back is, as soon as it can be written.
        if let Some(course) = &mut self.course
            && let Some(order) = course.interrupt(now, "ZooKeeper is away".to_owned())
        {
            self.asks.clear();
            self.carry_out(now, vec![order]);
        }
    }

    /// A state that says who executes the request.
    pub(super) fn note_begun(&mut self, state: &State) {
        // Who sees only what came of it must not begin it anew.
        if let (Some(wish), Some(switch)) = (&mut self.wish, state.switch.as_ref().or(state.moved.as_ref()))
            && switch.request == wish.request.id
        {
            let executor = match (&wish.begun, &state.switch) {
                (Some((known, _)), None) => known.clone(),
                (Some(_), Some(_)) | (None, _) => state.executor.clone(),
            };
            wish.begun = Some((executor, switch.clone()));
        }
    }

    /// Keeps an outcome; the request that it ends is not looked at again.
    pub(super) fn record(&mut self, outcome: Outcome) {
        if let Some(wish) = &mut self.wish
            && outcome.request.as_ref() == Some(&wish.request.id)
        {
            wish.ended = true;
        }
        self.actions.push_back(Action::Record(Box::new(outcome)));
    }

    /// Executes a request, refuses it, or ends one that was left behind.
    pub(super) fn consider_wish(&mut self, now: Instant) {
        let Some(wish) = self.wish.as_ref().filter(|wish| !wish.ended).cloned() else {
            return;
        };
        let Some(state) = self.state().map(|known| known.state.clone()) else {
            return;
        };
        let busy = self.pending.is_some() || self.course.is_some() || now < self.write_again;
        if !self.connected || !self.ready() || self.leaving {
            return;
        }
        let waited = now.saturating_duration_since(wish.since);
        let Some(master) = state.serving().cloned() else {
            // Who tries to elect a master says so; nobody else is sure to be there.
            if state.executor == self.me.node && wish.begun.is_none() && waited >= self.timings.switch_wait {
                self.refuse(&wish.request, &state, "the shard has no master now".to_owned());
            }
            if let Some(wish) = &mut self.wish {
                wish.over = None;
            }
            return;
        };
        // A master that lives on without its agent has nobody to end what was begun but who elected it.
        let deputy = state.executor == self.me.node && wish.begun.is_some() && self.detector.refused_by(&master.node);
        if busy || (master.node != self.me.node && !deputy) || self.proxies.is_none() {
            return;
        }
        if let Some((executor, switch)) = &wish.begun {
            let alive = *executor != self.me.node && self.registered.contains(executor);
            let over = wish.over.unwrap_or(now);
            if let Some(wish) = &mut self.wish {
                wish.over = Some(over);
            }
            if !alive || now.saturating_duration_since(over) >= ORPHAN_PATIENCE {
                self.end_orphan(&wish.request, executor, switch, &state);
            }
            return;
        }
        let judgement = match (&wish.retreat, self.judge(now, &wish.request, &master, &state)) {
            (Some((_, again)), Judgement::Go(_)) if now < *again => return,
            (Some((why, _)), Judgement::Go(_)) if waited >= self.timings.switch_wait => Judgement::Refuse(why.clone()),
            (_, Judgement::Wait(why)) if waited >= self.timings.switch_wait => Judgement::Refuse(why),
            (_, judgement) => judgement,
        };
        match judgement {
            Judgement::Go(target) => self.sound(now, &state, wish.request, target),
            Judgement::Refuse(why) => self.refuse(&wish.request, &state, why),
            Judgement::Wait(_) => {}
        }
    }

    /// Begins with the question whether the target keeps up.
    pub(super) fn sound(&mut self, now: Instant, state: &State, request: SwitchRequest, target: Target) {
        let epoch = state.reach().max(self.reserved).next();
        let switchover = Switchover::new(now, state.clone(), epoch, request, target);
        self.course = switchover.map(Course::Switchover);
        self.advance_course(now);
    }

    /// It does.
    pub(super) fn claim_switchover(&mut self, now: Instant) {
        let nonce = format!("{:016x}", self.draw());
        let Some(known) = self.state().map(|known| known.state.clone()) else {
            return;
        };
        let Some(Course::Switchover(switchover)) = &mut self.course else {
            return;
        };
        match switchover.claim(now, &known, &self.me.node, nonce) {
            Some(claimed) if self.pending.is_none() && self.connected => {
                let sentence = switchover.sentence();
                self.reserved = claimed.reach();
                self.say(Level::Info, sentence);
                self.write(claimed, Purpose::Course);
            }
            Some(_) | None => self.retreat(now, "the state changed".to_owned()),
        }
    }

    /// It does not, or not yet. Nothing was written and nobody waits.
    pub(super) fn retreat(&mut self, now: Instant, why: String) {
        let wished = matches!(self.course.take(), Some(Course::Switchover(_)));
        self.asks.clear();
        if let Some(wish) = self.wish.as_mut().filter(|_| wished) {
            wish.retreat = Some((why, now + SOUND_AGAIN));
        }
    }

    fn refuse(&mut self, request: &SwitchRequest, state: &State, why: String) {
        let sentence = format!("not moving the master, though {} asks: {why}", asker(request));
        self.say(Level::Warn, sentence);
        self.record(Outcome::unmoved(
            request,
            Ending::Refused,
            state.epoch,
            state.master.as_ref().map(|master| master.node.clone()),
            request.to.clone(),
            why,
        ));
    }

    /// Its executor died or forgot it. What became of it shows in the state.
    fn end_orphan(&mut self, request: &SwitchRequest, executor: &NodeId, switch: &Switch, state: &State) {
        let master = state.master.as_ref().map(|master| master.node.clone());
        let met = request.to.is_none() || request.to == master;
        let done = state.epoch == switch.epoch && master.as_ref() == Some(&switch.to) && met;
        let (result, why) = if done {
            (
                Ending::Done,
                format!("{executor} published it and ended before it said so"),
            )
        } else if state.epoch < switch.epoch {
            (
                Ending::RolledBack,
                format!("{executor} took it back and ended before it said so"),
            )
        } else {
            (Ending::Failed, format!("its executor {executor} ended before it did"))
        };
        self.say(Level::Warn, format!("the switchover to {} is over: {why}", switch.to));
        self.record(Outcome::unmoved(
            request,
            result,
            state.epoch,
            None,
            Some(switch.to.clone()),
            why,
        ));
    }

    fn judge(&self, now: Instant, request: &SwitchRequest, master: &MasterOf, state: &State) -> Judgement {
        let own = self
            .detector
            .own_facts()
            .filter(|_| self.detector.health() == Health::Alive);
        let Some(own) = own.filter(|own| own.role == Role::Master && own.run_id == master.run_id) else {
            return Judgement::Wait(format!("{} is not read as the master yet", master.node));
        };
        let Some(wanted) = &request.to else {
            return self.judge_all(now, &state.members, master, own, state);
        };
        if *wanted == master.node {
            return Judgement::Refuse(format!("{wanted} is the master already"));
        }
        if !state.members.contains(wanted) {
            let members: Vec<&str> = state.members.iter().map(NodeId::as_str).collect();
            return Judgement::Refuse(format!(
                "{wanted} is no node of this shard, which has {}",
                members.join(", ")
            ));
        }
        self.judge_one(now, wanted, master, own, state)
    }

    /// The best of those who may: the operator's preference first, then who has most.
    fn judge_all(
        &self,
        now: Instant,
        among: &BTreeSet<NodeId>,
        master: &MasterOf,
        own: &Facts,
        state: &State,
    ) -> Judgement {
        let others = among.iter().filter(|id| **id != master.node);
        let mut best: Option<((u32, std::cmp::Reverse<i64>), Target)> = None;
        let mut obstacles = Vec::new();
        for id in others {
            match self.judge_one(now, id, master, own, state) {
                Judgement::Go(target) => {
                    let facts = self
                        .detector
                        .status_of(now, id)
                        .and_then(|status| status.facts.as_ref());
                    let rank = facts.map_or((u32::MAX, std::cmp::Reverse(i64::MIN)), |facts| {
                        (facts.priority, std::cmp::Reverse(facts.offset))
                    });
                    if best.as_ref().is_none_or(|(known, _)| rank < *known) {
                        best = Some((rank, target));
                    }
                }
                Judgement::Wait(why) | Judgement::Refuse(why) => obstacles.push(why),
            }
        }
        match best {
            Some((_, target)) => Judgement::Go(target),
            None if obstacles.is_empty() => Judgement::Refuse("the shard has no other node".to_owned()),
            None => Judgement::Wait(format!("nobody can take over: {}", obstacles.join("; "))),
        }
    }

    /// The best of `among` to take our master's place now, or why there is none.
    pub(super) fn successor(&self, now: Instant, state: &State, among: &BTreeSet<NodeId>) -> Result<Target, String> {
        let (Some(master), Some(own)) = (state.serving(), self.detector.own_facts()) else {
            return Err("the shard has no master now".to_owned());
        };
        match self.judge_all(now, among, master, own, state) {
            Judgement::Go(target) => Ok(target),
            Judgement::Wait(why) | Judgement::Refuse(why) => Err(why),
        }
    }

    fn judge_one(&self, now: Instant, id: &NodeId, master: &MasterOf, own: &Facts, state: &State) -> Judgement {
        let Some(addr) = self.addrs.get(id).filter(|_| self.registered.contains(id)) else {
            return Judgement::Wait(format!("{id} is not registered: its agent is down"));
        };
        let Some(status) = self.detector.status_of(now, id) else {
            return Judgement::Wait(format!("the agent of {id} does not answer"));
        };
        let Some(facts) = status.facts.as_ref().filter(|_| status.health == Health::Alive) else {
            return Judgement::Wait(format!("the Redis of {id} does not answer"));
        };
        if facts.priority == 0 {
            return Judgement::Refuse(format!("{id} is never to be promoted (priority 0)"));
        }
        match unfit(id, status, facts, master, own, state, self.timings.switch_lag_max_bytes) {
            Some(why) => Judgement::Wait(why),
            None => Judgement::Go(Target {
                node: id.clone(),
                addr: addr.clone(),
                run_id: facts.run_id.clone(),
            }),
        }
    }
}

/// What keeps a node, for now, from taking over.
fn unfit(
    id: &NodeId,
    status: &Status,
    facts: &Facts,
    master: &MasterOf,
    own: &Facts,
    state: &State,
    lag_max_bytes: u64,
) -> Option<String> {
    let linked = facts.follows_in(&master.addr, state.epoch) && facts.link_up && status.epoch <= state.epoch;
    let lag = u64::try_from(own.offset - facts.offset).unwrap_or(0);
    if !linked || facts.replid != own.replid {
        Some(format!("{id} is not linked to the master"))
    } else if facts.syncing || facts.dirty || facts.loading {
        Some(format!("{id} is being synchronised as a whole"))
    } else if lag > lag_max_bytes {
        Some(format!(
            "{id} lags {lag} bytes behind the master, {lag_max_bytes} are allowed"
        ))
    } else if state.valid.get(id) != Some(&facts.run_id) {
        Some(format!(
            "{id} has not proven yet that it holds the data of epoch {}",
            state.epoch
        ))
    } else {
        None
    }
}

fn asker(request: &SwitchRequest) -> &str {
    if request.asked_by.is_empty() {
        "somebody"
    } else {
        &request.asked_by
    }
}
