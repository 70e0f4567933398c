//! The server at the other end of a connection, as topology names it.

use crate::topology::{Addr, Epoch, Master, Node, NodeId, RunId};

/// A server in one epoch of its shard. A lane belongs to exactly one: another epoch is another target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which node.
    pub node: NodeId,
    /// Where it listens.
    pub addr: Addr,
    /// The epoch in which it has its role.
    pub epoch: Epoch,
    /// The life that has the role, where topology knows it.
    pub run_id: Option<RunId>,
}

impl Target {
    /// The master of an epoch.
    pub fn master(master: &Master, epoch: Epoch) -> Self {
        Self {
            node: master.node.clone(),
            addr: master.addr.clone(),
            epoch,
            run_id: master.run_id.clone(),
        }
    }

    /// A replica of an epoch. Which life it is in, a connection finds out for itself (rule A11).
    pub fn replica(node: &Node, epoch: Epoch) -> Self {
        Self {
            node: node.id.clone(),
            addr: node.addr.clone(),
            epoch,
            run_id: None,
        }
    }
}
