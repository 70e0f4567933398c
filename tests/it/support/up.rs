//! A running `pointsman up`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pointsman::clock;
use pointsman::operate::own_credentials;
use pointsman::store::{Settings, Store};
use serde_json::Value as Json;
use tempfile::TempDir;

use super::{Client, Output, POLL, Pointsman, START_DEADLINE, free_port, holds_within};

/// How long the processes of an `up` may take to be gone.
const GONE_DEADLINE: Duration = Duration::from_secs(15);

/// How long a record may take to be written.
const RECORD_DEADLINE: Duration = Duration::from_secs(5);

/// How often one log may say the same.
const SAME_MAX: usize = 25;

/// An `up` in a folder of its own; killed when dropped, and its children with it.
pub struct Up {
    pub up: Pointsman,
    pub listen: String,
    dir: PathBuf,
    _home: TempDir,
}

impl Up {
    /// Starts `pointsman up` with `args` behind our own, and waits until it says `ready`.
    #[track_caller]
    pub fn start(args: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("up");
        let listen = format!("127.0.0.1:{}", free_port());
        let up = launch(&dir, &listen, args);
        Self {
            up,
            listen,
            dir,
            _home: home,
        }
    }

    /// Starts it again in the same folder.
    #[track_caller]
    pub fn restart(&mut self, args: &[&str]) {
        self.up.kill9();
        self.up = launch(&self.dir, &self.listen, args);
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A client of its first proxy.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(self.listen.as_str())
    }

    /// Where its proxies listen.
    #[track_caller]
    pub fn listens(&self) -> Vec<String> {
        let json = self.json();
        let proxies = json["proxies"].as_array().unwrap().iter();
        proxies
            .map(|proxy| proxy["listen"].as_str().unwrap().to_owned())
            .collect()
    }

    /// What `up.json` says.
    #[track_caller]
    pub fn json(&self) -> Json {
        serde_json::from_slice(&fs::read(self.dir.join("up.json")).unwrap()).unwrap()
    }

