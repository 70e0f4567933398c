//! Real processes on hosts that are network namespaces, cut from each other, killed and stopped; and what clients may see
//! meanwhile. Where the machine has no network namespaces or nftables, the tests say so and are skipped.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod cluster;
mod elements;
mod isolation;
mod linear;
mod nemesis;
mod network;
mod plan;
mod seeds;
#[path = "../it/support/mod.rs"]
mod support;
mod workload;

use network::Network;

/// Hosts of these names. `None`, and a word about it, where the machine cannot have any.
#[track_caller]
fn network(names: &[&str]) -> Option<Network> {
    match Network::of(names) {
        Ok(network) => Some(network),
        Err(why) => {
            // Whoever counts on the tests says so, lest they are skipped for good without anybody's knowing.
            assert!(std::env::var_os("CHAOS_REQUIRED").is_none(), "{why}");
            eprintln!("skipped: {why}");
            None
        }
    }
}
