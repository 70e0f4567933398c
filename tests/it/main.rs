//! The integration tests: one binary.

mod agent;
mod peer;
