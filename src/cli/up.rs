//! `pointsman up` and `pointsman up-node`.

use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::filter::LevelFilter;

use super::{Failure, runtime, signals};
use crate::config::{Ensemble, Name};
use crate::topology::{Addr, NodeId};
use crate::up::{self, RedisOption, Settings};

/// The folder where none is given.
pub const DIR: &str = ".pointsman";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where everything is kept; removed at the end if `up` made it.
    #[arg(long, value_name = "DIR", default_value = DIR)]
    dir: PathBuf,
    /// Where the first proxy listens; the others take free ports.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:6400")]
    listen: Addr,
    /// Shards.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    shards: u8,
    /// Replicas of each shard.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=8))]
    replicas: u8,
    /// Proxies.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    proxies: u8,
    /// A ZooKeeper that runs already, instead of one of our own.
    #[arg(long, value_name = "HOST:PORT,..", conflicts_with = "zookeepers")]
    zookeeper: Option<Ensemble>,
    /// Servers of our own ZooKeeper ensemble: 1 or 3.
    #[arg(long, value_name = "1|3", default_value = "1", value_parser = ["1", "3"])]
    zookeepers: String,
    /// Replicas that must acknowledge a write before the client is told [default: 1 where there are two replicas or more,
    /// else 0].
    #[arg(long, value_name = "W")]
    ack_replicas: Option<u8>,
    /// How long ZooKeeper keeps the session of a silent client, in milliseconds.
    #[arg(long, value_name = "T", default_value_t = 4000, value_parser = clap::value_parser!(u64).range(200..=600_000))]
    session_timeout_ms: u64,
    /// An option of every redis-server, as KEY=VALUE; 'save=' means an empty string (may be given several times).
    #[arg(long, value_name = "KEY=VALUE")]
    redis: Vec<RedisOption>,
    /// Start children again that end.
    #[arg(long)]
    restart: bool,
}

pub fn run(args: Args, log: LevelFilter) -> Result<(), Failure> {
    let ack_replicas = args.ack_replicas.unwrap_or(u8::from(args.replicas >= 2));
    if ack_replicas > args.replicas {
        return Err(Failure::Usage(format!(
            "--ack-replicas: {ack_replicas} replicas can never acknowledge anything where there are {}: give at most that",
            args.replicas
        )));
    }
    let settings = Settings {
        dir: args.dir,
        listen: args.listen,
        shards: args.shards.into(),
        replicas: args.replicas.into(),
        ack_replicas: ack_replicas.into(),
        proxies: args.proxies.into(),
        zookeeper: args.zookeeper,
        zookeepers: if args.zookeepers == "3" { 3 } else { 1 },
        session_timeout: Duration::from_millis(args.session_timeout_ms),
        redis: args.redis,
        restart: args.restart,
        log: log.to_string(),
    };
    let shutdown = signals::shutdown()?;
    up::run(&settings, &shutdown).map_err(Failure::failed)
}

#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// The folder of the running `up`.
    #[arg(long, value_name = "DIR", default_value = DIR)]
    dir: PathBuf,
    /// Which node, s1-a for example.
    node: Name,
}

pub fn run_node(args: &NodeArgs) -> Result<(), Failure> {
    let node = NodeId::from(args.node.as_str());
    let started = runtime()?.block_on(up::up_node(&args.dir, &node));
    started.map_err(|why| Failure::Failed(format!("{node} is not started: {why}")))?;
    println!("{node} is linked");
    Ok(())
}
