//! pointsman: Redis high availability with ZooKeeper, for unmodified clients and servers.
//!
//! The map of the house is ARCHITECTURE.md; each module may import only from those before it.

pub mod clock;
pub mod topology;
