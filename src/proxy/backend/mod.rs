//! The side of the proxy that faces Redis.

mod connect;
mod lane;
mod ledger;
mod tap;

pub use connect::{ConnectError, Credential, Login, ask, connect, put_request};
pub use lane::{Lane, LaneEnd, Wreck};
pub use tap::Tap;
