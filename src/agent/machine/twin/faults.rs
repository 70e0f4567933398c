//! What goes wrong in the twin world, and what comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Agent, Event, Fault, PROXY, World};
use crate::agent::machine::action::{Input, Registered};
use crate::agent::machine::outcome::Outcome;
use crate::agent::machine::{Identity, Machine};
use crate::topology::NodeId;
use crate::topology::codec::{Accept, ShardConfig, SwitchRequest};

impl World {
    pub fn fail(&mut self, fault: Fault) {
        self.log
            .push(format!("{:?} ---- {fault:?}", self.now.duration_since(self.start)));
        match fault {
            Fault::KillRedis(id) => self.redis.get_mut(&id).unwrap().life = None,
            Fault::StartRedis(id, empty) => self.start_redis(&id, empty),
            Fault::StartForeign(id) => {
                let redis = self.redis.get_mut(&id).unwrap();
                redis.start(vec![u64::MAX; 3], Some("another cluster's".to_owned()));
            }
            Fault::Freeze(id) => self.redis.get_mut(&id).unwrap().frozen = true,
            Fault::Thaw(id) => self.redis.get_mut(&id).unwrap().frozen = false,
            Fault::KillAgent(id) => {
                self.agents.insert(id.clone(), None);
                self.suspects.remove(&id);
                self.announce_nodes();
            }
            Fault::StopAgent(id) => {
                if let Some(agent) = self.agents.get_mut(&id).and_then(Option::as_mut) {
                    agent.stops = true;
                    let life = agent.life;
                    self.tell(&id, life, Input::Leave);
                }
            }
            Fault::StartAgent(id) if self.agents[&id].is_none() => self.start_agent(&id),
            Fault::StartAgent(_) => {}
            Fault::StoreAway => {
                self.store_up = false;
                for (node, life) in self.living() {
                    self.soon(Event::Tell(node, life, Input::StoreLost));
                }
            }
            Fault::StoreBack => {
                self.store_up = true;
                self.reconnect();
            }
            Fault::Isolate(id) => {
                self.isolated.insert(id);
            }
            Fault::Heal(id) => {
                self.isolated.remove(&id);
                self.reconnect();
            }
            Fault::Wish(to) => self.ask_for(to),
            Fault::Want(wanted) => self.want(*wanted),
        }
    }

    /// Somebody asks for a switchover, unless somebody else does.
    pub fn ask_for(&mut self, to: Option<NodeId>) {
        if self.wish.is_some() {
            return;
        }
        self.wishes += 1;
        self.wish = Some(SwitchRequest {
            id: format!("wish-{}", self.wishes),
            to,
            asked_by: "a test".to_owned(),
        });
        self.spread_wish();
    }

    /// The operator writes what is wanted of the shard.
    pub fn want(&mut self, wanted: ShardConfig) {
        self.wanted = wanted;
        for (node, life) in self.living() {
            if self.sees_store(&node) {
                let wanted = self.wanted.clone();
                self.in_order(node, life, Input::Wanted(wanted));
            }
        }
    }

    /// The operator accepts a loss: a compare-and-set over whatever stands.
    pub fn accept_loss(&mut self) {
        let Some(mut known) = self.store.clone() else { return };
        known.version += 1;
        known.state.accept = Some(Accept {
            asked_by: "an operator".to_owned(),
        });
        self.written(known);
    }

    /// The operator bars a node from promotion: its agent is started anew with that.
    pub fn bar(&mut self, id: &NodeId) {
        self.redis.get_mut(id).unwrap().priority = 0;
        self.fail(Fault::KillAgent(id.clone()));
        self.start_agent(id);
    }

    /// Whoever asked thinks better of it.
    pub fn withdraw(&mut self) {
        self.wish = None;
        self.spread_wish();
    }

    fn spread_wish(&mut self) {
        for (node, life) in self.living() {
            if self.sees_store(&node) {
                let wish = self.wish.clone();
                self.in_order(node, life, Input::Wish(wish));
            }
        }
    }

