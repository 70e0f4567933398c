//! The protocol as a model for stateright, and its invariants.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Mutex, PoisonError};

use stateright::{Model, Property};

use super::rules::{Bounds, Rules};
use super::state::*;
use super::steps::Action;

/// I1.
pub const NOTHING_LOST: &str = "I1 no acknowledged write is missing on a serving master";
/// I2.
pub const ONE_ACKNOWLEDGES: &str = "I2 one master acknowledges per epoch, and none of an epoch before";
/// I3.
pub const EPOCHS_GROW: &str = "I3 epochs only grow";
/// I4.
pub const TRUE_PREFIX: &str = "I4 partial resynchronisation only over a true prefix";
/// L.
pub const CAN_SERVE: &str = "L a serving master is reachable once faults stop";

#[derive(Debug)]
pub struct Protocol {
    pub rules: Rules,
    pub bounds: Bounds,
    /// Whether L is checked: it costs a search from each state.
    pub liveness: bool,
    hasher: RandomState,
    /// States from which a serving master is known to be reachable.
    serving_ahead: Mutex<HashSet<u64>>,
}

impl Protocol {
    pub fn new(rules: Rules, bounds: Bounds, liveness: bool) -> Self {
        Self {
            rules,
            bounds,
            liveness,
            hasher: RandomState::new(),
            serving_ahead: Mutex::new(HashSet::new()),
        }
    }

    fn steps(&self, world: &World, epochs: u8, all: bool) -> Vec<Action> {
        let mut steps = Vec::new();
        self.executor_steps(world, epochs, all, &mut steps);
        self.other_steps(world, all, &mut steps);
        steps
    }

    fn after(&self, world: &World, action: Action) -> World {
        let mut next = *world;
        if is_executors(action) {
            self.take_executors(&mut next, action);
        } else {
            self.take_other(&mut next, action);
        }
        next.broken.epoch |= next.shard.epoch < world.shard.epoch;
        let forgot = matches!(action, Action::Forget { .. });
        let went_back = |(old, new): (&Server, &Server)| new.obeyed < old.obeyed;
        next.broken.epoch |= !forgot && world.servers.iter().zip(&next.servers).any(went_back);
        self.settle(&mut next);
        next
    }

    fn nothing_lost(&self, world: &World) -> bool {
        let shard = &world.shard;
        let master = &world.servers[usize::from(shard.master)];
        let serves = shard.phase == Phase::Serving && master.up && master.run == shard.run;
        let acked = (1..)
            .zip(&world.writes)
            .filter(|(_, write)| write.status == Status::Acked);
        !serves || master.role != Role::Master || acked.into_iter().all(|(id, _)| master.log.holds(id))
    }

    fn one_acknowledges(&self, world: &World) -> bool {
        let acked = || world.writes.iter().filter(|write| write.status == Status::Acked);
        let alone = acked()
            .all(|one| acked().all(|other| one.epoch != other.epoch || (one.node, one.run) == (other.node, other.run)));
        alone && !world.broken.late_ack
    }

    /// Whether without further faults somebody comes to serve, or too few valid members are left for it.
    fn can_serve(&self, world: &World) -> bool {
        if !self.liveness || !enough_left(world) {
            return true;
        }
        let mut known = self.serving_ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let epochs = (world.shard.reach() + 2).min(EPOCHS_MAX as u8 - 1);
        let mut visited = HashSet::new();
        // Depth first, with the most promising step last on the stack.
        let mut path: Vec<(u64, Vec<World>)> = vec![(0, vec![*world])];
        while let Some((_, open)) = path.last_mut() {
            let Some(next) = open.pop() else {
                path.pop();
                continue;
            };
            let name = self.hasher.hash_one(next);
            if !visited.insert(name) {
                continue;
            }
            if known.contains(&name) || is_served(&next) {
                known.insert(name);
                known.extend(path.iter().skip(1).map(|(name, _)| *name));
                return true;
            }
            let steps = self.steps(&next, epochs, false);
            let ahead = promising_last(steps).into_iter().map(|step| self.after(&next, step));
            path.push((name, ahead.collect()));
        }
        false
    }
}

