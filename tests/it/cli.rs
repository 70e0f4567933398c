//! The command line: exit codes, and one sentence for each refusal.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::{Output, Pointsman, free_port, run};

/// Runs `pointsman` with a PATH of `bin` alone.
fn run_on(bin: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman"));
    command.args(args).env("PATH", bin).env_remove("POINTSMAN_LOG");
    run(command)
}

fn script(bin: &Path, name: &str, text: &str) {
    let path = bin.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The one line that a command ended with.
#[track_caller]
fn sentence(output: &Output, code: i32) -> String {
    assert_eq!(output.code, Some(code), "{}", output.stderr);
    assert_eq!(output.stdout, "");
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{}", output.stderr);
    lines[0].strip_prefix("pointsman: ").unwrap().to_owned()
}

#[test]
fn wrong_flags_end_with_2_and_say_what_is_right() {
    for (args, wanted) in [
        (
            &["up", "--replicas", "1", "--ack-replicas", "2"][..],
            "--ack-replicas: 2 replicas can never acknowledge anything where there are 1: give at most that",
        ),
        (&["up", "--zookeepers", "2"], "[possible values: 1, 3]"),
        (
            &["up", "--redis", "port=1"],
            "'port' is set by 'up' itself: leave it out",
        ),
        (&["up", "--redis", "save"], "'save' is no option: write KEY=VALUE"),
        (&["up", "--session-timeout-ms", "1"], "1 is not in 200..=600000"),
        (&["up", "--listen", "6400"], "'6400' is not an address: write HOST:PORT"),
        (&["up", "--shards", "0"], "0 is not in 1..=16"),
        (
            &["proxy"],
            "--master: nothing says where Redis is: give one of zookeeper, topology and master",
        ),
        (&["proxy", "--master", "h:1", "--topology", "f"], "cannot be used with"),
        (
            &["agent", "--node", "a"],
            "--redis: it is missing: give where its Redis listens",
        ),
        (&["agent", "--node", "a b"], "is no name"),
        (&["agent", "--on-stop", "stay"], "write leave or handover"),
        (&["status", "--zookeeper", "h:1"], "--cluster"),
        (&["status", "--zookeeper", "h:1", "--cluster", "c"], "--secret-file: "),
        (&["switchover"], "required arguments"),
        (&["switchover", "s 1"], "is no name"),
        (&["switchover", "s1", "--to", ""], "is no name"),
        (&["up-node", "--shard", "s2"], "unexpected argument"),
        (&["check-config"], "required arguments"),
        (&[], "Usage"),
    ] {
        let output = Pointsman::run(args);
        assert_eq!(output.code, Some(2), "{args:?}: {}", output.stderr);
        assert!(output.stderr.contains(wanted), "{args:?}: {}", output.stderr);
    }
    assert_eq!(Pointsman::run(&["--help"]).code, Some(0));
}

#[test]
fn a_config_of_another_kind_is_refused() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/agent.toml");
    let output = Pointsman::run(&["proxy", "--config", path.to_str().unwrap()]);
    assert!(sentence(&output, 2).ends_with("this is an agent's config; name one that holds [proxy]"));
}

#[test]
fn a_topology_file_is_refused_before_anything_is_bound() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    fs::write(&path, "[[topology.shards]]\nid = 's1'\nnodes = []\n").unwrap();
    let output = Pointsman::run(&["proxy", "--topology", path.to_str().unwrap()]);
    assert!(sentence(&output, 2).ends_with("t.toml:3: nodes: shard s1 has no nodes"));
    fs::write(&path, "[proxy]\n").unwrap();
    let output = Pointsman::run(&["proxy", "--topology", path.to_str().unwrap()]);
    assert!(sentence(&output, 2).ends_with("this is a proxy's config; name one that holds [topology]"));
}

#[test]
fn without_an_up_there_is_nothing_to_ask() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    for command in ["status", "history"] {
        let output = Pointsman::run(&[command, "--dir", dir]);
        assert!(sentence(&output, 1).contains("no 'pointsman up' runs there"));
    }
    let output = Pointsman::run(&["up-node", "--dir", dir, "s1-a"]);
    assert!(sentence(&output, 1).contains("no 'pointsman up' answers at"));
    let nobody = format!("127.0.0.1:{}", free_port());
    let output = Pointsman::run(&["history", "--zookeeper", &nobody, "--cluster", "c"]);
    assert!(sentence(&output, 1).contains("does not answer"));
}

/// A PATH without Java, and another with an old redis-server.
struct Bare {
    home: TempDir,
}

impl Bare {
    fn new() -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
        }
    }

    /// The sentence with which `up` ends; it leaves nothing behind.
    #[track_caller]
    fn up(&self, args: &[&str]) -> String {
        let dir = self.home.path().join("up");
        let listen = format!("127.0.0.1:{}", free_port());
        let own = ["up", "--dir", dir.to_str().unwrap(), "--listen", &listen];
        let said = sentence(&run_on(self.home.path(), &[&own, args].concat()), 1);
        assert!(!dir.exists(), "{said}");
        said
    }
}

#[test]
fn what_is_missing_is_one_sentence_that_says_how_to_get_it() {
    let bare = Bare::new();
    let said = bare.up(&[]);
    assert!(
        said.starts_with("java is missing") && said.contains("apt-get install default-jre-headless"),
        "{said}"
    );
    let zookeeper = ["--zookeeper", "127.0.0.1:1"];
    let said = bare.up(&zookeeper);
    assert!(
        said.starts_with("redis-server is missing: install Redis 6.2 or later"),
        "{said}"
    );
    script(
        bare.home.path(),
        "redis-server",
        "echo 'Redis server v=6.0.16 sha=0:0 bits=64'",
    );
    let said = bare.up(&zookeeper);
    assert!(
        said.starts_with("redis-server is version 6.0, which is too old: install Redis 6.2 or later"),
        "{said}"
    );
    script(bare.home.path(), "redis-server", "exit 1");
    let said = bare.up(&zookeeper);
    assert!(said.starts_with("redis-server does not tell its version"), "{said}");
}

#[test]
fn a_child_that_ends_at_once_is_told_with_its_last_words() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("up");
    let listen = format!("127.0.0.1:{}", free_port());
    let own = ["up", "--dir", dir.to_str().unwrap(), "--listen", &listen];
    let wrong = ["--zookeeper", "127.0.0.1:1", "--redis", "no-such-option=1"];
    let output = Pointsman::run(&[&own[..], &wrong].concat());
    let said = sentence(&output, 1);
    assert!(
        said.contains("redis-server ended while it was starting (exit code 1): "),
        "{said}"
    );
    assert!(!dir.exists());

    let output = Pointsman::run(&[&own[..], &["--zookeeper", "127.0.0.1:1"]].concat());
    let said = sentence(&output, 1);
    assert!(said.starts_with("ZooKeeper at 127.0.0.1:1 does not answer"), "{said}");
    assert!(!dir.exists());
}

#[test]
fn a_port_in_use_is_told_before_anything_is_made() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("up");
    let output = Pointsman::run(&["up", "--dir", dir.to_str().unwrap(), "--listen", &listen]);
    let said = sentence(&output, 1);
    assert!(
        said.starts_with(&format!("cannot listen on {listen} (")) && said.contains("--listen"),
        "{said}"
    );
    assert!(!dir.exists());
}
