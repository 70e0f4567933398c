//! `pointsman status`, `history`, `switchover`, `members` and `failover`.

use std::io::{self, Write as _};
use std::path::PathBuf;

use serde::Serialize;

use super::up::DIR;
use super::{Failure, runtime, signals};
use crate::config::{Ensemble, Name};
use crate::operate::{Change, Cluster, OperateError, Switchover, Where, read_credentials};
use crate::store;
use crate::topology::codec::WhenShort;
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

#[derive(Debug, clap::Args)]
pub struct MembersArgs {
    #[command(flatten)]
    common: Args,
    /// Whose members.
    shard: Name,
    /// A node that is to count (may be given several times); its agent must run.
    #[arg(long, value_name = "NODE")]
    add: Vec<Name>,
    /// A node that is to count no more (may be given several times).
    #[arg(long, value_name = "NODE")]
    remove: Vec<Name>,
    /// Replicas that must acknowledge a write.
    #[arg(long, value_name = "W")]
    ack_replicas: Option<u32>,
    /// While fewer are there: 'block' writes, or 'shrink' W to those that are.
    #[arg(long, value_name = "block|shrink", value_parser = when_short)]
    when_short: Option<WhenShort>,
    /// How long they must be missing before W is shrunk, in milliseconds [default: 10000].
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u64).range(100..=86_400_000))]
    shrink_after_ms: Option<u64>,
    /// With W = 0: what an election may lose without asking, in bytes, or 'any'.
    #[arg(long, value_name = "BYTES|any", value_parser = max_loss)]
    max_loss_bytes: Option<MaxLoss>,
}

#[derive(Debug, clap::Args)]
pub struct FailoverArgs {
    #[command(flatten)]
    common: Args,
    /// Whose election.
    shard: Name,
    /// The best node that is there may be promoted, whatever it lacks.
    #[arg(long)]
    accept_loss: bool,
}

/// A bound for losses, or none.
#[derive(Clone, Copy, Debug)]
struct MaxLoss(Option<u64>);

fn max_loss(text: &str) -> Result<MaxLoss, String> {
    match text {
        "any" => Ok(MaxLoss(None)),
        bytes => bytes
            .parse()
            .map(|bytes| MaxLoss(Some(bytes)))
            .map_err(|_| "write a number of bytes, or any".to_owned()),
    }
}

fn when_short(text: &str) -> Result<WhenShort, String> {
    match text {
        "block" => Ok(WhenShort::Block),
        "shrink" => Ok(WhenShort::Shrink),
        _ => Err("write block or shrink".to_owned()),
    }
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

pub fn members(args: MembersArgs) -> Result<(), Failure> {
    let json = args.common.json;
    let shard = ShardId::from(args.shard.as_str());
    let nodes = |names: &[Name]| names.iter().map(|name| NodeId::from(name.as_str())).collect();
    let change = Change {
        add: nodes(&args.add),
        remove: nodes(&args.remove),
        ack_replicas: args.ack_replicas,
        when_short: args.when_short,
        shrink_after_ms: args.shrink_after_ms,
        max_loss_bytes: args.max_loss_bytes.map(|max| max.0),
    };
    let stop = signals::shutdown()?;
    let members = ask(args.common, async |cluster: &Cluster| {
        let stopped = stop.cancelled();
        let tell = |why: &str| eprintln!("waiting: {why}");
        cluster.change_members(&shard, &change, asked_by(), tell, stopped).await
    })?;
    show(&members, json, || format!("{}\n", members.sentence()))
}

pub fn failover(args: FailoverArgs) -> Result<(), Failure> {
    if !args.accept_loss {
        let sentence = "failover is for an election that waits because something would be lost: say --accept-loss if it may be;             to make another node the master use 'pointsman switchover'";
        return Err(Failure::Usage(sentence.to_owned()));
    }
    let json = args.common.json;
    let shard = ShardId::from(args.shard.as_str());
    let stop = signals::shutdown()?;
    let accepted = ask(args.common, async |cluster: &Cluster| {
        let stopped = stop.cancelled();
        let tell = |line: &str| eprintln!("{line}");
        cluster.accept_loss(&shard, asked_by(), tell, stopped).await
    })?;
    show(&accepted, json, || format!("{}\n", accepted.sentence()))
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
