//! An agent, from its settings to its end.
//!
//! ```text
//!  bind -> connect -> lay out -> any rival? -> register -> a rival before us? -> run -> [hand over]
//!       -> end what is under way -> write the history -> close the session
//! ```
//!
//! Owns: that order; the session is closed so that the registration goes at once. Refuses: running under a name that a
//! living agent holds, or on a Redis that one has. Invariants: nothing is done to Redis before it is known that no other
//! agent has it; ending changes nothing in Redis, unless the agent is to hand its master over, which is a switchover
//! like any other, or executes one: that is taken back or brought to its end first. All of that has one time limit.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::handover::hand_over;
use super::host;
use super::info;
use super::redis::{Connection, text};
use super::seam::{self, Presence, Rival, Rivals};
use crate::clock;
use crate::store::{self, Store, StoreError};
use crate::topology::codec::{
    ClusterConfig, CodecError, NameError, NodeInfo, Place, ShardConfig, check_name, decode, encode,
};
use crate::topology::{Addr, NodeId, RunId};

/// How long our Redis may take to say who it is before we register.
const LIFE_LIMIT: Duration = Duration::from_secs(1);
/// How much longer than a handover the end of what is under way may take.
const WIND_DOWN: Duration = Duration::from_millis(500);
/// Between two attempts to write the znodes that a shard needs.
const AGAIN: Duration = Duration::from_millis(100);

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct Start {
    /// Its node and how it behaves.
    pub host: host::Settings,
    /// Its peer port. Port 0 is drawn; an unspecified host is published as that of the Redis.
    pub listen: Addr,
    /// Where the cluster's znodes are.
    pub store: store::Settings,
    /// Its zone, empty for none.
    pub zone: String,
    /// What it does when it is to stop.
    pub on_stop: OnStop,
    /// How long that may take, and what else it has under way.
    pub stop_patience: Duration,
    /// Ends it at once.
    pub at_once: CancellationToken,
}

/// What an agent does when it is to stop, beside bringing what it executes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// It leaves; its Redis goes on as what it is.
    Leave,
    /// If its node is the master, another one is to be first.
    HandOver,
}

/// Why an agent does not run.
#[derive(Debug, Error)]
pub enum AgentError {
    /// A name in the settings is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The peer port cannot be had.
    #[error("cannot listen at {0}: {1}")]
    Listen(Addr, io::Error),
    /// The store does not answer, or refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster's settings are of another version, or nonsense.
    #[error(transparent)]
    Cluster(#[from] CodecError),
    /// The node's name belongs to another agent.
    #[error("node {node} is taken: {holder}; give this agent another node name, or end that one")]
    Taken {
        /// The name.
        node: NodeId,
        /// What is known of who holds it.
        holder: String,
    },
    /// Its Redis belongs to another agent.
    #[error(
        "redis {redis} has an agent already, that of node {} of shard {} on {} at {}: one redis-server has one agent, so \
         end that one or name another redis-server", .rival.node, .rival.shard, .rival.info.host, .rival.info.peer
    )]
    Shared {
        /// Where it listens.
        redis: Addr,
        /// Whose it is.
        rival: Box<Rival>,
    },
    /// Something on this machine fails.
    #[error("agent of {0}: {1}")]
    Machine(NodeId, io::Error),
}

/// Runs an agent until `stop`.
pub async fn serve(start: Start, stop: CancellationToken) -> Result<(), AgentError> {
    check_name(start.host.node.as_str())?;
    check_name(start.host.shard.as_str())?;
    check_name(&start.store.cluster)?;
    let listener = TcpListener::bind((start.listen.host(), start.listen.port()))
        .await
        .map_err(|error| AgentError::Listen(start.listen.clone(), error))?;
    let connecting = stop.run_until_cancelled(Store::await_connect(&start.store));
    let Some(store) = connecting.await else { return Ok(()) };
    let store = store?;
    let (shard, node, on_stop) = (start.host.shard.clone(), start.host.node.clone(), start.on_stop);
    let (patience, at_once) = (start.stop_patience, start.at_once.clone());
    let runs = AtomicBool::new(false);
    let leave = CancellationToken::new();
    let leaving = async {
        stop.cancelled().await;
        if !runs.load(Ordering::Acquire) {
            return;
        }
        let deadline = clock::now() + patience;
        if on_stop == OnStop::HandOver {
            let handing = hand_over(&store, &shard, &node, patience);
            if at_once.run_until_cancelled(handing).await.is_none() {
                return tracing::warn!("asked to end at once: {shard} is not handed over");
            }
        }
        leave.cancel();
        tokio::select! {
            () = sleep_until((deadline + WIND_DOWN).into()) => {
                tracing::warn!("this agent stops before what it had under way has ended");
            }
            () = at_once.cancelled() => {}
        }
    };
    let ended = tokio::select! {
        biased;
        // What it hands over it still has to move itself.
        ended = work(&store, start, listener, &runs, leave.clone()) => ended,
        () = leaving => Ok(()),
    };
    store.close().await;
    ended
}

