//! What can happen next, and what it does: agents, Redis, clients and faults. Executors are in `executor`.

use super::protocol::Protocol;
use super::rules::Moving;
use super::state::*;

/// One step of one party. Numbers are nodes, executors' places, epochs of snapshots, or writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Claim,
    Park {
        executor: u8,
        node: u8,
    },
    Choose {
        executor: u8,
    },
    Promote {
        executor: u8,
    },
    Adopt {
        executor: u8,
    },
    Follow {
        executor: u8,
        node: u8,
    },
    Publish {
        executor: u8,
    },
    Switch {
        to: u8,
    },
    Check {
        executor: u8,
    },
    Fence {
        executor: u8,
    },
    Reached {
        executor: u8,
    },
    Change,
    Rotate {
        executor: u8,
    },
    /// An agent reads a published state, perhaps an old one, and attaches its Redis.
    Obey {
        node: u8,
        epoch: u8,
    },
    Readmit {
        node: u8,
    },
    Join {
        node: u8,
    },
    /// Members or W changed by a mere compare-and-set.
    PlainChange,
    Link {
        node: u8,
    },
    Replicate {
        node: u8,
    },
    Stick {
        node: u8,
        epoch: u8,
    },
    Unstick {
        node: u8,
    },
    Write {
        epoch: u8,
    },
    Ack {
        write: u8,
    },
    Kill {
        node: u8,
    },
    Restart {
        node: u8,
        old_data: bool,
    },
    Forget {
        node: u8,
    },
}

impl Protocol {
    /// What may happen in `world` besides executors' steps; faults and clients only if `all`.
    pub fn other_steps(&self, world: &World, all: bool, steps: &mut Vec<Action>) {
        for node in nodes() {
            let server = &world.servers[usize::from(node)];
            if self.readmissible(world, node) {
                steps.push(Action::Readmit { node });
            }
            if self.bounds.joins
                && world.shard.phase == Phase::Serving
                && server.up
                && !contains(world.shard.members, node)
            {
                steps.push(Action::Join { node });
            }
            if let Role::Follows(master) = server.role {
                let master = &world.servers[usize::from(master)];
                if server.up && server.linked && server.log.len() < master.log.len() {
                    steps.push(Action::Replicate { node });
                }
                if server.up && !server.linked && feeds(master, server) && master.role == Role::Master {
                    steps.push(Action::Link { node });
                }
            }
            if server.up && server.stuck.is_some() {
                steps.push(Action::Unstick { node });
            }
            for snapshot in world.published.iter().filter(|snapshot| snapshot.epoch != 0) {
                let epoch = snapshot.epoch;
                if self.obeyable(world, node, snapshot) {
                    steps.push(Action::Obey { node, epoch });
                }
                let again = server.up && node != snapshot.master && server.obeyed <= epoch;
                if all && world.left.stuck > 0 && again && server.stuck.is_none() {
                    steps.push(Action::Stick { node, epoch });
                }
            }
        }
        if all {
            self.clients(world, steps);
            self.faults(world, steps);
        }
    }

    fn clients(&self, world: &World, steps: &mut Vec<Action>) {
        for (write, _) in (0..).zip(&world.writes).filter(|(_, w)| w.status == Status::Pending) {
            if self.acknowledged(world, write) {
                steps.push(Action::Ack { write });
            }
        }
        let issued = world.writes.iter().filter(|write| write.status != Status::Free).count();
        if issued < usize::from(self.bounds.writes) {
            let usable = world.published.iter().filter(|known| admitted(world, known));
            steps.extend(usable.map(|known| Action::Write { epoch: known.epoch }));
        }
    }

    fn faults(&self, world: &World, steps: &mut Vec<Action>) {
        let left = &world.left;
        for node in nodes() {
            let server = &world.servers[usize::from(node)];
            if server.up && left.kills > 0 {
                steps.push(Action::Kill { node });
            }
            if !server.up && left.restarts > 0 {
                steps.push(Action::Restart { node, old_data: false });
                if self.bounds.old_data {
                    steps.push(Action::Restart { node, old_data: true });
                }
            }
            if left.forgets > 0 && !self.rules.agents_remember {
                steps.push(Action::Forget { node });
            }
        }
        let serving = world.shard.phase == Phase::Serving;
        if serving && left.changes > 0 && !self.rules.changes_are_epochs && self.plainly_changeable(world) {
            steps.push(Action::PlainChange);
        }
    }

