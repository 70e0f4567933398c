//! What this agent executes: an election or a switchover, at most one at a time.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::topology::{Addr, Epoch, NodeId};

use super::action::Reply;
use super::election::{Election, Order};
use super::obedience::Ask;
use super::outcome::Outcome;
use super::state::State;
use super::switch::Switchover;
use super::timings::Timings;

/// See the module's note.
#[derive(Clone, Debug)]
pub(super) enum Course {
    Election(Election),
    Switchover(Switchover),
}

impl Course {
    /// The epoch of the state it stands on.
    pub(super) fn epoch(&self) -> Epoch {
        match self {
            Self::Election(election) => election.epoch(),
            Self::Switchover(switchover) => switchover.epoch(),
        }
    }

    pub(super) fn stands(&self, read: &State) -> bool {
        match self {
            Self::Election(election) => election.stands(read),
            Self::Switchover(switchover) => switchover.stands(read),
        }
    }

    /// Whether nobody waits for its end but who can do as well without this agent.
    pub(super) fn dispensable(&self, now: Instant, timings: &Timings) -> bool {
        match self {
            Self::Election(election) => election.stuck(now, timings),
            Self::Switchover(switchover) => switchover.sounding(),
        }
    }

    pub(super) fn handle_written(&mut self, now: Instant, written: &State) -> Option<Outcome> {
        match self {
            Self::Election(election) => election.handle_written(now, written),
            Self::Switchover(switchover) => switchover.handle_written(now, written),
        }
    }

    /// What follows at once from the last write.
    pub(super) fn resume(&mut self) -> Vec<Order> {
        match self {
            Self::Election(election) => election.resume(),
            Self::Switchover(_) => Vec::new(),
        }
    }

    pub(super) fn handle_reply(
        &mut self,
        now: Instant,
        node: &NodeId,
        ask: &Ask,
        reply: Reply,
        at: Option<&Addr>,
    ) -> Vec<Order> {
        match self {
            Self::Election(election) => election.handle_reply(now, node, ask, reply, at),
            Self::Switchover(switchover) => switchover.handle_reply(now, node, ask, reply, at),
        }
    }

    pub(super) fn advance(&mut self, now: Instant, timings: &Timings, proxies: &BTreeSet<String>) -> Vec<Order> {
        match self {
            Self::Election(election) => election.advance(now, timings),
            Self::Switchover(switchover) => switchover.advance(now, timings, proxies),
        }
    }
}
