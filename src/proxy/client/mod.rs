//! The side of the proxy that faces clients.

mod close;
mod dispatch;
mod everynode;
mod feed;
mod feed_request;
mod feedline;
mod local;
mod session;
mod stream;
mod subscriptions;
mod window;

pub use close::CloseReason;
pub use dispatch::sort_out;
pub use session::Session;
pub use window::RunId;