    /// Carries one of [`Protocol::other_steps`] out.
    pub fn take_other(&self, world: &mut World, action: Action) {
        match action {
            Action::Obey { node, epoch } => {
                let master = world.published[usize::from(epoch)].master;
                self.obey(world, node, epoch);
                world.servers[usize::from(node)].follow(master, epoch);
            }
            Action::Stick { node, epoch } => {
                let master = world.published[usize::from(epoch)].master;
                self.obey(world, node, epoch);
                world.servers[usize::from(node)].stuck = Some((master, epoch));
                world.left.stuck -= 1;
            }
            Action::Unstick { node } => {
                let server = &mut world.servers[usize::from(node)];
                if let Some((master, epoch)) = server.stuck.take() {
                    server.follow(master, epoch);
                }
            }
            Action::Readmit { node } => {
                world.shard.valid[usize::from(node)] = world.servers[usize::from(node)].run;
            }
            Action::Join { node } => {
                world.shard.members |= 1 << node;
                world.published[usize::from(world.shard.epoch)].members = world.shard.members;
            }
            Action::PlainChange => self.change_plainly(world),
            Action::Link { node } => {
                let Role::Follows(master) = world.servers[usize::from(node)].role else {
                    return;
                };
                let master = world.servers[usize::from(master)];
                world.broken.prefix |= !world.servers[usize::from(node)].synchronise(&master);
            }
            Action::Replicate { node } => {
                let Role::Follows(master) = world.servers[usize::from(node)].role else {
                    return;
                };
                let log = world.servers[usize::from(master)].log;
                let own = &mut world.servers[usize::from(node)].log;
                own.push(log.at(own.len()));
            }
            Action::Write { epoch } => self.write(world, epoch),
            Action::Ack { write } => {
                let write = &mut world.writes[usize::from(write)];
                let counts = world.published[usize::from(write.epoch)].promised > 0 || self.bounds.strict;
                world.broken.late_ack |= write.late && counts;
                write.status = if counts { Status::Acked } else { Status::Doubt };
            }
            Action::Kill { node } => {
                world.left.kills -= 1;
                let server = &mut world.servers[usize::from(node)];
                *server = Server {
                    up: false,
                    role: Role::Parked,
                    linked: false,
                    user: 0,
                    px: 0,
                    repl: 0,
                    stuck: None,
                    ..*server
                };
                if !self.bounds.old_data || world.left.restarts == 0 {
                    (server.log, server.replid, server.replid2, server.second) = (Log::default(), 0, 0, 0);
                }
            }
            Action::Restart { node, old_data } => {
                world.left.restarts -= 1;
                let server = &mut world.servers[usize::from(node)];
                server.up = true;
                server.run += 1;
                if old_data {
                    server.log = server.log.cut(server.log.len().saturating_sub(1));
                } else {
                    (server.log, server.replid, server.replid2, server.second) = (Log::default(), 0, 0, 0);
                }
            }
            Action::Forget { node } => {
                world.left.forgets -= 1;
                let server = &mut world.servers[usize::from(node)];
                server.obeyed = 0;
                server.step = match server.role {
                    Role::Parked => Step::Parked,
                    Role::Master | Role::Follows(_) => Step::Done,
                };
            }
            _ => unreachable!("{action:?} is an executor's"),
        }
    }

    fn obey(&self, world: &mut World, node: u8, epoch: u8) {
        let server = &mut world.servers[usize::from(node)];
        server.clear_stuck(self.rules.blocks_kill);
        server.obeyed = epoch;
        server.step = Step::Done;
    }

    /// Whether an agent that reads this state attaches its Redis to the master it names.
    fn obeyable(&self, world: &World, node: u8, snapshot: &Snapshot) -> bool {
        let server = &world.servers[usize::from(node)];
        let member = contains(snapshot.members, node) || !self.rules.members_first;
        let follows = server.role == Role::Follows(snapshot.master) && server.user == snapshot.epoch;
        let under_way = server.stuck == Some((snapshot.master, snapshot.epoch));
        server.up && node != snapshot.master && member && !follows && !under_way && server.obeyed <= snapshot.epoch
    }

    fn readmissible(&self, world: &World, node: u8) -> bool {
        let shard = &world.shard;
        let server = &world.servers[usize::from(node)];
        let seated = contains(shard.members, node) && shard.valid[usize::from(node)] != server.run;
        if shard.phase != Phase::Serving || !server.up || !seated {
            return false;
        }
        if !self.rules.seats_catch_up {
            return server.replid == shard.stream;
        }
        self.caught_up(world, node)
    }

    fn caught_up(&self, world: &World, node: u8) -> bool {
        let shard = &world.shard;
        let server = &world.servers[usize::from(node)];
        let master = &world.servers[usize::from(shard.master)];
        let linked = server.linked && server.role == Role::Follows(shard.master) && server.user == shard.epoch;
        let known = master.up && master.run == shard.run && master.role == Role::Master;
        linked && known && server.replid == shard.stream && server.log.len() >= master.log.len()
    }

    fn plainly_changeable(&self, world: &World) -> bool {
        let (members, _) = self.bounds.change;
        let mut newcomers = nodes().filter(|node| contains(members & !world.shard.members, *node));
        newcomers.all(|node| self.caught_up(world, node))
    }

