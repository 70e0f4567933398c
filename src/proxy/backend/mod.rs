//! The side of the proxy that faces Redis.

mod connect;
mod lane;
mod ledger;

pub use connect::{ConnectError, Credential, Login, ask, connect, put_request};
pub use lane::{Lane, LaneEnd, Wreck};