async fn work(
    store: &Store,
    mut start: Start,
    listener: TcpListener,
    runs: &AtomicBool,
    leave: CancellationToken,
) -> Result<(), AgentError> {
    let machine = |error| AgentError::Machine(start.host.node.clone(), error);
    let peer = published(&start, listener.local_addr().map_err(machine)?.port());
    laid_out(store, &mut start.host).await?;
    warn_of_open_znodes(store, &start).await;
    let (shard, node) = (start.host.shard.clone(), start.host.node.clone());
    let info = NodeInfo {
        host: kernel("hostname"),
        redis: start.host.redis.clone(),
        peer,
        run_id: life(&start.host).await,
        role: None,
        replid: None,
        zone: start.zone,
        priority: start.host.priority,
        boot_id: kernel("random/boot_id"),
    };
    let redis = start.host.redis.clone();
    let shared = |rival| AgentError::Shared {
        redis: redis.clone(),
        rival: Box::new(rival),
    };
    let mut rivals = Rivals::new(store, &shard, &node, seam::patience(store));
    if let Some(rival) = rivals.before(&info).await {
        return Err(shared(rival));
    }
    let (presence, mut registration) = Presence::start(store, &shard, &node, info);
    if !registration.held().await {
        return Err(taken(store, &start.host).await);
    }
    if let Some(rival) = rivals.after().await {
        return Err(shared(rival));
    }
    tracing::info!(%node, %shard, %redis, "registered");
    let end = CancellationToken::new();
    let _ends_with_us = end.clone().drop_guard();
    let (claim, grant) = seam::claim();
    let (seam, news, recorded) = seam::start(store, &shard, &node, presence, claim, &end);
    let running = async {
        host::run(start.host.clone(), listener, news, seam, leave).await?;
        // The history is written at its own pace; what ended stands in it before the agent goes.
        recorded.await.map_err(io::Error::other)
    };
    runs.store(true, Ordering::Release);
    tokio::select! {
        ended = running => ended.map_err(|error| AgentError::Machine(node, error)),
        () = registration.lost() => Err(taken(store, &start.host).await),
        rival = rivals.stand_guard(grant) => Err(shared(rival)),
    }
}

/// The life of our Redis, if it answers.
async fn life(settings: &host::Settings) -> Option<RunId> {
    let mut connection = Connection::open(&settings.redis, &settings.login, LIFE_LIMIT)
        .await
        .ok()?;
    let reply = connection.ask(&["INFO"], LIFE_LIMIT).await.ok()?;
    text(&reply)
        .and_then(|reply| info::facts(reply, ""))
        .map(|facts| facts.run_id)
}

/// Where others reach the peer port.
fn published(start: &Start, port: u16) -> Addr {
    let host = match start.listen.host() {
        "0.0.0.0" | "::" => start.host.redis.host(),
        host => host,
    };
    Addr::new(host, port)
}

/// Does so as often as the store loses it: writing what is missing once more is right in any case.
async fn laid_out(store: &Store, settings: &mut host::Settings) -> Result<(), AgentError> {
    loop {
        match lay_out(store, settings).await {
            Err(AgentError::Store(StoreError::Away | StoreError::Unknown)) => sleep(AGAIN).await,
            done => return done,
        }
    }
}

