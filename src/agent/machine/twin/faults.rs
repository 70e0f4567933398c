//! What goes wrong in the twin world, and what comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Agent, Event, Fault, World};
use crate::agent::machine::action::{Input, Registered};
use crate::agent::machine::{Identity, Machine};
use crate::topology::NodeId;

impl World {
    pub fn fail(&mut self, fault: Fault) {
        self.log
            .push(format!("{:?} ---- {fault:?}", self.now.duration_since(self.start)));
        match fault {
            Fault::KillRedis(id) => self.redis.get_mut(&id).unwrap().life = None,
            Fault::StartRedis(id, empty) => self.start_redis(&id, empty),
            Fault::Freeze(id) => self.redis.get_mut(&id).unwrap().frozen = true,
            Fault::Thaw(id) => self.redis.get_mut(&id).unwrap().frozen = false,
            Fault::KillAgent(id) => {
                self.agents.insert(id.clone(), None);
                self.suspects.remove(&id);
                self.announce_nodes();
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
                self.soon(Event::Tell(node, life, Input::Synced(state)));
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
            self.soon(Event::Tell(node, life, Input::Nodes(nodes.clone())));
        }
    }

    pub(super) fn start_agent(&mut self, id: &NodeId) {
        self.lives += 1;
        let life = self.lives;
        let me = Identity {
            node: id.clone(),
            addr: self.redis[id].addr.clone(),
            priority: 100,
            members: ["a", "b", "c"].map(NodeId::from).into(),
            ack_replicas: self.w,
        };
        let epoch = self.disks.get(id).copied().unwrap_or_default();
        let seed = self.draw(u64::MAX);
        let machine = Machine::new(self.now, me, self.timings, epoch, seed);
        let agent = Agent {
            machine,
            life,
            tickets: BTreeMap::new(),
            acting: None,
        };
        self.agents.insert(id.clone(), Some(agent));
        self.at(Duration::ZERO, Event::Probe(id.clone(), life));
        self.at(Duration::ZERO, Event::Wake(id.clone(), life));
        self.read(id, life);
        self.announce_nodes();
    }
}
