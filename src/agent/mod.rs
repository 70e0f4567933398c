//! The agent beside each Redis: registration, detection, failover.

pub mod machine;
