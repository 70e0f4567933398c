//! Where a request goes: read policy, fences, splits and joins, what may be re-sent. Pure.

pub mod cursor;
mod fence_log;
mod fences;
mod join;
mod place;
mod policy;
pub mod refusal;
mod resend;
mod split;

pub use fence_log::{FenceLog, Footprint};
pub use fences::{Fences, Need, SampleNumber, ShardFences};
pub use join::Join;
pub use place::{Place, place};
pub use policy::{Ask, Choice, Life, ReadPolicy, Standing, Stickiness, choose};
pub use refusal::Line;
pub use resend::{Fate, Verdict, plan};
pub use split::{Joining, Part, Split, everywhere, split};
