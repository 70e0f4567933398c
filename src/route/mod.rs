//! Where a request goes: read policy, fences, splits and joins, what may be re-sent. Pure.

mod place;
mod resend;

pub use place::{Place, place};
pub use resend::{Answer, Fate, Plan, plan};
