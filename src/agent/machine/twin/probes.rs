//! What agents see of each other and of the simulated servers.

use std::time::{Duration, Instant};

use super::redis::SimRedis;
use super::{Event, PROXY, World};
use crate::agent::machine::action::Input;
use crate::agent::machine::detector::{PeerSeen, Seen};
use crate::agent::machine::facts::Facts;
use crate::topology::NodeId;

impl World {
    pub(super) fn probe(&mut self, node: &NodeId, life: u32) {
        let now = self.now;
        let Some(agent) = self.agent(node, life) else { return };
        let watch = agent.machine.master_to_watch().cloned();
        let seen = self.look(node, node, now);
        self.soon(Event::Tell(node.clone(), life, Input::Own(seen)));
        if !self.isolated.contains(node)
            && !self.unreached.contains(node)
            && let Some(agent) = self.agent(node, life)
        {
            agent.machine.note_proxy(now, PROXY);
        }
        if let Some(master) = watch {
            let seen = self.look(node, &master.node, now);
            self.soon(Event::Tell(node.clone(), life, Input::Master(master, seen)));
        }
        for (other, _) in self
            .agents
            .iter()
            .map(|(id, agent)| (id.clone(), agent.is_some()))
            .collect::<Vec<_>>()
        {
            if other == *node {
                continue;
            }
            let status = self.agents[&other]
                .as_ref()
                .map(|agent| Box::new(agent.machine.status(now)));
            let seen = match status {
                Some(status) if self.connected(node, &other) => PeerSeen::Up { status, asked_at: now },
                _ if !self.connected(node, &other) => continue,
                _ => PeerSeen::Unreachable,
            };
            self.soon(Event::Tell(node.clone(), life, Input::Peer(other, seen)));
        }
        self.at(Duration::from_millis(20), Event::Probe(node.clone(), life));
    }

    fn look(&self, from: &NodeId, at: &NodeId, now: Instant) -> Seen {
        let redis = &self.redis[at];
        match &redis.life {
            _ if from != at && !self.connected(from, at) => Seen::Silent,
            None => Seen::Dead,
            Some(_) if redis.frozen => Seen::Silent,
            Some(life) => {
                let linked = self.redis.values().filter_map(SimRedis::up);
                let linked = linked.filter(|other| other.linked && other.follows.as_ref() == Some(&redis.addr));
                let replicas = u32::try_from(linked.count()).unwrap();
                Seen::Up {
                    facts: Facts {
                        replicas,
                        ..life.facts()
                    },
                    asked_at: now,
                }
            }
        }
    }
}
