//! The command line: flags in, a checked start out.
//!
//! Owns: flags, exit codes (0 fine, 1 failed, 2 wrong usage or config), the log's start. Refuses: work; each command
//! checks its flags and file, then calls the house that does it.

mod check;
mod proxy;
mod signals;
mod up;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

use crate::config::ConfigError;

/// Redis high availability with ZooKeeper for unmodified clients and servers.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    /// What is logged to stderr: off, error, warn, info, debug or trace.
    #[arg(long, global = true, default_value = "info", env = "POINTSMAN_LOG")]
    log: LevelFilter,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stands where a Redis address stood and passes commands on to the master.
    Proxy(Box<proxy::Args>),
    /// Runs all of it on this machine: ZooKeeper, redis-servers, their agents, proxies; until Ctrl-C.
    Up(Box<up::Args>),
    /// Starts a stopped node of a running `up` again; ends when it is linked.
    UpNode(up::NodeArgs),
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
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(cli.log)
        .init();
    let done = match cli.command {
        Command::Proxy(args) => proxy::run(*args),
        Command::Up(args) => up::run(*args, &cli.log.to_string()),
        Command::UpNode(args) => up::run_node(&args),
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

/// For commands that ask and end.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| Failure::Failed(format!("cannot start an event loop: {error}")))
}
