//! What the operator wants of a shard, against what it has agreed on: the next step between the two. Pure.
//!
//! ```text
//! wanted node without a seat, W the same   it takes the seat itself, by compare-and-set (R4); then it proves itself (R3)
//! seat to go, W to change                  a reform: an epoch of its own with the same master (R5)
//! too few replicas there, not strict       W > 0 is left: a reform; none is left: a shrink to the master alone, by
//!                                          compare-and-set, which needs no epoch (ha-rules c5)
//! the master's seat is to go             a switchover to a node that stays
//! ```
//! Owns: what comes next, and what it waits for. Refuses: doing it. Invariants: seats come before others go, and W is raised
//! only to what is there, so that no step makes a shard wait that did not; the master's seat stays as long as it is the
//! master.

use std::collections::BTreeSet;

use crate::topology::NodeId;
use crate::topology::codec::{ShardConfig, WhenShort};

use super::reform::Goal;
use super::state::State;

/// What the master's agent sees of its replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct There {
    /// Nodes with an agent, this one included.
    pub registered: BTreeSet<NodeId>,
    /// Members whose present life is valid and linked to the master.
    pub linked: BTreeSet<NodeId>,
    /// Replicas that the master hears, if there have been fewer than W of them for long.
    pub short: Option<u32>,
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// All is as it is wanted, or as near to that as can be.
    Rest,
    /// Not yet, because of this, which may pass.
    Wait(String),
    /// One of these is to be master first.
    Move(BTreeSet<NodeId>),
    /// The master alone, acknowledged by nobody else.
    Shrink(Goal),
    /// An epoch of its own.
    Reform(Goal),
}

/// The next step from `state`, which is serving with the master `master`.
pub fn plan(state: &State, master: &NodeId, wanted: &ShardConfig, there: &There) -> Plan {
    let seats = if wanted.members.is_empty() {
        &state.members
    } else {
        &wanted.members
    };
    let staying: BTreeSet<NodeId> = state.members.intersection(seats).cloned().collect();
    if !seats.contains(master) {
        return if staying.is_empty() {
            Plan::Wait(format!(
                "{master} is to leave the shard, and nobody who stays has a seat yet"
            ))
        } else {
            Plan::Move(staying)
        };
    }
    let coming: Vec<&NodeId> = seats.difference(&state.members).collect();
    let going: BTreeSet<&NodeId> = state.members.difference(seats).collect();
    let linked: BTreeSet<&NodeId> = there.linked.iter().filter(|id| staying.contains(*id)).collect();
    let enough = count(linked.len());
    let target = aim(state, wanted, there, enough);
    let shrunk_from = if target < wanted.ack_replicas {
        wanted.ack_replicas
    } else {
        0
    };
    let changed = !going.is_empty() || target != state.ack_replicas || shrunk_from != state.shrunk_from;
    if !changed {
        return if coming.is_empty() {
            Plan::Rest
        } else {
            Plan::Wait(format!("{} is to join and has no seat yet", list(coming)))
        };
    }
    let lowered = target < state.ack_replicas;
    if going.is_empty() && target == 0 && shrunk_from > 0 && lowered {
        return Plan::Shrink(Goal {
            members: [master.clone()].into(),
            ack_replicas: 0,
            shrunk_from,
            why: format!("no replica is there: ack_replicas {} -> 0", state.ack_replicas),
            asked_by: None,
        });
    }
    if target > enough && !(lowered && going.is_empty()) {
        return Plan::Wait(format!(
            "{enough} of the {target} replicas that are to acknowledge are linked and proven"
        ));
    }
    if going.iter().any(|id| there.linked.contains(*id)) {
        let late = |id: &&NodeId| !linked.contains(*id) && *id != master;
        let registered = staying.iter().filter(|id| there.registered.contains(*id));
        let late: Vec<&NodeId> = registered.chain(coming.iter().copied()).filter(late).collect();
        if !late.is_empty() {
            return Plan::Wait(format!("{} is not linked and proven yet", list(late)));
        }
    }
    let operator = !wanted.changed_by.is_empty() && shrunk_from == 0 && state.shrunk_from == 0;
    Plan::Reform(Goal {
        why: difference(state, &staying, target, there),
        members: staying,
        ack_replicas: target,
        shrunk_from,
        asked_by: operator.then(|| wanted.changed_by.clone()),
    })
}

