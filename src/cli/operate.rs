//! `pointsman status`, `pointsman history` and `pointsman switchover`.

use std::io::{self, Write as _};
use std::path::PathBuf;

use serde::Serialize;

use super::up::DIR;
use super::{Failure, runtime, signals};
use crate::config::{Ensemble, Name};
use crate::operate::{Cluster, OperateError, Switchover, Where, read_credentials};
use crate::store;
use crate::topology::{NodeId, ShardId};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of a running `up` [default: .pointsman].
    #[arg(long, value_name = "DIR", conflicts_with = "zookeeper")]
    dir: Option<PathBuf>,
    /// The ZooKeeper servers that know the cluster, instead of an `up`.
    #[arg(long, value_name = "HOST:PORT,..", requires = "cluster")]
    zookeeper: Option<Ensemble>,
    /// The cluster's name there.
    #[arg(long, value_name = "NAME", requires = "zookeeper")]
    cluster: Option<Name>,
    /// The file that holds user:password for ZooKeeper; an `up` keeps its own.
    #[arg(long, value_name = "FILE", env = "POINTSMAN_ZOOKEEPER_AUTH_FILE")]
    zookeeper_auth_file: Option<PathBuf>,
    /// The file of the cluster's secret: with it the agents are asked.
    #[arg(long, value_name = "FILE", requires = "zookeeper")]
    secret_file: Option<PathBuf>,
    /// For machines.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct HistoryArgs {
    #[command(flatten)]
    common: Args,
    /// For people: how long each phase took, in a line under each operation.
    #[arg(long)]
    phases: bool,
}

#[derive(Debug, clap::Args)]
pub struct SwitchoverArgs {
    #[command(flatten)]
    common: Args,
    /// Whose master is to move.
    shard: Name,
    /// Which node is to be the master [default: the best replica].
    #[arg(long, value_name = "NODE")]
    to: Option<Name>,
}

pub fn status(args: Args) -> Result<(), Failure> {
    if args.zookeeper.is_some() && args.secret_file.is_none() {
        let sentence = "--secret-file: the agents are asked how their nodes are: name the file of the cluster's secret";
        return Err(Failure::Usage(sentence.to_owned()));
    }
    let json = args.json;
    let status = ask(args, async |cluster: &Cluster| cluster.status().await)?;
    show(&status, json, || status.table())
}

pub fn history(args: HistoryArgs) -> Result<(), Failure> {
    let (json, phases) = (args.common.json, args.phases);
    let history = ask(args.common, async |cluster: &Cluster| cluster.history().await)?;
    show(&history.0, json, || history.table(phases))
}

pub fn switchover(args: SwitchoverArgs) -> Result<(), Failure> {
    let json = args.common.json;
    let shard = ShardId::from(args.shard.as_str());
    let to = args.to.map(|node| NodeId::from(node.as_str()));
    let stop = signals::shutdown()?;
    let moved = ask(args.common, async |cluster: &Cluster| {
        let stopped = stop.cancelled();
        cluster.switchover(&shard, to.as_ref(), asked_by(), stopped).await
    })?;
    let sentence = moved.sentence(&shard);
    match &moved {
        Switchover::Recorded(record) if json => show(record, true, String::new)?,
        Switchover::Recorded(_) | Switchover::Unanswered(_) => {
            if let Ok(line) = &sentence {
                show(&(), false, || format!("{line}\n"))?;
            }
        }
    }
    sentence.map(drop).map_err(Failure::Failed)
}

/// Who asks, for the history: as far as the system knows, and short.
fn asked_by() -> String {
    let named = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    let user = named.unwrap_or("somebody".to_owned());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "here" } else { host.trim() };
    let plain = |text: &str| -> String { text.chars().filter(|letter| !letter.is_control()).take(64).collect() };
    format!("{}@{}", plain(&user), plain(host))
}

fn ask<T>(args: Args, question: impl AsyncFn(&Cluster) -> Result<T, OperateError>) -> Result<T, Failure> {
    let place = match (args.zookeeper, args.cluster) {
        (Some(connect), Some(cluster)) => {
            let credentials = args.zookeeper_auth_file.as_deref().map(read_credentials).transpose()?;
            let settings = store::Settings {
                credentials,
                ..store::Settings::new(connect.as_str(), cluster.as_str())
            };
            Where::ZooKeeper(settings, args.secret_file)
        }
        _ => Where::Dir(args.dir.unwrap_or_else(|| DIR.into())),
    };
    let answer = runtime()?.block_on(async {
        let cluster = Cluster::find(&place).await?;
        let answer = question(&cluster).await;
        cluster.leave().await;
        answer
    });
    answer.map_err(|error: OperateError| match error {
        OperateError::Secret(error) => error.into(),
        other => Failure::failed(other),
    })
}

fn show<T: Serialize>(value: &T, json: bool, table: impl FnOnce() -> String) -> Result<(), Failure> {
    let text = match json {
        true => serde_json::to_string(value).map_err(Failure::failed)? + "\n",
        false => table(),
    };
    io::stdout().write_all(text.as_bytes()).map_err(Failure::failed)
}
