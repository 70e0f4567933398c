//! What a cluster is doing now. Scripts depend on the form of its JSON.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use serde::Serialize;

use super::ask::{Role, State, ask, reading, standing};
use super::cluster::{Cluster, OperateError};
use super::table::Table;
use crate::topology::codec::{NodeInfo, Place, ProxyInfo, ShardConfig, ShardState, Slots};
use crate::topology::{Addr, Epoch, NodeId, Phase, ShardId};

/// See the module's note.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Status {
    pub cluster: String,
    pub shards: Vec<ShardStatus>,
    pub proxies: Vec<ProxyStatus>,
}

/// A shard. Before its first master it is electing, at epoch 0.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct ShardStatus {
    pub id: ShardId,
    pub epoch: Epoch,
    pub phase: Phase,
    /// The master of the last serving state.
    pub master: Option<NodeId>,
    pub slots: Vec<(u16, u16)>,
    pub ack_replicas: u32,
    /// What is wanted of it, while that is something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Wanted>,
    pub nodes: Vec<NodeStatus>,
}

/// What an operator wants of a shard that is not so yet.
#[derive(Clone, Debug, Serialize)]
pub struct Wanted {
    /// Empty: whoever registers.
    pub members: BTreeSet<NodeId>,
    pub ack_replicas: u32,
    /// What that waits for, where the master's agent tells.
    pub why: Option<String>,
}

/// A node: a configured member, also one that is away, or one that registered.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct NodeStatus {
    pub id: NodeId,
    pub addr: Option<Addr>,
    pub role: Role,
    pub state: State,
    /// What it has of the replication stream, in bytes.
    pub offset: Option<i64>,
    /// How much of it the master has more.
    pub lag_bytes: Option<i64>,
    pub zone: String,
    /// Whether it counts.
    pub member: bool,
    /// Of equals the lowest is promoted, 0 never is.
    pub priority: Option<u32>,
}

/// A proxy.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct ProxyStatus {
    pub id: String,
    pub addr: Addr,
    pub epochs: BTreeMap<ShardId, Epoch>,
}

impl Cluster {
    /// What the cluster is doing now. Agents that do not answer in time are told as down.
    pub async fn status(&self) -> Result<Status, OperateError> {
        let ids = self.shards().await?;
        let slots = self.slots(&ids).await?;
        let mut shards = Vec::new();
        for id in ids {
            shards.push(self.shard(id, &slots).await?);
        }
        let mut proxies = Vec::new();
        for id in self.children(&Place::Proxies).await? {
            // One that left since it was listed is not there.
            if let Some(info) = self.read::<ProxyInfo>(&Place::Proxy(id.clone())).await? {
                let (addr, epochs) = (info.addr, info.epochs);
                proxies.push(ProxyStatus { id, addr, epochs });
            }
        }
        Ok(Status {
            cluster: self.name.clone(),
            shards,
            proxies,
        })
    }

    async fn shard(&self, id: ShardId, slots: &Slots) -> Result<ShardStatus, OperateError> {
        let state: Option<ShardState> = self.read(&Place::State(id.clone())).await?;
        let config: Option<ShardConfig> = self.read(&Place::ShardConfig(id.clone())).await?;
        let mut registered = BTreeMap::new();
        for name in self.children(&Place::Nodes(id.clone())).await? {
            let node = NodeId::new(name);
            let place = Place::Node(id.clone(), node.clone());
            if let Some(info) = self.read::<NodeInfo>(&place).await? {
                registered.insert(node, info);
            }
        }
        let configured = config.iter().flat_map(|config| &config.members);
        let counted = state.iter().flat_map(|state| &state.members);
        let members: BTreeSet<&NodeId> = configured.chain(counted).chain(registered.keys()).collect();
        let serving = state.as_ref().filter(|state| state.phase == Phase::Serving);
        let master = serving.and_then(|state| state.master.as_ref());
        let asked = members
            .into_iter()
            .map(|node| self.node(node, registered.get(node), master));
        let mut nodes = join_all(asked).await;
        measure_lag(&mut nodes);
        for node in &mut nodes {
            node.member = state.as_ref().is_some_and(|state| state.members.contains(&node.id));
        }
        let wanted = self.wanted(&id, state.as_ref(), config.as_ref()).await;
        let owned = slots.ranges.iter().filter(|range| range.shard == id);
        Ok(ShardStatus {
            epoch: state.as_ref().map_or(Epoch(0), |state| state.epoch),
            phase: state.as_ref().map_or(Phase::Electing, |state| state.phase),
            ack_replicas: match (&state, &config) {
                (Some(state), _) => state.w,
                (None, Some(config)) => config.ack_replicas,
                (None, None) => 0,
            },
            slots: owned.map(|range| (range.from, range.to)).collect(),
            master: state.and_then(|state| state.master),
            wanted,
            nodes,
            id,
        })
    }

