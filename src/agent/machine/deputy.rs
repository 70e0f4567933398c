//! Acting on the published master's Redis when its own agent is gone and it lives on.
//!
//! An agent may die while its Redis serves. That alone changes nothing; but an election that begins then (the agent was
//! moving the master, say) would choose among the others, and what the living master still takes would be lost where
//! no replica acknowledges (W = 0). So the executor parks it itself, over a connection of its own.
//!
//! Owns: when that is allowed, and what is known of such a node. Refuses: every other node, and an agent that is merely
//! slow: it may yet carry out what it was asked, so only one whose port refuses counts as gone. Invariants: the block
//! that parks kills the connections of all other agents (rule R9), and whatever follows rides the connection that
//! parked: a later park, of whomever, ends it, so that nothing of an older epoch comes after it; of nodes that hold
//! as much one with a living agent is preferred.

use crate::topology::NodeId;

use super::Machine;
use super::action::{Level, Reply};
use super::facts::Cleanliness;
use super::obedience::Ask;

impl Machine {
    /// Whether a question to `node` goes to its Redis, past its agent.
    pub(super) fn deputises(&self, node: &NodeId, ask: &Ask) -> bool {
        match ask {
            Ask::Park { .. } => {
                let master = self.state().and_then(|known| known.state.master.as_ref());
                let published = master.is_some_and(|master| master.node == *node);
                published && *node != self.me.node && self.detector.refused_by(node)
            }
            Ask::Fence { .. } | Ask::Reach { .. } | Ask::Promote { .. } | Ask::Renew { .. } | Ask::Follow { .. } => {
                self.deputy.as_ref() == Some(&(node.clone(), ask.epoch()))
            }
        }
    }

    /// An answer of a Redis without its agent: what only the agent would know is put as cautiously as can be.
    pub(super) fn handle_deputy(&mut self, node: &NodeId, ask: &Ask, reply: &mut Reply) {
        if let Reply::Done(facts) = reply {
            facts.priority = u32::MAX;
            Cleanliness::default().judge(facts);
        }
        if let Ask::Park { epoch } = ask {
            let parked = matches!(reply, Reply::Done(_));
            if parked {
                self.say(
                    Level::Warn,
                    format!("{node} lives without its agent: parked for epoch {epoch}"),
                );
            }
            self.deputy = parked.then(|| (node.clone(), *epoch));
        }
    }
}
