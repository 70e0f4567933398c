//! What a step does: inputs to machines, their actions, commands to servers, writes to the store.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::Lie;
use super::world::{Mail, NODES, Place, Status, World, Write, id, index};
use crate::agent::machine::Source;
use crate::agent::machine::action::{Action, AskId, Input, Registered, Reply, Ticket, Written};
use crate::agent::machine::detector::{PeerSeen, Seen};
use crate::agent::machine::facts::{Facts, PARKED_AT, Role};
use crate::agent::machine::obedience::Ask;
use crate::agent::machine::state::{State, Versioned};
use crate::agent::machine::twin::redis::{Life, SimRedis};
use crate::topology::Epoch;

/// Between two inputs of an agent: enough to tell what came first.
const TICK: Duration = Duration::from_micros(1);

impl World {
    /// Gives an agent an input and carries out what follows. Whether it did anything but talk.
    pub fn tell(&mut self, place: Place, input: Input) -> bool {
        let Some(agent) = self.agent_mut(place) else {
            return false;
        };
        agent.now += TICK;
        let before = agent.machine.obedience.epoch();
        agent.machine.handle(agent.now, input);
        let went_back = agent.machine.obedience.epoch() < before;
        let actions: Vec<Action> = agent.machine.poll_actions().collect();
        if went_back {
            self.broken = Some("I3 an agent's epoch went back");
        }
        let mut acted = false;
        for action in actions {
            acted |= !matches!(action, Action::Say(..));
            self.act(place, action);
        }
        acted
    }

    fn act(&mut self, by: Place, action: Action) {
        match action {
            Action::Write { expect, state } => self.post(Mail::Write { by, expect, state }),
            Action::ReadState => self.post(Mail::Read { by }),
            Action::Ask { id, node, ask } => {
                let to = index(&node);
                if self.agents[to].is_some() {
                    self.post(Mail::Ask { from: by, id, to, ask });
                } else {
                    let reply = Reply::Failed("no agent".to_owned());
                    self.post(Mail::Answer { to: by, id, reply });
                }
            }
            Action::Answer { ticket, reply } => {
                let owed = self.agent_mut(by).and_then(|agent| agent.tickets.remove(&ticket));
                if let Some((to, id)) = owed {
                    self.post(Mail::Answer { to, id, reply });
                }
            }
            Action::Act { job, ask } => {
                if let Some(agent) = self.agent_mut(by) {
                    agent.acting = Some(job);
                }
                self.post(Mail::Act { by, job, ask });
            }
            Action::Remember(epoch) => self.disks[by.0] = epoch,
            Action::Keep(streams) => self.streams[by.0] = Arc::new(streams),
            Action::Deputise { id, addr, ask } => {
                if let Some(to) = (0..NODES).find(|other| self.redis[*other].addr == addr) {
                    self.post(Mail::Deputise { by, id, to, ask });
                }
            }
            Action::Record(outcome) => {
                let ends =
                    outcome.request.is_some() && self.wish.as_ref().map(|wish| &wish.id) == outcome.request.as_ref();
                if ends {
                    self.wish = None;
                }
            }
            Action::Say(_, sentence) => self.said.push(format!("{}: {sentence}", id(by.0))),
            Action::Suspect(_) | Action::Relay(_) | Action::Attach(..) | Action::Lost { .. } => {}
        }
    }

    /// An agent looks at everything there is to see. Whether it did anything about it.
    pub fn look(&mut self, node: usize) -> bool {
        let Some(agent) = self.agents[node].as_deref() else {
            return false;
        };
        let place = (node, agent.life);
        let asked_at = agent.now;
        let master = agent.machine.master_to_watch().cloned();
        let see = |at: usize| match &self.redis[at].life {
            None => Seen::Dead,
            Some(_) if self.redis[at].frozen => Seen::Silent,
            Some(life) => Seen::Up {
                facts: Facts {
                    replicas: self.replicas(at),
                    ..life.facts()
                },
                asked_at,
            },
        };
        let own = see(node);
        let watched = master.map(|master| {
            let seen = see(index(&master.node));
            (master, seen)
        });
        let peers = (0..NODES).filter(|other| *other != node).map(|other| {
            let status = self.agents[other]
                .as_deref()
                .map(|agent| agent.machine.status(asked_at));
            let seen = status.map_or(PeerSeen::Unreachable, |status| PeerSeen::Up {
                status: Box::new(status),
                asked_at,
            });
            (other, seen)
        });
        let peers: Vec<(usize, PeerSeen)> = peers.collect();
        let nodes = (0..NODES).filter(|other| self.agents[*other].is_some());
        let nodes = nodes.map(|other| Registered {
            node: id(other),
            addr: self.redis[other].addr.clone(),
        });
        let nodes: Vec<Registered> = nodes.collect();
        let wish = self.wish.clone();
        let wanted = (*self.wanted).clone();
        let mut acted = self.tell(place, Input::Nodes(nodes));
        acted |= self.tell(place, Input::Proxies(Default::default()));
        acted |= self.tell(place, Input::Wanted(wanted));
        for (other, seen) in peers {
            let refuses = |world: &Self| world.agent(place).map(|me| me.machine.detector.refused_by(&id(other)));
            let before = refuses(self);
            acted |= self.tell(place, Input::Peer(id(other), seen));
            // What it will do about that waits for time to pass.
            acted |= refuses(self) != before;
        }
        acted |= self.tell(place, Input::Wish(wish));
        acted |= self.tell(place, Input::Own(own));
        if let Some((master, seen)) = watched {
            acted |= self.tell(place, Input::Master(master, seen));
        }
        if acted {
            self.print_agent(node);
        }
        acted
    }

