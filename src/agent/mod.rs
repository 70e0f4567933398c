//! The agent beside each Redis: registration, detection, failover.
//!
//! Owns: `machine` (what to do: pure), `act` (doing it to our own Redis), `redis`, `info` and `process` (seeing
//! it), `seam` (the store), `petition` (asking for a switchover), `serve` (all of it, from settings to end). Refuses: touching another node's Redis:
//! an agent asks the agent beside it, and stands in for one only where that is gone and its master lives (`machine::deputy`). Invariant: decisions are made in `machine` only, from inputs that say when
//! they were true.

pub mod act;
pub mod beat;
mod errands;
mod glance;
mod guard;
mod handover;
pub mod host;
pub mod info;
pub mod machine;
pub mod memory;
mod mesh;
pub mod petition;
pub mod probe;
pub mod process;
pub mod redis;
mod seam;
pub mod serve;
