//! The side of the proxy that faces Redis.

mod connect;
mod greet;
mod lane;
mod ledger;
mod target;

pub use connect::{ConnectError, Credential, Login, ask, connect, put_request};
pub use greet::{Greeting, greet};
pub use lane::{CLIENT_REPLY_BYTES_MAX, Lane, LaneEnd, Pace, Purpose, Wreck};
pub use target::Target;
