//! Executors of elections (F1 to F5), switchovers (R8) and changes (R5), step by step.

use std::cmp::Reverse;

use super::protocol::Protocol;
use super::rules::{Counting, Lineage, Moving};
use super::state::*;
use super::steps::Action;

/// A member that counts, and how much of the accepted stream it holds.
#[derive(Clone, Copy)]
struct Counted {
    node: u8,
    offset: u8,
    eligible: bool,
}

impl Protocol {
    pub fn executor_steps(&self, world: &World, epochs: u8, all: bool, steps: &mut Vec<Action>) {
        for (place, executor) in (0..).zip(&world.executors) {
            if executor.kind != Kind::None {
                self.steps_of(world, place, executor, steps);
            }
        }
        let shard = &world.shard;
        let serving = shard.phase == Phase::Serving && shard.reach() < epochs;
        if all && serving && world.left.switches > 0 {
            let valid = |to: &u8| shard.valid[usize::from(*to)] == world.servers[usize::from(*to)].run;
            let targets = nodes().filter(|to| *to != shard.master && contains(shard.members, *to));
            steps.extend(targets.filter(valid).map(|to| Action::Switch { to }));
        }
        if all && serving && world.left.changes > 0 && self.rules.changes_are_epochs {
            steps.push(Action::Change);
        }
        if shard.reach() < epochs {
            steps.push(Action::Claim);
        }
    }

    fn steps_of(&self, world: &World, place: u8, own: &Executor, steps: &mut Vec<Action>) {
        let executor = place;
        let server = |node: u8| &world.servers[usize::from(node)];
        match own.stage {
            Stage::Parking => {
                if self.choice(own).is_some() && (!self.adopts(own) || self.owns(world, own)) {
                    steps.push(Action::Choose { executor });
                }
                let open = nodes()
                    .filter(|node| contains(own.shard.members, *node) && own.answers[usize::from(*node)].run == 0);
                let obeyed = open.filter(|node| server(*node).up && admits_park(server(*node), own.epoch));
                steps.extend(obeyed.map(|node| Action::Park { executor, node }));
            }
            Stage::Rotating => {
                let master = server(own.target);
                let right = master.up && master.run == own.target_run && master.role == Role::Master;
                if right && master.obeyed < own.epoch {
                    steps.push(Action::Rotate { executor });
                }
            }
            Stage::Checking => {
                let (old, target) = (server(own.shard.master), server(own.target));
                if old.up && target.up && target.replid == old.replid && target.log.len() >= old.log.len() {
                    steps.push(Action::Check { executor });
                }
            }
            Stage::Fencing => {
                let old = server(own.shard.master);
                if old.up && old.run == own.shard.run && old.obeyed < own.epoch {
                    steps.push(Action::Fence { executor });
                }
            }
            Stage::Reaching => {
                if self.has_reached(server(own.target), own) {
                    steps.push(Action::Reached { executor });
                }
            }
            Stage::Promoting => {
                let target = server(own.target);
                let parked = target.obeyed == own.epoch && target.step == Step::Parked;
                let unparked = own.kind == Kind::Switchover && target.obeyed < own.epoch;
                if target.up && target.run == own.target_run && (parked || unparked) {
                    steps.push(Action::Promote { executor });
                }
            }
            Stage::Adopting => {
                if self.owns(world, own) {
                    steps.push(Action::Adopt { executor });
                }
            }
            Stage::Proving => {
                if self.owns(world, own) {
                    steps.push(Action::Publish { executor });
                }
                let told = nodes().filter(|node| *node != own.target && self.told(own, *node));
                let obeyed = told.filter(|node| admits_follow(server(*node), own));
                steps.extend(obeyed.map(|node| Action::Follow { executor, node }));
            }
        }
    }

    /// Whom the executor points at the promoted node.
    fn told(&self, own: &Executor, node: u8) -> bool {
        match own.kind {
            Kind::Election => own.answers[usize::from(node)].run != 0,
            Kind::Switchover => own.shard.valid[usize::from(node)] != 0 || node == own.shard.master,
            Kind::Change => contains(self.bounds.change.0, node),
            Kind::None => false,
        }
    }

