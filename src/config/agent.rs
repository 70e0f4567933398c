//! What `[agent]` may say.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::error::Problem;
use super::proxy::ZooKeeper;
use super::value::{Ensemble, Name, within};
use crate::topology::Addr;

/// `[agent]` as it stands in the file; `conf/agent.toml` documents each key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentFile {
    /// The node's stable name.
    pub node: Option<Name>,
    /// Its shard's name.
    pub shard: Option<Name>,
    /// Where its Redis listens; other nodes and proxies connect there, too.
    pub redis: Option<Addr>,
    /// The Redis user to log in as.
    pub redis_user: Option<String>,
    /// Its password.
    pub redis_password: Option<String>,
    /// The file that holds its password.
    pub redis_password_file: Option<PathBuf>,
    /// Where other agents and proxies connect.
    pub listen: Addr,
    /// Where `/healthz` answers.
    pub admin: Option<Addr>,
    /// The ensemble.
    pub zookeeper: Option<Ensemble>,
    /// The cluster's name there.
    pub cluster: Name,
    /// How long ZooKeeper keeps the session of a silent client.
    #[serde(deserialize_with = "within::<200, 600_000, _>")]
    pub session_timeout_ms: u64,
    /// The file that holds user:password for ZooKeeper.
    pub zookeeper_auth_file: Option<PathBuf>,
    /// Whether anybody may read the znodes that are made with that.
    pub zookeeper_world_read: bool,
    /// The file that holds the cluster's secret.
    pub secret_file: Option<PathBuf>,
    /// Where the node is, for proxies that prefer what is near.
    pub zone: Option<Name>,
    /// Of equals the lowest is promoted, 0 never is.
    #[serde(deserialize_with = "within::<0, 1_000_000, _>")]
    pub priority: u64,
    /// The shard's nodes.
    pub members: Vec<Name>,
    /// Replicas that must acknowledge a write.
    pub ack_replicas: u64,
    /// Where the agent keeps what it must not forget.
    pub data_dir: PathBuf,
    /// What it does when it is to stop.
    pub on_stop: OnStop,
    /// How long a handover may take.
    #[serde(deserialize_with = "within::<0, 600_000, _>")]
    pub stop_patience_ms: u64,
    /// Waiting times.
    pub timings: TimingsFile,
}

/// What an agent does at SIGTERM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStop {
    /// It leaves, and its Redis goes on as what it is.
    #[default]
    Leave,
    /// If its Redis is the master, another one is made the master first.
    Handover,
}

/// Why a text is no [`OnStop`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("'{0}' is nothing an agent does when it stops: write leave or handover")]
pub struct OnStopError(String);

impl FromStr for OnStop {
    type Err = OnStopError;

    fn from_str(text: &str) -> Result<Self, OnStopError> {
        match text {
            "leave" => Ok(Self::Leave),
            "handover" => Ok(Self::Handover),
            other => Err(OnStopError(other.to_owned())),
        }
    }
}

/// `[agent.timings]`, and one measure of lag: none of them is needed for safety; they trade the length of an outage against needless elections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "conf/agent.toml documents each key, and Timings each field")]
pub struct TimingsFile {
    #[serde(deserialize_with = "within::<50, 600_000, _>")]
    pub suspicion_ms: u64,
    #[serde(deserialize_with = "within::<1, 60_000, _>")]
    pub probe_ms: u64,
    #[serde(deserialize_with = "within::<10, 600_000, _>")]
    pub agent_silence_ms: u64,
    #[serde(deserialize_with = "within::<0, 60_000, _>")]
    pub stagger_ms: u64,
    #[serde(deserialize_with = "within::<0, 60_000, _>")]
    pub park_grace_ms: u64,
    #[serde(deserialize_with = "within::<0, 60_000, _>")]
    pub prove_ms: u64,
    #[serde(deserialize_with = "within::<0, 60_000, _>")]
    pub prove_needed_ms: u64,
    #[serde(deserialize_with = "within::<10, 60_000, _>")]
    pub ask_ms: u64,
    #[serde(deserialize_with = "within::<1, 60_000, _>")]
    pub ask_again_ms: u64,
    #[serde(deserialize_with = "within::<10, 600_000, _>")]
    pub patience_ms: u64,
    #[serde(deserialize_with = "within::<100, 3_600_000, _>")]
    pub last_resort_ms: u64,
    #[serde(deserialize_with = "within::<100, 3_600_000, _>")]
    pub founding_ms: u64,
    #[serde(deserialize_with = "within::<10, 600_000, _>")]
    pub stall_ms: u64,
    #[serde(deserialize_with = "within::<0, 10_000, _>")]
    pub drain_max_ms: u64,
    #[serde(deserialize_with = "within::<1, 10_000, _>")]
    pub catch_up_ms: u64,
    #[serde(deserialize_with = "within::<0, 600_000, _>")]
    pub switch_wait_ms: u64,
    #[serde(deserialize_with = "within::<0, 1_000_000_000_000, _>")]
    pub switch_lag_max_bytes: u64,
}

impl Default for TimingsFile {
    fn default() -> Self {
        Self {
            suspicion_ms: 1000,
            probe_ms: 100,
            agent_silence_ms: 400,
            stagger_ms: 20,
            park_grace_ms: 30,
            prove_ms: 10,
            prove_needed_ms: 100,
            ask_ms: 500,
            ask_again_ms: 100,
            patience_ms: 1000,
            last_resort_ms: 10_000,
            founding_ms: 5000,
            stall_ms: 400,
            drain_max_ms: 200,
            catch_up_ms: 300,
            switch_wait_ms: 2000,
            switch_lag_max_bytes: 64 * 1024 * 1024,
        }
    }
}

