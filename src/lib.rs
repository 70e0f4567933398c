//! pointsman: Redis high availability with ZooKeeper for unmodified clients and servers.
//!
//! The houses, ground floor first; each imports only from those before it (see ARCHITECTURE.md).

pub mod clock;

pub mod config;
pub mod telemetry;

pub mod resp;

pub mod command;

pub mod topology;

pub mod route;

pub mod store;

pub mod peer;

pub mod proxy;

pub mod agent;

pub mod operate;

pub mod admin;

pub mod up;

pub mod cli;
