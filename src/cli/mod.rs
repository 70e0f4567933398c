//! The command line: flags in, a checked start out. Exit codes: 0 fine, 1 failed, 2 wrong usage.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::LevelFilter;

use crate::admin;
use crate::proxy::source::Topology;
use crate::proxy::{self, Settings};
use crate::topology::Addr;

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
    Proxy(ProxyArgs),
}

#[derive(Debug, Args)]
struct ProxyArgs {
    /// Where clients connect (may be given several times).
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:6400")]
    listen: Vec<Addr>,
    /// The master.
    #[arg(long, value_name = "HOST:PORT")]
    master: Addr,
    /// A replica of it (may be given several times): reads go there as far as it has what they need.
    #[arg(long, value_name = "HOST:PORT")]
    replica: Vec<Addr>,
    /// Where /healthz answers.
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<Addr>,
    /// Worker threads; half of the cores, at most 4, unless given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
}

/// Runs what the command line asks for.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(cli.log)
        .init();
    let Command::Proxy(args) = cli.command;
    let topology = Topology::Fixed {
        master: args.master,
        replicas: args.replica,
    };
    let mut settings = Settings::new(args.listen, topology);
    settings.admin = args.admin;
    if let Some(workers) = args.workers {
        settings.workers = workers.into();
    }
    let shutdown = CancellationToken::new();
    if let Err(error) = stop_on_signals(shutdown.clone()) {
        eprintln!("pointsman: cannot listen to signals: {error}");
        return ExitCode::FAILURE;
    }
    match proxy::run(settings, &shutdown, admin::serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pointsman: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Asks for the end at the first SIGINT or SIGTERM.
fn stop_on_signals(shutdown: CancellationToken) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        tracing::info!("asked to end");
        shutdown.cancel();
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(())
}