/// W as it should be now.
fn aim(state: &State, wanted: &ShardConfig, there: &There, enough: u32) -> u32 {
    match wanted.when_short {
        WhenShort::Block => wanted.ack_replicas,
        WhenShort::Shrink => {
            let raised = wanted.ack_replicas.min(enough);
            let now = state.ack_replicas.min(wanted.ack_replicas).max(raised);
            match there.short {
                Some(heard) => now.min(heard),
                None => now,
            }
        }
    }
}

fn difference(state: &State, members: &BTreeSet<NodeId>, w: u32, there: &There) -> String {
    let mut parts = Vec::new();
    if *members != state.members {
        parts.push(format!("members {} -> {}", list(&state.members), list(members)));
    }
    if w != state.ack_replicas {
        parts.push(format!("ack_replicas {} -> {w}", state.ack_replicas));
    }
    match (there.short, state.shrunk_from) {
        (Some(heard), _) if w < state.ack_replicas => parts.push(format!("{heard} replicas are there")),
        (_, from) if from > 0 && w > state.ack_replicas => parts.push("replicas are back".to_owned()),
        _ => {}
    }
    match parts.is_empty() {
        true => "the operator's settings".to_owned(),
        false => parts.join(", "),
    }
}

fn count(nodes: usize) -> u32 {
    u32::try_from(nodes).unwrap_or(u32::MAX)
}