    /// What is wanted, if it is not so.
    async fn wanted(&self, id: &ShardId, state: Option<&ShardState>, config: Option<&ShardConfig>) -> Option<Wanted> {
        let (state, config) = (state?, config?);
        let seats = config.members.is_empty() || state.members == config.members;
        if seats && state.w == config.ack_replicas {
            return None;
        }
        let why = match (self.delay(id, Some(state)).await, state.shrunk_from) {
            (Some(why), _) => Some(why),
            (None, 0) => None,
            (None, _) => Some("too few replicas are there".to_owned()),
        };
        Some(Wanted {
            members: config.members.clone(),
            ack_replicas: config.ack_replicas,
            why,
        })
    }

    async fn node(&self, id: &NodeId, info: Option<&NodeInfo>, master: Option<&NodeId>) -> NodeStatus {
        let mut node = NodeStatus {
            id: id.clone(),
            addr: info.map(|info| &info.redis).or_else(|| self.started_at(id)).cloned(),
            role: Role::None,
            state: State::Down,
            offset: None,
            lag_bytes: None,
            zone: info.map(|info| info.zone.clone()).unwrap_or_default(),
            member: false,
            priority: info.map(|info| info.priority),
        };
        let (Some(info), Some(secret)) = (info, &self.secret) else {
            return node;
        };
        match ask(&info.peer, secret).await {
            Ok(status) if status.node == *id => {
                (node.role, node.state) = standing(&status, master);
                node.offset = reading(&status).map(|facts| facts.offset);
            }
            Ok(status) => tracing::warn!("the agent at {} is that of {}, not of {id}", info.peer, status.node),
            Err(error) => tracing::debug!("{id} is down: {error}"),
        }
        node
    }
}

/// Offsets are read at moments of their own, so a replica may seem to be ahead.
fn measure_lag(nodes: &mut [NodeStatus]) {
    let master = nodes.iter().find(|node| node.role == Role::Master);
    let Some(ahead) = master.and_then(|master| master.offset) else {
        return;
    };
    for node in nodes.iter_mut().filter(|node| node.role != Role::None) {
        node.lag_bytes = node.offset.map(|offset| (ahead - offset).max(0));
    }
}

impl Status {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for shard in &self.shards {
            let slots: Vec<String> = shard.slots.iter().map(|(from, to)| format!("{from}-{to}")).collect();
            text += &format!(
                "shard {}  {}  epoch {}  slots {}  ack_replicas {}\n",
                shard.id,
                word(&shard.phase),
                shard.epoch,
                if slots.is_empty() {
                    "none".to_owned()
                } else {
                    slots.join(",")
                },
                shard.ack_replicas
            );
            if let Some(wanted) = &shard.wanted {
                text += &wanted.line();
            }
            let mut table = Table::new(&["node", "address", "role", "state", "offset", "lag", "zone"]);
            for node in &shard.nodes {
                table.row([
                    node.id.to_string(),
                    shown(node.addr.as_ref()),
                    word(&node.role),
                    word(&node.state),
                    shown(node.offset),
                    shown(node.lag_bytes),
                    node.zone.clone(),
                ]);
                if shard.epoch.0 > 0 && !node.member {
                    table.note("is no member".to_owned());
                }
                if node.priority == Some(0) {
                    table.note("is never promoted (priority 0)".to_owned());
                }
            }
            text += &table.to_string();
            text.push('\n');
        }
        let mut table = Table::new(&["proxy", "address", "epochs"]);
        for proxy in &self.proxies {
            let epochs = proxy.epochs.iter().map(|(shard, epoch)| format!("{shard}:{epoch}"));
            table.row([
                proxy.id.clone(),
                proxy.addr.to_string(),
                epochs.collect::<Vec<_>>().join(" "),
            ]);
        }
        text + &table.to_string()
    }
}

impl Wanted {
    fn line(&self) -> String {
        let members: Vec<&str> = self.members.iter().map(NodeId::as_str).collect();
        let members = match members.is_empty() {
            true => String::new(),
            false => format!("members {}, ", members.join(", ")),
        };
        let why = self.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
        format!("  wanted: {members}ack_replicas {}{why}\n", self.ack_replicas)
    }
}

fn shown<T: ToString>(value: Option<T>) -> String {
    value.map_or("-".to_owned(), |value| value.to_string())
}

/// The word that stands for a value in JSON.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}
