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
}

/// The node that is master now.
pub fn master(up: &Up) -> Node {
    let status = up.status();
    let id = status["shards"][0]["master"].as_str().expect("the shard has a master");
    let redis = up.node(id)["redis"].clone();
    Node {
        id: id.to_owned(),
        addr: redis["addr"].as_str().expect("a node has an address").to_owned(),
        pid: i32::try_from(redis["pid"].as_i64().expect("the master's Redis runs")).unwrap(),
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
