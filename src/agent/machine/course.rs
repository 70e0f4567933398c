//! What this agent executes: an election, a switchover or a reform, at most one at a time.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::topology::{Addr, Course as Name, Epoch, NodeId};

use super::action::Reply;
use super::election::{Election, Order};
use super::obedience::Ask;
use super::outcome::Outcome;
use super::reform::Reform;
use super::state::State;
use super::switch::Switchover;
use super::timings::Timings;

/// See the module's note.
#[derive(Clone, Debug)]
pub(super) enum Course {
    Election(Election),
    Switchover(Switchover),
    Reform(Reform),
}

impl Course {
    /// The epoch of the state it stands on.
    pub(super) fn epoch(&self) -> Epoch {
        match self {
            Self::Election(election) => election.epoch(),
            Self::Switchover(switchover) => switchover.epoch(),
            Self::Reform(reform) => reform.epoch(),
        }
    }

    pub(super) fn stands(&self, read: &State) -> bool {
        match self {
            Self::Election(election) => election.stands(read),
            Self::Switchover(switchover) => switchover.stands(read),
            Self::Reform(reform) => reform.stands(read),
        }
    }

    /// Whether nobody waits for its end but who can do as well without this agent.
    pub(super) fn dispensable(&self, now: Instant, timings: &Timings) -> bool {
        match self {
            Self::Election(election) => election.stuck(now, timings),
            Self::Switchover(switchover) => switchover.sounding(),
            Self::Reform(_) => false,
        }
    }

    pub(super) fn handle_written(&mut self, now: Instant, written: &State) -> Option<Outcome> {
        match self {
            Self::Election(election) => election.handle_written(now, written),
            Self::Switchover(switchover) => switchover.handle_written(now, written),
            Self::Reform(reform) => reform.handle_written(now, written),
        }
    }

    /// What follows at once from the last write.
    pub(super) fn resume(&mut self) -> Vec<Order> {
        match self {
            Self::Election(election) => election.resume(),
            Self::Switchover(_) | Self::Reform(_) => Vec::new(),
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
            Self::Reform(reform) => reform.handle_reply(now, node, ask, reply),
        }
    }

    pub(super) fn advance(&mut self, now: Instant, timings: &Timings, proxies: &BTreeSet<String>) -> Vec<Order> {
        match self {
            Self::Election(election) => election.advance(now, timings),
            Self::Switchover(switchover) => switchover.advance(now, timings, proxies),
            Self::Reform(reform) => reform.advance(now, timings, proxies),
        }
    }

    /// A proxy has nothing in flight that may change something.
    pub(super) fn handle_drained(&mut self, proxy: String, epoch: Epoch, course: Option<&Name>) {
        match self {
            Self::Election(_) => {}
            Self::Switchover(switchover) => switchover.handle_drained(proxy, epoch, course),
            Self::Reform(reform) => reform.handle_drained(proxy, epoch, course),
        }
    }

    /// Those who hear through a proxy have moved.
    pub(super) fn handle_attached(&mut self, proxy: String, epoch: Epoch, course: Option<&Name>) {
        match self {
            Self::Election(_) => {}
            Self::Switchover(switchover) => switchover.handle_attached(proxy, epoch, course),
            Self::Reform(reform) => reform.handle_attached(proxy, epoch, course),
        }
    }

    /// Whether nothing was written yet: it may be tried again as if it had not been. An election counts from its claim on.
    pub(super) fn untouched(&self) -> bool {
        match self {
            Self::Election(_) => false,
            Self::Switchover(switchover) => switchover.untouched(),
            Self::Reform(reform) => reform.untouched(),
        }
    }

    /// Whether the master is about to be left, or its users made anew, and may still go on as if nothing had been.
    pub(super) fn reversible(&self) -> bool {
        match self {
            Self::Election(_) => false,
            Self::Switchover(switchover) => switchover.reversible(),
            Self::Reform(reform) => reform.reversible(),
        }
    }

    /// Takes back what can be.
    pub(super) fn interrupt(&mut self, now: Instant, why: String) -> Option<Order> {
        match self {
            Self::Election(_) => None,
            Self::Switchover(switchover) => switchover.interrupt(now, why),
            Self::Reform(reform) => reform.interrupt(why),
        }
    }

    /// What it came to when it was given up; an election leaves no record.
    pub(super) fn failed(&self, why: String) -> Option<Outcome> {
        match self {
            Self::Election(_) => None,
            Self::Switchover(switchover) => Some(switchover.failed(why)),
            Self::Reform(reform) => Some(reform.failed(&why)),
        }
    }

    /// What it is called.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Election(_) => "election",
            Self::Switchover(_) => "switchover",
            Self::Reform(_) => "change of members",
        }
    }

    /// A state that stands was read: somebody may have added the operator's word to it.
    pub(super) fn note(&mut self, read: &State) {
        if let Self::Election(election) = self {
            election.note(read);
        }
    }
}
