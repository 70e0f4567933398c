//! The integration tests: one binary.

mod agent;
