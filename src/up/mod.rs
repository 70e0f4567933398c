//! The whole system on one machine.
//!
//! ```text
//!  Settings --ground (what is missing?)--> Plan (names, ports) --folder--> Run
//!                                                              |  start: zookeeper, redis-servers, znodes, agents, proxies
//!    DIR/up.json <-- every change -- Children <-- die_with_parent
//!    DIR/up.sock --> start NODE      |  end: proxies and agents, redis-servers, zookeeper
//! ```
//!
//! Owns: the processes of one circuit, from the check of what is missing to the last one's end. Refuses: being a
//! supervisor (a child is started again only with `--restart` or by `up-node`, so that faults can be studied), and
//! servers elsewhere. Invariant: whatever was started ends with `up`, however `up` ends: it ends them itself, and the
//! kernel kills them when the one thread that spawned them is gone.

mod child;
mod children;
mod circuit;
mod control;
mod error;
mod folder;
mod founding;
mod ground;
mod logs;
mod plan;
mod program;
mod readiness;
mod settings;
mod start;
mod zookeeper;

pub use child::die_with_parent;
pub use circuit::run;
pub use control::up_node;
pub use error::UpError;
pub use settings::{RedisOption, RedisOptionError, Settings};
