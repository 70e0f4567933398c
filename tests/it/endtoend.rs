//! The whole of it, `pointsman up` with real clients, while parts of it die, hang and come back.
//!
//! Each test says which warnings it expects of agents and proxies; any other, and any sentence said again and again,
//! fails it.

mod acknowledged;
mod agents;
mod clients;
mod ensemble;
mod hang;
mod kills;
mod members;
mod move_faults;
mod planned;
mod proxies;
mod returning;
mod shards;
mod switchovers;

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{Client, Up, eventually};

const SOON: Duration = Duration::from_secs(20);

/// What a proxy may say of a master that is lost.
const NO_MASTER: &str = "no master: ";

/// What an agent says of a node that executed more than the next master had.
const DROPPED: &str = "does not have: they are dropped";

/// Kills the master's Redis and returns its name; does not wait for what follows.
#[track_caller]
fn kill_master(up: &Up, shard: &str) -> String {
    let master = up.master(shard);
    up.signal(&master, "redis", Signal::SIGKILL);
    master
}

/// Waits until the shard has another master than `old`, and returns its name.
#[track_caller]
fn next_master(up: &Up, shard: &str, old: &str) -> String {
    let mut master = String::new();
    eventually(SOON, || {
        master = up.master(shard);
        !master.is_empty() && master != old
    });
    master
}

/// Waits until reads of one client arrive at replicas: the first ones go to the master.
#[track_caller]
fn reads_arrive_at_replicas(up: &Up, shard: &str) {
    let master = up.master(shard);
    let nodes = up.shard(shard)["nodes"].as_array().unwrap().clone();
    let replicas = nodes.iter().map(|node| node["id"].as_str().unwrap());
    let mut replicas: Vec<Client> = replicas
        .filter(|node| *node != master)
        .map(|node| Client::connect(up.redis(node).as_str()))
        .collect();
    let mut reads = || -> u64 {
        let count = |replica: &mut Client| {
            let stats = replica.command(&["INFO", "commandstats"]).text();
            let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_get:calls="));
            calls.map_or(0, |rest| rest.split(',').next().unwrap().parse::<u64>().unwrap())
        };
        replicas.iter_mut().map(count).sum()
    };
    let before = reads();
    eventually(SOON, || reads() >= before + 200);
}
