//! The integration tests: one binary.

mod agent;
mod failover;
mod peer;