    /// Whether the znode still says what this executor wrote last.
    pub fn owns(&self, world: &World, own: &Executor) -> bool {
        match own.kind {
            Kind::Election | Kind::Change => world.shard.phase == Phase::Electing && world.shard.epoch == own.epoch,
            Kind::Switchover => world.shard.phase == Phase::Switching && world.shard.reserved == own.epoch,
            Kind::None => false,
        }
    }

    fn has_reached(&self, target: &Server, own: &Executor) -> bool {
        let place = match target.role {
            Role::Master => (target.replid2, target.second.saturating_sub(1)),
            Role::Parked | Role::Follows(_) => (target.replid, target.log.len()),
        };
        target.up && target.run == own.target_run && place.0 == own.mark_stream && place.1 >= own.mark
    }

    pub fn take_executors(&self, world: &mut World, action: Action) {
        match action {
            Action::Claim => self.claim(world),
            Action::Switch { to } => self.switch(world, to),
            Action::Change => self.change(world),
            Action::Park { executor, node } => self.park(world, executor, node),
            Action::Choose { executor } => self.choose(world, executor),
            Action::Promote { executor } => self.promote(world, executor),
            Action::Follow { executor, node } => {
                let own = world.executors[usize::from(executor)];
                let server = &mut world.servers[usize::from(node)];
                server.clear_stuck(self.rules.blocks_kill);
                server.follow(own.target, own.epoch);
                (server.obeyed, server.step) = (own.epoch, Step::Done);
            }
            Action::Adopt { executor } => {
                let own = &mut world.executors[usize::from(executor)];
                world.shard.lineage |= bit(stream_of(own.target, own.epoch));
                (own.stage, own.begun) = (Stage::Proving, false);
            }
            Action::Publish { executor } => self.publish(world, executor),
            Action::Check { executor } => {
                world.executors[usize::from(executor)].stage = match self.rules.moving {
                    Moving::Unfenced => Stage::Promoting,
                    Moving::Fenced | Moving::VerifiedEarly => Stage::Fencing,
                };
            }
            Action::Reached { executor } => world.executors[usize::from(executor)].stage = Stage::Promoting,
            Action::Fence { executor } => self.fence(world, executor),
            Action::Rotate { executor } => {
                let own = &mut world.executors[usize::from(executor)];
                let server = &mut world.servers[usize::from(own.target)];
                server.clear_stuck(self.rules.blocks_kill);
                (server.user, server.px, server.repl) = (own.epoch, own.epoch, own.epoch);
                (server.obeyed, server.step) = (own.epoch, Step::Done);
                own.mark = server.log.len();
                own.stage = Stage::Proving;
            }
            _ => unreachable!("{action:?} is nothing of an executor"),
        }
    }

    /// A place for a new executor: at most two are at it at once, the oldest is forgotten.
    fn enlist(&self, world: &mut World, executor: Executor) {
        let order = |executor: &&mut Executor| (executor.kind != Kind::None, executor.epoch);
        if let Some(place) = world.executors.iter_mut().min_by_key(order) {
            *place = executor;
        }
        world.executors.sort_by_key(|executor| Reverse(executor.epoch));
    }

    fn claim(&self, world: &mut World) {
        let epoch = world.shard.reach() + 1;
        let executor = Executor {
            kind: Kind::Election,
            epoch,
            begun: world.shard.phase != Phase::Serving,
            shard: Shard {
                epoch: 0,
                phase: Phase::Electing,
                reserved: 0,
                ..world.shard
            },
            ..Executor::default()
        };
        world.shard.epoch = epoch;
        world.shard.phase = Phase::Electing;
        world.shard.reserved = 0;
        self.enlist(world, executor);
    }

    fn switch(&self, world: &mut World, to: u8) {
        world.left.switches -= 1;
        let epoch = world.shard.reach() + 1;
        world.shard.phase = Phase::Switching;
        world.shard.reserved = epoch;
        let stage = match self.rules.moving {
            Moving::Fenced => Stage::Fencing,
            Moving::VerifiedEarly | Moving::Unfenced => Stage::Checking,
        };
        let executor = Executor {
            kind: Kind::Switchover,
            epoch,
            stage,
            shard: Shard {
                reserved: 0,
                lineage: 0,
                ..world.shard
            },
            target: to,
            target_run: world.servers[usize::from(to)].run,
            ..Executor::default()
        };
        self.enlist(world, executor);
    }

