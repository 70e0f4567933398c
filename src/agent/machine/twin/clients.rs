//! Replication between the simulated servers, and clients that write through snapshots of any age.

use std::time::Duration;

use super::redis::{Life, SimRedis};
use super::{Event, Issued, STEP, World};
use crate::agent::machine::facts::Role;
use crate::topology::{Epoch, NodeId};

impl World {
    /// Replication and clients.
    pub(super) fn step(&mut self) {
        self.replicate();
        self.issue();
        self.acknowledge();
        self.at(STEP, Event::Step);
    }

    fn replicate(&mut self) {
        let ids: Vec<NodeId> = self.redis.keys().cloned().collect();
        for id in ids {
            let reach = self.draw(4) as usize;
            let redis = self.redis.get_mut(&id).unwrap();
            let Some(mut life) = redis.life.take_if(|_| !redis.frozen) else {
                continue;
            };
            self.ask_for_stream(&life, &id);
            let master = self
                .redis
                .values()
                .find(|redis| life.follows.as_ref() == Some(&redis.addr));
            let master = master.filter(|master| self.connected(&master.node, &id));
            match master.and_then(SimRedis::up) {
                Some(master) => life.replicate(master, reach),
                None => life.cut(),
            }
            self.redis.get_mut(&id).unwrap().life = Some(life);
        }
    }

    fn ask_for_stream(&mut self, replica: &Life, id: &NodeId) {
        let reachable: Vec<NodeId> = self
            .redis
            .keys()
            .filter(|other| self.connected(other, id))
            .cloned()
            .collect();
        let masters = self.redis.values_mut().filter(|redis| reachable.contains(&redis.node));
        for master in masters.filter(|redis| replica.follows.as_ref() == Some(&redis.addr)) {
            if master
                .up()
                .is_some_and(|life| life.role == Role::Master && life.feeds == Some(replica.epoch))
            {
                master.make_backlog();
            }
        }
    }

    /// Writes to whoever is master of a published epoch: proxies may use snapshots of any age, and each gets in only where
    /// its epoch's user is. A master of an epoch that was not published only adds PINGs and expiries of its own.
    fn issue(&mut self) {
        let ids: Vec<NodeId> = self.redis.keys().cloned().collect();
        for id in ids {
            let dice = self.draw(3);
            let now = self.now;
            let next = self.writes + 1;
            let redis = self.redis.get_mut(&id).unwrap();
            let Some(life) = redis
                .life
                .as_mut()
                .filter(|life| !redis.frozen && life.role == Role::Master)
            else {
                continue;
            };
            let known = self.published.iter().any(|(_, state)| {
                state
                    .master
                    .as_ref()
                    .is_some_and(|master| master.node == id && master.run_id == life.run_id)
                    && life.feeds == Some(state.epoch)
            });
            if !known || dice == 0 {
                life.log.push(0);
                continue;
            }
            self.writes = next;
            life.log.push(next);
            let by = (id.clone(), life.run_id.clone());
            let replid = life.replid.clone();
            self.issued.push(Issued {
                id: next,
                by,
                replid,
                at: now,
            });
        }
    }

    fn acknowledge(&mut self) {
        let issued = std::mem::take(&mut self.issued);
        for write in issued {
            let master = self.redis[&write.by.0].up();
            let Some(master) = master.filter(|life| life.run_id == write.by.1 && life.role == Role::Master) else {
                continue;
            };
            // A new epoch of the same life may acknowledge what the old one took (rule R11), as long as it was master all along.
            if !master.holds(write.id) || master.replid != write.replid {
                continue;
            }
            let stated = self.stated.get(&master.epoch).map(|w| *w as usize);
            let addr = &self.redis[&write.by.0].addr;
            let holders = self.redis.values().filter(|redis| {
                let linked = redis
                    .life
                    .as_ref()
                    .filter(|life| life.linked && life.follows.as_ref() == Some(addr));
                linked.is_some_and(|life| life.holds(write.id))
            });
            let Some(needed) = stated.filter(|needed| holders.count() >= *needed) else {
                if self.now.duration_since(write.at) < Duration::from_millis(100) {
                    self.issued.push(write);
                }
                continue;
            };
            if needed > 0 {
                self.check_acknowledged(&write, master.epoch);
            }
            if needed > 0 || self.strict {
                self.acked.insert(write.id);
            }
        }
    }

    fn check_acknowledged(&self, write: &Issued, epoch: Epoch) {
        let superseded = self
            .published
            .iter()
            .any(|(at, state)| *at < write.at && state.epoch > epoch);
        assert!(
            !superseded,
            "I2: {} acknowledged in epoch {epoch}\n{}",
            write.by.0,
            self.story()
        );
    }
}
