//! The fair schedule: how a shard comes to be founded, the stages of what is under way, and where every state leads once
//! faults stop (L).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Lie;
use super::model::{Check, pass, take};
use super::print::PASS;
use super::world::{Mail, NODES, World};

/// Rounds of the fair schedule that must do.
const ROUNDS_MAX: usize = 400;
/// How long such a round takes.
const ROUND: Duration = Duration::from_millis(20);

/// Where the search begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// A shard that serves in epoch 1, all its members valid.
    Founded,
    /// Each stage of a switchover of it, as it goes without faults.
    Moving,
    /// Each stage of what follows when the agent that executes it dies while its Redis lives, at any of those.
    Abandoned,
    /// Each stage of what the operator wants of it, likewise.
    Changing,
}

/// The moment at which every agent's clock begins.
pub(super) fn start(now: Instant) -> Instant {
    now + 10 * PASS
}

impl Check {
    /// The states from which the search goes on.
    pub fn beginnings(&self) -> Vec<World> {
        let mut world = self.founded();
        match self.begin {
            Begin::Founded => return vec![self.with_budget(world)],
            Begin::Moving | Begin::Abandoned => self.wish(&mut world, 1),
            Begin::Changing => self.want(&mut world),
        }
        let stages = self.way(world);
        if self.begin != Begin::Abandoned {
            return stages;
        }
        let left = stages.into_iter().map(|mut stage| {
            stage.agents[0] = None;
            stage
        });
        let mut known = HashSet::new();
        let ways = left.flat_map(|stage| self.way(stage));
        ways.filter(|stage| known.insert(stage.print)).collect()
    }

    /// What the fair schedule leads through until all is as it is wanted, or nothing happens any more.
    fn way(&self, mut world: World) -> Vec<World> {
        let (mut known, mut stages) = (HashSet::new(), Vec::new());
        for _ in 0..ROUNDS_MAX {
            let stage = self.with_budget(world.clone());
            if known.insert(stage.print) {
                stages.push(stage);
            }
            if world.wish.is_none() && world.is_whole() {
                break;
            }
            self.round(&mut world, self.lie);
        }
        stages
    }

    fn founded(&self) -> World {
        let mut world = World::new(self.start, self.wanted.clone());
        let quiet = |world: &World| world.mail.is_empty() && world.is_whole();
        let founded = self.fairly(&mut world, Lie::None, quiet);
        assert!(founded, "the shard is never founded: {world:#?}");
        world
    }

    fn with_budget(&self, mut world: World) -> World {
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
            self.round(world, lie);
        }
        false
    }

    fn round(&self, world: &mut World, lie: Lie) {
        let mail: Vec<Arc<Mail>> = world.mail.iter().map(|(_, mail)| mail.clone()).collect();
        let ready: Vec<Arc<Mail>> = mail.into_iter().filter(|mail| world.deliverable(mail)).collect();
        for mail in ready {
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

    /// L: without further faults a master comes to serve, or too few valid members are left for it; and once everybody is
    /// back, empty or not, the shard comes to be as it is wanted.
    pub fn can_serve(&self, world: &World) -> bool {
        self.liveness == 0 || !world.print.is_multiple_of(self.liveness) || self.outcome(world).is_ok()
    }

    /// Where a state leads; an error is where it stays instead, with what the agents said on the way.
    pub fn outcome(&self, world: &World) -> Result<(), Box<World>> {
        let mut world = Box::new(world.clone());
        world.said.clear();
        for node in 0..NODES {
            world.redis_mut(node).frozen = false;
            if world.agents[node].is_none() {
                world.start_agent(node, self.start + PASS);
            }
        }
        if !world.enough_left() {
            return Ok(());
        }
        if !self.fairly(&mut world, self.lie, World::is_served) {
            return Err(world);
        }
        world.said.push("everybody is back".to_owned());
        for node in 0..NODES {
            if world.redis[node].life.is_none() {
                world.restart(node);
            }
        }
        if self.fairly(&mut world, self.lie, World::is_whole) {
            Ok(())
        } else {
            Err(world)
        }
    }
}