/// Makes the znodes that a shard needs, where they are missing, and takes over what the cluster says of it.
async fn lay_out(store: &Store, settings: &mut host::Settings) -> Result<(), AgentError> {
    let path = Place::Config.to_string();
    store.ensure(&path, encode(&ClusterConfig::default())).await?;
    if let Some(found) = store.get(&path).await? {
        decode::<ClusterConfig>(&found.bytes, &path)?;
    }
    let own = ShardConfig {
        ack_replicas: settings.ack_replicas,
        members: settings.members.clone(),
        ..ShardConfig::default()
    };
    let path = Place::ShardConfig(settings.shard.clone()).to_string();
    store.ensure(&path, encode(&own)).await?;
    let shard = &settings.shard;
    for place in [
        Place::Nodes(shard.clone()),
        Place::Suspects(shard.clone()),
        Place::History(shard.clone()),
    ] {
        store.ensure(&place.to_string(), Vec::new()).await?;
    }
    let Some(found) = store.get(&path).await? else {
        return Ok(());
    };
    match decode::<ShardConfig>(&found.bytes, &path) {
        Ok(agreed) => {
            if agreed != own {
                tracing::info!(%path, ?agreed, "the shard's settings in ZooKeeper count, not this agent's own");
            }
            (settings.ack_replicas, settings.members) = (agreed.ack_replicas, agreed.members);
        }
        Err(error) => tracing::warn!("{error}; this agent's own settings count"),
    }
    Ok(())
}

/// Znodes that were made without credentials stay open to everybody, whoever has credentials now.
async fn warn_of_open_znodes(store: &Store, start: &Start) {
    let Some(credentials) = &start.store.credentials else {
        return;
    };
    let shard = &start.host.shard;
    let mut paths = vec![String::new()];
    let places = [
        Place::Config,
        Place::Slots,
        Place::Shards,
        Place::ShardConfig(shard.clone()),
        Place::State(shard.clone()),
        Place::Switch(shard.clone()),
        Place::Nodes(shard.clone()),
        Place::Suspects(shard.clone()),
        Place::Proxies,
        Place::Histories,
        Place::History(shard.clone()),
    ];
    paths.extend(places.iter().map(Place::to_string));
    match store.exposed(&paths).await {
        Ok(open) if open.is_empty() => {}
        Ok(open) => {
            let user = &credentials.user;
            let world = if credentials.world_reads { ",world:anyone:r" } else { "" };
            tracing::warn!(
                "everybody who reaches ZooKeeper may use {}: they were made without credentials; in zkCli.sh run \
                 'addauth digest {user}:PASSWORD' and 'setAcl -R /pointsman/{} auth:{user}:cdrwa{world}'",
                open.join(", "),
                start.store.cluster
            );
        }
        Err(error) => tracing::debug!(%error, "it is not known which znodes are open"),
    }
}

async fn taken(store: &Store, settings: &host::Settings) -> AgentError {
    let path = Place::Node(settings.shard.clone(), settings.node.clone()).to_string();
    let found = store.get(&path).await.ok().flatten();
    let info = found.and_then(|found| decode::<NodeInfo>(&found.bytes, &path).ok());
    let holder = match info {
        Some(info) => format!(
            "the agent on {} at {} holds it for {}",
            info.host, info.peer, info.redis
        ),
        None => "another session holds it".to_owned(),
    };
    AgentError::Taken {
        node: settings.node.clone(),
        holder,
    }
}

/// What the kernel says of this machine; empty where it says nothing.
fn kernel(name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::machine::timings::Timings;
    use crate::agent::redis::Login;
    use crate::store::{Loss, Memory};
    use crate::topology::ShardId;

    fn settings() -> host::Settings {
        host::Settings {
            node: NodeId::from("s1-a"),
            shard: ShardId::from("s1"),
            redis: Addr::new("127.0.0.1", 6379),
            login: Login {
                user: None,
                password: None,
            },
            secret: std::sync::Arc::from(&b"a secret"[..]),
            members: Default::default(),
            ack_replicas: 0,
            priority: 100,
            data_dir: "/nonexistent".into(),
            timings: Timings::default(),
        }
    }

    #[tokio::test]
    async fn an_agent_that_starts_while_zookeeper_comes_and_goes_lays_out_what_is_missing_in_the_end() {
        for loss in [Loss::Done, Loss::NotDone] {
            let memory = Memory::default();
            let store = memory.store();
            memory.lose_next_write(loss);
            laid_out(&store, &mut settings()).await.unwrap();
            let place = Place::ShardConfig(ShardId::from("s1")).to_string();
            assert!(store.get(&place).await.unwrap().is_some());
        }
    }
}
