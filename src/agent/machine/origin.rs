//! Where the data of our own Redis comes from, and whether that is this shard.
//!
//! A node that holds data of another origin is neither parked nor attached nor promoted: the first two lead to its being
//! wiped, the last to everybody else's being. Redis names the stream its data comes from (a replication id), and keeps the
//! name in its RDB file, so streams are compared with those of the shard and with those this node has held before, which
//! are kept on disk.
//!
//! Owns: that memory and the judgement. Refuses: the first election of a shard, which compares its members (`quorum`).
//! Invariants: what has no keys is nobody's; what was judged ours stays so for the life of the process, whatever its
//! streams are called by then. Limit: a Redis that starts from an append-only file, or from an RDB file written without
//! replicas, has no name for its stream: in a node that belonged to the shard that counts as its own old data.

use std::collections::VecDeque;

use crate::topology::RunId;

use super::Machine;
use super::action::{Action, Level};
use super::facts::Facts;
use super::state::State;

/// Streams remembered; a new one comes with each change of master.
pub const STREAMS_MAX: usize = 64;

/// The offset of a replica whose stream has no name that it could go on from.
const UNNAMED: i64 = 1;

/// See the module's note.
#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    /// What our data was called in this shard, the last one last.
    streams: VecDeque<String>,
    /// The life of Redis that was judged ours.
    life: Option<RunId>,
    /// Nothing was on disk, so what Redis itself carries is believed.
    blank: bool,
}

impl Origin {
    pub(super) fn remembered(streams: Vec<String>) -> VecDeque<String> {
        let spare = streams.len().saturating_sub(STREAMS_MAX);
        streams.into_iter().skip(spare).collect()
    }

    /// Whether it holds data that never was this shard's. `published` is a reading of the published master, if any.
    fn foreign(&self, facts: &Facts, state: &State, published: Option<&Facts>) -> bool {
        if facts.keys == 0 || state.founding() || self.life.as_ref() == Some(&facts.run_id) {
            return false;
        }
        let ours = |replid: &String| state.lineage.contains(replid) || self.streams.contains(replid);
        let before = published.is_some_and(|master| master.replid2 == facts.replid);
        if ours(&facts.replid) || ours(&facts.replid2) || before {
            return false;
        }
        if self.streams.is_empty() {
            return !(self.blank && facts.epoch.0 > 0);
        }
        facts.offset > UNNAMED
    }

    /// Takes note of a reading. Whether there is something new to keep on disk.
    fn note(&mut self, facts: &Facts, state: &State) -> bool {
        let joined = !self.streams.is_empty() || (self.blank && facts.epoch.0 > 0);
        let attached = state.lineage.contains(&facts.replid) && !facts.syncing;
        // While it loads it has not told yet what it holds.
        if state.founding() || facts.loading || !(attached || joined) {
            return false;
        }
        self.life = Some(facts.run_id.clone());
        let named = attached || facts.offset > UNNAMED;
        if !named || self.streams.contains(&facts.replid) {
            return false;
        }
        if self.streams.len() == STREAMS_MAX {
            self.streams.pop_front();
        }
        self.streams.push_back(facts.replid.clone());
        true
    }
}

impl Machine {
    /// The same machine, whose node held these streams in earlier lives (from disk).
    #[must_use]
    pub fn having_held(mut self, streams: Vec<String>) -> Self {
        self.origin.streams = Origin::remembered(streams);
        self.origin.blank = self.origin.streams.is_empty() && self.remembered.0 == 0;
        self
    }

    /// Whether our Redis holds data of another origin.
    pub(super) fn holds_foreign_data(&self, facts: &Facts, state: &State) -> bool {
        let master = self.master_reading.as_ref().map(|(facts, _)| facts);
        self.origin.foreign(facts, state, master)
    }

    /// Whether that is known to be so by now.
    pub(super) fn is_foreign(&self) -> bool {
        let state = self.state().map(|known| &known.state);
        match (state, self.detector.own_facts()) {
            (Some(state), Some(facts)) => self.holds_foreign_data(facts, state),
            (None, _) | (_, None) => false,
        }
    }

    /// Whether it is not known yet whether a node that never belonged to the shard holds something.
    pub(super) fn origin_unknown(&self) -> bool {
        let unread = matches!(self.knowledge, super::Knowledge::Unread);
        let known = self.detector.own_facts().is_some_and(|facts| !facts.loading);
        self.origin.blank && (unread || !known)
    }

