//! What a proxy is started with.

use std::sync::Arc;
use std::time::Duration;

use super::guests::Guests;
use super::liaison::Heed;
use super::source::{Identity, Topology};
use crate::peer;
use crate::route::ReadPolicy;
use crate::topology::{Addr, Epoch, RunId, ShardId};

/// What becomes of commands that may meet a deposed master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleReads {
    /// They wait until it is known again that there is no other, and are refused in the end.
    Refuse,
    /// They are sent.
    Allow,
}

/// The settings of one proxy, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients connect.
    pub listen: Vec<Addr>,
    /// More addresses where clients connect, and how many replicas must acknowledge what is written there, at least.
    pub listeners: Vec<(Addr, u32)>,
    /// Where the admin pages are.
    pub admin: Option<Addr>,
    /// Worker threads, at least 1; so many for each of the different numbers of replicas that listeners ask for.
    pub workers: usize,
    /// Its name in `/proxies`, and in what is said of it.
    pub id: String,
    /// Its zone, empty for none.
    pub zone: String,
    /// Where it learns who is master.
    pub topology: Topology,
    /// Where reads may go.
    pub reads: ReadPolicy,
    /// What is done with reads, and at W = 0 with writes, while the proxy would not hear of another master.
    pub stale_reads: StaleReads,
    /// How long the proxy may have heard nothing: that of the agents.
    pub suspicion: Duration,
    /// How old the newest sample that a replica has passed may be, in milliseconds.
    pub max_lag_ms: u64,
    /// How long a command waits for a master before it is refused, in milliseconds.
    pub hold_max_ms: u64,
    /// Replicas that must acknowledge a write before its client is told, at least: a shard may ask for more.
    pub ack_replicas: u32,
    /// How long a reply waits for that, in milliseconds.
    pub ack_timeout_ms: u64,
    /// Whether only replicas count that have it on disk (WAITAOF).
    pub acks_on_disk: bool,
    /// How long opening a backend connection may take.
    pub connect_timeout: Duration,
    /// Clients at once.
    pub clients_max: usize,
    /// The cluster's secret, where the proxy knows it.
    pub secret: Option<Arc<[u8]>>,
    /// Who the proxy's own connections are at servers that no agent makes its user on; none: whoever everybody is.
    pub redis_login: Option<(String, String)>,
    /// Who may log in to the proxy itself; none: clients log in to the servers.
    pub guests: Option<Arc<Guests>>,
}

impl Settings {
    /// The defaults of design §12. Reads are split where the topology may have replicas.
    pub fn new(listen: Vec<Addr>, topology: Topology) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            id: listen
                .first()
                .map_or_else(String::new, |addr| format!("{}-{}", addr.host(), addr.port())),
            zone: String::new(),
            listen,
            listeners: Vec::new(),
            admin: None,
            workers: (cores / 2).clamp(1, 4),
            reads: match &topology {
                Topology::Fixed { replicas, .. } if replicas.is_empty() => ReadPolicy::Master,
                Topology::Fixed { .. } | Topology::File(..) | Topology::ZooKeeper(_) => ReadPolicy::Causal,
            },
            topology,
            stale_reads: StaleReads::Allow,
            suspicion: Duration::from_millis(1000),
            max_lag_ms: 1000,
            hold_max_ms: 5000,
            ack_replicas: 0,
            ack_timeout_ms: 1000,
            acks_on_disk: false,
            connect_timeout: Duration::from_millis(1000),
            clients_max: 10_000,
            secret: None,
            redis_login: None,
            guests: None,
        }
    }

    /// For which shards it matters whether the proxy would hear of another master.
    pub fn heed(&self) -> Heed {
        match (&self.topology, self.stale_reads, self.reads) {
            (Topology::Fixed { .. } | Topology::File(..), ..) | (_, StaleReads::Allow, _) => Heed::Nothing,
            (Topology::ZooKeeper(_), StaleReads::Refuse, ReadPolicy::Master) => Heed::Unproven,
            (Topology::ZooKeeper(_), StaleReads::Refuse, ReadPolicy::Causal) => Heed::All,
        }
    }

    /// The cluster's secret, if there are agents to talk to.
    pub fn agents_secret(&self) -> Option<&Arc<[u8]>> {
        match &self.topology {
            Topology::ZooKeeper(_) => self.secret.as_ref(),
            Topology::Fixed { .. } | Topology::File(..) => None,
        }
    }

    /// Name and password of the proxies' user at the servers of an epoch, if the secret and its master's life
    /// are known; without a secret those of the settings.
    pub fn pass(&self, shard: &ShardId, epoch: Epoch, master: Option<&RunId>) -> Option<(String, String)> {
        let Some(secret) = self.agents_secret() else {
            return self.redis_login.clone();
        };
        let master = master?;
        let token = peer::token(secret, peer::Role::Proxy, shard, epoch, master);
        Some((peer::name(peer::Role::Proxy, epoch), token))
    }

    /// Every address where clients connect, and how many replicas must acknowledge what is written there.
    pub fn all_listeners(&self) -> impl Iterator<Item = (&Addr, u32)> {
        let own = self.listen.iter().map(|addr| (addr, self.ack_replicas));
        own.chain(self.listeners.iter().map(|(addr, acks)| (addr, *acks)))
    }

    /// What it says of itself in `/proxies`.
    pub fn identity(&self) -> Identity {
        Identity {
            id: self.id.clone(),
            addr: self
                .listen
                .first()
                .cloned()
                .unwrap_or_else(|| Addr::new("127.0.0.1", 0)),
            admin: self.admin.clone(),
            zone: self.zone.clone(),
            drains: self.agents_secret().is_some(),
        }
    }
}
