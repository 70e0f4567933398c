//! What operators ask for: status, history, switchovers, members, accepted losses. Clients of store and peer.
//!
//! ```text
//!  DIR/up.json or --zookeeper --> Cluster --store--> znodes ----\
//!                                        \--peer--> agents' STATE --> Status | history --> JSON | a table
//!  switchover --petition--> znode ... the record of it --> JSON | a sentence
//!  members ----------------> config ... the state that agrees --> JSON | a sentence
//!  failover --accept-loss--> the word in the election's state ... its record --> JSON | a sentence
//! ```
//!
//! Owns: what a running `up` writes about itself ([`Circuit`]), how a cluster is found ([`Cluster`]), what is said of it.
//! Refuses: changing anything itself: whoever wants that tells the executor. Invariant: a node that does not answer is
//! told as `down`, never as what it last was.

mod accept;
mod ask;
mod circuit;
mod cluster;
mod history;
mod members;
mod status;
mod switchover;
mod table;

pub use accept::Accepted;
pub use ask::{Role, State, ask, reading, standing};
pub use circuit::{
    AUTH_FILE, AgentAt, Circuit, CircuitError, NodeAt, ProxyAt, RedisAt, SECRET_FILE, SOCKET_FILE, ServerAt, UP_FILE,
    ZooKeeperAt,
};
pub use cluster::{Cluster, OperateError, Where, own_credentials, read_credentials};
pub use history::History;
pub use members::{Change, Members};
pub use status::{NodeStatus, ProxyStatus, ShardStatus, Status};
pub use switchover::Switchover;
