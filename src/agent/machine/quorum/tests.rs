//! Who may be promoted, answer by answer.

use std::collections::BTreeSet;

use super::*;
use crate::agent::machine::facts::sample;
use crate::agent::machine::state::MasterOf;
use crate::topology::{Addr, Epoch, Phase};

const LATER: Duration = Duration::from_secs(3600);

fn state(w: u32, lineage: &[&str]) -> State {
    State {
        epoch: Epoch(5),
        phase: Phase::Electing,
        executor: NodeId::from("x"),
        nonce: String::new(),
        master: None,
        lineage: lineage.iter().map(|id| (*id).to_owned()).collect(),
        members: ["a", "b", "c"].map(NodeId::from).into_iter().collect::<BTreeSet<_>>(),
        valid: ["a", "b", "c"].map(|id| (NodeId::from(id), RunId::from(id))).into(),
        ack_replicas: w,
        switch: None,
        moved: None,
        shrunk_from: 0,
        accept: None,
    }
}

fn answers(facts: Vec<Facts>) -> BTreeMap<NodeId, Answer> {
    let mut answers: BTreeMap<NodeId, Answer> = ["a", "b", "c"]
        .map(|id| (NodeId::from(id), Answer::Failed("away".into())))
        .into();
    for facts in facts {
        let id = facts.run_id.as_str().split('\'').next().unwrap();
        answers.insert(NodeId::from(id), Answer::Parked(facts));
    }
    answers
}

fn chosen(state: &State, facts: Vec<Facts>) -> Option<String> {
    match resolve(state, &answers(facts), LATER, &Timings::default(), &Stakes::default()) {
        Resolution::Choose(choice) => Some(choice.node.to_string()),
        Resolution::Wait(_) | Resolution::Refuse(_) => None,
    }
}

#[test]
fn with_acknowledgements_n_minus_w_valid_members_must_be_parked() {
    let state = state(1, &["r1"]);
    assert_eq!(chosen(&state, vec![sample("b", "r1", 9)]), None);
    assert_eq!(
        chosen(&state, vec![sample("b", "r1", 9), sample("c", "r1", 10)]).as_deref(),
        Some("c")
    );
    // A restarted life does not count (R1), nor does foreign lineage, nor half a synchronisation.
    assert_eq!(
        chosen(&state, vec![sample("b'", "r1", 99), sample("c", "r1", 10)]),
        None
    );
    assert_eq!(chosen(&state, vec![sample("b", "r9", 99), sample("c", "r1", 10)]), None);
    let dirty = Facts {
        dirty: true,
        ..sample("b", "r1", 99)
    };
    assert_eq!(chosen(&state, vec![dirty, sample("c", "r1", 10)]), None);
}

#[test]
fn the_published_master_itself_is_enough_in_its_published_life() {
    let mut state = state(1, &["r1"]);
    state.master = Some(crate::agent::machine::state::MasterOf {
        node: NodeId::from("b"),
        addr: "127.0.0.1:7002".parse().unwrap(),
        run_id: RunId::from("b"),
    });
    assert_eq!(chosen(&state, vec![sample("b", "r1", 9)]).as_deref(), Some("b"));
    assert_eq!(chosen(&state, vec![sample("c", "r1", 9)]), None);
    assert_eq!(chosen(&state, vec![sample("b'", "r1", 9)]), None, "another life");
    let moved_on = Facts {
        replid2: "r1".into(),
        second_offset: 5,
        ..sample("b", "r2", 9)
    };
    assert_eq!(chosen(&state, vec![moved_on]), None, "another stream");
}

#[test]
fn a_half_promoted_node_counts_with_what_it_held_before() {
    let state = state(1, &["r1"]);
    let half = Facts {
        replid2: "r1".into(),
        second_offset: 8,
        ..sample("b", "r2", 50)
    };
    assert_eq!(
        chosen(&state, vec![half.clone(), sample("c", "r1", 10)]).as_deref(),
        Some("c")
    );
    assert_eq!(
        chosen(&state, vec![half.clone(), sample("c", "r1", 7)]).as_deref(),
        Some("b")
    );
    // Who followed it by a full synchronisation shares its branch.
    assert_eq!(chosen(&state, vec![half, sample("c", "r2", 49)]).as_deref(), Some("b"));
}

