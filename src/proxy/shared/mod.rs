//! What all workers of a proxy share: the facts about replicas that causal reads rest on.
//!
//! ```text
//! sampler (control thread) --pass, void--> ReplicaFacts <--standing-- Bond <-- a worker's lane to the replica
//! ```

mod info;
mod replicas;

pub use info::{Identity, Unfit, identify};
pub use replicas::{Bond, ReplicaFacts, Replicas, serving_epoch};
