//! What all workers of a proxy share: the facts about replicas that causal reads rest on.
//!
//! ```text
//! Sampler (control thread)
//!   every round: requested += 1 --> follow_master  --offset--> Stream (pure) --newest sample passed-->
//!                               --> follow_replica --applied offset--^       ReplicaFacts
//! worker: lane --identify--> Bond --standing--> route::choose                    |
//!                             ^--------------------------------------------------+
//! ```

mod control;
mod follow;
mod info;
#[cfg(test)]
mod model;
mod pace;
mod replicas;
mod sampler;
mod stream;

pub use control::ControlLogin;
pub use info::{IDENTIFY, Identity, Unfit, identify};
pub use replicas::{Bond, ReplicaFacts, Replicas, serving_epoch};
pub use sampler::{LoginOf, SamplerSettings, sample};
