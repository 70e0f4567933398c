//! The side of the proxy that faces Redis.

mod connect;
mod greet;
mod held;
mod in_flight;
mod lane;
mod ledger;
mod life;
mod replies;
mod tap;
mod target;
mod wreck;

pub use connect::{
    ConnectError, Credential, Login, ask, ask_for, connect_control, connect_mute, connect_to, exchange, put_own,
    put_request, with_words,
};
pub use greet::{Greeting, confirm, greet};
pub use held::doubt_line;
pub use lane::{CLIENT_REPLY_BYTES_MAX, Lane, LaneEnd, Pace, Purpose};
pub use ledger::Cover;
pub use tap::Tap;
pub use target::{Pass, Target};
pub use wreck::{Lost, Role, Traits};
