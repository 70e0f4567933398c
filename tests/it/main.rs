//! The one integration-test binary: real servers, one module per subject.

mod agent;
mod command_keys;
mod failover;
mod peer;
