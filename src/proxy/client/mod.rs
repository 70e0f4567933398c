//! The side of the proxy that faces clients.

mod attach;
mod block;
mod close;
mod dispatch;
mod everynode;
mod feed;
mod feed_request;
mod feedline;
mod fencing;
mod lanes;
mod latest;
mod local;
mod lost;
mod multi;
mod mute;
mod pausing;
mod portrait;
mod queue;
mod roster;
mod run;
mod selection;
mod session;
mod stream;
mod subscriptions;
mod transaction;
mod wait;
mod window;

pub use attach::attach;
pub use close::CloseReason;
pub use roster::answer;
pub use selection::Selection;
pub use session::Session;
pub use window::RunId;
