//! Where a request goes: read policy, fences, splits and joins, what may be re-sent. Pure.

mod resend;

pub use resend::{Answer, Fate, Plan, plan};
