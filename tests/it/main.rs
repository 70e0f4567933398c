//! The integration tests: real servers, one module per subject. (`tests/chaos` has those that need hosts of their own.)

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod access;
mod acks;
mod agent;
mod agent_lives;
mod agent_store;
mod agent_waits;
mod cli;
mod clients;
mod command_keys;
mod config;
mod copies;
mod differential;
mod endtoend;
mod failover;
mod fences;
mod framing;
mod fuzzing;
mod guests;
mod handover;
mod houses;
mod inside;
mod leaving;
mod limits;
mod members;
mod modules;
mod moves;
mod own_connections;
mod peer;
mod proxy;
mod pubsub;
mod reads;
mod refusals;
mod scans;
mod scripts;
mod shards;
mod source;
mod store;
mod stress;
mod support;
mod support_check;
mod switchover;
mod switchover_command;
mod tracking;
mod up;