    fn change_plainly(&self, world: &mut World) {
        let (members, w) = self.bounds.change;
        world.left.changes -= 1;
        for node in nodes() {
            let valid = &mut world.shard.valid[usize::from(node)];
            if !contains(members, node) {
                *valid = 0;
            } else if !contains(world.shard.members, node) {
                *valid = world.servers[usize::from(node)].run;
            }
        }
        (world.shard.members, world.shard.w) = (members, w);
        let snapshot = &mut world.published[usize::from(world.shard.epoch)];
        (snapshot.members, snapshot.promised) = (members, w);
    }

    fn write(&self, world: &mut World, epoch: u8) {
        let snapshot = world.published[usize::from(epoch)];
        let late = world.published.iter().any(|newer| newer.epoch > epoch);
        let Some(place) = world.writes.iter().position(|write| write.status == Status::Free) else {
            return;
        };
        let server = &mut world.servers[usize::from(snapshot.master)];
        server.log.push(place as u8 + 1);
        world.writes[place] = Write {
            status: Status::Pending,
            node: snapshot.master,
            run: snapshot.run,
            epoch,
            offset: server.log.len(),
            late,
        };
    }

    /// Whether WAIT covers a write now.
    fn acknowledged(&self, world: &World, write: u8) -> bool {
        let write = &world.writes[usize::from(write)];
        let master = &world.servers[usize::from(write.node)];
        let w = world.published[usize::from(write.epoch)].w;
        if !master.up || master.role != Role::Master {
            return false;
        }
        let offset = if self.connected(world, write) {
            write.offset
        } else if !self.rules.wait_in_epoch && world.published.iter().any(|known| self.leads_to(world, known, write)) {
            // PING and WAIT on another connection: it covers what that server has now.
            master.log.len()
        } else {
            return false;
        };
        let holders = world.servers.iter().filter(|server| {
            server.up && server.linked && server.role == Role::Follows(write.node) && server.log.len() >= offset
        });
        holders.count() >= usize::from(w)
    }

    /// Whether the connection that a write was sent on can still be there.
    pub fn connected(&self, world: &World, write: &Write) -> bool {
        let master = &world.servers[usize::from(write.node)];
        master.up && master.run == write.run && master.role == Role::Master && master.px == write.epoch
    }

    fn leads_to(&self, world: &World, known: &Snapshot, write: &Write) -> bool {
        known.master == write.node && admitted(world, known)
    }

    /// What every step ends with: links that cannot be, writes that cannot be acknowledged, executors that can do
    /// nothing any more.
    pub fn settle(&self, world: &mut World) {
        for node in nodes() {
            let server = world.servers[usize::from(node)];
            if let Role::Follows(master) = server.role {
                let fed = feeds(&world.servers[usize::from(master)], &server);
                world.servers[usize::from(node)].linked &= fed;
            }
        }
        if self.rules.wait_in_epoch {
            for place in 0..WRITES_MAX {
                let write = world.writes[place];
                if write.status == Status::Pending && !self.connected(world, &write) {
                    world.writes[place] = Write {
                        status: Status::Doubt,
                        ..Write::default()
                    };
                }
            }
        }
        for write in world.writes.iter_mut().filter(|write| write.status == Status::Acked) {
            *write = Write {
                offset: 0,
                late: false,
                ..*write
            };
        }
        for place in 0..world.executors.len() {
            if self.powerless(world, &world.executors[place]) {
                world.executors[place] = Executor::default();
            }
        }
    }

    /// An obsolete executor whom no agent obeys any more.
    fn powerless(&self, world: &World, executor: &Executor) -> bool {
        if executor.kind == Kind::None || !self.rules.agents_remember {
            return false;
        }
        let obsolete = !self.owns(world, executor);
        let done = |server: &Server| {
            server.obeyed > executor.epoch || (server.obeyed == executor.epoch && server.step == Step::Done)
        };
        obsolete && world.servers.iter().all(done)
    }
}

/// Whether `master` feeds `replica`: it shows the right credential. A fenced one feeds only who is linked.
fn feeds(master: &Server, replica: &Server) -> bool {
    let feeding = matches!(master.role, Role::Master | Role::Parked);
    master.up && feeding && master.repl != 0 && master.repl == replica.user
}

/// Whether a proxy that uses this snapshot gets in.
fn admitted(world: &World, known: &Snapshot) -> bool {
    let server = &world.servers[usize::from(known.master)];
    let there = server.up && server.run == known.run && server.role == Role::Master;
    known.epoch != 0 && there && server.px == known.epoch
}

/// Whether a switchover verifies its target after the fence.
pub fn verifies(moving: Moving) -> bool {
    moving == Moving::Fenced
}
