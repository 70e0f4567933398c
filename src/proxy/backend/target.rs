//! The server at the other end of a connection, as topology names it.

use std::fmt;
use std::rc::Rc;

use crate::topology::{Addr, Epoch, Master, Node, NodeId, RunId};

/// A server in one epoch of its shard. A lane belongs to exactly one: another epoch or another W is another target.
#[derive(Clone, Debug)]
pub struct Target {
    /// Which node.
    pub node: NodeId,
    /// Where it listens.
    pub addr: Addr,
    /// The epoch in which it has its role.
    pub epoch: Epoch,
    /// The life that has the role, where topology knows it.
    pub run_id: Option<RunId>,
    /// How many replicas must have what it writes before a client is told (W), for a master: that of its epoch.
    pub acks: u32,
    /// What connections say first, where the proxy knows the cluster's secret: it follows from the rest.
    pub pass: Option<Rc<Pass>>,
}

/// The proxies' credential at the servers of one epoch. It gives no right to any key; what it is good for is that a
/// server of another epoch refuses it. Where there are no agents it is the proxy's user from its settings.
#[derive(PartialEq, Eq)]
pub struct Pass {
    /// The user's name.
    pub user: String,
    /// The password.
    pub token: String,
}

impl Target {
    /// The master of an epoch.
    pub fn master(master: &Master, epoch: Epoch, acks: u32, pass: Option<Rc<Pass>>) -> Self {
        Self {
            node: master.node.clone(),
            addr: master.addr.clone(),
            epoch,
            run_id: master.run_id.clone(),
            acks,
            pass,
        }
    }

    /// A replica of an epoch. Which life it is in, a connection finds out for itself (rule A11).
    pub fn replica(node: &Node, epoch: Epoch, pass: Option<Rc<Pass>>) -> Self {
        Self {
            node: node.id.clone(),
            addr: node.addr.clone(),
            epoch,
            run_id: None,
            acks: 0,
            pass,
        }
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        // Two that ask for different W are two: a change of W may keep the master, and even the epoch (rule R5, ha-rules c5),
        // and what was made ready before it would acknowledge by the old one.
        let role = (self.epoch, self.acks) == (other.epoch, other.acks);
        role && (&self.node, &self.addr, &self.run_id) == (&other.node, &other.addr, &other.run_id)
    }
}

impl Eq for Target {}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").field("user", &self.user).finish_non_exhaustive()
    }
}
