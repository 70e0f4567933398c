//! The side of the proxy that faces clients.

mod close;
mod dispatch;
mod fencing;
mod lanes;
mod local;
mod run;
mod session;
mod stream;
mod window;

pub use close::CloseReason;
pub use dispatch::sort_out;
pub use session::Session;
pub use window::RunId;
