//! `pointsman agent`: flags laid over the file.

use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Failure, runtime, signals};
use crate::admin::{self, Pages};
use crate::agent::host;
use crate::agent::machine::timings::Timings;
use crate::agent::redis::Login;
use crate::agent::serve::{self, Start};
use crate::config::{
    self, AgentFile, ConfigError, Document, Ensemble, File, Kind, Name, OnStop, TimingsFile, read_secret,
};
use crate::operate::read_credentials;
use crate::store::{self, Credentials};
use crate::topology::{Addr, NodeId, ShardId};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// An agent's config; conf/agent.toml documents it. Flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The node's stable name.
    #[arg(long, value_name = "NAME")]
    node: Option<Name>,
    /// Its shard.
    #[arg(long, value_name = "NAME")]
    shard: Option<Name>,
    /// Where its redis-server listens, as others see it.
    #[arg(long, value_name = "HOST:PORT")]
    redis: Option<Addr>,
    /// The Redis user to log in as.
    #[arg(long, value_name = "USER")]
    redis_user: Option<String>,
    /// The file that holds its password.
    #[arg(long, value_name = "FILE")]
    redis_password_file: Option<PathBuf>,
    /// Where other agents and proxies connect [default: 127.0.0.1:7400].
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<Addr>,
    /// Where /healthz answers.
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<Addr>,
    /// The ZooKeeper servers.
    #[arg(long, value_name = "HOST:PORT,..")]
    zookeeper: Option<Ensemble>,
    /// The cluster's name there [default: main].
    #[arg(long, value_name = "NAME")]
    cluster: Option<Name>,
    /// How long ZooKeeper keeps the session of a silent client, in milliseconds [default: 4000].
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u64).range(200..=600_000))]
    session_timeout_ms: Option<u64>,
    /// The file that holds user:password for ZooKeeper.
    #[arg(long, value_name = "FILE", env = "POINTSMAN_ZOOKEEPER_AUTH_FILE")]
    zookeeper_auth_file: Option<PathBuf>,
    /// The file that holds the cluster's secret.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Where the node is.
    #[arg(long, value_name = "NAME")]
    zone: Option<Name>,
    /// Of equals the lowest is promoted, 0 never is [default: 100].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    priority: Option<u64>,
    /// A node of the shard (may be given several times); whoever registers if none is given.
    #[arg(long, value_name = "NAME")]
    member: Vec<Name>,
    /// Replicas that must acknowledge a write [default: 0].
    #[arg(long, value_name = "W")]
    ack_replicas: Option<u64>,
    /// Where the agent keeps what it must not forget [default: /var/lib/pointsman].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// What it does at SIGTERM: 'leave', or 'handover' of the master first [default: leave].
    #[arg(long, value_name = "leave|handover")]
    on_stop: Option<OnStop>,
    /// A redis-server that answers nothing for this long hangs, in milliseconds [default: 1000].
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u64).range(50..=600_000))]
    suspicion_ms: Option<u64>,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let checked = checked(args)?;
    let admin = checked.admin.clone();
    let (stop, at_once) = signals::twice()?;
    let start = build(checked, at_once)?;
    runtime()?.block_on(async {
        let pages = listen(admin).await?;
        let pages = async {
            match pages {
                Some(listener) => admin::serve(listener, Pages::default()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = serve::serve(start, stop) => ended.map_err(Failure::failed),
            ended = pages => ended.map_err(|error| Failure::Failed(format!("the admin port failed: {error}"))),
        }
    })
}

async fn listen(admin: Option<Addr>) -> Result<Option<TcpListener>, Failure> {
    let Some(addr) = admin else { return Ok(None) };
    let bound = TcpListener::bind((addr.host(), addr.port())).await;
    let refused = |error| Failure::Failed(format!("cannot listen on {addr}: {error}; choose another with --admin"));
    bound.map(Some).map_err(refused)
}

fn checked(args: Args) -> Result<config::Agent, Failure> {
    let document = args.config.as_deref().map(Document::read).transpose()?;
    let file = match document.as_ref().map(|document| (document, &document.file)) {
        None => AgentFile::default(),
        Some((_, File::Agent(file))) => file.clone(),
        Some((document, File::Proxy(_) | File::Topology(_))) => return Err(document.not_a(Kind::Agent).into()),
    };
    let checked = args.over(file).check().map_err(|problem| match &document {
        Some(document) => document.locate(problem),
        None => ConfigError::Flags { problem },
    })?;
    Ok(checked)
}

impl Args {
    /// The file with what the flags say in its place.
    fn over(self, file: AgentFile) -> AgentFile {
        // A password's file on the command line replaces a password in the file.
        let redis_password = file.redis_password.filter(|_| self.redis_password_file.is_none());
        AgentFile {
            node: self.node.or(file.node),
            shard: self.shard.or(file.shard),
            redis: self.redis.or(file.redis),
            redis_user: self.redis_user.or(file.redis_user),
            redis_password,
            redis_password_file: self.redis_password_file.or(file.redis_password_file),
            listen: self.listen.unwrap_or(file.listen),
            admin: self.admin.or(file.admin),
            zookeeper: self.zookeeper.or(file.zookeeper),
            cluster: self.cluster.unwrap_or(file.cluster),
            session_timeout_ms: self.session_timeout_ms.unwrap_or(file.session_timeout_ms),
            zookeeper_auth_file: self.zookeeper_auth_file.or(file.zookeeper_auth_file),
            zookeeper_world_read: file.zookeeper_world_read,
            secret_file: self.secret_file.or(file.secret_file),
            zone: self.zone.or(file.zone),
            priority: self.priority.unwrap_or(file.priority),
            members: if self.member.is_empty() {
                file.members
            } else {
                self.member
            },
            ack_replicas: self.ack_replicas.unwrap_or(file.ack_replicas),
            data_dir: self.data_dir.unwrap_or(file.data_dir),
            on_stop: self.on_stop.unwrap_or(file.on_stop),
            stop_patience_ms: file.stop_patience_ms,
            timings: TimingsFile {
                suspicion_ms: self.suspicion_ms.unwrap_or(file.timings.suspicion_ms),
                ..file.timings
            },
        }
    }
}

fn build(checked: config::Agent, at_once: CancellationToken) -> Result<Start, Failure> {
    let host = host::Settings {
        node: NodeId::from(checked.node.as_str()),
        shard: ShardId::from(checked.shard.as_str()),
        redis: checked.redis,
        login: Login {
            user: checked.redis_user,
            password: checked.redis_password.read()?,
        },
        secret: read_secret(&checked.secret_file)?,
        members: checked.members.iter().map(|name| NodeId::from(name.as_str())).collect(),
        ack_replicas: checked.ack_replicas,
        priority: checked.priority,
        // Agents of several nodes on one machine must not share what they remember.
        data_dir: checked.data_dir.join(checked.node.as_str()),
        timings: timings(&checked.timings),
    };
    Ok(Start {
        host,
        listen: checked.listen,
        store: store(&checked.zookeeper)?,
        zone: checked.zone.map(|zone| zone.to_string()).unwrap_or_default(),
        on_stop: match checked.on_stop {
            OnStop::Leave => serve::OnStop::Leave,
            OnStop::Handover => serve::OnStop::HandOver,
        },
        stop_patience: checked.stop_patience,
        at_once,
    })
}

/// A checked cluster in ZooKeeper, as the store takes it.
pub fn store(zookeeper: &config::ZooKeeper) -> Result<store::Settings, ConfigError> {
    let credentials = zookeeper.auth_file.as_deref().map(read_credentials).transpose()?;
    Ok(store::Settings {
        connect: zookeeper.connect.to_string(),
        cluster: zookeeper.cluster.to_string(),
        session_timeout: zookeeper.session_timeout,
        credentials: credentials.map(|credentials| Credentials {
            world_reads: zookeeper.world_read,
            ..credentials
        }),
    })
}

fn timings(file: &TimingsFile) -> Timings {
    let ms = Duration::from_millis;
    Timings {
        suspicion: ms(file.suspicion_ms),
        probe: ms(file.probe_ms),
        agent_silence: ms(file.agent_silence_ms),
        stagger: ms(file.stagger_ms),
        park_grace: ms(file.park_grace_ms),
        prove: ms(file.prove_ms),
        prove_needed: ms(file.prove_needed_ms),
        ask: ms(file.ask_ms),
        ask_again: ms(file.ask_again_ms),
        patience: ms(file.patience_ms),
        last_resort: ms(file.last_resort_ms),
        founding: ms(file.founding_ms),
        stall: ms(file.stall_ms),
        drain_max: ms(file.drain_max_ms),
        catch_up: ms(file.catch_up_ms),
        switch_wait: ms(file.switch_wait_ms),
        switch_lag_max_bytes: file.switch_lag_max_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_waiting_times_are_those_of_the_machine() {
        assert_eq!(timings(&TimingsFile::default()), Timings::default());
    }
}