    /// The history has it, and the request that it ends is gone.
    pub(super) fn record(&mut self, outcome: Outcome) {
        let stands = outcome.request.is_some() && self.wish.as_ref().map(|wish| &wish.id) == outcome.request.as_ref();
        if stands && !self.keeps_requests {
            self.wish = None;
            self.spread_wish();
        } else if outcome.request.is_some() && outcome.phases.is_empty() {
            // It only answers what somebody else has answered: the history does not take it.
            return;
        }
        self.log.push(format!("record {outcome:?}"));
        self.records.push(outcome);
    }

    /// Tells an agent what is read where it stands: later readings come later.
    fn in_order(&mut self, node: NodeId, life: u32, input: Input) {
        self.at(Duration::from_millis(1), Event::Tell(node, life, input));
    }

    /// The replicas of a node lose their links.
    pub(super) fn cut_links(&mut self, node: &NodeId) {
        let addr = self.redis[node].addr.clone();
        let replicas = self.redis.values_mut().filter_map(|redis| redis.life.as_mut());
        for life in replicas.filter(|life| life.follows.as_ref() == Some(&addr)) {
            life.cut();
        }
    }

    fn start_redis(&mut self, id: &NodeId, empty: bool) {
        let stream = self
            .store
            .as_ref()
            .and_then(|known| known.state.lineage.first().cloned());
        let redis = self.redis.get_mut(id).unwrap();
        if redis.life.is_some() {
            return;
        }
        // Old data: some writes that were replicated long ago, under the stream's true name.
        let old = if empty { Vec::new() } else { vec![0; 1] };
        redis.start(
            old,
            if empty {
                None
            } else {
                stream.map(|name| format!("{name}-old"))
            },
        );
    }

    fn reconnect(&mut self) {
        for (node, life) in self.living() {
            if self.sees_store(&node) {
                let state = self.store.clone();
                self.soon(Event::Tell(node.clone(), life, Input::Synced(state)));
                let wish = self.wish.clone();
                self.in_order(node.clone(), life, Input::Wish(wish));
                let wanted = self.wanted.clone();
                self.in_order(node, life, Input::Wanted(wanted));
            }
        }
        self.announce_nodes();
    }

    pub(super) fn announce_nodes(&mut self) {
        let nodes: Vec<Registered> = self
            .living()
            .into_iter()
            .map(|(node, _)| Registered {
                addr: self.redis[&node].addr.clone(),
                node,
            })
            .collect();
        for (node, life) in self.living() {
            self.in_order(node, life, Input::Nodes(nodes.clone()));
        }
    }

    pub(super) fn start_agent(&mut self, id: &NodeId) {
        self.lives += 1;
        let life = self.lives;
        let me = Identity {
            node: id.clone(),
            addr: self.redis[id].addr.clone(),
            priority: self.redis[id].priority,
            members: self.wanted.members.clone(),
            ack_replicas: self.wanted.ack_replicas,
        };
        let epoch = self.disks.get(id).copied().unwrap_or_default();
        let seed = self.draw(u64::MAX);
        let machine = Machine::new(self.now, me, self.timings, epoch, seed)
            .having_held(self.streams.get(id).cloned().unwrap_or_default());
        let agent = Agent {
            machine,
            life,
            tickets: BTreeMap::new(),
            acting: None,
            wakes: self.now,
            stops: false,
        };
        self.agents.insert(id.clone(), Some(agent));
        self.at(Duration::ZERO, Event::Probe(id.clone(), life));
        self.at(Duration::ZERO, Event::Wake(id.clone(), life));
        self.read(id, life);
        self.in_order(id.clone(), life, Input::Wish(self.wish.clone()));
        self.in_order(id.clone(), life, Input::Wanted(self.wanted.clone()));
        let proxies = [PROXY.to_owned()].into();
        self.soon(Event::Tell(id.clone(), life, Input::Proxies(proxies)));
        self.announce_nodes();
    }
}
