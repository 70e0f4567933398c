//! Between the machine's types and those of the znodes.

use crate::agent::machine::action::Suspicion;
use crate::agent::machine::outcome::Outcome;
use crate::agent::machine::state::{MasterOf, State};
use crate::topology::codec::{Phases, Record, ShardState, Suspect};
use crate::topology::{NodeId, ShardId};

pub(super) fn to_state(znode: ShardState) -> State {
    // The codec sees to it that the three are there together.
    let master = match (znode.master, znode.addr, znode.run_id) {
        (Some(node), Some(addr), Some(run_id)) => Some(MasterOf { node, addr, run_id }),
        _ => None,
    };
    State {
        epoch: znode.epoch,
        phase: znode.phase,
        executor: znode.executor,
        nonce: znode.nonce,
        master,
        lineage: znode.lineage,
        members: znode.members,
        valid: znode.valid,
        ack_replicas: znode.w,
        switch: znode.switch,
        shrunk_from: znode.shrunk_from,
        accept: znode.accept,
        moved: znode.moved,
    }
}

pub(super) fn from_state(state: &State) -> ShardState {
    let master = state.master.clone();
    ShardState {
        epoch: state.epoch,
        phase: state.phase,
        executor: state.executor.clone(),
        nonce: state.nonce.clone(),
        master: master.as_ref().map(|master| master.node.clone()),
        addr: master.as_ref().map(|master| master.addr.clone()),
        run_id: master.map(|master| master.run_id),
        lineage: state.lineage.clone(),
        members: state.members.clone(),
        valid: state.valid.clone(),
        w: state.ack_replicas,
        switch: state.switch.clone(),
        shrunk_from: state.shrunk_from,
        accept: state.accept.clone(),
        moved: state.moved.clone(),
    }
}

pub(super) fn to_suspicion(by: NodeId, znode: Suspect) -> Suspicion {
    Suspicion {
        by,
        master: znode.master,
        run_id: znode.run_id,
        denial: znode.denial,
    }
}

pub(super) fn from_suspicion(suspicion: &Suspicion) -> Suspect {
    Suspect {
        master: suspicion.master.clone(),
        run_id: suspicion.run_id.clone(),
        denial: suspicion.denial,
    }
}

/// The record of what ended at `time_ms` of the wall clock.
pub(super) fn record(shard: &ShardId, outcome: Outcome, time_ms: u64) -> Record {
    let phases = outcome.phases.into_iter().map(|(name, took)| (name.to_owned(), took));
    Record {
        seq: 0,
        time: time_ms,
        shard: shard.clone(),
        kind: outcome.kind,
        from: outcome.from,
        to: outcome.to,
        epoch: outcome.epoch,
        phases_ms: Phases(phases.collect()),
        held: None,
        resent: None,
        indoubt: None,
        failed: None,
        offset: outcome.offset,
        lost_bytes: outcome.lost_bytes,
        asked_by: outcome.asked_by,
        request: outcome.request,
        result: outcome.result,
        why: outcome.why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Addr, Epoch, Phase, RunId};

    #[test]
    fn states_survive_the_way_to_the_znode_and_back() {
        let master = MasterOf {
            node: NodeId::from("a"),
            addr: Addr::new("127.0.0.1", 7001),
            run_id: RunId::from("a1"),
        };
        for master in [Some(master), None] {
            let state = State {
                epoch: Epoch(3),
                phase: Phase::Electing,
                executor: NodeId::from("b"),
                nonce: "n".to_owned(),
                master,
                lineage: vec!["r1".to_owned()],
                members: ["a", "b"].map(NodeId::from).into(),
                valid: [(NodeId::from("a"), RunId::from("a1"))].into(),
                ack_replicas: 1,
                switch: None,
                shrunk_from: 0,
                accept: None,
                moved: None,
            };
            assert_eq!(to_state(from_state(&state)), state);
        }
    }
}
