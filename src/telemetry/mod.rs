//! Counters and logs.

mod said;

pub use said::{Repeated, Said};
