//! Who may be promoted, and whether enough members are parked to promote anyone: a pure resolver.
//!
//! Owns: the n-W rule with R1 (count only who may win) and R6 (lineage), the rule for the first master
//! of a shard and the last resort of a shard without acknowledgements. Refuses: asking anybody.
//!
//! Invariant: with W >= 1 a choice is made only when at least n-W members are counted, each parked, valid
//! by its run id, of an accepted lineage and whole. An acknowledged write lives on W+1 members, so it is on a
//! counted one, and every counted one could itself be chosen: the largest offset has every such write.
//!
//! The published master itself, parked in its published life and on its own stream, is enough: it has every
//! write acknowledged up to its publication (it was chosen by this rule) and all since (it took them), and
//! parked it can acknowledge no more. Without this a shard whose replicas were not re-admitted yet could not
//! even re-elect a master that comes back.
//!
//! With W = 0 nothing is acknowledged by replicas: one counted member is enough, and the executor
//! waits a moment for a better one. If none of them answers, the *last resort* takes the best of what is
//! left, with these bounds: at once if all members are parked, else only a node that holds data of the
//! accepted lineage, at once if all others are known to be dead, else after `last_resort`. So a node restarted empty never wins over one that is
//! merely late.
//!
//! The *first* master (no lineage yet) is the member with data, else any; two members that hold
//! unrelated data are a refusal, since attaching would wipe one of them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::topology::{NodeId, RunId};

use super::facts::Facts;
use super::state::State;
use super::timings::Timings;

/// What a member has answered to the park so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Asked, no answer yet.
    Pending,
    /// Parked; this is what it holds.
    Parked(Facts),
    /// Its agent says that its Redis is gone: nothing is lost by not waiting for it.
    Gone,
    /// Not parked, and why.
    Failed(String),
}

/// The node to promote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which node.
    pub node: NodeId,
    /// The life of it that was parked.
    pub run_id: RunId,
    /// The stream its data comes from.
    pub replid: String,
    /// What it holds of the accepted lineage, in bytes of its stream.
    pub offset: i64,
    /// On what grounds.
    pub grounds: Grounds,
}

/// On what grounds a node is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grounds {
    /// Enough valid members are parked.
    Quorum,
    /// The shard's first master.
    Founding,
    /// W = 0 and no valid member answered.
    LastResort,
}

/// What follows from the answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Not yet; the sentence says what is missing.
    Wait(String),
    /// Promote this one.
    Choose(Choice),
    /// Nobody may be promoted until the operator has acted.
    Refuse(String),
}

/// How many counted members an election needs.
pub fn required(state: &State) -> usize {
    let members = state.members.len();
    let acknowledging = usize::try_from(state.ack_replicas).unwrap_or(usize::MAX);
    match acknowledging {
        0 => 1,
        w => members.saturating_sub(w).max(1),
    }
}

/// Decides from the answers so far, `waited` after the parks were sent.
pub fn resolve(state: &State, answers: &BTreeMap<NodeId, Answer>, waited: Duration, timings: &Timings) -> Resolution {
    let parked = parked_members(state, answers);
    let settled = state
        .members
        .iter()
        .all(|id| answers.get(id).is_some_and(|answer| *answer != Answer::Pending));
    if state.founding() {
        return found(state, &parked, waited, timings);
    }
    let counted = candidates(state, &parked);
    let needed = required(state);
    if (counted.len() >= needed || counted.iter().any(|candidate| candidate.is_published_master(state)))
        && let Some(choice) = best(&counted)
    {
        return if settled || waited >= timings.park_grace {
            Resolution::Choose(choice)
        } else {
            Resolution::Wait("more members may still answer".to_owned())
        };
    }
    if state.ack_replicas > 0 {
        return Resolution::Wait(format!(
            "{} of the {needed} valid members it takes are parked (n={}, W={})",
            counted.len(),
            state.members.len(),
            state.ack_replicas
        ));
    }
    let gone = answers.values().filter(|answer| **answer == Answer::Gone).count();
    let nobody_late = parked.len() + gone == state.members.len() || waited >= timings.last_resort;
    last_resort(state, &parked, nobody_late)
}

