//! An agent, from its settings to its end.
//!
//! Owns: the order of starting: bind, connect, make the shard's znodes, register, run; and of ending: close the
//! session, so that the registration goes at once. Refuses: running under a name that a living agent holds.
//! Invariant: ending changes nothing in Redis.

use std::fs;
use std::io;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::host;
use super::seam::{self, Presence};
use crate::store::{self, Store, StoreError};
use crate::topology::codec::{
    ClusterConfig, CodecError, NameError, NodeInfo, Place, ShardConfig, check_name, decode, encode,
};
use crate::topology::{Addr, NodeId};

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
    let connecting = stop.run_until_cancelled(Store::connect(&start.store));
    let Some(store) = connecting.await else { return Ok(()) };
    let store = store?;
    let ended = stop.run_until_cancelled(work(&store, start, listener, &stop)).await;
    store.close().await;
    ended.unwrap_or(Ok(()))
}

async fn work(
    store: &Store,
    mut start: Start,
    listener: TcpListener,
    stop: &CancellationToken,
) -> Result<(), AgentError> {
    let machine = |error| AgentError::Machine(start.host.node.clone(), error);
    let peer = published(&start, listener.local_addr().map_err(machine)?.port());
    lay_out(store, &mut start.host).await?;
    let (shard, node) = (start.host.shard.clone(), start.host.node.clone());
    let info = NodeInfo {
        host: kernel("hostname"),
        redis: start.host.redis.clone(),
        peer,
        run_id: None,
        role: None,
        replid: None,
        zone: start.zone,
        priority: start.host.priority,
        boot_id: kernel("random/boot_id"),
    };
    let (presence, mut registration) = Presence::start(store, &shard, &node, info);
    if !registration.held().await {
        return Err(taken(store, &start.host).await);
    }
    tracing::info!(%node, %shard, redis = %start.host.redis, "registered");
    let stop = stop.child_token();
    let _ends_with_us = stop.clone().drop_guard();
    let (seam, news) = seam::start(store, &shard, &node, presence, &stop);
    let running = host::run(start.host.clone(), listener, news, seam, stop.clone());
    tokio::select! {
        ended = running => ended.map_err(|error| AgentError::Machine(node, error)),
        () = registration.lost() => Err(taken(store, &start.host).await),
    }
}

/// Where others reach the peer port.
fn published(start: &Start, port: u16) -> Addr {
    let host = match start.listen.host() {
        "0.0.0.0" | "::" => start.host.redis.host(),
        host => host,
    };
    Addr::new(host, port)
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
