//! The side of the proxy that faces clients.

mod block;
mod close;
mod dispatch;
mod everynode;
mod feed;
mod feed_request;
mod feedline;
mod fencing;
mod lanes;
mod local;
mod lost;
mod multi;
mod run;
mod session;
mod stream;
mod subscriptions;
mod transaction;
mod window;

pub use close::CloseReason;
pub use session::Session;
pub use window::RunId;
