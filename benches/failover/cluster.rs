//! The master of a running `pointsman up`, and what it has.

use super::STEADY_KEY;
use super::load::key;
use super::support::{Client, Up, Value};

/// Keys that are asked for at once when writes are looked for.
const MGET_KEYS: usize = 500;

/// A node of `up.json`.
pub struct Node {
    /// Its name.
    pub id: String,
    /// Where its Redis listens.
    addr: String,
    /// The process of its Redis.
    pub pid: i32,
    /// That of its agent.
    agent_pid: i32,
}

impl Node {
    /// Everything of ours that runs on its host.
    pub fn host(&self) -> [i32; 2] {
        [self.agent_pid, self.pid]
    }

    /// Fills its Redis' memory with what goes to no replica: scripts.
    pub fn swell(&self, heap_mb: usize) {
        let mut client = Client::connect(self.addr.as_str());
        for number in 0..heap_mb {
            let script = format!("-- {number} {}", "x".repeat(1 << 20));
            let reply = client.command(&["SCRIPT", "LOAD", &script]);
            assert!(matches!(reply, Value::Bulk(_)), "{reply:?}");
        }
    }
}

/// The node that is master now.
pub fn master(up: &Up) -> Node {
    let status = up.status();
    let id = status["shards"][0]["master"].as_str().expect("the shard has a master");
    let node = up.node(id);
    let pid = |part: &str| i32::try_from(node[part]["pid"].as_i64().expect("it runs")).unwrap();
    Node {
        id: id.to_owned(),
        addr: node["redis"]["addr"]
            .as_str()
            .expect("a node has an address")
            .to_owned(),
        pid: pid("redis"),
        agent_pid: pid("agent"),
    }
}

/// Starts a node again; returns once it is linked.
pub fn bring_back(up: &Up, node: &Node) -> Result<(), String> {
    let output = up.operate("up-node", &[&node.id]);
    match output.code {
        Some(0) => Ok(()),
        _ => Err(format!("up-node {}: {}", node.id, output.stderr)),
    }
}

/// How many acknowledged writes a master does not have.
pub fn missing(master: &Node, acknowledged: &[u64]) -> usize {
    let mut client = Client::connect(master.addr.as_str());
    let mut lost = 0;
    for numbers in acknowledged.chunks(MGET_KEYS) {
        let keys = numbers.iter().map(|number| key(*number));
        let words: Vec<String> = ["MGET".to_owned()].into_iter().chain(keys).collect();
        let Value::Array(values) = client.command(&words) else {
            panic!("MGET answers with an array");
        };
        lost += values.iter().filter(|value| **value == Value::Null).count();
    }
    lost
}

/// Whether a master has what the reader reads.
pub fn has_steady_key(master: &Node) -> bool {
    Client::connect(master.addr.as_str()).command(&["EXISTS", STEADY_KEY]) == Value::Int(1)
}
