//! `pointsman proxy`: flags laid over the file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::agent::store;
use super::{Failure, signals};
use crate::admin::{self, Pages};
use crate::config::{self, ConfigError, Document, Ensemble, File, Kind, Name, ProxyFile, Source, Users, read_secret};
use crate::proxy::shared::ControlLogin;
use crate::proxy::source::Topology;
use crate::proxy::{self, Guests, Settings, StaleReads, View};
use crate::route::ReadPolicy;
use crate::topology::Addr;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A proxy's config; conf/proxy.toml documents it. Flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Its name among the proxies of the cluster [default: HOST-PORT of its first address].
    #[arg(long, value_name = "NAME")]
    id: Option<Name>,
    /// Where clients connect (may be given several times) [default: 127.0.0.1:6400].
    #[arg(long, value_name = "HOST:PORT")]
    listen: Vec<Addr>,
    /// The ZooKeeper servers that know the topology.
    #[arg(long, value_name = "HOST:PORT,..", group = "source")]
    zookeeper: Option<Ensemble>,
    /// The cluster's name in ZooKeeper [default: main].
    #[arg(long, value_name = "NAME")]
    cluster: Option<Name>,
    /// The file that holds user:password for ZooKeeper.
    #[arg(long, value_name = "FILE", env = "POINTSMAN_ZOOKEEPER_AUTH_FILE")]
    zookeeper_auth_file: Option<PathBuf>,
    /// The file that holds the cluster's secret: with it the proxy takes part in switchovers.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// A file that lists the shards.
    #[arg(long, value_name = "FILE", group = "source")]
    topology: Option<PathBuf>,
    /// The one master.
    #[arg(long, value_name = "HOST:PORT", group = "source")]
    master: Option<Addr>,
    /// Its replicas (may be given several times).
    #[arg(long, value_name = "HOST:PORT", requires = "master")]
    replica: Vec<Addr>,
    /// Replicas that must acknowledge a write before its client is told, at least [default: what the shard asks for].
    #[arg(long, value_name = "W", value_parser = clap::value_parser!(u64).range(0..=63))]
    ack_replicas: Option<u64>,
    /// The Redis user that the proxy's own connections are, where no agents make one for it.
    #[arg(long, value_name = "USER")]
    redis_user: Option<String>,
    /// The file that holds its password.
    #[arg(long, value_name = "FILE")]
    redis_password_file: Option<PathBuf>,
    /// The file of the users who may log in to the proxy itself; the config says who they are to the servers.
    #[arg(long, value_name = "FILE")]
    users_file: Option<PathBuf>,
    /// Where /healthz, /readyz, /topology and /metrics answer.
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<Addr>,
    /// Worker threads; half of the cores, at most 4, unless given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=256))]
    workers: Option<u64>,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let settings = settings(args)?;
    let shutdown = signals::shutdown()?;
    let admin = async |listener, view: View| admin::serve(listener, pages(view)).await;
    proxy::run(settings, &shutdown, admin).map_err(Failure::failed)
}

/// What a proxy's admin port shows.
fn pages(view: View) -> Pages {
    let shown = view.clone();
    Pages {
        ready: Some(Arc::new(move || view.ready())),
        topology: Some(Arc::new(move || {
            Some(shown.snapshot()).filter(|known| !known.shards.is_empty())
        })),
        metrics: None,
    }
}

fn settings(args: Args) -> Result<Settings, Failure> {
    let document = args.config.as_deref().map(Document::read).transpose()?;
    let file = match document.as_ref().map(|document| (document, &document.file)) {
        None => ProxyFile::default(),
        Some((_, File::Proxy(file))) => file.clone(),
        Some((document, File::Agent(_) | File::Topology(_))) => return Err(document.not_a(Kind::Proxy).into()),
    };
    let checked = args.over(file).check().map_err(|problem| match &document {
        Some(document) => document.locate(problem),
        None => ConfigError::Flags { problem },
    })?;
    if let Source::File(path) = &checked.source {
        check_topology(path)?;
    }
    build(checked)
}

