//! The whole system on one machine.

mod child;

pub use child::die_with_parent;