type Parked<'a> = Vec<(&'a NodeId, &'a Facts)>;

fn parked_members<'a>(state: &State, answers: &'a BTreeMap<NodeId, Answer>) -> Parked<'a> {
    let parked = answers.iter().filter_map(|(id, answer)| match answer {
        Answer::Parked(facts) if state.members.contains(id) && !facts.loading => Some((id, facts)),
        Answer::Parked(_) | Answer::Pending | Answer::Gone | Answer::Failed(_) => None,
    });
    parked.collect()
}

/// Those who count, which is exactly those who may win (rule R1).
fn candidates<'a>(state: &State, parked: &Parked<'a>) -> Vec<Candidate<'a>> {
    let sound = |(id, facts): &&(&'a NodeId, &'a Facts)| {
        state.valid.get(*id) == Some(&facts.run_id) && !facts.dirty && !facts.syncing
    };
    let lineage = Lineage::of(state, parked.iter().filter(sound).map(|(_, facts)| *facts));
    let mut found: Vec<Candidate<'a>> = parked
        .iter()
        .filter(sound)
        .filter_map(|(node, facts)| {
            let offset = lineage.offset_of(facts)?;
            Some(Candidate { node, facts, offset })
        })
        .collect();
    // A node that may not be promoted counts only if one that may has everything it has.
    let reach = found.iter().filter(|c| c.facts.priority != 0).map(|c| c.offset).max();
    found.retain(|c| c.facts.priority != 0 || reach.is_some_and(|reach| reach >= c.offset));
    found
}

struct Candidate<'a> {
    node: &'a NodeId,
    facts: &'a Facts,
    offset: i64,
}

impl Candidate<'_> {
    /// The published master in its published life and on its own stream.
    fn is_published_master(&self, state: &State) -> bool {
        let published = state.master.as_ref();
        published.is_some_and(|master| master.node == *self.node && master.run_id == self.facts.run_id)
            && state.lineage.first() == Some(&self.facts.replid)
    }

    fn choice(&self, grounds: Grounds) -> Choice {
        Choice {
            node: self.node.clone(),
            run_id: self.facts.run_id.clone(),
            replid: self.facts.replid.clone(),
            offset: self.offset,
            grounds,
        }
    }
}

/// The largest offset; of equals the lowest priority number, then the first name.
fn best(candidates: &[Candidate<'_>]) -> Option<Choice> {
    candidates
        .iter()
        .filter(|c| c.facts.priority != 0)
        .max_by_key(|c| (c.offset, Reverse(c.facts.priority), Reverse(c.node)))
        .map(|c| c.choice(Grounds::Quorum))
}

/// The streams whose data counts, and up to which offset.
struct Lineage<'a> {
    published: Option<&'a str>,
    adopted: &'a [String],
    /// Streams that a parked, valid member began by an unpublished promotion out of an accepted stream. Who
    /// followed it has everything of the accepted stream up to where it left it.
    branches: BTreeMap<&'a str, i64>,
}

impl<'a> Lineage<'a> {
    fn of(state: &'a State, parked: impl Iterator<Item = &'a Facts>) -> Self {
        let (published, adopted) = match state.lineage.split_first() {
            Some((first, rest)) => (Some(first.as_str()), rest),
            None => (None, [].as_slice()),
        };
        let mut lineage = Self {
            published,
            adopted,
            branches: BTreeMap::new(),
        };
        for facts in parked {
            if lineage.accepts(&facts.replid2) && facts.second_offset > 0 {
                lineage.branches.insert(&facts.replid, facts.second_offset - 1);
            }
        }
        lineage
    }

    fn accepts(&self, replid: &str) -> bool {
        self.published == Some(replid) || self.adopted.iter().any(|known| known == replid)
    }

    /// How much of the accepted stream a node holds. What a half-promoted node added on its own (PINGs,
    /// expiries) does not count (rule R6).
    fn offset_of(&self, facts: &Facts) -> Option<i64> {
        let before_promotion = match facts.second_offset {
            second if second > 0 => facts.offset.min(second - 1),
            _ => facts.offset,
        };
        if self.published == Some(facts.replid.as_str()) {
            Some(facts.offset)
        } else if self.accepts(&facts.replid) || self.accepts(&facts.replid2) {
            Some(before_promotion)
        } else {
            let left_at = self.branches.get(facts.replid.as_str())?;
            Some(facts.offset.min(*left_at))
        }
    }
}

