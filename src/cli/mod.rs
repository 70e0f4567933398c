//! The command line: flags in, a checked start out.
//!
//! Owns: flags, exit codes (0 fine, 1 failed, 2 wrong usage or config), the log's start. Refuses: work; each command
//! checks its flags and file, then calls the house that does it.

mod agent;
mod check;
mod operate;
mod proxy;
mod signals;
mod up;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::ConfigError;

/// Redis high availability with ZooKeeper for unmodified clients and servers.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    /// What is logged to stderr: off, error, warn, info, debug or trace. Unless given: info for servers, warn for
    /// commands that end.
    #[arg(long, global = true, env = "POINTSMAN_LOG")]
    log: Option<LevelFilter>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stands where a Redis address stood and passes commands on to the master.
    Proxy(Box<proxy::Args>),
    /// Stands beside one redis-server: registers it, watches the shard's master, takes part in failovers.
    Agent(Box<agent::Args>),
    /// Runs all of it on this machine: ZooKeeper, redis-servers, their agents, proxies; until Ctrl-C.
    Up(Box<up::Args>),
    /// Starts a stopped node of a running `up` again; ends when it is linked.
    UpNode(up::NodeArgs),
    /// Says what a cluster is doing now.
    Status(operate::Args),
    /// Lists what happened to a cluster: its failovers and switchovers.
    History(operate::HistoryArgs),
    /// Moves a shard's master to another node; ends when that is done.
    Switchover(operate::SwitchoverArgs),
    /// Changes who counts in a shard and how many must acknowledge; ends when that is so.
    Members(operate::MembersArgs),
    /// Lets an election go on that waits because something would be lost.
    Failover(operate::FailoverArgs),
    /// Checks a config file and says what it is for.
    CheckConfig(check::Args),
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
enum Failure {
    /// Wrong flags or config: nothing was begun.
    Usage(String),
    /// It failed.
    Failed(String),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl Failure {
    fn failed(error: impl ToString) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Runs what the command line asks for.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.log.unwrap_or(match cli.command {
        Command::Proxy(_) | Command::Agent(_) => LevelFilter::INFO,
        Command::Up(_)
        | Command::UpNode(_)
        | Command::Status(_)
        | Command::History(_)
        | Command::Switchover(_)
        | Command::Members(_)
        | Command::Failover(_)
        | Command::CheckConfig(_) => LevelFilter::WARN,
    }));
    let done = match cli.command {
        Command::Proxy(args) => proxy::run(*args),
        Command::Agent(args) => agent::run(*args),
        Command::Up(args) => up::run(*args, cli.log.unwrap_or(LevelFilter::INFO)),
        Command::UpNode(args) => up::run_node(&args),
        Command::Status(args) => operate::status(args),
        Command::History(args) => operate::history(args),
        Command::Switchover(args) => operate::switchover(args),
        Command::Members(args) => operate::members(args),
        Command::Failover(args) => operate::failover(args),
        Command::CheckConfig(args) => check::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(sentence)) => {
            eprintln!("pointsman: {sentence}");
            ExitCode::FAILURE
        }
        Err(Failure::Usage(sentence)) => {
            eprintln!("pointsman: {sentence}");
            ExitCode::from(2)
        }
    }
}

fn start_log(level: LevelFilter) {
    // What our ZooKeeper client says of each step is for those who look for a fault in it; the store tells the rest.
    let client = if level > LevelFilter::INFO {
        level
    } else {
        level.min(LevelFilter::ERROR)
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter(
            Targets::new()
                .with_default(level)
                .with_target("zookeeper_client", client),
        );
    tracing_subscriber::registry().with(lines).init();
}

/// For commands that ask and end.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| Failure::Failed(format!("cannot start an event loop: {error}")))
}
