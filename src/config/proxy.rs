//! What `[proxy]` may say.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::agent::Password;
use super::error::Problem;
use super::value::{Ensemble, Name, maybe_within, within};
use crate::topology::Addr;

/// Where reads go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadPolicy {
    /// To the master.
    Master,
    /// To a replica that is known to have all that the session wrote or saw, else to the master.
    #[default]
    Causal,
}

/// What is done with reads while the proxy would not hear of another master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StaleReads {
    /// They are held, and refused in the end.
    Refuse,
    /// They are sent.
    Allow,
}

/// `[proxy]` as it stands in the file; `conf/proxy.toml` documents each key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyFile {
    /// Its name among the proxies of the cluster.
    pub id: Option<Name>,
    /// Where clients connect.
    pub listen: Vec<Addr>,
    /// Where the admin pages are.
    pub admin: Option<Addr>,
    /// Worker threads.
    #[serde(deserialize_with = "maybe_within::<1, 256, _>")]
    pub workers: Option<u64>,
    /// The ensemble that knows the topology.
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
    /// The file that knows the topology.
    pub topology: Option<PathBuf>,
    /// The one master, if there is no other source.
    pub master: Option<Addr>,
    /// Its replicas.
    pub replicas: Vec<Addr>,
    /// The Redis user that the proxy's own connections are.
    pub redis_user: Option<String>,
    /// The file that holds its password.
    pub redis_password_file: Option<PathBuf>,
    /// The file of the users who may log in to the proxy.
    pub users_file: Option<PathBuf>,
    /// The Redis user that all of them are to the servers.
    pub users_redis_user: Option<String>,
    /// The file that holds its password.
    pub users_redis_password_file: Option<PathBuf>,
    /// Where reads go.
    pub reads: ReadPolicy,
    /// What is done with them while the proxy hears neither ZooKeeper nor enough agents.
    pub stale_reads: Option<StaleReads>,
    /// How long it may have heard neither.
    #[serde(deserialize_with = "within::<100, 600_000, _>")]
    pub suspicion_ms: u64,
    /// How old the newest sample that a replica has passed may be.
    #[serde(deserialize_with = "within::<1, 600_000, _>")]
    pub max_lag_ms: u64,
    /// How long a command waits for a master before it is refused.
    #[serde(deserialize_with = "within::<1, 600_000, _>")]
    pub hold_max_ms: u64,
    /// Replicas that must acknowledge a write, at least.
    #[serde(deserialize_with = "within::<0, 63, _>")]
    pub ack_replicas: u64,
    /// How long a reply waits for that.
    #[serde(deserialize_with = "within::<1, 600_000, _>")]
    pub ack_timeout_ms: u64,
    /// Whether only replicas count that have it on disk.
    pub ack_on_disk: bool,
    /// How long opening a backend connection may take.
    #[serde(deserialize_with = "within::<1, 60_000, _>")]
    pub connect_timeout_ms: u64,
    /// Clients at once.
    #[serde(deserialize_with = "within::<1, 1_000_000, _>")]
    pub clients_max: u64,
    /// More addresses where clients connect, which ask for more. Last, as toml has it: tables follow values.
    pub listeners: Vec<Listener>,
}

/// An address where clients connect whose writes more replicas must acknowledge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Where.
    pub listen: Addr,
    /// How many, at least: not less than the proxy's own.
    #[serde(deserialize_with = "within::<0, 63, _>")]
    pub ack_replicas: u64,
}

impl Default for ProxyFile {
    fn default() -> Self {
        Self {
            id: None,
            listen: vec![Addr::new("127.0.0.1", 6400)],
            admin: None,
            workers: None,
            zookeeper: None,
            cluster: super::agent::default_cluster(),
            session_timeout_ms: 4000,
            zookeeper_auth_file: None,
            zookeeper_world_read: false,
            secret_file: None,
            topology: None,
            master: None,
            replicas: Vec::new(),
            redis_user: None,
            redis_password_file: None,
            users_file: None,
            users_redis_user: None,
            users_redis_password_file: None,
            reads: ReadPolicy::Causal,
            stale_reads: None,
            suspicion_ms: 1000,
            max_lag_ms: 1000,
            hold_max_ms: 5000,
            ack_replicas: 0,
            ack_timeout_ms: 1000,
            ack_on_disk: false,
            connect_timeout_ms: 1000,
            clients_max: 10_000,
            listeners: Vec::new(),
        }
    }
}