    /// The entry of a node in `up.json`.
    #[track_caller]
    pub fn node(&self, id: &str) -> Json {
        let json = self.json();
        let nodes = json["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["id"] == id).unwrap().clone()
    }

    /// Runs a command of the operator's on it.
    #[track_caller]
    pub fn operate(&self, command: &str, args: &[&str]) -> Output {
        let dir = self.dir.to_str().unwrap();
        Pointsman::run(&[&[command, "--dir", dir], args].concat())
    }

    /// What `status --json` says.
    #[track_caller]
    pub fn status(&self) -> Json {
        self.answer("status")
    }

    /// The records of `history --json` of one kind. That of the last change is written a moment after it, when the
    /// proxies have said what it was to them; never, if its executor died before.
    #[track_caller]
    pub fn history(&self, kind: &str) -> Vec<Json> {
        let mut all = Json::Null;
        holds_within(RECORD_DEADLINE, || {
            all = self.answer("history");
            let status = self.status();
            let shards = status["shards"].as_array().unwrap().iter();
            let told = |shard: &Json| {
                let mut records = all.as_array().unwrap().iter();
                records.any(|record| record["shard"] == shard["id"] && record["epoch"] == shard["epoch"])
            };
            shards.into_iter().all(told)
        });
        let all = all.as_array().unwrap().iter();
        all.filter(|record| record["kind"] == kind).cloned().collect()
    }

    #[track_caller]
    fn answer(&self, command: &str) -> Json {
        let output = self.operate(command, &["--json"]);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        serde_json::from_str(&output.stdout).unwrap()
    }

    /// The master of a shard, as `status` says; empty while there is none.
    #[track_caller]
    pub fn master(&self, shard: &str) -> String {
        let shard = self.shard(shard);
        match shard["phase"] == "serving" {
            true => shard["master"].as_str().unwrap_or_default().to_owned(),
            false => String::new(),
        }
    }

    /// What `status` says of a shard.
    #[track_caller]
    pub fn shard(&self, id: &str) -> Json {
        let status = self.status();
        let shards = status["shards"].as_array().unwrap();
        shards.iter().find(|shard| shard["id"] == id).unwrap().clone()
    }

    /// Waits until every member of a shard counts: the next master that dies can be replaced by any of the others
    /// without a word of doubt. A node may be linked a moment before.
    #[track_caller]
    pub fn all_count(&self, shard: &str) {
        self.all_count_as(shard, "");
    }

    /// The same where the servers have a password.
    #[track_caller]
    pub fn all_count_as(&self, shard: &str, password: &str) {
        let done = self.watch_znode(&format!("/shards/{shard}/state"), |state| {
            let members = state["members"].as_array().map_or(0, Vec::len);
            let valid = state["valid"].as_object().map_or(0, serde_json::Map::len);
            state["phase"] == "serving" && valid == members && self.lives(&state["valid"], password)
        });
        assert!(done, "not every member of {shard} counts");
    }

    /// What the shard has agreed on, as it stands in ZooKeeper.
    #[track_caller]
    pub fn state(&self, shard: &str) -> Json {
        self.znode(&format!("/shards/{shard}/state"))
    }

    /// What stands at a place in ZooKeeper, once something does.
    #[track_caller]
    pub fn znode(&self, path: &str) -> Json {
        let mut found = Json::Null;
        let done = self.watch_znode(path, |value| {
            found = value.clone();
            !value.is_null()
        });
        assert!(done, "nothing stands at {path}");
        found
    }

    /// Reads a znode until `wanted` is content with it; says whether it was.
    fn watch_znode(&self, path: &str, mut wanted: impl FnMut(&Json) -> bool) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let end = clock::now() + START_DEADLINE;
            let store = loop {
                match Store::connect(&self.store_settings()).await {
                    Ok(store) => break store,
                    // It may be on its way back.
                    Err(error) => assert!(clock::now() < end, "{error}"),
                }
                tokio::time::sleep(POLL).await;
            };
            let mut done = false;
            while !done && clock::now() < end {
                let value = store.get(path).await.ok().flatten().map_or(Json::Null, |value| {
                    serde_json::from_slice(&value.bytes).unwrap_or(Json::Null)
                });
                done = wanted(&value);
                if !done {
                    tokio::time::sleep(POLL).await;
                }
            }
            store.close().await;
            done
        })
    }

    /// Where it keeps what it agrees on, and who it is there.
    #[track_caller]
    pub fn store_settings(&self) -> Settings {
        let json = self.json();
        let text = |value: &Json| value.as_str().unwrap().to_owned();
        Settings {
            credentials: own_credentials(&self.dir).unwrap(),
            ..Settings::new(&text(&json["zookeeper"]["connect"]), &text(&json["cluster"]))
        }
    }

    /// Whether these are the lives of the Redis that run now.
    fn lives(&self, valid: &Json, password: &str) -> bool {
        let lives = valid.as_object().into_iter().flatten();
        lives.into_iter().all(|(node, run_id)| {
            let info = Client::try_connect(self.redis(node)).and_then(|mut redis| {
                if !password.is_empty() {
                    redis.try_command(&["AUTH", password])?;
                }
                redis.try_command(&["INFO", "server"])
            });
            info.is_ok_and(|info| info.text().contains(run_id.as_str().unwrap_or("none")))
        })
    }

    /// Where a node's Redis listens.
    #[track_caller]
    pub fn redis(&self, node: &str) -> String {
        self.node(node)["redis"]["addr"].as_str().unwrap().to_owned()
    }

    /// Signals a node's `redis` or `agent`.
    #[track_caller]
    pub fn signal(&self, node: &str, part: &str, signal: Signal) {
        signal_pid(&self.node(node)[part]["pid"], signal);
    }

    /// Ends a node's agent and starts one by hand in its place, which hands over when it stops.
    #[track_caller]
    pub fn handing_over(&self, node: &str) -> Pointsman {
        self.signal(node, "agent", Signal::SIGTERM);
        let ended = holds_within(GONE_DEADLINE, || self.node(node)["agent"]["pid"].is_null());
        assert!(ended, "the agent of {node} does not end");
        let config = self.dir.join(node).join("agent.toml");
        let args = ["agent", "--config", config.to_str().unwrap(), "--on-stop", "handover"];
        let mut agent = Pointsman::start(&args);
        agent.wait_for_line(START_DEADLINE, |line| line.contains("registered"));
        agent
    }

    /// Signals its first ZooKeeper.
    #[track_caller]
    pub fn signal_zookeeper(&self, signal: Signal) {
        signal_pid(&self.json()["zookeeper"]["pid"], signal);
    }

    /// Signals one of its ZooKeepers, the first being 0.
    #[track_caller]
    pub fn signal_zookeeper_server(&self, index: usize, signal: Signal) {
        signal_pid(&self.json()["zookeeper"]["servers"][index]["pid"], signal);
    }

    /// Waits until one of its ZooKeepers is part of the quorum.
    #[track_caller]
    pub fn zookeeper_serves(&self, index: usize) {
        let addr = self.json()["zookeeper"]["servers"][index]["addr"]
            .as_str()
            .unwrap()
            .to_owned();
        let serves = || super::zookeeper::ask(&addr, "srvr").contains("Mode: ");
        assert!(holds_within(START_DEADLINE, serves), "{addr} does not serve");
    }

    /// Signals the server that leads its ensemble; whichever it is, if that cannot be found out.
    #[track_caller]
    pub fn signal_zookeeper_leader(&self, signal: Signal) {
        let json = self.json();
        let connect = json["zookeeper"]["connect"].as_str().unwrap().to_owned();
        let leads = |server: &str| super::zookeeper::ask(server, "srvr").contains("Mode: leader");
        let leader = connect.split(',').position(leads).unwrap_or_default();
        signal_pid(&json["zookeeper"]["pids"][leader], signal);
    }

    /// Signals one of its proxies, the first being 0.
    #[track_caller]
    pub fn signal_proxy(&self, index: usize, signal: Signal) {
        signal_pid(&self.json()["proxies"][index]["pid"], signal);
    }

    /// Fails when an agent or a proxy logged a WARN or ERROR that has none of the `declared` texts in it, or says the
    /// same again and again.
    #[track_caller]
    pub fn assert_calm(&self, declared: &[&str]) {
        for (log, text) in self.logs(&["agent.log", "proxy.log"]) {
            let mut said: BTreeMap<String, usize> = BTreeMap::new();
            for line in text.lines() {
                let warning = line.contains(" WARN ") || line.contains(" ERROR ");
                let known = declared.iter().any(|text| line.contains(text));
                assert!(!warning || known, "undeclared in {}: {line}", log.display());
                // Times and numbers differ in lines that say the same.
                let words = line.chars().filter(|letter| !letter.is_ascii_digit()).collect();
                *said.entry(words).or_default() += 1;
            }
            let most = said.iter().max_by_key(|(_, count)| **count);
            if let Some((line, count)) = most.filter(|(_, count)| **count > SAME_MAX) {
                panic!("{} says {count} times: {line}", log.display());
            }
        }
    }

    /// The logs of these names in all folders.
    #[track_caller]
    pub fn logs(&self, names: &[&str]) -> Vec<(PathBuf, String)> {
        let folders = fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().path());
        let logs = folders.flat_map(|folder| names.iter().map(move |name| folder.join(name)));
        logs.filter_map(|log| fs::read_to_string(&log).ok().map(|text| (log, text)))
            .collect()
    }

    /// The pids of everything that runs.
    #[track_caller]
    pub fn pids(&self) -> Vec<i64> {
        let json = self.json();
        let mut pids: Vec<&Json> = json["zookeeper"]["pids"].as_array().unwrap().iter().collect();
        pids.extend(json["proxies"].as_array().unwrap().iter().map(|proxy| &proxy["pid"]));
        for node in json["nodes"].as_array().unwrap() {
            pids.extend([&node["redis"]["pid"], &node["agent"]["pid"]]);
        }
        pids.into_iter().filter_map(Json::as_i64).collect()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (log, text) in self.logs(&["agent.log", "proxy.log", "zookeeper.log"]) {
                let start = text.len().saturating_sub(6_000);
                let start = (start..=text.len()).find(|at| text.is_char_boundary(*at));
                eprintln!("--- {} ---\n{}", log.display(), &text[start.unwrap_or(0)..]);
            }
        }
    }
}

#[track_caller]
fn signal_pid(pid: &Json, signal: Signal) {
    let pid = i32::try_from(pid.as_i64().expect("it runs")).unwrap();
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[track_caller]
fn launch(dir: &Path, listen: &str, args: &[&str]) -> Pointsman {
    let own = ["up", "--dir", dir.to_str().unwrap(), "--listen", listen];
    let mut up = Pointsman::start(&[&own, args].concat());
    up.wait_for_line(START_DEADLINE * 2, |line| line == "ready");
    up
}

/// Whether a process runs; one that waits to be reaped does not.
pub fn runs(pid: i64) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Fails unless all of these processes are gone soon.
#[track_caller]
pub fn assert_gone(pids: &[i64]) {
    let gone = holds_within(GONE_DEADLINE, || !pids.iter().any(|pid| runs(*pid)));
    let left: Vec<_> = pids.iter().filter(|pid| runs(**pid)).collect();
    assert!(gone, "these run on: {left:?}");
}
