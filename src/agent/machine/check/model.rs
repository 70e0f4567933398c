//! The world as a model for stateright.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stateright::{Model, Property};

use super::Lie;
use super::print::PASS;
use super::schedule::{Begin, start};
use super::world::{Budget, Mail, NODES, World, id};
use crate::agent::machine::action::Input;
use crate::clock;
use crate::topology::codec::{ShardConfig, SwitchRequest};

/// L.
pub(super) const LIVE: &str = "L a serving master is reachable";

/// One step of one party. Mail is named by its place in the world's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Look(usize),
    Learn(usize),
    Deliver(usize),
    Lose(usize),
    /// The outcome of a write is lost; whether the write is.
    LoseWrite(usize, bool),
    Replicate(usize),
    Write(usize),
    Acknowledge(usize),
    Pass(usize),
    KillRedis(usize),
    StartRedis(usize),
    Hang(usize),
    Thaw(usize),
    KillAgent(usize),
    StartAgent(usize),
    Wish(usize),
    /// The operator wants something else of the shard.
    Want,
}

/// The model: where it begins, and its bounds.
pub(super) struct Check {
    /// What the shard is founded as.
    pub wanted: ShardConfig,
    /// What the operator wants then.
    pub change: ShardConfig,
    pub begin: Begin,
    /// Nothing happens that may cost data where no replica acknowledges: every answer is a promise.
    pub strict: bool,
    pub lie: Lie,
    pub budget: Budget,
    /// The highest epoch that is explored.
    pub epochs: u64,
    /// Who looks around and may so come forward.
    pub lookers: &'static [usize],
    /// Whom faults hit.
    pub victims: &'static [usize],
    /// Who may be stopped for long.
    pub sleepers: &'static [usize],
    /// L is checked from one state in so many; 0 is never.
    pub liveness: u64,
    pub start: Instant,
}

/// Members as a string of their names.
pub(super) fn shard(members: &str, w: u32) -> ShardConfig {
    ShardConfig {
        ack_replicas: w,
        members: (0..NODES).map(id).filter(|id| members.contains(id.as_str())).collect(),
        ..ShardConfig::default()
    }
}

impl Check {
    pub fn new(w: u32, lie: Lie, epochs: u64, budget: Budget) -> Self {
        Self {
            wanted: shard("abc", w),
            change: shard("abc", w),
            begin: Begin::Founded,
            strict: false,
            lie,
            budget,
            epochs,
            lookers: &[0],
            victims: &[0],
            sleepers: &[0],
            liveness: 0,
            start: start(clock::now()),
        }
    }

    fn faults(&self, world: &World, steps: &mut Vec<Step>) {
        let left = &world.left;
        for node in self.victims.iter().copied() {
            let redis = &world.redis[node];
            let agent = world.agents[node].is_some();
            match &redis.life {
                Some(_) if left.kills > 0 => steps.push(Step::KillRedis(node)),
                None if left.starts > 0 => steps.push(Step::StartRedis(node)),
                Some(_) | None => {}
            }
            if redis.frozen {
                steps.push(Step::Thaw(node));
            } else if redis.life.is_some() && left.hangs > 0 {
                steps.push(Step::Hang(node));
            }
            if agent && left.agent_kills > 0 {
                steps.push(Step::KillAgent(node));
            } else if !agent {
                steps.push(Step::StartAgent(node));
            }
        }
        for node in self.sleepers.iter().copied() {
            if left.passes > 0 && world.agents[node].is_some() {
                steps.push(Step::Pass(node));
            }
        }
        if left.wishes > 0 && world.wish.is_none() {
            steps.push(Step::Wish(1));
        }
        if left.wants > 0 {
            steps.push(Step::Want);
        }
    }

    /// Somebody asks for a switchover to a node.
    pub fn wish(&self, world: &mut World, to: usize) {
        world.wish = Some(SwitchRequest {
            id: format!("wish-{}", world.left.wishes),
            to: Some(id(to)),
            asked_by: String::new(),
        });
    }

    pub fn want(&self, world: &mut World) {
        world.wanted = self.change.clone().into();
        if self.lie == Lie::PlainChange {
            world.change_plainly();
        }
    }

