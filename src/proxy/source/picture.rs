//! What was read from the znodes, and the snapshot that follows from it. Pure.
//!
//! Invariants: what cannot be understood is not put in, so the last good value stays; a state of the same epoch
//! but an older version of the znode is not taken; a node that is not registered any more is kept as long as the
//! state counts it as a member: its agent may be gone while its Redis serves.

use std::collections::BTreeMap;

use crate::topology::codec::{NodeInfo, ShardState, Slots};
use crate::topology::{Course, Epoch, Master, Node, NodeId, Phase, Shard, ShardId, SlotMap, Snapshot, Switch};

/// What is known of the znodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Picture {
    pub(super) slots: Option<Slots>,
    shards: BTreeMap<ShardId, Known>,
}

/// Why no snapshot follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Gap {
    /// The cluster is yet to be laid out.
    NoShards,
    /// `/slots` does not fit the shards.
    Slots(String),
}

#[derive(Clone, Debug, Default)]
struct Known {
    state: Option<(i32, ShardState)>,
    nodes: BTreeMap<NodeId, NodeInfo>,
}

impl Picture {
    /// These shards exist, and no others.
    pub(super) fn set_shards(&mut self, ids: &[ShardId]) {
        self.shards.retain(|id, _| ids.contains(id));
        for id in ids {
            self.shards.entry(id.clone()).or_default();
        }
    }

    /// The shards known, in the order of their indices.
    pub(super) fn shards(&self) -> Vec<ShardId> {
        self.shards.keys().cloned().collect()
    }

    /// A shard's state as it was read at `version`. Returns whether it was taken.
    pub(super) fn set_state(&mut self, shard: &ShardId, version: i32, state: ShardState) -> bool {
        let Some(known) = self.shards.get_mut(shard) else {
            return false;
        };
        let older = known.state.as_ref().is_some_and(|(known_version, known)| {
            state.epoch < known.epoch || (state.epoch == known.epoch && version < *known_version)
        });
        if !older {
            known.state = Some((version, state));
        }
        !older
    }

    /// A shard's registered nodes, as far as they could be understood; `registered` are the names of all.
    pub(super) fn set_nodes(&mut self, shard: &ShardId, registered: &[NodeId], nodes: Vec<(NodeId, NodeInfo)>) {
        let Some(known) = self.shards.get_mut(shard) else {
            return;
        };
        let members = known.state.as_ref().map(|(_, state)| &state.members);
        known
            .nodes
            .retain(|id, _| registered.contains(id) || members.is_some_and(|members| members.contains(id)));
        known.nodes.extend(nodes);
    }

    /// The snapshot that follows, or what is missing for one.
    pub(super) fn snapshot(&self) -> Result<Snapshot, Gap> {
        let ids = self.shards();
        let slots = match (&self.slots, ids.as_slice()) {
            (_, []) => return Err(Gap::NoShards),
            (Some(slots), ids) => slots.map(ids).map_err(Gap::Slots)?,
            (None, [_]) => SlotMap::single(),
            (None, ids) => return Err(Gap::Slots(format!("missing, though there are {} shards", ids.len()))),
        };
        let shards = self.shards.iter().map(|(id, known)| known.shard(id));
        Ok(Snapshot {
            shards: shards.collect(),
            slots,
        })
    }
}

impl Known {
    fn shard(&self, id: &ShardId) -> Shard {
        let state = self.state.as_ref().map(|(_, state)| state);
        let master = state.and_then(master);
        let is_member = |id: &NodeId| state.is_some_and(|state| state.members.contains(id));
        let known = self.nodes.iter();
        let mut nodes: Vec<Node> = known.map(|(id, info)| node(id, info, is_member(id))).collect();
        if let Some(master) = &master
            && !nodes.iter().any(|node| node.id == master.node)
        {
            nodes.push(Node {
                id: master.node.clone(),
                addr: master.addr.clone(),
                peer: None,
                run_id: master.run_id.clone(),
                zone: "".into(),
                is_member: is_member(&master.node),
            });
        }
        Shard {
            id: id.clone(),
            epoch: state.map_or(Epoch(0), |state| state.epoch),
            phase: state.map_or(Phase::Electing, |state| state.phase),
            master,
            nodes,
            ack_replicas: state.map_or(0, |state| state.w),
            switch: state.and_then(switch),
            executor: state.map(|state| state.executor.clone()),
        }
    }
}

fn switch(state: &ShardState) -> Option<Switch> {
    let switch = state.switch.clone()?;
    let course = (!state.nonce.is_empty()).then(|| Course::from(state.nonce.as_str()));
    Some(Switch { course, ..switch })
}

fn master(state: &ShardState) -> Option<Master> {
    Some(Master {
        node: state.master.clone()?,
        addr: state.addr.clone()?,
        run_id: state.run_id.clone(),
    })
}