fn last_resort(state: &State, parked: &Parked<'_>, nobody_late: bool) -> Resolution {
    let lineage = Lineage::of(state, parked.iter().map(|(_, facts)| *facts));
    // Redis forgets its stream's name where it starts from an append-only file. Then the last master's node has had
    // every write that was acknowledged, which no other node is known to.
    let was_master = |id: &NodeId| state.master.as_ref().is_some_and(|master| master.node == *id);
    let rank = |id: &NodeId, facts: &Facts| {
        let related = lineage.offset_of(facts);
        (
            related.is_some() && facts.keys > 0,
            facts.keys > 0,
            related,
            was_master(id),
            facts.offset,
        )
    };
    let everybody = parked.len() == state.members.len();
    let best = parked
        .iter()
        .filter(|(_, facts)| facts.priority != 0 && (everybody || !facts.dirty))
        .max_by_key(|(id, facts)| (rank(id, facts), Reverse(facts.priority), Reverse(*id)));
    let Some((id, facts)) = best else {
        return Resolution::Wait("no member is parked yet".to_owned());
    };
    let (holds_ours, ..) = rank(id, facts);
    let enough = everybody || (holds_ours && nobody_late);
    if !enough {
        return Resolution::Wait(format!(
            "no valid member answered; {} of {} members are parked, and the others may hold more",
            parked.len(),
            state.members.len()
        ));
    }
    let offset = lineage.offset_of(facts).unwrap_or(facts.offset);
    let candidate = Candidate {
        node: id,
        facts,
        offset,
    };
    Resolution::Choose(candidate.choice(Grounds::LastResort))
}

fn found(state: &State, parked: &Parked<'_>, waited: Duration, timings: &Timings) -> Resolution {
    let with_data: Parked<'_> = parked.iter().filter(|(_, facts)| facts.keys > 0).copied().collect();
    for (index, (one, a)) in with_data.iter().enumerate() {
        for (other, b) in &with_data[index + 1..] {
            if !related(a, b) {
                return Resolution::Refuse(format!(
                    "{one} ({} keys) and {other} ({} keys) hold unrelated data, and joining them would wipe one: \
                     empty the one that is not wanted",
                    a.keys, b.keys
                ));
            }
        }
    }
    if parked.len() < state.members.len() && waited < timings.founding {
        return Resolution::Wait(format!(
            "{} of {} members are parked",
            parked.len(),
            state.members.len()
        ));
    }
    let best = parked
        .iter()
        .filter(|(_, facts)| facts.priority != 0)
        .max_by_key(|(id, facts)| {
            let held = (facts.keys > 0, facts.offset, facts.keys);
            (held, Reverse(facts.priority), Reverse(*id))
        });
    match best {
        Some((id, facts)) => {
            let candidate = Candidate {
                node: id,
                facts,
                offset: facts.offset,
            };
            Resolution::Choose(candidate.choice(Grounds::Founding))
        }
        None => Resolution::Wait("no member that may be promoted is parked".to_owned()),
    }
}

/// Whether one data set is a continuation of the other, as far as replication ids tell.
pub fn related(a: &Facts, b: &Facts) -> bool {
    a.replid == b.replid || a.replid == b.replid2 || a.replid2 == b.replid
}

#[cfg(test)]
mod tests {
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
        match resolve(state, &answers(facts), LATER, &Timings::default()) {
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
        let early = resolve(&state, &polled, Duration::ZERO, &Timings::default());
        assert!(matches!(early, Resolution::Wait(_)), "{early:?}");
        let late = resolve(&state, &polled, Timings::default().park_grace, &Timings::default());
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
        let resolution = resolve(&state, &polled, LATER, &Timings::default());
        assert!(
            matches!(&resolution, Resolution::Refuse(why) if why.contains("wipe")),
            "{resolution:?}"
        );
    }
}
