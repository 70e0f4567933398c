//! `DIR/up.json`: where everything that an `up` runs is. Scripts and operators depend on its form.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::topology::{Addr, NodeId, ShardId};

/// The file's name in the folder of an `up`.
pub const UP_FILE: &str = "up.json";
/// The socket at which a running `up` takes requests.
pub const SOCKET_FILE: &str = "up.sock";
/// The file of the cluster's secret.
pub const SECRET_FILE: &str = "secret";
/// The file that says who an `up` is for the ZooKeeper that it started itself.
pub const AUTH_FILE: &str = "zookeeper-auth";

/// What stands in the file. A process that does not run has no pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct Circuit {
    pub cluster: String,
    pub zookeeper: ZooKeeperAt,
    pub proxies: Vec<ProxyAt>,
    pub nodes: Vec<NodeAt>,
}

/// The ensemble.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZooKeeperAt {
    /// Its connect string.
    pub connect: String,
    /// The first server, if it is one of ours.
    pub pid: Option<i32>,
    /// All servers that are ours, in the order of the connect string.
    #[serde(default)]
    pub pids: Vec<Option<i32>>,
    /// The same with their addresses.
    #[serde(default)]
    pub servers: Vec<ServerAt>,
}

/// A server of an ensemble of our own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct ServerAt {
    pub addr: Addr,
    pub pid: Option<i32>,
}

/// A proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct ProxyAt {
    pub id: String,
    pub pid: Option<i32>,
    pub listen: Addr,
    pub admin: Addr,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct NodeAt {
    pub id: NodeId,
    pub shard: ShardId,
    pub redis: RedisAt,
    pub agent: AgentAt,
}

/// A node's redis-server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct RedisAt {
    pub addr: Addr,
    pub pid: Option<i32>,
}

/// A node's agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct AgentAt {
    pub pid: Option<i32>,
    pub listen: Addr,
    pub admin: Addr,
}

/// Why the file tells nothing.
#[derive(Debug, Error)]
pub enum CircuitError {
    /// There is none.
    #[error("{0}: no 'pointsman up' runs there: start it, or name its folder with --dir")]
    Absent(String),
    /// It cannot be read or written.
    #[error("{0}: {1}")]
    Unreadable(String, io::Error),
    /// It holds something else.
    #[error("{0} was not written by this version of 'pointsman up': {1}")]
    Nonsense(String, serde_json::Error),
}

impl Circuit {
    /// Reads the file in `dir`.
    pub fn read(dir: &Path) -> Result<Self, CircuitError> {
        let path = dir.join(UP_FILE);
        let shown = path.display().to_string();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(CircuitError::Absent(shown)),
            Err(error) => return Err(CircuitError::Unreadable(shown, error)),
        };
        serde_json::from_slice(&text).map_err(|error| CircuitError::Nonsense(shown, error))
    }

    /// Replaces the file in `dir` whole, so that a reader sees the old one or the new one.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let fresh = dir.join("up.json.new");
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        fs::write(&fresh, text)?;
        fs::rename(&fresh, dir.join(UP_FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_the_contract_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Circuit::read(dir.path()), Err(CircuitError::Absent(_))));
        let text = r#"{"cluster":"up","zookeeper":{"connect":"127.0.0.1:2181","pid":1},
            "proxies":[{"id":"proxy-1","pid":2,"listen":"127.0.0.1:6400","admin":"127.0.0.1:6401"}],
            "nodes":[{"id":"s1-a","shard":"s1","redis":{"addr":"127.0.0.1:7001","pid":3},
            "agent":{"pid":4,"listen":"127.0.0.1:7201","admin":"127.0.0.1:7101"}}]}"#;
        fs::write(dir.path().join(UP_FILE), text).unwrap();
        let circuit = Circuit::read(dir.path()).unwrap();
        assert_eq!(circuit.nodes[0].redis.pid, Some(3));
        circuit.write(dir.path()).unwrap();
        assert_eq!(Circuit::read(dir.path()).unwrap(), circuit);
        fs::write(dir.path().join(UP_FILE), "{}").unwrap();
        assert!(matches!(Circuit::read(dir.path()), Err(CircuitError::Nonsense(..))));
    }
}
