//! Where a request goes: read policy, fences, splits and joins, what may be re-sent. Pure.

pub mod refusal;
mod resend;

pub use refusal::Line;
pub use resend::{Fate, Verdict, plan};
