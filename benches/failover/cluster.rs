//! A running `pointsman up`, as its `up.json` describes it.

use serde_json::Value as Json;

use super::support::{Client, Pointsman, Value, free_port, holds_within};
use super::{END_DEADLINE, RECOVERY_DEADLINE, START_DEADLINE};

/// A running `pointsman up`.
pub struct Up {
    process: Pointsman,
    dir: tempfile::TempDir,
}

/// A node as `up.json` describes it.
pub struct Node {
    pub id: String,
    pub addr: String,
    pub pid: i32,
}

impl Up {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = format!("127.0.0.1:{}", free_port());
        let place = dir.path().to_str().unwrap();
        let mut process = Pointsman::start(&["up", "--dir", place, "--listen", &listen, "--replicas", "2"]);
        process.wait_for_line(START_DEADLINE, |line| line == "ready");
        Self { process, dir }
    }

    fn json(&self) -> Json {
        let text = std::fs::read_to_string(self.dir.path().join("up.json")).expect("up.json is there once up is ready");
        serde_json::from_str(&text).expect("up.json is JSON")
    }

    pub fn listen(&self) -> String {
        text(&self.json()["proxies"][0]["listen"])
    }

    fn nodes(&self) -> Vec<Node> {
        let json = self.json();
        let nodes = json["nodes"].as_array().expect("up.json lists nodes").iter();
        let node = |node: &Json| Node {
            id: text(&node["id"]),
            addr: text(&node["redis"]["addr"]),
            pid: i32::try_from(node["redis"]["pid"].as_i64().expect("a pid")).unwrap(),
        };
        nodes.map(node).collect()
    }

    /// The node whose Redis says that it is a master.
    pub fn master(&self) -> Node {
        let mut found = None;
        holds_within(RECOVERY_DEADLINE, || {
            found = self.nodes().into_iter().find(|node| is_master(&node.addr));
            found.is_some()
        });
        found.expect("one of the nodes is a master")
    }

    /// Starts a node again; returns once it is linked.
    pub fn bring_back(&self, node: &Node) {
        let output = Pointsman::run(&["up-node", "--dir", self.dir.path().to_str().unwrap(), &node.id]);
        assert_eq!(
            output.code,
            Some(0),
            "up-node {}: {}{}",
            node.id,
            output.stdout,
            output.stderr
        );
    }

    pub fn end(mut self) {
        self.process.term();
        assert_eq!(self.process.exit_code(END_DEADLINE), Some(0), "{}", self.process.log());
    }
}

fn text(json: &Json) -> String {
    json.as_str().expect("a text in up.json").to_owned()
}

fn is_master(addr: &str) -> bool {
    let role = Client::try_connect(addr).and_then(|mut client| client.try_command(&["ROLE"]));
    matches!(role, Ok(Value::Array(items)) if items.first() == Some(&Value::bulk("master")))
}