/// A cluster in ZooKeeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZooKeeper {
    /// Its servers.
    pub connect: Ensemble,
    /// The cluster's name.
    pub cluster: Name,
    /// The session's timeout.
    pub session_timeout: Duration,
    /// The file that holds user:password; yet to be read.
    pub auth_file: Option<PathBuf>,
    /// Whether anybody may read what is made with that.
    pub world_read: bool,
}

/// Where a proxy learns the topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// ZooKeeper.
    ZooKeeper(ZooKeeper),
    /// A file that holds `[topology]`.
    File(PathBuf),
    /// The config itself: one shard.
    Fixed {
        /// The master.
        master: Addr,
        /// Its replicas.
        replicas: Vec<Addr>,
    },
}

/// `[proxy]`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Its name; `None`: made of its first address.
    pub id: Option<Name>,
    /// Where clients connect; at least one.
    pub listen: Vec<Addr>,
    /// Where the admin pages are.
    pub admin: Option<Addr>,
    /// Worker threads; `None`: by the number of cores.
    pub workers: Option<usize>,
    /// Where the topology comes from.
    pub source: Source,
    /// The file of the cluster's secret; `None`: agents are not talked to.
    pub secret_file: Option<PathBuf>,
    /// The Redis user that the proxy's own connections are.
    pub redis_user: Option<String>,
    /// Its password.
    pub redis_password: Password,
    /// The file of the users who may log in to the proxy; `None`: clients log in to the servers.
    pub users_file: Option<PathBuf>,
    /// The Redis user that all of them are to the servers.
    pub users_redis_user: Option<String>,
    /// Its password.
    pub users_redis_password: Password,
    /// Where reads go.
    pub reads: ReadPolicy,
    /// What is done with them while the proxy hears neither ZooKeeper nor enough agents.
    pub stale_reads: StaleReads,
    /// How long it may have heard neither.
    pub suspicion: Duration,
    /// How old the newest sample that a replica has passed may be.
    pub max_lag: Duration,
    /// How long a command waits for a master.
    pub hold_max: Duration,
    /// Replicas that must acknowledge a write, at least.
    pub ack_replicas: u32,
    /// How long a reply waits for that.
    pub ack_timeout: Duration,
    /// Whether only replicas count that have it on disk.
    pub ack_on_disk: bool,
    /// How long opening a backend connection may take.
    pub connect_timeout: Duration,
    /// Clients at once.
    pub clients_max: usize,
    /// More addresses where clients connect, and how many replicas must acknowledge a write there.
    pub listeners: Vec<(Addr, u32)>,
}

