//! The side of the proxy that faces Redis.

mod connect;
mod lane;
mod ledger;
mod replies;
mod wreck;

pub use connect::{ConnectError, Credential, Login, ask, connect, put_request};
pub use lane::{Lane, LaneEnd};
pub use wreck::{Lost, Role, Traits};
