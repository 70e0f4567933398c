//! Who may acknowledge, as one worker's view of a shard has it: what topology says of members, what their host names stand
//! for, and what is said of replicas that are none.

use std::cell::Ref;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tokio::net::lookup_host;
use tokio::task::spawn_local;
use tracing::{debug, warn};

use super::Shard;
use super::members::Members;
use crate::clock;
use crate::topology::{self, ShardId};

/// How long a stranger is met until it is told of: topology may be about to name it, or its link to end.
const STRANGE_AFTER_MS: u64 = 1000;
/// Strangers that are told of; a crowd behind one address translator is one matter.
const TOLD_MAX: usize = 16;
/// How often names are resolved while strangers are met.
const RESOLVE_EVERY_MS: u64 = 1000;

/// See the file's note.
#[derive(Debug, Default)]
pub(super) struct Electorate {
    members: Members,
    resolving: bool,
    resolved_ms: u64,
    /// Since when each of the strangers of the last round is met.
    met: BTreeMap<String, u64>,
    told: BTreeSet<String>,
}

impl Shard {
    /// Takes in what topology says of members. The master is none of its own replicas.
    pub(super) fn follow_members(self: &Rc<Self>, offered: &topology::Shard) {
        let is_master = |node: &topology::Node| offered.master.as_ref().is_some_and(|master| master.node == node.id);
        let counts = offered.nodes.iter().filter(|node| node.is_member && !is_master(node));
        let mut members = Members::at(counts.map(|node| node.addr.clone()));
        {
            let mut electorate = self.electorate.borrow_mut();
            if electorate.members.are_at(&members) {
                return;
            }
            members.learn_from(&electorate.members);
            electorate.members = members;
        }
        self.resolve_members();
    }

    /// Whose acknowledgements count.
    pub(super) fn members(&self) -> Ref<'_, Members> {
        Ref::map(self.electorate.borrow(), |electorate| &electorate.members)
    }

    /// A round has met these replicas, `host:port`, which are no members as far as is known.
    pub(super) fn meets_strangers(self: &Rc<Self>, strangers: &BTreeSet<String>) {
        if self
            .electorate
            .borrow_mut()
            .meets(&self.id, strangers, clock::monotonic_ms())
        {
            self.resolve_members();
        }
    }

    /// Finds out what members' host names stand for.
    fn resolve_members(self: &Rc<Self>) {
        let names: Vec<_> = self.members().names().cloned().collect();
        if names.is_empty() || std::mem::replace(&mut self.electorate.borrow_mut().resolving, true) {
            return;
        }
        let shard = self.clone();
        spawn_local(async move {
            for name in names {
                match lookup_host((name.host(), name.port())).await {
                    Ok(found) => {
                        let ips = found.map(|found| found.ip());
                        shard.electorate.borrow_mut().members.resolve(&name, ips);
                    }
                    // What it stood for before is the best guess.
                    Err(error) => debug!(shard = %shard.id, %name, %error, "a member's name is not resolved"),
                }
            }
            let mut electorate = shard.electorate.borrow_mut();
            (electorate.resolving, electorate.resolved_ms) = (false, clock::monotonic_ms());
        });
    }
}

impl Electorate {
    /// Tells of strangers that stay. Says whether members' names are to be resolved again.
    fn meets(&mut self, shard: &ShardId, strangers: &BTreeSet<String>, now_ms: u64) -> bool {
        if strangers.is_empty() {
            self.met.clear();
            return false;
        }
        self.met.retain(|stranger, _| strangers.contains(stranger));
        for stranger in strangers {
            let since_ms = *self.met.entry(stranger.clone()).or_insert(now_ms);
            let is_news = self.told.len() < TOLD_MAX && !self.told.contains(stranger);
            if is_news && now_ms - since_ms >= STRANGE_AFTER_MS {
                self.told.insert(stranger.clone());
                warn!(
                    %shard,
                    "the replica at {stranger} is no member and acknowledges nothing. If it is one, let its Redis announce the \
                     address that it is known by (replica-announce-ip, replica-announce-port)"
                );
            }
        }
        now_ms - self.resolved_ms >= RESOLVE_EVERY_MS
    }
}
