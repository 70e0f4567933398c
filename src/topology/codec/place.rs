//! Where each znode stands below the cluster's root.

use std::fmt;

use super::check_name;
use crate::topology::{NodeId, ShardId};

/// The place of a znode. Displayed it is a path below `/pointsman/<cluster>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Settings of the cluster.
    Config,
    /// Who owns which slots.
    Slots,
    /// Parent of the shards.
    Shards,
    /// What the operator wants of a shard.
    ShardConfig(ShardId),
    /// What a shard has agreed on.
    State(ShardId),
    /// A requested switchover of a shard.
    Switch(ShardId),
    /// Parent of a shard's nodes.
    Nodes(ShardId),
    /// An agent and its Redis.
    Node(ShardId, NodeId),
    /// Parent of a shard's suspicions.
    Suspects(ShardId),
    /// What an agent holds against a master.
    Suspect(ShardId, NodeId),
    /// Parent of the proxies.
    Proxies,
    /// A proxy.
    Proxy(String),
    /// Parent of the shards' histories.
    Histories,
    /// Parent of a shard's records.
    History(ShardId),
    /// One record.
    Record(ShardId, u64),
}

impl Place {
    /// The place that a path below the root names; none if it is none of ours.
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        parts.iter().try_for_each(|part| check_name(part)).ok()?;
        Some(match parts.as_slice() {
            ["config"] => Self::Config,
            ["slots"] => Self::Slots,
            ["shards"] => Self::Shards,
            ["shards", shard, "config"] => Self::ShardConfig(ShardId::from(*shard)),
            ["shards", shard, "state"] => Self::State(ShardId::from(*shard)),
            ["shards", shard, "switch"] => Self::Switch(ShardId::from(*shard)),
            ["shards", shard, "nodes"] => Self::Nodes(ShardId::from(*shard)),
            ["shards", shard, "nodes", node] => Self::Node(ShardId::from(*shard), NodeId::from(*node)),
            ["shards", shard, "suspects"] => Self::Suspects(ShardId::from(*shard)),
            ["shards", shard, "suspects", node] => Self::Suspect(ShardId::from(*shard), NodeId::from(*node)),
            ["proxies"] => Self::Proxies,
            ["proxies", proxy] => Self::Proxy((*proxy).to_owned()),
            ["history"] => Self::Histories,
            ["history", shard] => Self::History(ShardId::from(*shard)),
            ["history", shard, seq] => Self::Record(ShardId::from(*shard), seq.parse().ok()?),
            _ => return None,
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config => f.write_str("/config"),
            Self::Slots => f.write_str("/slots"),
            Self::Shards => f.write_str("/shards"),
            Self::ShardConfig(shard) => write!(f, "/shards/{shard}/config"),
            Self::State(shard) => write!(f, "/shards/{shard}/state"),
            Self::Switch(shard) => write!(f, "/shards/{shard}/switch"),
            Self::Nodes(shard) => write!(f, "/shards/{shard}/nodes"),
            Self::Node(shard, node) => write!(f, "/shards/{shard}/nodes/{node}"),
            Self::Suspects(shard) => write!(f, "/shards/{shard}/suspects"),
            Self::Suspect(shard, node) => write!(f, "/shards/{shard}/suspects/{node}"),
            Self::Proxies => f.write_str("/proxies"),
            Self::Proxy(proxy) => write!(f, "/proxies/{proxy}"),
            Self::Histories => f.write_str("/history"),
            Self::History(shard) => write!(f, "/history/{shard}"),
            // As ZooKeeper numbers sequential znodes.
            Self::Record(shard, seq) => write!(f, "/history/{shard}/{seq:010}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_survive_a_round_trip_and_strangers_have_none() {
        let (shard, node) = (ShardId::from("s1"), NodeId::from("s1-a"));
        for place in [
            Place::Config,
            Place::Slots,
            Place::Shards,
            Place::ShardConfig(shard.clone()),
            Place::State(shard.clone()),
            Place::Switch(shard.clone()),
            Place::Nodes(shard.clone()),
            Place::Node(shard.clone(), node.clone()),
            Place::Suspects(shard.clone()),
            Place::Suspect(shard.clone(), node),
            Place::Proxies,
            Place::Proxy("proxy-1".to_owned()),
            Place::Histories,
            Place::History(shard.clone()),
            Place::Record(shard, 12),
        ] {
            assert_eq!(Place::parse(&place.to_string()), Some(place));
        }
        for path in [
            "",
            "/",
            "config",
            "/config/",
            "/shards//state",
            "/shards/s1/switches",
            "/history/s1/x",
        ] {
            assert_eq!(Place::parse(path), None, "{path}");
        }
    }
}