    fn change(&self, world: &mut World) {
        world.left.changes -= 1;
        let epoch = world.shard.reach() + 1;
        world.shard.epoch = epoch;
        world.shard.phase = Phase::Electing;
        let master = &world.servers[usize::from(world.shard.master)];
        let executor = Executor {
            kind: Kind::Change,
            epoch,
            stage: if self.rules.changes_rotate {
                Stage::Rotating
            } else {
                Stage::Proving
            },
            shard: Shard {
                epoch: 0,
                reserved: 0,
                lineage: 0,
                ..world.shard
            },
            target: world.shard.master,
            target_run: world.shard.run,
            mark: if self.rules.changes_rotate { 0 } else { master.log.len() },
            ..Executor::default()
        };
        self.enlist(world, executor);
    }

    fn park(&self, world: &mut World, executor: u8, node: u8) {
        let own = &mut world.executors[usize::from(executor)];
        let server = &mut world.servers[usize::from(node)];
        server.clear_stuck(self.rules.blocks_kill);
        server.park(own.epoch);
        (server.obeyed, server.step) = (own.epoch, Step::Parked);
        own.answers[usize::from(node)] = Answer {
            run: server.run,
            replid: server.replid,
            replid2: server.replid2,
            second: server.second,
            offset: server.log.len(),
        };
    }

    /// Those who count. Who may win is among them.
    fn counted(&self, own: &Executor) -> Vec<Counted> {
        let shard = &own.shard;
        let sound = |node: &u8| {
            let run = own.answers[usize::from(*node)].run;
            let valid = shard.valid[usize::from(*node)];
            run != 0 && contains(shard.members, *node) && (valid == run || (!self.rules.runs_count && valid != 0))
        };
        let branches: Vec<&Answer> = nodes()
            .filter(sound)
            .map(|node| &own.answers[usize::from(node)])
            .filter(|answer| accepts(shard, answer.replid2) && answer.second > 0)
            .collect();
        let judged = nodes().filter(sound).filter_map(|node| {
            let answer = &own.answers[usize::from(node)];
            let held = self.held(shard, answer, &branches);
            match (self.rules.counting, held) {
                (_, Some(offset)) => Some(Counted {
                    node,
                    offset,
                    eligible: true,
                }),
                (Counting::Lives, None) => Some(Counted {
                    node,
                    offset: 0,
                    eligible: false,
                }),
                (Counting::Candidates, None) => None,
            }
        });
        judged.collect()
    }

    /// How much of the accepted stream a member holds.
    fn held(&self, shard: &Shard, answer: &Answer, branches: &[&Answer]) -> Option<u8> {
        let left_at = match answer.second {
            0 => answer.offset,
            second => answer.offset.min(second - 1),
        };
        let published = answer.replid == shard.stream;
        match self.rules.lineage {
            Lineage::Ignored => Some(answer.offset),
            _ if published => Some(answer.offset),
            Lineage::Published => None,
            Lineage::PublishedOrBranch => (answer.replid2 == shard.stream).then_some(left_at),
            Lineage::Set if accepts(shard, answer.replid) || accepts(shard, answer.replid2) => Some(left_at),
            Lineage::Set => {
                let branch = branches.iter().find(|branch| branch.replid == answer.replid)?;
                Some(answer.offset.min(branch.second - 1))
            }
        }
    }

    fn choice(&self, own: &Executor) -> Option<u8> {
        let counted = self.counted(own);
        let published = |counted: &Counted| {
            let answer = &own.answers[usize::from(counted.node)];
            counted.node == own.shard.master && answer.run == own.shard.run && answer.replid == own.shard.stream
        };
        let required = if self.rules.park_before_promote {
            usize::from(own.shard.required())
        } else {
            1
        };
        let enough = counted.len() >= required || (self.rules.master_suffices && counted.iter().any(published));
        let eligible = counted.iter().filter(|counted| counted.eligible && enough);
        eligible
            .max_by_key(|counted| (counted.offset, Reverse(counted.node)))
            .map(|best| best.node)
    }

    /// Whether the choice has to be written first: its stream is not accepted yet, and another may build on it.
    fn adopts(&self, own: &Executor) -> bool {
        let Some(node) = self.choice(own) else { return false };
        let stream = own.answers[usize::from(node)].replid;
        self.rules.lineage == Lineage::Set && own.begun && !accepts(&own.shard, stream)
    }

