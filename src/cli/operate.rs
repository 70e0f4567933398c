//! `pointsman status` and `pointsman history`.

use std::io::{self, Write as _};
use std::path::PathBuf;

use serde::Serialize;

use super::up::DIR;
use super::{Failure, runtime};
use crate::config::{Ensemble, Name};
use crate::operate::{Cluster, OperateError, Where};
use crate::store;

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
    /// The file of the cluster's secret: with it the agents are asked.
    #[arg(long, value_name = "FILE", requires = "zookeeper")]
    secret_file: Option<PathBuf>,
    /// For machines.
    #[arg(long)]
    json: bool,
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

pub fn history(args: Args) -> Result<(), Failure> {
    let json = args.json;
    let history = ask(args, async |cluster: &Cluster| cluster.history().await)?;
    show(&history.0, json, || history.table())
}

fn ask<T>(args: Args, question: impl AsyncFn(&Cluster) -> Result<T, OperateError>) -> Result<T, Failure> {
    let place = match (args.zookeeper, args.cluster) {
        (Some(connect), Some(cluster)) => {
            let settings = store::Settings::new(connect.as_str(), cluster.as_str());
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