    /// How many replicas a node hears.
    fn replicas(&self, node: usize) -> u32 {
        let follows = |life: &Life| life.linked && life.follows.as_ref() == Some(&self.redis[node].addr);
        let lives = self.redis.iter().filter_map(|redis| redis.up());
        count(lives.filter(|life| follows(life)).count())
    }

    /// Whether an agent does not know yet what the store says.
    pub fn behind(&self, node: usize) -> bool {
        let Some(agent) = self.agents[node].as_deref() else {
            return false;
        };
        let known = agent.machine.state().map(|known| known.version);
        self.store.as_ref().is_some_and(|store| Some(store.version) > known)
    }

    pub fn learn(&mut self, node: usize, read: Versioned) {
        let Some(life) = self.agents[node].as_deref().map(|agent| agent.life) else {
            return;
        };
        self.tell((node, life), Input::State(read));
        self.print_agent(node);
    }

    /// Delivers what needs no delay of its own: that of the step it follows from gives the same orders.
    pub fn hurry(&mut self, lie: Lie) {
        while let Some(place) = self.mail.iter().position(|(_, mail)| self.hurried(mail)) {
            let (_, mail) = self.mail.remove(place);
            self.deliver((*mail).clone(), lie);
        }
    }

    fn hurried(&self, mail: &Mail) -> bool {
        match mail {
            Mail::Read { .. } => true,
            Mail::Answer { .. } => self.left.losses == 0,
            // What an executor asks of its own agent has no question on its way before it.
            Mail::Act { by, job, .. } => {
                let running = self.agent(*by).and_then(|agent| agent.machine.running.as_ref());
                let own =
                    running.is_some_and(|running| running.job == *job && matches!(running.source, Source::Course(_)));
                !own && self.deliverable(mail)
            }
            Mail::Ask { .. } | Mail::Write { .. } | Mail::Linked { .. } | Mail::Deputise { .. } => false,
        }
    }

    /// Whether what is on its way can arrive now.
    pub fn deliverable(&self, mail: &Mail) -> bool {
        match mail {
            Mail::Act { by: (node, _), ask, .. } | Mail::Deputise { to: node, ask, .. } => match ask {
                // The agent looks until it is so, for as long as it is asked.
                Ask::Reach { mark: Some(mark), .. } => {
                    let life = self.redis[*node].up();
                    life.is_none_or(|life| life.has_reached(mark))
                }
                Ask::Reach { mark: None, .. }
                | Ask::Park { .. }
                | Ask::Fence { .. }
                | Ask::Promote { .. }
                | Ask::Renew { .. }
                | Ask::Follow { .. } => true,
            },
            Mail::Ask { .. } | Mail::Answer { .. } | Mail::Write { .. } | Mail::Read { .. } | Mail::Linked { .. } => {
                true
            }
        }
    }

