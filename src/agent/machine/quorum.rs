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
//! A shard whose writes are acknowledged by replicas, or were until too few of them were there (`shrunk_from`), has no last
//! resort: it waits. So does one with W = 0 whose best candidate is known to lack more than `max_loss_bytes`. The *operator's
//! word* (`accept` in the state) ends both: the best of who is parked is taken, and the history says what is known of the
//! loss.
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
    /// Whether that is what the offset counts: it holds data of the accepted lineage.
    pub related: bool,
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
    /// The operator accepts that it lacks something.
    Accepted,
}

/// What may be lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stakes {
    /// How far the published master's stream was seen to go; it may have gone further.
    pub seen: Option<i64>,
    /// W = 0: how many bytes of it may be lost without the operator's word.
    pub max_loss: Option<u64>,
}

impl Stakes {
    /// Bytes that the choice lacks of what was seen; none where nothing can be compared.
    fn lacking(&self, choice: &Choice) -> Option<u64> {
        let seen = self.seen.filter(|_| choice.related)?;
        Some(u64::try_from(seen - choice.offset).unwrap_or(0))
    }

    /// The same for people.
    pub fn lack(&self, choice: &Choice) -> String {
        match self.lacking(choice) {
            _ if !choice.related => format!("{} holds none of the shard's data that can be compared", choice.node),
            Some(0) => format!("{} has all that the master was last seen to have", choice.node),
            Some(bytes) => format!("{} lacks at least {bytes} bytes of the master's stream", choice.node),
            None => format!("nobody knows what {} lacks", choice.node),
        }
    }

    /// Why this choice, at W = 0, waits for the operator.
    fn objection(&self, choice: &Choice) -> Option<String> {
        let max = self.max_loss?;
        let too_much = !choice.related || self.lacking(choice).is_some_and(|lacking| lacking > max);
        too_much.then(|| {
            let lack = self.lack(choice);
            format!("{lack}, and max_loss_bytes is {max}: {REMEDY}")
        })
    }
}

/// What ends an election that waits.
const REMEDY: &str = "bring back a node that has more, or accept the loss (pointsman failover SHARD --accept-loss)";

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
pub fn resolve(
    state: &State,
    answers: &BTreeMap<NodeId, Answer>,
    waited: Duration,
    timings: &Timings,
    stakes: &Stakes,
) -> Resolution {
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
            judge(state, choice, stakes)
        } else {
            Resolution::Wait("more members may still answer".to_owned())
        };
    }
    if state.accept.is_some() {
        return if settled || waited >= timings.ask {
            last_resort(state, &parked, true, stakes)
        } else {
            Resolution::Wait("more members may still answer".to_owned())
        };
    }
    if state.keeps() {
        return Resolution::Wait(format!(
            "{} of the {needed} valid members it takes are parked (n={}, W={}{}){}",
            counted.len(),
            state.members.len(),
            state.ack_replicas,
            match state.shrunk_from {
                0 => String::new(),
                from => format!(", lowered from {from}"),
            },
            barred(state, &parked, counted.len()),
        ));
    }
    let gone = answers.values().filter(|answer| **answer == Answer::Gone).count();
    let nobody_late = parked.len() + gone == state.members.len() || waited >= timings.last_resort;
    last_resort(state, &parked, nobody_late, stakes)
}

/// A choice that may cost more than the operator wants waits for a word.
fn judge(state: &State, choice: Choice, stakes: &Stakes) -> Resolution {
    let objection = stakes.objection(&choice).filter(|_| !state.keeps());
    match objection {
        Some(why) if state.accept.is_none() => Resolution::Refuse(why),
        Some(_) => Resolution::Choose(Choice {
            grounds: Grounds::Accepted,
            ..choice
        }),
        None => Resolution::Choose(choice),
    }
}

/// Who would count but for the operator's `no_promote` (priority 0), for people.
fn barred(state: &State, parked: &Parked<'_>, counted: usize) -> String {
    let (sound, _) = sound(state, parked);
    let barred = sound.iter().filter(|c| c.facts.priority == 0).count();
    match barred {
        0 => String::new(),
        _ if sound.len() == counted => String::new(),
        barred => format!("; {barred} that may not be promoted (priority 0) may have more than those who may"),
    }
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
    let (mut found, reach) = sound(state, parked);
    found.retain(|c| c.facts.priority != 0 || reach.is_some_and(|reach| reach >= c.offset));
    found
}

/// Those who are valid, whole and of the accepted lineage, and how far the best of them goes that may be promoted: a node
/// that may not counts only if that one has everything it has.
fn sound<'a>(state: &State, parked: &Parked<'a>) -> (Vec<Candidate<'a>>, Option<i64>) {
    let sound = |(id, facts): &&(&'a NodeId, &'a Facts)| {
        state.valid.get(*id) == Some(&facts.run_id) && !facts.dirty && !facts.syncing
    };
    let lineage = Lineage::of(state, parked.iter().filter(sound).map(|(_, facts)| *facts));
    let found: Vec<Candidate<'a>> = parked
        .iter()
        .filter(sound)
        .filter_map(|(node, facts)| {
            let offset = lineage.offset_of(facts)?;
            Some(Candidate { node, facts, offset })
        })
        .collect();
    let reach = found.iter().filter(|c| c.facts.priority != 0).map(|c| c.offset).max();
    (found, reach)
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
            related: true,
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

fn last_resort(state: &State, parked: &Parked<'_>, nobody_late: bool, stakes: &Stakes) -> Resolution {
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
    let accepted = state.accept.is_some();
    let enough = everybody || (holds_ours && nobody_late) || accepted;
    if !enough {
        return Resolution::Wait(format!(
            "no valid member answered; {} of {} members are parked, and the others may hold more",
            parked.len(),
            state.members.len()
        ));
    }
    let related = lineage.offset_of(facts);
    let candidate = Candidate {
        node: id,
        facts,
        offset: related.unwrap_or(facts.offset),
    };
    let grounds = if accepted {
        Grounds::Accepted
    } else {
        Grounds::LastResort
    };
    let choice = Choice {
        related: related.is_some(),
        ..candidate.choice(grounds)
    };
    if accepted {
        Resolution::Choose(choice)
    } else {
        judge(state, choice, stakes)
    }
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
mod tests;
