//! `pointsman up`: everything on this machine, and what happens to it when parts of it die.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Client, Pointsman, Up, Value, ZooKeeper, assert_gone, eventually, free_port, runs};

const SOON: Duration = Duration::from_secs(20);

fn kill9(pid: &serde_json::Value) {
    let pid = i32::try_from(pid.as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

#[test]
fn up_serves_and_ends_on_sigterm_without_a_trace() {
    let mut up = Up::start(&[]);
    let mut client = up.client();
    assert_eq!(client.command(&["DBSIZE"]), Value::Int(0), "its own first SET is gone");
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());
    assert_eq!(client.command(&["GET", "k"]), Value::bulk("v"));

    let json = up.json();
    assert_eq!(json["cluster"], "up");
    assert_eq!(json["proxies"][0]["listen"], up.listen);
    let ids: Vec<_> = json["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["id"].clone())
        .collect();
    assert_eq!(ids, ["s1-a", "s1-b", "s1-c"]);
    let pids = up.pids();
    assert_eq!(pids.len(), 8, "zookeeper, 3 redis-servers, 3 agents, 1 proxy");
    assert!(pids.iter().all(|pid| runs(*pid)));
    for admin in [&json["proxies"][0]["admin"], &json["nodes"][0]["agent"]["admin"]] {
        assert!(page(admin.as_str().unwrap(), "/healthz").contains("200 OK"));
    }
    assert!(page(json["proxies"][0]["admin"].as_str().unwrap(), "/readyz").contains("200 OK"));
    let topology = page(json["proxies"][0]["admin"].as_str().unwrap(), "/topology");
    assert!(topology.contains("\"slots\":[[0,16383]]"), "{topology}");

    up.up.term();
    assert_eq!(up.up.exit_code(SOON), Some(0));
    assert_gone(&pids);
    assert!(!up.dir().exists());
}

#[test]
fn a_killed_up_takes_its_children_along_and_the_next_one_clears_up_after_it() {
    let mut up = Up::start(&["--replicas", "1"]);
    assert_eq!(up.client().command(&["SET", "k", "v"]), Value::ok());
    let pids = up.pids();
    up.up.kill9();
    assert_gone(&pids);
    assert!(up.dir().exists());

    up.restart(&["--replicas", "0"]);
    assert_eq!(up.client().command(&["GET", "k"]), Value::Null);
    let pids = up.pids();
    up.up.signal(Signal::SIGINT);
    assert_eq!(up.up.exit_code(SOON), Some(0));
    assert_gone(&pids);
    assert!(!up.dir().exists(), "an up made it");
}

#[test]
fn a_killed_master_is_replaced_under_a_client_and_up_node_brings_it_back() {
    let up = Up::start(&[]);
    let mut client = up.client();
    assert_eq!(client.command(&["SET", "before", "1"]), Value::ok());
    let status = up.status();
    let shard = &status["shards"][0];
    assert_eq!(
        (&shard["phase"], &shard["ack_replicas"]),
        (&"serving".into(), &1.into())
    );
    assert_eq!(shard["slots"], serde_json::json!([[0, 16383]]));
    let master = shard["master"].as_str().unwrap().to_owned();
    let epoch = shard["epoch"].as_u64().unwrap();

    kill9(&up.node(&master)["redis"]["pid"]);
    // The connection stays. A write in doubt is told as such, and is right to be tried again.
    eventually(SOON, || {
        let reply = client.command(&["SET", "after", "2"]);
        assert!(reply == Value::ok() || reply.is_error("INDOUBT"), "{reply:?}");
        reply == Value::ok()
    });
    assert_eq!(client.command(&["GET", "before"]), Value::bulk("1"));
    eventually(SOON, || up.node(&master)["redis"]["pid"].is_null());

    let failovers = up.history("failover");
    assert_eq!(failovers.len(), 1, "{failovers:?}");
    let failover = &failovers[0];
    assert_eq!(
        (&failover["shard"], &failover["from"]),
        (&"s1".into(), &master.as_str().into())
    );
    assert!(failover["epoch"].as_u64().unwrap() > epoch);
    let status = up.status();
    let shard = &status["shards"][0];
    assert_eq!(shard["master"], failover["to"]);
    for node in shard["nodes"].as_array().unwrap() {
        let expected = match () {
            () if node["id"] == shard["master"] => ["master", "serving"],
            () if node["id"] == master.as_str() => ["none", "down"],
            () => ["replica", "linked"],
        };
        assert_eq!([&node["role"], &node["state"]], expected, "{status:#}");
    }

    let started = up.operate("up-node", &[&master]);
    assert_eq!((started.code, started.stderr.as_str()), (Some(0), ""));
    let redis = up.node(&master)["redis"].clone();
    assert!(runs(redis["pid"].as_i64().unwrap()));
    let status = up.status();
    let nodes = status["shards"][0]["nodes"].as_array().unwrap();
    let back = nodes.iter().find(|node| node["id"] == master.as_str()).unwrap();
    assert_eq!([&back["role"], &back["state"]], ["replica", "linked"]);
    assert_eq!(back["addr"], redis["addr"]);
    eventually(SOON, || {
        let mut replica = Client::connect(redis["addr"].as_str().unwrap());
        replica.command(&["GET", "after"]) == Value::bulk("2")
    });

    let table = up.operate("status", &[]).stdout;
    assert!(
        table.contains("shard s1  serving") && table.contains("linked"),
        "{table}"
    );
    let table = up.operate("history", &[]).stdout;
    assert!(table.contains("failover"), "{table}");
}

#[test]
fn what_ends_is_started_again_only_with_restart() {
    let up = Up::start(&["--replicas", "1", "--restart"]);
    for part in ["redis", "agent"] {
        let old = up.node("s1-b")[part]["pid"].clone();
        kill9(&old);
        eventually(SOON, || {
            let new = up.node("s1-b")[part]["pid"].clone();
            !new.is_null() && new != old
        });
    }
    eventually(SOON, || {
        let status = up.status();
        let nodes = status["shards"][0]["nodes"].as_array().unwrap().clone();
        nodes
            .iter()
            .all(|node| node["state"] == "serving" || node["state"] == "linked")
    });
}

#[test]
fn shards_and_proxies_run_on_an_ensemble_of_three() {
    let up = Up::start(&[
        "--shards",
        "2",
        "--replicas",
        "0",
        "--proxies",
        "2",
        "--zookeepers",
        "3",
    ]);
    let json = up.json();
    assert_eq!(json["zookeeper"]["pids"].as_array().unwrap().len(), 3);
    let other = json["proxies"][1]["listen"].as_str().unwrap().to_owned();
    let (mut one, mut other) = (up.client(), Client::connect(other));
    for number in 0..20 {
        let key = format!("k{number}");
        assert_eq!(one.command(&["SET", &key, "v"]), Value::ok());
        assert_eq!(other.command(&["GET", &key]), Value::bulk("v"));
    }
    let status = up.status();
    assert_eq!(status["shards"].as_array().unwrap().len(), 2);
    assert_eq!(status["shards"][1]["slots"], serde_json::json!([[8192, 16383]]));
    assert_eq!(status["proxies"].as_array().unwrap().len(), 2, "{status:#}");
}

#[test]
fn an_ensemble_that_runs_already_is_used_and_left_alone() {
    let zookeeper = ZooKeeper::start();
    let connect = zookeeper.connect();
    let options = ["--redis", "requirepass=hunter2", "--redis", "maxmemory=64mb"];
    let mut up = Up::start(&[&["--replicas", "0", "--zookeeper", &connect], &options[..]].concat());
    let mut client = up.client();
    assert!(client.command(&["GET", "k"]).is_error("NOAUTH"));
    assert_eq!(client.command(&["AUTH", "hunter2"]), Value::ok());
    assert_eq!(client.command(&["SET", "k", "v"]), Value::ok());

    let json = up.json();
    let cluster = json["cluster"].as_str().unwrap();
    let secret = up.dir().join("secret");
    let place = ["--zookeeper", &connect, "--cluster", cluster];
    let status = [
        &["status", "--json", "--secret-file", secret.to_str().unwrap()],
        &place[..],
    ]
    .concat();
    let status = Pointsman::run(&status);
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(status["shards"][0]["nodes"][0]["state"], "serving", "{status:#}");

    up.up.term();
    assert_eq!(up.up.exit_code(SOON), Some(0));
    let history = Pointsman::run(&[&["history"], &place[..]].concat());
    assert_eq!(history.code, Some(0), "{}", history.stderr);
}

#[test]
fn an_up_that_is_asked_to_end_while_it_starts_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("up");
    let listen = format!("127.0.0.1:{}", free_port());
    let mut up = Pointsman::start(&["up", "--dir", dir.to_str().unwrap(), "--listen", &listen]);
    let log = dir.join("s1-c").join("redis.log");
    eventually(SOON, || log.exists());
    let pids = children(up.pid());
    assert!(!pids.is_empty());
    up.term();
    assert_eq!(up.exit_code(SOON), Some(0));
    assert_gone(&pids);
    assert!(!dir.exists());
    assert!(!up.log().contains("ready"));
}

/// The processes that a process started.
fn children(pid: i32) -> Vec<i64> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    list.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

#[test]
fn a_folder_with_something_in_it_is_left_with_it() {
    let mut up = Up::start(&["--replicas", "0"]);
    up.up.term();
    assert_eq!(up.up.exit_code(SOON), Some(0));
    fs::create_dir(up.dir()).unwrap();
    fs::write(up.dir().join("notes"), "mine").unwrap();
    up.restart(&["--replicas", "0"]);
    up.up.term();
    assert_eq!(up.up.exit_code(SOON), Some(0));
    assert_eq!(fs::read_to_string(up.dir().join("notes")).unwrap(), "mine");
    assert!(!up.dir().join("up.json").exists());
}

fn page(addr: &str, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
