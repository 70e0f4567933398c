//! The world as a model for stateright.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stateright::{Model, Property};

use super::Lie;
use super::print::PASS;
use super::world::{Budget, Mail, NODES, World, id};
use crate::agent::machine::action::Input;
use crate::clock;
use crate::topology::codec::SwitchRequest;

/// Rounds of the fair schedule that must do.
const ROUNDS_MAX: usize = 400;
/// How long such a round takes.
const ROUND: Duration = Duration::from_millis(20);

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
}

/// The model: where it begins, and its bounds.
pub(super) struct Check {
    pub w: u32,
    pub lie: Lie,
    pub budget: Budget,
    /// The highest epoch that is explored.
    pub epochs: u64,
    /// Who looks around and may so come forward.
    pub lookers: &'static [usize],
    /// Whom faults hit.
    pub victims: &'static [usize],
    /// L is checked from one state in so many; 0 is never.
    pub liveness: u64,
    start: Instant,
}

impl Check {
    pub fn new(w: u32, lie: Lie, epochs: u64, budget: Budget) -> Self {
        Self {
            w,
            lie,
            budget,
            epochs,
            lookers: &[0],
            victims: &[0],
            liveness: 0,
            start: clock::now() + 10 * PASS,
        }
    }

    /// A shard that serves in epoch 1, all its members valid.
    fn founded(&self) -> World {
        let mut world = World::new(self.start, self.w);
        let whole = |world: &World| {
            let state = world.store.as_ref().map(|known| &known.state);
            let seated = state.is_some_and(|state| state.valid.len() == NODES);
            seated && world.mail.is_empty() && world.is_served()
        };
        let founded = self.fairly(&mut world, Lie::None, whole);
        assert!(founded, "the shard is never founded: {world:?}");
        world.left = self.budget;
        world.said.clear();
        world.settle();
        world
    }

    /// Everybody does what they can, in turn, until `done`. Whether it came to that.
    fn fairly(&self, world: &mut World, lie: Lie, done: impl Fn(&World) -> bool) -> bool {
        for _ in 0..ROUNDS_MAX {
            if done(world) {
                return true;
            }
            let mail: Vec<Arc<Mail>> = world.mail.iter().map(|(_, mail)| mail.clone()).collect();
            for mail in mail
                .into_iter()
                .filter(|mail| world.deliverable(mail))
                .collect::<Vec<_>>()
            {
                take(world, &mail);
                world.deliver((*mail).clone(), lie);
            }
            for node in 0..NODES {
                world.replicate(node);
                if world.behind(node)
                    && let Some(store) = world.store.clone()
                {
                    world.learn(node, (*store).clone());
                }
                pass(world, node, ROUND);
                world.look(node);
            }
            world.settle();
        }
        false
    }

    /// L: without further faults a master comes to serve, or too few valid members are left for it.
    fn can_serve(&self, world: &World) -> bool {
        if self.liveness == 0 || !world.print.is_multiple_of(self.liveness) || world.is_served() {
            return true;
        }
        let mut world = world.clone();
        for node in 0..NODES {
            let redis = world.redis_mut(node);
            redis.frozen = false;
            if world.agents[node].is_none() {
                world.start_agent(node, self.start + PASS, self.w);
            }
        }
        !world.enough_left() || self.fairly(&mut world, self.lie, World::is_served)
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
            if agent && left.passes > 0 {
                steps.push(Step::Pass(node));
            }
        }
        if left.wishes > 0 && world.wish.is_none() {
            steps.push(Step::Wish(1));
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
            Step::Acknowledge(write) => world.acknowledge(write),
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
                world.start_agent(node, self.start + PASS, self.w);
                world.print_agent(node);
            }
            Step::Wish(to) => {
                world.left.wishes -= 1;
                world.wish = Some(SwitchRequest {
                    id: format!("wish-{}", world.left.wishes),
                    to: Some(id(to)),
                    asked_by: String::new(),
                });
            }
        }
        true
    }
}

/// Takes a piece of mail out of the list, if it is there still.
fn take(world: &mut World, mail: &Arc<Mail>) {
    if let Some(place) = world.mail.iter().position(|(_, known)| Arc::ptr_eq(known, mail)) {
        world.mail.remove(place);
    }
}

/// Time passes for an agent.
fn pass(world: &mut World, node: usize, time: Duration) {
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
        vec![self.founded()]
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
                    Mail::Ask { .. } | Mail::Read { .. } | Mail::Act { .. } | Mail::Linked { .. } => {}
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
        let w = if self.lie == Lie::NoWait {
            0
        } else {
            usize::try_from(self.w).unwrap_or(0)
        };
        for (place, write) in world.writes.iter().enumerate() {
            if world.covered(write, w) {
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
            Property::always("L a serving master is reachable", |model: &Self, world| {
                model.can_serve(world)
            }),
        ]
    }

    fn within_boundary(&self, world: &World) -> bool {
        let reach = world.store.as_ref().map_or(0, |known| known.state.reach().0);
        reach <= self.epochs
    }
}
