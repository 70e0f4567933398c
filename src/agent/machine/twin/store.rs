//! The simulated store: a compare-and-set whose outcome may be lost, watches, and what it must never hold.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Event, PROXY, World};
use crate::agent::machine::action::{Input, Suspicion, Written};
use crate::agent::machine::state::{State, Versioned};
use crate::topology::{Course, NodeId, Phase};

impl World {
    pub(super) fn sees_store(&self, node: &NodeId) -> bool {
        self.store_up && !self.isolated.contains(node)
    }

    pub(super) fn spread(&mut self, state: &Versioned) {
        let agents: Vec<(NodeId, u32)> = self.living();
        for (node, life) in agents {
            if self.sees_store(&node) {
                self.soon(Event::Tell(node, life, Input::State(state.clone())));
            }
        }
    }

    pub(super) fn living(&self) -> Vec<(NodeId, u32)> {
        let living = self
            .agents
            .iter()
            .filter_map(|(id, agent)| Some((id.clone(), agent.as_ref()?.life)));
        living.collect()
    }

    pub(super) fn read(&mut self, node: &NodeId, life: u32) {
        if self.sees_store(node) {
            let state = self.store.clone();
            self.soon(Event::Tell(node.clone(), life, Input::Synced(state)));
        } else {
            self.tell(node, life, Input::StoreLost);
            self.at(Duration::from_millis(50), Event::Read(node.clone(), life));
        }
    }

    pub(super) fn suspect(&mut self, node: &NodeId, suspicion: Option<Suspicion>) {
        if !self.sees_store(node) {
            return;
        }
        match suspicion {
            Some(suspicion) => self.suspects.insert(node.clone(), suspicion),
            None => self.suspects.remove(node),
        };
        let suspects: Vec<Suspicion> = self.suspects.values().cloned().collect();
        for (node, life) in self.living() {
            self.soon(Event::Tell(node, life, Input::Suspects(suspects.clone())));
        }
    }

    pub(super) fn write(&mut self, node: &NodeId, life: u32, expect: Option<i32>, state: State) {
        let reachable = self.sees_store(node);
        // A write that was on its way when the connection broke may have arrived or not.
        let arrives = reachable || (self.store_up && self.draw(2) == 0);
        let lost = !reachable || self.draw(20) == 0;
        let mut outcome = Written::Unknown;
        if arrives {
            let version = self.store.as_ref().map(|known| known.version);
            outcome = if version == expect {
                let version = version.map_or(0, |version| version + 1);
                self.written(Versioned { version, state });
                Written::Done(version)
            } else {
                Written::Conflict
            };
        }
        let outcome = if lost { Written::Unknown } else { outcome };
        self.soon(Event::Tell(node.clone(), life, Input::Written(outcome)));
    }

    pub(super) fn written(&mut self, next: Versioned) {
        if let Some(known) = &self.store {
            assert!(next.state.epoch >= known.state.epoch, "I3: {next:?} over {known:?}");
        }
        if let Some(switch) = &next.state.switch {
            let delay = Duration::from_micros(self.draw(300_000));
            let course = Course::from(next.state.nonce.as_str());
            self.at(
                delay,
                Event::Proxied(Input::Drained(PROXY.to_owned(), switch.epoch, Some(course))),
            );
        }
        if next.state.phase == Phase::Serving {
            let w = next.state.ack_replicas;
            self.stated
                .entry(next.state.epoch)
                .and_modify(|least| *least = w.min(*least))
                .or_insert(w);
        }
        if next.state.phase == Phase::Serving
            && self
                .published
                .last()
                .is_none_or(|(_, last)| last.epoch < next.state.epoch)
        {
            self.check_published(&next.state);
            self.published.push((self.now, next.state.clone()));
        }
        self.store = Some(next.clone());
        self.spread(&next);
    }

    pub(super) fn check_published(&mut self, state: &State) {
        let master = state.master.as_ref().unwrap();
        let Some(life) = self.redis[&master.node]
            .life
            .as_ref()
            .filter(|life| life.run_id == master.run_id)
        else {
            return;
        };
        let held: BTreeSet<u64> = life.log.iter().copied().collect();
        let missing: Vec<&u64> = self.acked.difference(&held).collect();
        assert!(
            missing.is_empty() || self.lossy,
            "I1: {} lacks {missing:?} in epoch {}\n{}",
            master.node,
            state.epoch,
            self.story()
        );
        self.acked.retain(|id| held.contains(id));
    }
}
