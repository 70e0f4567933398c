//! The immutable picture of all shards at one moment, and the ways it is written down.
//!
//! Owns: identifiers, [`Snapshot`], slots, the JSON of the znodes. Refuses: any I/O. Invariant: a
//! [`Snapshot`] never changes once built; [`Snapshot::advance`] is the only way from one to the next
//! and never lets a shard's epoch go back.

mod addr;
pub mod codec;
mod ids;
mod slots;
mod snapshot;

pub use addr::{Addr, AddrError};
pub use ids::{Course, Epoch, NodeId, ReplOffset, RunId, ShardId};
pub use slots::{SLOT_COUNT, Slot, SlotMap, SlotMapError, slot_of_key};
pub use snapshot::{Master, Node, Phase, Shard, ShardIndex, Snapshot, Switch};