fn promising_last(mut steps: Vec<Action>) -> Vec<Action> {
    steps.sort_by_key(|step| match step {
        Action::Publish { .. } => 9,
        Action::Promote { .. } | Action::Adopt { .. } => 8,
        Action::Choose { .. } | Action::Reached { .. } => 7,
        Action::Park { executor: 0, .. } | Action::Fence { .. } | Action::Rotate { .. } => 6,
        Action::Claim => 1,
        _ => 2,
    });
    steps
}

fn is_served(world: &World) -> bool {
    let shard = &world.shard;
    let master = &world.servers[usize::from(shard.master)];
    let there = master.up && master.run == shard.run && master.role == Role::Master;
    shard.phase == Phase::Serving && there && master.px == shard.epoch
}

/// Whether the shard can be expected to go on: n-W valid members, or the published master, are there.
fn enough_left(world: &World) -> bool {
    let shard = &world.shard;
    let valid = nodes().filter(|node| {
        let server = &world.servers[usize::from(*node)];
        server.up && contains(shard.members, *node) && server.run == shard.valid[usize::from(*node)]
    });
    valid.count() >= usize::from(shard.required())
}

fn is_executors(action: Action) -> bool {
    match action {
        Action::Claim
        | Action::Park { .. }
        | Action::Choose { .. }
        | Action::Promote { .. }
        | Action::Adopt { .. }
        | Action::Follow { .. }
        | Action::Publish { .. }
        | Action::Switch { .. }
        | Action::Check { .. }
        | Action::Fence { .. }
        | Action::Reached { .. }
        | Action::Change
        | Action::Rotate { .. } => true,
        Action::Obey { .. }
        | Action::Readmit { .. }
        | Action::Join { .. }
        | Action::PlainChange
        | Action::Link { .. }
        | Action::Replicate { .. }
        | Action::Stick { .. }
        | Action::Unstick { .. }
        | Action::Write { .. }
        | Action::Ack { .. }
        | Action::Kill { .. }
        | Action::Restart { .. }
        | Action::Forget { .. } => false,
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let first = stream_of(0, 1);
        let members = (1 << self.bounds.members) - 1;
        let mut world = World {
            left: self.bounds.faults,
            ..World::default()
        };
        for node in nodes() {
            let server = &mut world.servers[usize::from(node)];
            (server.up, server.run) = (true, 1);
            if contains(members, node) {
                (server.replid, server.obeyed, server.step) = (first, 1, Step::Done);
                (server.role, server.linked, server.user) = (Role::Follows(0), true, 1);
                world.shard.valid[usize::from(node)] = 1;
            }
        }
        let master = &mut world.servers[0];
        (master.role, master.linked, master.px, master.repl) = (Role::Master, false, 1, 1);
        world.shard = Shard {
            epoch: 1,
            run: 1,
            members,
            stream: first,
            lineage: bit(first),
            w: self.bounds.w,
            ..world.shard
        };
        world.published[1] = Snapshot {
            epoch: 1,
            master: 0,
            run: 1,
            w: self.bounds.w,
            promised: self.bounds.w,
            members,
        };
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions.extend(self.steps(world, self.bounds.epochs, true));
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let next = self.after(world, action);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOTHING_LOST, |model: &Self, world| model.nothing_lost(world)),
            Property::always(ONE_ACKNOWLEDGES, |model: &Self, world| model.one_acknowledges(world)),
            Property::always(EPOCHS_GROW, |_, world: &World| !world.broken.epoch),
            Property::always(TRUE_PREFIX, |_, world: &World| !world.broken.prefix),
            Property::always(CAN_SERVE, |model: &Self, world| model.can_serve(world)),
        ]
    }
}
