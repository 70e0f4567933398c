//! RESP: frame boundaries, requests, replies and their limits. Pure; borrows, never copies.

mod args;
mod error;
mod inline;
mod mark;
mod number;
mod reply;
mod request;

pub use args::{Args, Span};
pub use error::ProtocolError;
pub use inline::put_inline_as_request;
pub use mark::{OWN_CHANNELS, is_marked, marked};
pub use number::{parse_i64, put_i64};
pub use reply::{Heed, ReplyScanner, Scanned, Stop};
pub use request::{
    ARGUMENTS_MAX, ARGUMENTS_MAX_LATER, BULK_BYTES_MAX, FrameStream, INLINE_BYTES_MAX, RequestLimits, RequestScanner,
    Scan,
};