/// The password of a user, by the keys that name both.
fn password(
    (user_key, user): (&'static str, &Option<String>),
    (file_key, file): (&str, &Option<PathBuf>),
) -> Result<Password, Problem> {
    match (user, file) {
        (Some(_), None) => Err(Problem::new(
            user_key,
            format!("a user needs a password: give {file_key}"),
        )),
        (_, Some(path)) => Ok(Password::File(path.clone())),
        (None, None) => Ok(Password::None),
    }
}

impl ProxyFile {
    /// Checks what single values cannot show.
    pub fn check(&self) -> Result<Proxy, Problem> {
        if self.listen.is_empty() {
            return Err(Problem::new("listen", "there is no address: name at least one"));
        }
        let redis_password = password(
            ("redis_user", &self.redis_user),
            ("redis_password_file", &self.redis_password_file),
        )?;
        let users_redis_password = password(
            ("users_redis_user", &self.users_redis_user),
            ("users_redis_password_file", &self.users_redis_password_file),
        )?;
        if self.users_file.is_none() && self.users_redis_password_file.is_some() {
            let what = "nobody is that user: give users_file, or clients log in as themselves";
            return Err(Problem::new("users_redis_password_file", what));
        }
        self.check_acks()?;
        let small = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let acks = |wanted: u64| u32::try_from(wanted).unwrap_or(u32::MAX);
        Ok(Proxy {
            id: self.id.clone(),
            listen: self.listen.clone(),
            admin: self.admin.clone(),
            workers: self.workers.map(small),
            source: self.source()?,
            secret_file: self.secret_file.clone(),
            redis_user: self.redis_user.clone(),
            redis_password,
            users_file: self.users_file.clone(),
            users_redis_user: self.users_redis_user.clone(),
            users_redis_password,
            reads: self.reads,
            stale_reads: self.stale_reads.unwrap_or(match self.reads {
                ReadPolicy::Master => StaleReads::Refuse,
                ReadPolicy::Causal => StaleReads::Allow,
            }),
            suspicion: Duration::from_millis(self.suspicion_ms),
            max_lag: Duration::from_millis(self.max_lag_ms),
            hold_max: Duration::from_millis(self.hold_max_ms),
            ack_replicas: acks(self.ack_replicas),
            ack_timeout: Duration::from_millis(self.ack_timeout_ms),
            ack_on_disk: self.ack_on_disk,
            connect_timeout: Duration::from_millis(self.connect_timeout_ms),
            clients_max: small(self.clients_max),
            listeners: self
                .listeners
                .iter()
                .map(|listener| (listener.listen.clone(), acks(listener.ack_replicas)))
                .collect(),
        })
    }

    /// Whether what is asked of replicas can be, as far as it can be seen here.
    fn check_acks(&self) -> Result<(), Problem> {
        let mut listen: BTreeSet<&Addr> = self.listen.iter().collect();
        for Listener {
            listen: addr,
            ack_replicas,
        } in &self.listeners
        {
            if *ack_replicas < self.ack_replicas {
                let what = format!(
                    "{addr} asks for {ack_replicas} replicas where all clients get {}: one may ask for more, never for less",
                    self.ack_replicas
                );
                return Err(Problem::new("listeners", what));
            }
            if addr.port() != 0 && !listen.insert(addr) {
                return Err(Problem::new("listeners", format!("{addr} is listed twice")));
            }
        }
        let own = std::iter::once(("ack_replicas", self.ack_replicas));
        let all = own.chain(
            self.listeners
                .iter()
                .map(|listener| ("listeners", listener.ack_replicas)),
        );
        let there = self.replicas.len() as u64;
        match all.max_by_key(|(_, wanted)| *wanted) {
            Some((key, wanted)) if self.master.is_some() && wanted > there => {
                let what = format!(
                    "{wanted} replicas can never acknowledge anything where there are {there}: name them in replicas, or ask for that \
                     many at most"
                );
                Err(Problem::new(key, what))
            }
            _ => Ok(()),
        }
    }

    fn source(&self) -> Result<Source, Problem> {
        let one = |key| {
            Err(Problem::new(
                key,
                "only one of zookeeper, topology and master may be given",
            ))
        };
        if self.master.is_none() && !self.replicas.is_empty() {
            return Err(Problem::new("replicas", "they need a master: name it, too"));
        }
        match (&self.zookeeper, &self.topology, &self.master) {
            (Some(connect), None, None) => Ok(Source::ZooKeeper(ZooKeeper {
                connect: connect.clone(),
                cluster: self.cluster.clone(),
                session_timeout: Duration::from_millis(self.session_timeout_ms),
                auth_file: self.zookeeper_auth_file.clone(),
                world_read: self.zookeeper_world_read,
            })),
            (None, Some(path), None) => Ok(Source::File(path.clone())),
            (None, None, Some(master)) => Ok(Source::Fixed {
                master: master.clone(),
                replicas: self.replicas.clone(),
            }),
            (None, None, None) => {
                let what = "nothing says where Redis is: give one of zookeeper, topology and master";
                Err(Problem::new("master", what))
            }
            (_, Some(_), _) => one("topology"),
            (Some(_), None, Some(_)) => one("master"),
        }
    }
}
