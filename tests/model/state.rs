//! What the model consists of: servers, the shard's znode, snapshots in use, executors, writes.
//!
//! Everything is a small number in an array, so that a state is copied and hashed fast. Node 0 is the first master;
//! an epoch, a life or a stream of 0 is none.

use std::fmt;

/// Nodes of the shard.
pub const NODES: usize = 3;
/// Epochs a run may reach, recoveries of the liveness check included.
pub const EPOCHS_MAX: usize = 10;
/// Writes a run may issue.
pub const WRITES_MAX: usize = 3;

/// A data set as the ids of the writes in it, oldest first; its length is the replication offset.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Log(u32);

impl Log {
    pub fn len(self) -> u8 {
        (self.0 & 0xf) as u8
    }

    pub fn at(self, index: u8) -> u8 {
        ((self.0 >> (4 * (index + 1))) & 0xf) as u8
    }

    pub fn push(&mut self, id: u8) {
        let len = self.len();
        assert!(len < 7, "the log has no room");
        self.0 = (self.0 | (u32::from(id) << (4 * (len + 1)))) + 1;
    }

    /// The log without what comes after its first `len` writes.
    pub fn cut(self, len: u8) -> Self {
        let mut cut = Self::default();
        for index in 0..len.min(self.len()) {
            cut.push(self.at(index));
        }
        cut
    }

    pub fn starts_with(self, other: Self) -> bool {
        self.cut(other.len()) == other && other.len() <= self.len()
    }

    pub fn holds(self, id: u8) -> bool {
        (0..self.len()).any(|index| self.at(index) == id)
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries((0..self.len()).map(|index| self.at(index)))
            .finish()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Role {
    /// Follows nobody. A fenced master is parked, too, and goes on feeding those who were linked.
    #[default]
    Parked,
    Master,
    Follows(u8),
}

/// How far the agent has come in the highest epoch it obeyed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Step {
    #[default]
    Bare,
    Parked,
    /// Promoted, or told to follow.
    Done,
}

/// A Redis and the agent beside it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Server {
    pub up: bool,
    /// The life of the process.
    pub run: u8,
    pub log: Log,
    pub replid: u8,
    pub replid2: u8,
    /// First offset that is no longer part of `replid2`.
    pub second: u8,
    pub role: Role,
    pub linked: bool,
    /// The epoch in `masteruser`: of a follower the credential it shows.
    pub user: u8,
    /// The epoch whose proxies it admits.
    pub px: u8,
    /// The epoch whose replicas it feeds.
    pub repl: u8,
    /// The highest epoch the agent obeyed.
    pub obeyed: u8,
    pub step: Step,
    /// A `REPLICAOF` that is stuck in a socket: (master, epoch).
    pub stuck: Option<(u8, u8)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Phase {
    #[default]
    Serving,
    Electing,
    Switching,
}

/// The shard's `state` znode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Shard {
    pub epoch: u8,
    pub phase: Phase,
    /// The epoch reserved for the switchover under way.
    pub reserved: u8,
    pub master: u8,
    pub run: u8,
    /// Set of nodes.
    pub members: u8,
    /// The valid life of each node.
    pub valid: [u8; NODES],
    /// The published stream.
    pub stream: u8,
    /// Set of accepted streams, the published one included.
    pub lineage: u64,
    pub w: u8,
}

/// A published state. Proxies use those of any age.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Snapshot {
    pub epoch: u8,
    pub master: u8,
    pub run: u8,
    /// The W that proxies know.
    pub w: u8,
    /// The W that the shard had in this epoch: what its acknowledgements are worth.
    pub promised: u8,
    pub members: u8,
}

