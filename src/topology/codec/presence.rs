//! Who is there and what they see: the ephemeral znodes of agents and proxies.
//!
//! Invariant: none of them decides anything by being there or not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Znode, check_id, check_names};
use crate::topology::{Addr, Epoch, NodeId, RunId, ShardId};

/// The role a Redis reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes writes.
    Master,
    /// Follows a master, or nobody when parked.
    Replica,
}

/// `/shards/<s>/nodes/<id>`: an agent and its Redis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The machine or pod, for people.
    pub host: String,
    /// Where its Redis listens.
    pub redis: Addr,
    /// Where its agent's peer port listens.
    pub peer: Addr,
    /// The life of its Redis; none before it first answered.
    #[serde(default)]
    pub run_id: Option<RunId>,
    /// What its Redis says it is.
    #[serde(default)]
    pub role: Option<Role>,
    /// The replication id of its data.
    #[serde(default)]
    pub replid: Option<String>,
    /// Its zone, empty when none is configured.
    #[serde(default)]
    pub zone: String,
    /// As `replica-priority`.
    pub priority: u32,
    /// The kernel's boot id of the machine, empty where there is none.
    #[serde(default)]
    pub boot_id: String,
}

impl Znode for NodeInfo {
    fn check(&self) -> Result<(), String> {
        self.run_id.iter().try_for_each(|id| check_id("run_id", id.as_str()))?;
        self.replid.iter().try_for_each(|id| check_id("replication id", id))
    }
}

/// `/shards/<s>/suspects/<id>`: an agent that hears neither a master nor the agent beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspect {
    /// Which master.
    pub master: NodeId,
    /// Which life of it.
    pub run_id: RunId,
    /// None: suspected. Else the agent beside the master itself says that it serves, and this tells one such word from the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denial: Option<u64>,
}

impl Znode for Suspect {
    fn check(&self) -> Result<(), String> {
        check_names([self.master.as_str()])?;
        check_id("run_id", self.run_id.as_str())
    }
}

/// `/proxies/<id>`: a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyInfo {
    /// Where clients connect.
    pub addr: Addr,
    /// Where its admin pages are.
    #[serde(default)]
    pub admin: Option<Addr>,
    /// Its zone, empty when none is configured.
    #[serde(default)]
    pub zone: String,
    /// The epoch of each shard that it routes by.
    #[serde(default)]
    pub epochs: BTreeMap<ShardId, Epoch>,
    /// Whether it tells executors when a shard's writes are answered: a switchover waits for such proxies only.
    #[serde(default)]
    pub drains: bool,
}

impl Znode for ProxyInfo {
    fn check(&self) -> Result<(), String> {
        check_names(self.epochs.keys().map(ShardId::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{decode, encode};
    use super::*;

    #[test]
    fn presences_survive_a_round_trip_and_nonsense_is_refused() {
        let node = NodeInfo {
            host: "pod-0".to_owned(),
            redis: Addr::new("127.0.0.1", 7001),
            peer: Addr::new("127.0.0.1", 7201),
            run_id: Some(RunId::from("ab")),
            role: Some(Role::Master),
            replid: Some("cd".to_owned()),
            zone: "z1".to_owned(),
            priority: 100,
            boot_id: "x".to_owned(),
        };
        assert_eq!(decode::<NodeInfo>(&encode(&node), "p").unwrap(), node);
        let wrong = NodeInfo {
            replid: Some("c d".to_owned()),
            ..node
        };
        assert!(decode::<NodeInfo>(&encode(&wrong), "p").is_err());
        let least = r#"{"host":"h","redis":"127.0.0.1:1","peer":"127.0.0.1:2","priority":0}"#;
        assert_eq!(decode::<NodeInfo>(least.as_bytes(), "p").unwrap().role, None);

        let suspect = Suspect {
            master: NodeId::from("a"),
            run_id: RunId::from("ab"),
            denial: None,
        };
        assert_eq!(decode::<Suspect>(&encode(&suspect), "p").unwrap(), suspect);
        assert!(decode::<Suspect>(br#"{"master":"","run_id":"ab"}"#, "p").is_err());

        let proxy = ProxyInfo {
            addr: Addr::new("::1", 6400),
            admin: None,
            zone: String::new(),
            epochs: [(ShardId::from("s1"), Epoch(2))].into(),
            drains: true,
        };
        assert_eq!(decode::<ProxyInfo>(&encode(&proxy), "p").unwrap(), proxy);
        assert!(decode::<ProxyInfo>(br#"{"addr":"nowhere"}"#, "p").is_err());
    }
}