fn node(id: &NodeId, info: &NodeInfo, is_member: bool) -> Node {
    Node {
        id: id.clone(),
        addr: info.redis.clone(),
        peer: Some(info.peer.clone()),
        run_id: info.run_id.clone(),
        zone: info.zone.as_str().into(),
        is_member,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Addr, RunId, ShardIndex, Slot};

    fn state(epoch: u64, phase: Phase) -> ShardState {
        ShardState {
            epoch: Epoch(epoch),
            phase,
            executor: NodeId::from("a"),
            nonce: "n".to_owned(),
            master: Some(NodeId::from("a")),
            addr: Some(Addr::new("127.0.0.1", 1)),
            run_id: Some(RunId::from("a1")),
            lineage: Vec::new(),
            members: ["a", "b"].map(NodeId::from).into(),
            valid: BTreeMap::new(),
            w: 1,
            switch: None,
            shrunk_from: 0,
            accept: None,
            moved: None,
        }
    }

    fn info(port: u16) -> NodeInfo {
        NodeInfo {
            host: "h".to_owned(),
            redis: Addr::new("127.0.0.1", port),
            peer: Addr::new("127.0.0.1", port + 100),
            run_id: None,
            role: None,
            replid: None,
            zone: "z".to_owned(),
            priority: 1,
            boot_id: String::new(),
        }
    }

    fn ids(names: &[&str]) -> Vec<ShardId> {
        names.iter().map(|name| ShardId::from(*name)).collect()
    }

    #[test]
    fn a_single_shard_needs_no_slots_and_several_do() {
        let mut picture = Picture::default();
        assert_eq!(picture.snapshot(), Err(Gap::NoShards));
        picture.set_shards(&ids(&["s2"]));
        let snapshot = picture.snapshot().unwrap();
        assert_eq!(snapshot.slots, SlotMap::single());
        assert_eq!(
            (snapshot.shards[0].epoch, snapshot.shards[0].phase),
            (Epoch(0), Phase::Electing)
        );
        picture.set_shards(&ids(&["s1", "s2"]));
        let gap = Gap::Slots("missing, though there are 2 shards".to_owned());
        assert_eq!(picture.snapshot(), Err(gap));
        picture.slots = Some(Slots::spread(&ids(&["s2", "s1"])));
        let snapshot = picture.snapshot().unwrap();
        assert_eq!(
            snapshot.slots.owner(Slot(0)),
            ShardIndex(1),
            "indices follow the order of names"
        );
        picture.set_shards(&ids(&["s1"]));
        let gap = picture.snapshot().unwrap_err();
        assert!(
            matches!(&gap, Gap::Slots(what) if what.contains("s2, which is no shard")),
            "{gap:?}"
        );
    }

    #[test]
    fn an_older_reading_is_not_taken() {
        let mut picture = Picture::default();
        let s1 = ShardId::from("s1");
        assert!(!picture.set_state(&s1, 0, state(1, Phase::Serving)), "no such shard");
        picture.set_shards(&ids(&["s1"]));
        assert!(picture.set_state(&s1, 3, state(2, Phase::Serving)));
        assert!(
            !picture.set_state(&s1, 2, state(2, Phase::Electing)),
            "an older version"
        );
        assert!(!picture.set_state(&s1, 9, state(1, Phase::Serving)), "a lower epoch");
        assert!(
            picture.set_state(&s1, 0, state(3, Phase::Electing)),
            "a restored ensemble that moved on"
        );
        let shard = &picture.snapshot().unwrap().shards[0];
        assert_eq!(
            (shard.epoch, shard.phase, shard.ack_replicas),
            (Epoch(3), Phase::Electing, 1)
        );
        assert!(shard.master.is_some(), "the last one, while another is elected");
    }

    #[test]
    fn a_member_stays_though_its_registration_is_gone() {
        let mut picture = Picture::default();
        let s1 = ShardId::from("s1");
        picture.set_shards(&ids(&["s1"]));
        picture.set_state(&s1, 0, state(1, Phase::Serving));
        let names = |picture: &Picture| {
            let snapshot = picture.snapshot().unwrap();
            let nodes = snapshot.shards[0].nodes.iter();
            nodes
                .map(|node| format!("{}={}", node.id, node.addr))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&picture), ["a=127.0.0.1:1"], "the master, registered or not");
        let all = ["b", "c"].map(NodeId::from);
        picture.set_nodes(&s1, &all, vec![(all[0].clone(), info(2)), (all[1].clone(), info(3))]);
        assert_eq!(names(&picture), ["b=127.0.0.1:2", "c=127.0.0.1:3", "a=127.0.0.1:1"]);
        let members = |picture: &Picture| {
            let snapshot = picture.snapshot().unwrap();
            let nodes = snapshot.shards[0].nodes.iter();
            nodes
                .filter(|node| node.is_member)
                .map(|node| node.id.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(members(&picture), ["b", "a"], "c is not");
        // All registrations vanish: b is a member, c was a guest.
        picture.set_nodes(&s1, &[], Vec::new());
        assert_eq!(names(&picture), ["b=127.0.0.1:2", "a=127.0.0.1:1"]);
        // Registered with nonsense: what was known stays.
        picture.set_nodes(&s1, &all[..1], Vec::new());
        assert_eq!(names(&picture), ["b=127.0.0.1:2", "a=127.0.0.1:1"]);
    }
}
