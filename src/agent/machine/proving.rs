//! The end of every change of master: the others attach to the promoted node, and it is published.
//!
//! Owns: which replicas have proven that they hold the new epoch's data (rule R2), and the `serving` state that follows.
//! Refuses: choosing and promoting. Invariants: nothing is published but what was promoted, and only those who have
//! proven themselves are valid in it; a master behind which fewer than needed have proven themselves is looked at once more
//! before, since once it is published its data is the only one that counts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::topology::{Addr, Epoch, NodeId, Phase, RunId};

use super::action::Reply;
use super::election::Order;
use super::facts::{Facts, Role};
use super::obedience::Ask;
use super::quorum;
use super::state::{MasterOf, State};
use super::timings::Timings;

/// A promoted master and those who are to follow it.
#[derive(Clone, Debug)]
pub struct Proving {
    epoch: Epoch,
    promoted: MasterOf,
    facts: Facts,
    /// How many were told to follow.
    followers: usize,
    awaited: BTreeSet<NodeId>,
    /// Run id and stream of each replica that proved itself.
    proven: BTreeMap<NodeId, (RunId, String)>,
    since: Instant,
    look: Look,
}

/// Whether the promoted node is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Nobody asked. Next: asked.
    Unasked,
    /// No answer yet. Next: there, gone.
    Asked,
    /// It is the master it was made.
    There,
    /// It is not, or does not answer.
    Gone,
}

/// The facts of the node that was to be promoted in this life, or why it was not.
pub fn promoted(node: &NodeId, run_id: &RunId, reply: Reply) -> Result<Facts, String> {
    match reply {
        Reply::Done(facts) if facts.role == Role::Master && facts.run_id == *run_id => Ok(*facts),
        Reply::Done(_) => Err(format!("{node} is not the process that was to be promoted")),
        Reply::Refused(why) => Err(format!("{node} refused the promotion: {why}")),
        Reply::Gone => Err(format!("{node} died before it was promoted")),
        Reply::Failed(why) => Err(format!("{node} could not be promoted: {why}")),
    }
}

impl Proving {
    /// `node` at `addr` was promoted in `epoch` and said `facts`; `awaited` are to follow it.
    pub fn begin(
        now: Instant,
        epoch: Epoch,
        node: &NodeId,
        addr: Addr,
        facts: Facts,
        awaited: BTreeSet<NodeId>,
    ) -> (Self, Vec<Order>) {
        let promoted = MasterOf {
            node: node.clone(),
            addr,
            run_id: facts.run_id.clone(),
        };
        let follow = Ask::Follow {
            epoch,
            master: node.clone(),
            addr: promoted.addr.clone(),
            run_id: promoted.run_id.clone(),
            fence: facts.offset,
        };
        let orders = awaited
            .iter()
            .map(|id| Order::Ask(id.clone(), follow.clone()))
            .collect();
        let proving = Self {
            epoch,
            promoted,
            facts,
            followers: awaited.len(),
            awaited,
            proven: BTreeMap::new(),
            since: now,
            look: Look::Unasked,
        };
        (proving, orders)
    }

    /// A replica counts as proven when it is linked with this epoch's credential and has everything the
    /// master had at its promotion (rule R2). Its stream may have another name than the master reported: a
    /// master without a backlog renames its stream when the first replica attaches (`syncCommand` in
    /// Redis' replication.c), and what a linked replica follows is what the master feeds.
    pub fn handle_following(&mut self, node: &NodeId, reply: Reply) {
        self.awaited.remove(node);
        let Reply::Done(facts) = reply else { return };
        let attached = facts.follows_in(&self.promoted.addr, self.epoch) && facts.link_up;
        let whole = !facts.dirty && !facts.syncing;
        if attached && whole && facts.offset >= self.facts.offset {
            self.proven.insert(node.clone(), (facts.run_id.clone(), facts.replid));
        }
    }

    /// The promoted node was looked at.
    pub fn handle_look(&mut self, node: &NodeId, reply: Reply) {
        if *node != self.promoted.node || self.look != Look::Asked {
            return;
        }
        self.look = match reply {
            Reply::Done(facts) if facts.role == Role::Master && facts.run_id == self.promoted.run_id => Look::There,
            Reply::Done(_) | Reply::Refused(_) | Reply::Gone | Reply::Failed(_) => Look::Gone,
        };
    }

    /// What to do next: to write what is published over `base` once enough have proven themselves, everybody awaited has
    /// answered, or was waited for long enough. Who comes later is admitted singly (rule R3): clients wait for this.
    pub fn advance(&mut self, now: Instant, timings: &Timings, base: &State) -> Option<Order> {
        let waited = now.saturating_duration_since(self.since);
        let enough = self.proven.len() >= self.needed(base);
        // A master that stood down reigns again over those who had all it has: its next death is to find them valid.
        let again = base
            .master
            .as_ref()
            .is_some_and(|before| before.run_id == self.promoted.run_id);
        let patience = if enough && !again {
            timings.prove
        } else {
            timings.prove_needed
        };
        let settled = (enough && !self.proven.is_empty()) || self.awaited.is_empty();
        if !settled && waited < patience {
            return None;
        }
        match self.look {
            _ if enough => Some(Order::Write(self.publication(base))),
            Look::Unasked => {
                self.look = Look::Asked;
                let look = Ask::Reach {
                    epoch: self.epoch,
                    mark: None,
                };
                Some(Order::Ask(self.promoted.node.clone(), look))
            }
            Look::Asked => None,
            Look::There => Some(Order::Write(self.publication(base))),
            Look::Gone => Some(Order::Abandon(format!(
                "{} is gone before it was published",
                self.promoted.node
            ))),
        }
    }

    /// So many must have proven themselves that the loss of the new master is survived at once: W for its next
    /// acknowledgement, n-W for the next election; no more than there are.
    fn needed(&self, base: &State) -> usize {
        let w = usize::try_from(base.ack_replicas).unwrap_or(usize::MAX);
        match w {
            0 => 0,
            w => quorum::required(base).max(w).min(self.followers),
        }
    }

    fn publication(&self, base: &State) -> State {
        // If they disagree, the stream was renamed between them: the new name is the one not reported.
        let renamed = self
            .proven
            .values()
            .map(|(_, replid)| replid)
            .find(|replid| **replid != self.facts.replid);
        let replid = renamed.unwrap_or(&self.facts.replid).clone();
        let of_stream = self.proven.iter().filter(|(_, (_, stream))| *stream == replid);
        let mut valid: BTreeMap<NodeId, RunId> = of_stream.map(|(id, (life, _))| (id.clone(), life.clone())).collect();
        valid.insert(self.promoted.node.clone(), self.promoted.run_id.clone());
        State {
            epoch: self.epoch,
            phase: Phase::Serving,
            master: Some(self.promoted.clone()),
            lineage: vec![replid],
            valid,
            switch: None,
            accept: None,
            ..base.clone()
        }
    }
}