    pub fn deliver(&mut self, mail: Mail, lie: Lie) {
        let node = match &mail {
            Mail::Ask { to, .. } => *to,
            Mail::Answer { to, .. } => to.0,
            Mail::Write { by, .. }
            | Mail::Read { by }
            | Mail::Act { by, .. }
            | Mail::Linked { by, .. }
            | Mail::Deputise { by, .. } => by.0,
        };
        match mail {
            Mail::Ask { from, id, to, ask } => {
                let Some(agent) = self.agents[to].as_deref() else {
                    return;
                };
                let (place, ticket) = ((to, agent.life), Ticket(agent.asked + 1));
                if let Some(agent) = self.agent_mut(place) {
                    agent.asked += 1;
                    agent.tickets.insert(ticket, (from, id));
                }
                self.tell(place, Input::Asked(ticket, ask));
            }
            Mail::Answer { to, id, reply } => {
                self.tell(to, Input::Answered(id, reply));
            }
            Mail::Write { by, expect, state } => {
                let outcome = self.write(expect, state);
                self.tell(by, Input::Written(outcome));
            }
            Mail::Read { by } => {
                let read = self.store.as_deref().cloned();
                self.tell(by, Input::Synced(read));
            }
            Mail::Act { by, job, ask } => self.carry_out(by, job, ask, lie),
            Mail::Deputise { by, id, to, ask } => self.deputise(by, id, to, ask, lie),
            Mail::Linked { by, job } => {
                let facts = self.redis[by.0].up().map(|life| Box::new(life.facts()));
                self.tell(by, Input::Acted(job, facts.ok_or_else(|| "no answer".to_owned())));
            }
        }
        self.print_agent(node);
    }

    /// The question, the answer or the outcome does not arrive; `applied` says whether a write did.
    pub fn lose(&mut self, mail: Mail, applied: bool) {
        match mail {
            Mail::Answer { to, id, .. } => {
                self.tell(to, Input::Answered(id, Reply::Failed("lost".to_owned())));
                self.print_agent(to.0);
            }
            Mail::Write { by, expect, state } => {
                if applied {
                    self.write(expect, state);
                }
                self.tell(by, Input::Written(Written::Unknown));
                self.print_agent(by.0);
            }
            Mail::Ask { .. } | Mail::Read { .. } | Mail::Act { .. } | Mail::Linked { .. } | Mail::Deputise { .. } => {}
        }
    }

    fn carry_out(&mut self, by: Place, job: crate::agent::machine::action::Job, ask: Ask, lie: Lie) {
        // A newer command has closed the older one's connection.
        if self.agent(by).is_none_or(|agent| agent.acting != Some(job)) {
            return;
        }
        let lied = match lie {
            Lie::ParkNotDone => matches!(ask, Ask::Park { .. }) && by.0 == 2,
            Lie::FenceNotDone => matches!(ask, Ask::Fence { .. }),
            Lie::RenewNotDone => matches!(ask, Ask::Renew { .. }),
            Lie::None | Lie::NoWait | Lie::DeputyNotDone | Lie::PlainChange => false,
        };
        let redis = self.redis_mut(by.0);
        redis.deputy = None;
        let result = if lied { pretend(redis, &ask) } else { redis.act(&ask) };
        match (result, ask) {
            (Ok(_), Ask::Follow { .. }) => self.post(Mail::Linked { by, job }),
            (result, _) => {
                self.tell(by, Input::Acted(job, result));
            }
        }
    }

    /// An agent's command reaches the Redis of another. Whoever commanded that since the park has ended the connection.
    fn deputise(&mut self, by: Place, id: AskId, to: usize, ask: Ask, lie: Lie) {
        let from = (super::world::id(by.0), by.1);
        let redis = self.redis_mut(to);
        let parks = matches!(ask, Ask::Park { .. });
        if parks && redis.up().is_some() {
            redis.deputy = Some(from.clone());
        }
        let result = if redis.deputy.as_ref() != Some(&from) {
            Err("not connected".to_owned())
        } else if parks && lie == Lie::DeputyNotDone {
            pretend(redis, &ask)
        } else {
            redis.act(&ask)
        };
        let reply = result.map_or_else(Reply::Failed, Reply::Done);
        self.post(Mail::Answer { to: by, id, reply });
    }

    /// The operator's wish is written over the state as it stands.
    pub fn change_plainly(&mut self) {
        let Some(known) = self.store.as_deref().cloned() else {
            return;
        };
        let (members, w) = (self.wanted.members.clone(), self.wanted.ack_replicas);
        let mut state = State {
            members,
            ack_replicas: w,
            ..known.state
        };
        let members = &state.members;
        state.valid.retain(|node, _| members.contains(node));
        self.write(Some(known.version), state);
    }

    fn write(&mut self, expect: Option<i32>, state: State) -> Written {
        let version = self.store.as_ref().map(|known| known.version);
        if version != expect {
            return Written::Conflict;
        }
        let before = self.store.as_ref().map_or(Epoch(0), |known| known.state.epoch);
        if state.epoch < before {
            self.broken = Some("I3 the shard's epoch went back");
        }
        let version = version.map_or(0, |version| version + 1);
        self.publish(&state);
        let written = Versioned { version, state };
        let mut hasher = DefaultHasher::new();
        format!("{written:?}").hash(&mut hasher);
        self.store_print = hasher.finish();
        self.store = Some(written.into());
        Written::Done(version)
    }

