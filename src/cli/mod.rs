//! The command line: flags in, a checked start out.
//!
//! Owns: flags, exit codes (0 fine, 1 failed, 2 wrong usage or config), the log's start. Refuses: work; each command
//! checks its flags and file, then calls the house that does it.

mod check;
mod proxy;
mod signals;

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