/// Refuses a topology file before anything is bound; the proxy itself reads it again and again.
fn check_topology(path: &Path) -> Result<(), ConfigError> {
    let document = Document::read(path)?;
    match document.file {
        File::Topology(_) => Ok(()),
        File::Proxy(_) | File::Agent(_) => Err(document.not_a(Kind::Topology)),
    }
}

impl Args {
    /// The file with what the flags say in its place.
    fn over(self, mut file: ProxyFile) -> ProxyFile {
        if !self.listen.is_empty() {
            file.listen = self.listen;
        }
        // A source on the command line replaces whichever the file names.
        if self.zookeeper.is_some() || self.topology.is_some() || self.master.is_some() {
            file.zookeeper = self.zookeeper;
            file.topology = self.topology;
            file.master = self.master;
            file.replicas = self.replica;
        }
        file.id = self.id.or(file.id);
        file.cluster = self.cluster.unwrap_or(file.cluster);
        file.zookeeper_auth_file = self.zookeeper_auth_file.or(file.zookeeper_auth_file);
        file.secret_file = self.secret_file.or(file.secret_file);
        file.redis_user = self.redis_user.or(file.redis_user);
        file.redis_password_file = self.redis_password_file.or(file.redis_password_file);
        file.users_file = self.users_file.or(file.users_file);
        file.admin = self.admin.or(file.admin);
        file.ack_replicas = self.ack_replicas.unwrap_or(file.ack_replicas);
        file.workers = self.workers.or(file.workers);
        file
    }
}

fn build(checked: config::Proxy) -> Result<Settings, Failure> {
    let secret = checked.secret_file.as_deref().map(read_secret).transpose()?;
    let login = match checked.redis_password.read()? {
        Some(password) => Some((checked.redis_user.unwrap_or("default".to_owned()), password)),
        None => None,
    };
    let guests = match &checked.users_file {
        Some(path) => {
            let password = checked.users_redis_password.read()?;
            let user = checked.users_redis_user.unwrap_or("default".to_owned());
            Some(Arc::new(Guests {
                users: Users::read(path)?,
                redis_login: password.map(|password| (user, password)),
            }))
        }
        None => None,
    };
    let topology = match checked.source {
        Source::ZooKeeper(zookeeper) => Topology::ZooKeeper(store(&zookeeper)?),
        Source::File(path) => Topology::File(
            path,
            ControlLogin {
                user: login.as_ref().map(|(user, _)| user.clone()),
                password: login.as_ref().map(|(_, password)| password.clone()),
            },
        ),
        Source::Fixed { master, replicas } => Topology::Fixed { master, replicas },
    };
    let mut settings = Settings::new(checked.listen, topology);
    if let Some(id) = checked.id {
        settings.id = id.to_string();
    }
    settings.listeners = checked.listeners;
    settings.admin = checked.admin;
    settings.workers = checked.workers.unwrap_or(settings.workers);
    if checked.reads == config::ReadPolicy::Master {
        settings.reads = ReadPolicy::Master;
    }
    settings.stale_reads = match checked.stale_reads {
        config::StaleReads::Refuse => StaleReads::Refuse,
        config::StaleReads::Allow => StaleReads::Allow,
    };
    settings.suspicion = checked.suspicion;
    settings.max_lag_ms = u64::try_from(checked.max_lag.as_millis()).unwrap_or(u64::MAX);
    settings.hold_max_ms = u64::try_from(checked.hold_max.as_millis()).unwrap_or(u64::MAX);
    settings.ack_replicas = checked.ack_replicas;
    settings.ack_timeout_ms = u64::try_from(checked.ack_timeout.as_millis()).unwrap_or(u64::MAX);
    settings.acks_on_disk = checked.ack_on_disk;
    settings.connect_timeout = checked.connect_timeout;
    settings.clients_max = checked.clients_max;
    settings.secret = secret;
    settings.redis_login = login;
    settings.guests = guests;
    Ok(settings)
}