    /// One step of replication of a node from the one it follows.
    pub fn replicate(&mut self, node: usize) {
        let master = self.master_of(node);
        if let Some(master) = master {
            let asks = self.redis[node].life.as_ref().map(|life| life.epoch);
            let redis = self.redis_mut(master);
            if redis
                .up()
                .is_some_and(|life| life.role == Role::Master && life.feeds == asks)
            {
                redis.make_backlog();
            }
        }
        let master = master.and_then(|master| self.redis[master].up()).cloned();
        let redis = self.redis_mut(node);
        if redis.frozen {
            return;
        }
        let Some(life) = &mut redis.life else { return };
        match master {
            Some(master) => {
                if life.syncing == 0 && life.resumes(&master) && !master.log.starts_with(&life.log) {
                    self.broken = Some("I4 a partial resynchronisation over a foreign prefix");
                    return;
                }
                let starts = !life.linked && life.syncing == 0;
                life.replicate(&master, 1);
                // Half way and through are enough to tell apart.
                while !starts && life.syncing > 0 {
                    life.replicate(&master, 1);
                }
            }
            None => life.cut(),
        }
    }

    fn master_of(&self, node: usize) -> Option<usize> {
        let follows = self.redis[node].life.as_ref()?.follows.as_ref()?;
        (0..NODES).find(|other| self.redis[*other].addr == *follows)
    }

    /// A client writes through the snapshot of an epoch, if its master is there and admits it.
    pub fn issue(&mut self, snapshot: usize) -> bool {
        let Some(state) = self.published.get(snapshot).cloned() else {
            return false;
        };
        let Some(master) = &state.master else { return false };
        let node = index(&master.node);
        let write = Write {
            id: u64::try_from(self.writes.len()).unwrap_or(0) + 1,
            node,
            run_id: master.run_id.clone(),
            epoch: state.epoch,
            late: self.published.last().is_some_and(|last| last.epoch > state.epoch),
            status: Status::Pending,
        };
        if !self.connected(&write) || self.redis[node].frozen {
            return false;
        }
        if let Some(life) = &mut self.redis_mut(node).life {
            life.log.push(write.id);
        }
        self.writes.push(write);
        true
    }

    /// Whether enough members have a write; who is linked acknowledges to its master.
    pub fn covered(&self, write: &Write, lie: Lie) -> bool {
        let Some(published) = self.published_in(write.epoch) else {
            return false;
        };
        let addr = &self.redis[write.node].addr;
        let holds = |life: &Life| life.linked && life.follows.as_ref() == Some(addr) && life.log.contains(&write.id);
        let members = self
            .redis
            .iter()
            .filter(|redis| published.members.contains(&redis.node));
        let holders = members.filter_map(|redis| redis.up()).filter(|life| holds(life));
        let there = self.connected(write) && !self.redis[write.node].frozen;
        let enough = lie == Lie::NoWait || count(holders.count()) >= published.ack_replicas;
        write.status == Status::Pending && there && enough
    }

    /// The client hears that its write was done, which promises something where replicas acknowledge, and everywhere as
    /// long as nothing of the kind that may cost data without them happens (`strict`).
    pub fn acknowledge(&mut self, write: usize, strict: bool) {
        let epoch = self.writes[write].epoch;
        let counts = strict || self.published_in(epoch).is_some_and(State::keeps);
        if self.writes[write].late && counts {
            self.broken = Some("I2 a write was acknowledged that was issued after a newer epoch was published");
        }
        self.writes[write].status = if counts { Status::Acked } else { Status::Doubt };
    }

    /// A restarted server has nothing.
    pub fn restart(&mut self, node: usize) {
        let redis: &mut SimRedis = self.redis_mut(node);
        redis.start(Vec::new(), None);
    }
}

/// What a node says that did as it was told, of one that did not.
fn pretend(redis: &SimRedis, ask: &Ask) -> Result<Box<Facts>, String> {
    let facts = redis.up().map(Life::facts).ok_or_else(|| "no answer".to_owned())?;
    Ok(Box::new(match ask {
        Ask::Park { epoch } | Ask::Fence { epoch, .. } => Facts {
            epoch: *epoch,
            role: Role::Replica,
            follows: PARKED_AT.parse().ok(),
            link_up: false,
            ..facts
        },
        Ask::Renew { epoch, .. } => Facts { epoch: *epoch, ..facts },
        Ask::Reach { .. } | Ask::Promote { .. } | Ask::Follow { .. } => facts,
    }))
}

fn count(some: usize) -> u32 {
    u32::try_from(some).unwrap_or(u32::MAX)
}