fn list<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> String {
    let names: Vec<&str> = nodes.into_iter().map(NodeId::as_str).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::machine::state::MasterOf;
    use crate::topology::{Addr, Epoch, Phase, RunId};

    fn ids(names: &[&str]) -> BTreeSet<NodeId> {
        names.iter().map(|name| NodeId::from(*name)).collect()
    }

    fn state(members: &[&str], w: u32, shrunk_from: u32) -> State {
        State {
            epoch: Epoch(4),
            phase: Phase::Serving,
            executor: NodeId::from("a"),
            nonce: "n".to_owned(),
            master: Some(MasterOf {
                node: NodeId::from("a"),
                addr: Addr::new("127.0.0.1", 1),
                run_id: RunId::from("a"),
            }),
            lineage: vec!["r4".to_owned()],
            members: ids(members),
            valid: Default::default(),
            ack_replicas: w,
            switch: None,
            moved: None,
            shrunk_from,
            accept: None,
        }
    }

    fn strict(members: &[&str], w: u32) -> ShardConfig {
        ShardConfig {
            ack_replicas: w,
            members: ids(members),
            ..ShardConfig::default()
        }
    }

    fn lax(members: &[&str], w: u32) -> ShardConfig {
        ShardConfig {
            when_short: WhenShort::Shrink,
            ..strict(members, w)
        }
    }

    fn there(registered: &[&str], linked: &[&str], short: Option<u32>) -> There {
        There {
            registered: ids(registered),
            linked: ids(linked),
            short,
        }
    }

    fn next(state: &State, wanted: &ShardConfig, there: &There) -> Plan {
        plan(state, &NodeId::from("a"), wanted, there)
    }

    /// Members, W and what it was shrunk from.
    fn goal(plan: Plan) -> (BTreeSet<NodeId>, u32, u32) {
        match plan {
            Plan::Reform(goal) => (goal.members, goal.ack_replicas, goal.shrunk_from),
            other => panic!("{other:?}"),
        }
    }

    fn waits(plan: &Plan, why: &str) -> bool {
        matches!(plan, Plan::Wait(said) if said.contains(why))
    }

    #[test]
    fn what_is_as_wanted_is_left_alone_and_strict_shards_wait() {
        let all = there(&["a", "b", "c"], &["b", "c"], None);
        assert_eq!(
            next(&state(&["a", "b", "c"], 1, 0), &strict(&["a", "b", "c"], 1), &all),
            Plan::Rest
        );
        assert_eq!(next(&state(&["a", "b", "c"], 1, 0), &strict(&[], 1), &all), Plan::Rest);
        let alone = there(&["a"], &[], Some(0));
        assert_eq!(
            next(&state(&["a", "b"], 1, 0), &strict(&["a", "b"], 1), &alone),
            Plan::Rest
        );
    }

    #[test]
    fn a_dead_member_goes_at_once_and_a_living_one_once_its_successor_is_there() {
        let wanted = strict(&["a", "b", "d"], 1);
        let before = state(&["a", "b", "c"], 1, 0);
        let dead = there(&["a", "b", "d"], &["b"], None);
        assert_eq!(goal(next(&before, &wanted, &dead)).0, ids(&["a", "b"]));
        let living = there(&["a", "b", "c", "d"], &["b", "c"], None);
        assert!(waits(&next(&before, &wanted, &living), "d is not linked"));
        let seated = state(&["a", "b", "c", "d"], 1, 0);
        assert!(waits(&next(&seated, &wanted, &living), "d is not linked"));
        let linked = there(&["a", "b", "c", "d"], &["b", "c", "d"], None);
        assert_eq!(goal(next(&seated, &wanted, &linked)), (ids(&["a", "b", "d"]), 1, 0));
        // Two nodes: the one that goes is not let go before another can acknowledge.
        let pair = state(&["a", "b"], 1, 0);
        assert!(waits(
            &next(&pair, &strict(&["a", "c"], 1), &there(&["a", "c"], &[], Some(0))),
            "0 of the 1"
        ));
    }

    #[test]
    fn w_is_raised_to_what_is_there_and_lowered_at_once() {
        let before = state(&["a", "b", "c"], 1, 0);
        let one = there(&["a", "b", "c"], &["b"], None);
        assert!(waits(&next(&before, &strict(&["a", "b", "c"], 2), &one), "1 of the 2"));
        let two = there(&["a", "b", "c"], &["b", "c"], None);
        assert_eq!(goal(next(&before, &strict(&["a", "b", "c"], 2), &two)).1, 2);
        let none = there(&["a"], &[], Some(0));
        assert_eq!(
            goal(next(&before, &strict(&["a", "b", "c"], 0), &none)),
            (ids(&["a", "b", "c"]), 0, 0)
        );
    }

    #[test]
    fn a_shard_that_is_not_strict_shrinks_and_heals() {
        let wanted = lax(&["a", "b"], 1);
        let pair = state(&["a", "b"], 1, 0);
        assert_eq!(
            next(&pair, &wanted, &there(&["a"], &[], None)),
            Plan::Rest,
            "not long enough"
        );
        let Plan::Shrink(alone) = next(&pair, &wanted, &there(&["a"], &[], Some(0))) else {
            panic!("it shrinks")
        };
        assert_eq!(
            (alone.members, alone.ack_replicas, alone.shrunk_from),
            (ids(&["a"]), 0, 1)
        );
        let shrunk = state(&["a"], 0, 1);
        assert!(waits(
            &next(&shrunk, &wanted, &there(&["a"], &[], None)),
            "b is to join"
        ));
        let seated = state(&["a", "b"], 0, 1);
        assert_eq!(next(&seated, &wanted, &there(&["a", "b"], &[], None)), Plan::Rest);
        let back = there(&["a", "b"], &["b"], None);
        assert_eq!(goal(next(&seated, &wanted, &back)), (ids(&["a", "b"]), 1, 0));
        // Of two acknowledging replicas one is left.
        let three = state(&["a", "b", "c"], 2, 0);
        let one = there(&["a", "b"], &["b"], Some(1));
        assert_eq!(
            goal(next(&three, &lax(&["a", "b", "c"], 2), &one)),
            (ids(&["a", "b", "c"]), 1, 2)
        );
        let all = there(&["a", "b", "c"], &["b", "c"], None);
        let shrunk = state(&["a", "b", "c"], 1, 2);
        assert_eq!(
            goal(next(&shrunk, &lax(&["a", "b", "c"], 2), &all)),
            (ids(&["a", "b", "c"]), 2, 0)
        );
        // Strict again while shrunk: it waits for replicas, and keeps what it can.
        assert!(waits(
            &next(&seated, &strict(&["a", "b"], 1), &there(&["a"], &[], None)),
            "0 of the 1"
        ));
    }

    #[test]
    fn a_master_that_is_to_go_is_succeeded_first() {
        let both = there(&["a", "b"], &["b"], None);
        let plan = next(&state(&["a", "b"], 0, 0), &strict(&["b"], 0), &both);
        assert_eq!(plan, Plan::Move(ids(&["b"])));
        assert!(waits(
            &next(&state(&["a", "b"], 0, 0), &strict(&["c"], 0), &both),
            "nobody who stays"
        ));
    }
}