impl Default for AgentFile {
    fn default() -> Self {
        Self {
            node: None,
            shard: None,
            redis: None,
            redis_user: None,
            redis_password: None,
            redis_password_file: None,
            listen: Addr::new("127.0.0.1", 7400),
            admin: None,
            zookeeper: None,
            cluster: default_cluster(),
            session_timeout_ms: 4000,
            zookeeper_auth_file: None,
            zookeeper_world_read: false,
            secret_file: None,
            zone: None,
            priority: 100,
            members: Vec::new(),
            ack_replicas: 0,
            data_dir: PathBuf::from("/var/lib/pointsman"),
            on_stop: OnStop::Leave,
            stop_patience_ms: 5000,
            timings: TimingsFile::default(),
        }
    }
}

/// The cluster's name where none is given.
#[expect(clippy::expect_used, reason = "a constant that the tests read")]
pub(super) fn default_cluster() -> Name {
    "main".parse().expect("a name")
}

/// `[agent]`, checked. The files it names are yet to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "AgentFile says what each is")]
pub struct Agent {
    pub node: Name,
    pub shard: Name,
    pub redis: Addr,
    pub redis_user: Option<String>,
    pub redis_password: Password,
    pub listen: Addr,
    pub admin: Option<Addr>,
    pub zookeeper: ZooKeeper,
    pub secret_file: PathBuf,
    pub zone: Option<Name>,
    pub priority: u32,
    pub members: Vec<Name>,
    pub ack_replicas: u32,
    pub data_dir: PathBuf,
    pub on_stop: OnStop,
    pub stop_patience: Duration,
    pub timings: TimingsFile,
}

/// Where the password of Redis is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Password {
    /// Redis asks for none.
    None,
    /// In the config.
    Given(String),
    /// In this file.
    File(PathBuf),
}

impl AgentFile {
    /// Checks what single values cannot show.
    pub fn check(&self) -> Result<Agent, Problem> {
        let node = needed("node", self.node.as_ref(), "the node's stable name")?;
        let members = self.members.clone();
        if !members.is_empty() && !members.contains(&node) {
            let what = format!("they do not name this node, {node}: list all nodes of the shard");
            return Err(Problem::new("members", what));
        }
        let ack_replicas = self.ack_replicas()?;
        let redis = needed("redis", self.redis.as_ref(), "where its Redis listens, HOST:PORT")?;
        Ok(Agent {
            node,
            shard: needed("shard", self.shard.as_ref(), "the shard's name")?,
            redis: reachable(redis)?,
            redis_password: self.password()?,
            redis_user: self.redis_user.clone(),
            listen: self.listen.clone(),
            admin: self.admin.clone(),
            zookeeper: ZooKeeper {
                connect: needed(
                    "zookeeper",
                    self.zookeeper.as_ref(),
                    "its servers, HOST:PORT[,HOST:PORT...]",
                )?,
                cluster: self.cluster.clone(),
                session_timeout: Duration::from_millis(self.session_timeout_ms),
                auth_file: self.zookeeper_auth_file.clone(),
                world_read: self.zookeeper_world_read,
            },
            secret_file: needed(
                "secret_file",
                self.secret_file.as_ref(),
                "the file of the cluster's secret",
            )?,
            zone: self.zone.clone(),
            priority: u32::try_from(self.priority).unwrap_or(u32::MAX),
            members,
            ack_replicas,
            data_dir: self.data_dir.clone(),
            on_stop: self.on_stop,
            stop_patience: Duration::from_millis(self.stop_patience_ms),
            timings: self.timings,
        })
    }

    fn ack_replicas(&self) -> Result<u32, Problem> {
        let (wanted, members) = (self.ack_replicas, self.members.len() as u64);
        let what = match (wanted, members) {
            (0, _) => return Ok(0),
            (_, 0) => "members are not given: list them, so that it is known who acknowledges".to_owned(),
            (_, _) if wanted >= members => format!(
                "{wanted} replicas can never acknowledge anything where {members} members have {}: give at most that",
                members - 1
            ),
            (_, _) => return u32::try_from(wanted).map_err(|_| Problem::new("ack_replicas", "it is too large")),
        };
        Err(Problem::new("ack_replicas", what))
    }

    fn password(&self) -> Result<Password, Problem> {
        match (&self.redis_password, &self.redis_password_file) {
            (Some(_), Some(_)) => {
                let what = "redis_password is given, too: keep one of them";
                Err(Problem::new("redis_password_file", what))
            }
            (None, None) if self.redis_user.is_some() => {
                let what = "a user needs a password: give redis_password_file or redis_password";
                Err(Problem::new("redis_user", what))
            }
            (Some(password), None) => Ok(Password::Given(password.clone())),
            (None, Some(path)) => Ok(Password::File(path.clone())),
            (None, None) => Ok(Password::None),
        }
    }
}

fn needed<T: Clone>(key: &str, value: Option<&T>, what: &str) -> Result<T, Problem> {
    let missing = || Problem::new(key, format!("it is missing: give {what}"));
    value.cloned().ok_or_else(missing)
}

/// It is published, so others must be able to connect to them as they stand.
fn reachable(addr: Addr) -> Result<Addr, Problem> {
    let everywhere = addr.host().parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    if everywhere || addr.port() == 0 {
        let what = format!("{addr} is published to the others, who cannot connect to it: give the address they see");
        return Err(Problem::new("redis", what));
    }
    Ok(addr)
}
