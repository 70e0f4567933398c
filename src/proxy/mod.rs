//! The proxy: clients on one side, Redis on the other.
//!
//! ```text
//! client --> listener --> session --> lane --> redis
//!    ^                                          |
//!    +---- window <---- ledger <---- replies ---+
//! ```
//! One control thread accepts and deals connections to the worker with the fewest; each worker owns what it gets.

mod acceptor;
mod backend;
mod census;
mod client;
mod guests;
mod handover;
mod hearing;
mod liaison;
mod pause;
mod roll;
mod scripts;
mod section;
mod settings;
mod shard;
pub mod shared;
pub mod source;
mod spares;
mod strangers;
mod view;
mod vocabulary;
mod wake;
mod worker;

pub use acceptor::{ProxyError, run};
pub use guests::Guests;
pub use settings::{Settings, StaleReads};
pub use view::View;