    /// Keeps in mind what our Redis holds, or says that it is not this shard's.
    pub(super) fn note_origin(&mut self, facts: &Facts) {
        let Some(state) = self.state().map(|known| known.state.clone()) else {
            return;
        };
        if self.holds_foreign_data(facts, &state) {
            let sentence = format!(
                "{} holds {} keys of another origin, which joining would wipe: it is left alone. Empty it (FLUSHALL) to let it \
                 join, or give it another shard",
                self.me.node, facts.keys
            );
            self.shout(Level::Error, sentence);
        } else if self.origin.note(facts, &state) {
            let streams = self.origin.streams.iter().cloned().collect();
            self.actions.push_back(Action::Keep(streams));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::sample;
    use super::*;
    use crate::topology::{Epoch, NodeId, Phase};

    fn state(lineage: &[&str]) -> State {
        State {
            epoch: Epoch(5),
            phase: Phase::Serving,
            executor: NodeId::from("x"),
            nonce: String::new(),
            master: None,
            lineage: lineage.iter().map(|id| (*id).to_owned()).collect(),
            members: ["a", "b"].map(NodeId::from).into(),
            valid: Default::default(),
            ack_replicas: 0,
            switch: None,
            moved: None,
            shrunk_from: 0,
            accept: None,
        }
    }

    fn having(streams: &[&str]) -> Origin {
        Origin {
            streams: streams.iter().map(|id| (*id).to_owned()).collect(),
            blank: streams.is_empty(),
            life: None,
        }
    }

    #[test]
    fn what_a_node_that_never_belonged_holds_is_foreign_unless_it_is_the_shards() {
        let (fresh, shard) = (having(&[]), state(&["r5"]));
        assert!(fresh.foreign(&sample("a", "other", 1), &shard, None));
        assert!(fresh.foreign(&sample("a", "other", 700), &shard, None));
        assert!(!fresh.foreign(&sample("a", "r5", 700), &shard, None));
        let empty = Facts {
            keys: 0,
            ..sample("a", "other", 1)
        };
        assert!(!fresh.foreign(&empty, &shard, None), "nothing is wiped");
        assert!(
            !fresh.foreign(&sample("a", "other", 1), &state(&[]), None),
            "the first election compares"
        );
        let master = Facts {
            replid2: "r4".to_owned(),
            ..sample("b", "r5", 9)
        };
        assert!(
            !fresh.foreign(&sample("a", "r4", 7), &shard, Some(&master)),
            "what the master came from"
        );
        let carried = Facts {
            epoch: Epoch(3),
            ..sample("a", "r3", 7)
        };
        assert!(!fresh.foreign(&carried, &shard, None), "only its agent's disk was lost");
        let parked_once = Origin {
            blank: false,
            ..having(&[])
        };
        assert!(
            parked_once.foreign(&carried, &shard, None),
            "a first election parked it, no more"
        );
    }

    #[test]
    fn a_member_that_is_back_with_old_data_is_ours_and_one_with_another_clusters_is_not() {
        let (member, shard) = (having(&["r2", "r3"]), state(&["r5"]));
        assert!(!member.foreign(&sample("a2", "r3", 300), &shard, None), "old, but ours");
        assert!(
            !member.foreign(&sample("a2", "fresh", 1), &shard, None),
            "from its append-only file"
        );
        assert!(member.foreign(&sample("a2", "other", 300), &shard, None));
    }

    #[test]
    fn what_was_ours_stays_so_for_its_life_and_its_streams_are_remembered() {
        let (mut origin, shard) = (having(&[]), state(&["r5"]));
        assert!(
            !origin.note(&sample("a", "other", 9), &shard),
            "not before it is attached"
        );
        assert!(origin.note(&sample("a", "r5", 9), &shard));
        assert!(!origin.note(&sample("a", "r5", 10), &shard), "known");
        let promoted = sample("a", "r6", 10);
        assert!(!origin.foreign(&promoted, &shard, None));
        assert!(origin.note(&promoted, &shard));
        assert!(
            !origin.foreign(&sample("a2", "r6", 10), &shard, None),
            "in its next life, too"
        );
        for number in 0..STREAMS_MAX {
            origin.note(&sample("a", &format!("s{number}"), 11), &shard);
        }
        assert_eq!(origin.streams.len(), STREAMS_MAX);
    }
}
