//! A running `pointsman up`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value as Json;
use tempfile::TempDir;

use super::{Client, Output, Pointsman, START_DEADLINE, eventually, free_port, holds_within};

/// How long the processes of an `up` may take to be gone.
const GONE_DEADLINE: Duration = Duration::from_secs(15);

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

    /// The records of `history --json` of one kind.
    #[track_caller]
    pub fn history(&self, kind: &str) -> Vec<Json> {
        let all = self.answer("history");
        let all = all.as_array().unwrap().iter();
        all.filter(|record| record["kind"] == kind).cloned().collect()
    }

    #[track_caller]
    fn answer(&self, command: &str) -> Json {
        let output = self.operate(command, &["--json"]);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        serde_json::from_str(&output.stdout).unwrap()
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