    fn apply(&self, world: &mut World, step: Step) -> bool {
        match step {
            Step::Look(node) => {
                if !world.look(node) {
                    return false;
                }
            }
            Step::Learn(node) => {
                if let Some(store) = world.store.clone() {
                    world.learn(node, (*store).clone());
                }
            }
            Step::Deliver(place) => {
                let (_, mail) = world.mail.remove(place);
                world.deliver((*mail).clone(), self.lie);
            }
            Step::Lose(place) => {
                world.left.losses -= 1;
                let (_, mail) = world.mail.remove(place);
                world.lose((*mail).clone(), false);
            }
            Step::LoseWrite(place, applied) => {
                world.left.losses -= 1;
                let (_, mail) = world.mail.remove(place);
                world.lose((*mail).clone(), applied);
            }
            Step::Replicate(node) => world.replicate(node),
            Step::Write(snapshot) => {
                world.left.writes -= 1;
                if !world.issue(snapshot) {
                    return false;
                }
            }
            Step::Acknowledge(write) => world.acknowledge(write, self.strict),
            Step::Pass(node) => {
                world.left.passes -= 1;
                pass(world, node, PASS);
            }
            Step::KillRedis(node) => {
                world.left.kills -= 1;
                world.redis_mut(node).life = None;
                world.redis_mut(node).frozen = false;
            }
            Step::StartRedis(node) => {
                world.left.starts -= 1;
                world.restart(node);
            }
            Step::Hang(node) => {
                world.left.hangs -= 1;
                world.redis_mut(node).frozen = true;
            }
            Step::Thaw(node) => world.redis_mut(node).frozen = false,
            Step::KillAgent(node) => {
                world.left.agent_kills -= 1;
                world.agents[node] = None;
            }
            Step::StartAgent(node) => {
                world.start_agent(node, self.start + PASS);
                world.print_agent(node);
            }
            Step::Wish(to) => {
                world.left.wishes -= 1;
                self.wish(world, to);
            }
            Step::Want => {
                world.left.wants -= 1;
                self.want(world);
            }
        }
        true
    }
}

/// Takes a piece of mail out of the list, if it is there still.
pub(super) fn take(world: &mut World, mail: &Arc<Mail>) {
    if let Some(place) = world.mail.iter().position(|(_, known)| Arc::ptr_eq(known, mail)) {
        world.mail.remove(place);
    }
}

/// Time passes for an agent.
pub(super) fn pass(world: &mut World, node: usize, time: Duration) {
    let Some(agent) = world.agents[node].as_deref() else {
        return;
    };
    let place = (node, agent.life);
    if let Some(agent) = world.agent_mut(place) {
        agent.now += time;
    }
    world.tell(place, Input::Tick);
    world.print_agent(node);
}

impl Model for Check {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        self.beginnings()
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        for (place, (print, mail)) in world.mail.iter().enumerate() {
            // Of equals the first will do.
            if place > 0 && world.mail[place - 1].0 == *print {
                continue;
            }
            if world.deliverable(mail) {
                steps.push(Step::Deliver(place));
            }
            if world.left.losses > 0 {
                match **mail {
                    Mail::Answer { .. } => steps.push(Step::Lose(place)),
                    Mail::Write { .. } => {
                        steps.push(Step::LoseWrite(place, true));
                        steps.push(Step::LoseWrite(place, false));
                    }
                    Mail::Ask { .. }
                    | Mail::Read { .. }
                    | Mail::Act { .. }
                    | Mail::Linked { .. }
                    | Mail::Deputise { .. } => {}
                }
            }
        }
        for node in 0..NODES {
            if world.behind(node) {
                steps.push(Step::Learn(node));
            }
            if self.lookers.contains(&node) {
                steps.push(Step::Look(node));
            }
            steps.push(Step::Replicate(node));
        }
        if world.left.writes > 0 {
            steps.extend((0..world.published.len()).map(Step::Write));
        }
        for (place, write) in world.writes.iter().enumerate() {
            if world.covered(write, self.lie) {
                steps.push(Step::Acknowledge(place));
            }
        }
        self.faults(world, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.said.clear();
        if !self.apply(&mut next, step) {
            return None;
        }
        next.hurry(self.lie);
        next.settle();
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I1 nothing acknowledged is lost", |_, world: &World| {
                world.nothing_lost()
            }),
            Property::always("I2 one master acknowledges per epoch", |_, world: &World| {
                world.one_acknowledges()
            }),
            Property::always("I2 to I4 step by step", |_, world: &World| world.broken.is_none()),
            Property::always(LIVE, |model: &Self, world| model.can_serve(world)),
        ]
    }

    fn within_boundary(&self, world: &World) -> bool {
        let reach = world.store.as_ref().map_or(0, |known| known.state.reach().0);
        reach <= self.epochs
    }
}