#[test]
fn a_stream_adopted_before_a_second_promotion_stays_accepted() {
    let state = state(1, &["r1", "r2"]);
    let twice = Facts {
        replid2: "r2".into(),
        second_offset: 12,
        ..sample("b", "r3", 50)
    };
    assert_eq!(chosen(&state, vec![twice, sample("c", "r1", 11)]).as_deref(), Some("b"));
}

#[test]
fn who_may_not_be_promoted_counts_only_behind_one_who_may() {
    let state = state(1, &["r1"]);
    let never = Facts {
        priority: 0,
        ..sample("b", "r1", 20)
    };
    assert_eq!(chosen(&state, vec![never.clone(), sample("c", "r1", 10)]), None);
    assert_eq!(chosen(&state, vec![never, sample("c", "r1", 20)]).as_deref(), Some("c"));
}

#[test]
fn without_acknowledgements_one_valid_member_is_enough_but_a_better_one_is_awaited() {
    let state = state(0, &["r1"]);
    let mut polled = answers(vec![sample("b", "r1", 9)]);
    polled.insert(NodeId::from("c"), Answer::Pending);
    let early = resolve(&state, &polled, Duration::ZERO, &Timings::default(), &Stakes::default());
    assert!(matches!(early, Resolution::Wait(_)), "{early:?}");
    let late = resolve(
        &state,
        &polled,
        Timings::default().park_grace,
        &Timings::default(),
        &Stakes::default(),
    );
    assert!(matches!(late, Resolution::Choose(_)), "{late:?}");
}

#[test]
fn the_last_resort_never_prefers_an_empty_node_to_one_that_is_late() {
    let state = state(0, &["r1"]);
    let empty = Facts {
        keys: 0,
        ..sample("a'", "r7", 0)
    };
    assert_eq!(chosen(&state, vec![empty.clone()]), None);
    assert_eq!(
        chosen(
            &state,
            vec![
                empty.clone(),
                Facts {
                    keys: 0,
                    ..sample("b'", "r8", 0)
                }
            ]
        ),
        None
    );
    assert_eq!(
        chosen(&state, vec![empty.clone(), sample("b'", "r1", 3)]).as_deref(),
        Some("b"),
        "data of the lineage is taken after a while"
    );
    let all_empty = ["a'", "b'", "c'"].map(|id| Facts {
        keys: 0,
        ..sample(id, id, 0)
    });
    assert_eq!(chosen(&state, all_empty.to_vec()).as_deref(), Some("a"));
}

#[test]
fn where_streams_are_forgotten_the_last_master_is_the_last_resort() {
    let mut state = state(0, &["r1"]);
    let last = |node: &str| MasterOf {
        node: NodeId::from(node),
        addr: Addr::new("h", 1),
        run_id: RunId::from(node),
    };
    let started = ["a'", "b'", "c'"].map(|id| sample(id, id, 0));
    for node in ["a", "b", "c"] {
        state.master = Some(last(node));
        assert_eq!(chosen(&state, started.to_vec()).as_deref(), Some(node));
    }
    let mut emptied = started.clone();
    emptied[2].keys = 0;
    assert_eq!(
        chosen(&state, emptied.to_vec()).as_deref(),
        Some("a"),
        "not without data"
    );
    let mut named = started;
    named[1] = sample("b'", "r1", 3);
    assert_eq!(
        chosen(&state, named.to_vec()).as_deref(),
        Some("b"),
        "a known stream tells more"
    );
}

#[test]
fn the_first_master_is_the_one_with_data() {
    let state = state(0, &[]);
    let empty = |id: &str| Facts {
        keys: 0,
        ..sample(id, id, 0)
    };
    assert_eq!(
        chosen(&state, vec![empty("a"), sample("b", "r1", 5), empty("c")]).as_deref(),
        Some("b")
    );
    assert_eq!(
        chosen(&state, vec![empty("a"), sample("b", "r1", 5), sample("c", "r1", 6)]).as_deref(),
        Some("c")
    );
    assert_eq!(
        chosen(&state, vec![empty("a"), empty("b"), empty("c")]).as_deref(),
        Some("a")
    );
}

#[test]
fn unrelated_data_sets_are_not_joined() {
    let state = state(0, &[]);
    let polled = answers(vec![sample("a", "r1", 5), sample("b", "r2", 5)]);
    let resolution = resolve(&state, &polled, LATER, &Timings::default(), &Stakes::default());
    assert!(
        matches!(&resolution, Resolution::Refuse(why) if why.contains("wipe")),
        "{resolution:?}"
    );
}