/// What a member said when it was parked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Answer {
    pub run: u8,
    pub replid: u8,
    pub replid2: u8,
    pub second: u8,
    pub offset: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Kind {
    /// No executor.
    #[default]
    None,
    Election,
    Switchover,
    /// Another set of members or another W, with the same master (rule R5).
    Change,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Stage {
    #[default]
    Parking,
    Rotating,
    /// Only where the fence is not trusted: the offsets are compared before it.
    Checking,
    Fencing,
    Reaching,
    Promoting,
    /// The new stream is written before anybody follows it.
    Adopting,
    Proving,
}

/// An executor: it may stop at any step for ever, and go on when it is long obsolete.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Executor {
    pub kind: Kind,
    pub epoch: u8,
    pub stage: Stage,
    /// Whether the claim was made over another one that did not end.
    pub begun: bool,
    /// What the claim carried over.
    pub shard: Shard,
    pub answers: [Answer; NODES],
    pub target: u8,
    pub target_run: u8,
    /// The fence's, or the promoted node's offset.
    pub mark: u8,
    pub mark_stream: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Status {
    #[default]
    Free,
    Pending,
    Acked,
    /// Can never be acknowledged any more.
    Doubt,
}

/// A write and the connection it was sent on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Write {
    pub status: Status,
    pub node: u8,
    pub run: u8,
    pub epoch: u8,
    pub offset: u8,
    /// A newer epoch was published before it was issued.
    pub late: bool,
}

/// How often each fault may still happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Budget {
    pub kills: u8,
    pub restarts: u8,
    pub forgets: u8,
    pub stuck: u8,
    pub switches: u8,
    pub changes: u8,
}

/// Invariants that are broken by a step rather than by a state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Broken {
    /// I2: a write of an epoch that was superseded before it was issued was acknowledged.
    pub late_ack: bool,
    /// I3: an epoch went back.
    pub epoch: bool,
    /// I4: a partial resynchronisation over a foreign prefix.
    pub prefix: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct World {
    pub servers: [Server; NODES],
    pub shard: Shard,
    /// By epoch.
    pub published: [Snapshot; EPOCHS_MAX],
    pub executors: [Executor; 2],
    pub writes: [Write; WRITES_MAX],
    pub left: Budget,
    pub broken: Broken,
}

/// The name of the stream that a node begins when it is promoted in an epoch.
pub fn stream_of(node: u8, epoch: u8) -> u8 {
    epoch * NODES as u8 + node
}

pub fn bit(stream: u8) -> u64 {
    1 << stream
}

pub fn nodes() -> impl Iterator<Item = u8> {
    0..NODES as u8
}

pub fn contains(members: u8, node: u8) -> bool {
    members & (1 << node) != 0
}

impl Server {
    /// The agent's block: whatever is stuck in an older connection is discarded with it (rule R9).
    pub fn clear_stuck(&mut self, kills: bool) {
        if kills {
            self.stuck = None;
        }
    }

    pub fn park(&mut self, epoch: u8) {
        self.halt(epoch);
        self.repl = 0;
    }

    /// A park that leaves the replicas their links.
    pub fn halt(&mut self, epoch: u8) {
        self.role = Role::Parked;
        self.linked = false;
        self.px = 0;
        self.user = epoch;
    }

    pub fn promote(&mut self, node: u8, epoch: u8) {
        if self.role != Role::Master {
            self.replid2 = std::mem::replace(&mut self.replid, stream_of(node, epoch));
            self.second = self.log.len() + 1;
        }
        self.role = Role::Master;
        self.linked = false;
        (self.user, self.px, self.repl) = (epoch, epoch, epoch);
    }

    pub fn follow(&mut self, master: u8, epoch: u8) {
        self.role = Role::Follows(master);
        self.linked = false;
        (self.user, self.px, self.repl) = (epoch, 0, 0);
    }

    /// Attaches to its master, by Redis' rule. Whether that was sound.
    pub fn synchronise(&mut self, master: &Server) -> bool {
        let known = self.replid != 0;
        let same = known && self.replid == master.replid && self.log.len() <= master.log.len();
        let branch = known && self.replid == master.replid2 && self.log.len() < master.second;
        self.linked = true;
        if !same && !branch {
            self.log = master.log;
            (self.replid, self.replid2, self.second) = (master.replid, 0, 0);
            return true;
        }
        if branch {
            self.replid2 = std::mem::replace(&mut self.replid, master.replid);
            self.second = self.log.len() + 1;
        }
        master.log.starts_with(self.log)
    }
}

impl Shard {
    pub fn reach(&self) -> u8 {
        self.epoch.max(self.reserved)
    }

    /// How many counted members an election needs (n-W).
    pub fn required(&self) -> u8 {
        match self.w {
            0 => 1,
            w => (self.members.count_ones() as u8).saturating_sub(w).max(1),
        }
    }
}