    fn choose(&self, world: &mut World, executor: u8) {
        let own = &mut world.executors[usize::from(executor)];
        let Some(node) = self.choice(own) else { return };
        let answer = own.answers[usize::from(node)];
        if self.adopts(own) {
            world.shard.lineage |= bit(answer.replid);
        }
        own.target = node;
        own.target_run = answer.run;
        own.stage = Stage::Promoting;
        // What is not asked any more is the same for all.
        own.begun &= self.rules.promoted_is_adopted && self.rules.lineage == Lineage::Set;
        own.shard = Shard::default();
        for answer in &mut own.answers {
            *answer = Answer {
                run: answer.run,
                ..Answer::default()
            };
        }
    }

    fn promote(&self, world: &mut World, executor: u8) {
        let own = &mut world.executors[usize::from(executor)];
        let server = &mut world.servers[usize::from(own.target)];
        server.clear_stuck(self.rules.blocks_kill);
        server.promote(own.target, own.epoch);
        (server.obeyed, server.step) = (own.epoch, Step::Done);
        let marked = own.kind == Kind::Switchover && self.rules.moving == Moving::Fenced;
        let short = marked && !self.has_reached(&world.servers[usize::from(own.target)], own);
        let own = &mut world.executors[usize::from(executor)];
        if short {
            *own = Executor::default();
            return;
        }
        own.mark = world.servers[usize::from(own.target)].log.len();
        own.mark_stream = 0;
        own.stage = if own.begun { Stage::Adopting } else { Stage::Proving };
    }

    fn fence(&self, world: &mut World, executor: u8) {
        let own = &mut world.executors[usize::from(executor)];
        let server = &mut world.servers[usize::from(own.shard.master)];
        server.clear_stuck(self.rules.blocks_kill);
        server.halt(own.epoch);
        (server.obeyed, server.step) = (own.epoch, Step::Parked);
        (own.mark, own.mark_stream) = (server.log.len(), server.replid);
        own.stage = if super::steps::verifies(self.rules.moving) {
            Stage::Reaching
        } else {
            Stage::Promoting
        };
    }

    fn publish(&self, world: &mut World, executor: u8) {
        let own = world.executors[usize::from(executor)];
        let (members, w) = match own.kind {
            Kind::Change => self.bounds.change,
            Kind::Election | Kind::Switchover | Kind::None => (world.shard.members, world.shard.w),
        };
        let trusting = match own.kind {
            Kind::Change => !self.rules.changes_prove,
            Kind::Election | Kind::Switchover | Kind::None => !self.rules.valid_is_proven,
        };
        let mut valid = [0; NODES];
        for node in nodes().filter(|node| contains(members, *node)) {
            let server = &world.servers[usize::from(node)];
            let linked = server.up && server.linked && server.role == Role::Follows(own.target);
            let proven = linked && server.log.len() >= own.mark;
            if node == own.target {
                valid[usize::from(node)] = own.target_run;
            } else if trusting {
                valid[usize::from(node)] = world.shard.valid[usize::from(node)];
            } else if proven {
                valid[usize::from(node)] = server.run;
            }
        }
        let stream = match own.kind {
            Kind::Change => world.shard.stream,
            Kind::Election | Kind::Switchover | Kind::None => stream_of(own.target, own.epoch),
        };
        world.shard = Shard {
            epoch: own.epoch,
            phase: Phase::Serving,
            reserved: 0,
            master: own.target,
            run: own.target_run,
            members,
            valid,
            stream,
            lineage: bit(stream),
            w,
        };
        world.published[usize::from(own.epoch)] = Snapshot {
            epoch: own.epoch,
            master: own.target,
            run: own.target_run,
            w,
            promised: w,
            members,
        };
        world.executors[usize::from(executor)] = Executor::default();
        world.executors.sort_by_key(|executor| Reverse(executor.epoch));
    }
}

fn accepts(shard: &Shard, stream: u8) -> bool {
    stream != 0 && shard.lineage & bit(stream) != 0
}

fn admits_park(server: &Server, epoch: u8) -> bool {
    server.obeyed < epoch || (server.obeyed == epoch && server.step != Step::Done)
}

fn admits_follow(server: &Server, own: &Executor) -> bool {
    let parked = server.obeyed == own.epoch && server.step == Step::Parked;
    let unparked = own.kind != Kind::Election && server.obeyed < own.epoch;
    server.up && (parked || unparked)
}
