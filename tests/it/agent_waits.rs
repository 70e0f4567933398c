//! Agents and proxies that are up before ZooKeeper is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use pointsman::store::{Credentials, Lifetime, Settings, Store};
use tempfile::TempDir;

use crate::support::{Pointsman, Redis, ZooKeeper, free_port};

const SOON: Duration = Duration::from_secs(20);
const WAITS: &str = "waiting for it";

/// A Redis and a ZooKeeper that is down. Its znodes are of somebody with the password `right`.
struct Early {
    redis: Redis,
    zookeeper: ZooKeeper,
    dir: TempDir,
}

impl Early {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "a secret of the whole cluster").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let mut zookeeper = ZooKeeper::start();
        lay_out(&zookeeper);
        zookeeper.kill9();
        Self {
            redis: Redis::start(&["--replicaof", "127.0.0.1", "1"]),
            zookeeper,
            dir,
        }
    }

    /// One that has said that it waits.
    fn start(&self, command: &str) -> Pointsman {
        self.start_with(command, "right")
    }

    /// The same with this password.
    fn start_with(&self, command: &str, password: &str) -> Pointsman {
        let (listen, data) = (format!("127.0.0.1:{}", free_port()), self.dir.path().to_str().unwrap());
        let (secret, auth) = (format!("{data}/secret"), format!("{data}/auth-{password}"));
        fs::write(&auth, format!("pointsman:{password}")).unwrap();
        fs::set_permissions(&auth, fs::Permissions::from_mode(0o600)).unwrap();
        let (redis, zookeeper) = (self.redis.addr().to_string(), self.zookeeper.connect());
        let at = [
            "--zookeeper",
            &zookeeper,
            "--zookeeper-auth-file",
            &auth,
            "--cluster",
            "test",
        ];
        let all = [&at[..], &["--listen", &listen, "--secret-file", &secret]].concat();
        let agent = ["--node", "s1-a", "--shard", "s1", "--redis", &redis, "--data-dir", data];
        let more = if command == "agent" { &agent[..] } else { &[] };
        let mut started = Pointsman::start(&[&[command], &all[..], more].concat());
        let line = started.wait_for_line(SOON, |line| line.contains(WAITS));
        let wanted = format!("ZooKeeper at {zookeeper} does not answer (connection refused): {WAITS}");
        assert!(line.contains(&wanted), "{line}");
        started
    }
}

fn lay_out(zookeeper: &ZooKeeper) {
    let settings = Settings {
        credentials: Some(Credentials {
            user: "pointsman".to_owned(),
            password: "right".to_owned(),
            world_reads: false,
        }),
        ..Settings::new(&zookeeper.connect(), "test")
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Store::connect(&settings).await.unwrap();
        let (at, laid_out) = ("/config", br#"{"schema":1}"#.to_vec());
        store.create(at, laid_out, Lifetime::Persistent).await.unwrap();
        store.close().await;
    });
}

#[test]
fn who_waits_for_zookeeper_and_is_refused_there_ends_and_says_why() {
    let mut early = Early::new();
    let waiting = ["agent", "proxy"].map(|command| early.start_with(command, "wrong"));
    early.zookeeper.restart();
    for mut waits in waiting {
        assert_eq!(waits.exit_code(SOON), Some(1), "{}", waits.log());
        let told = "ZooKeeper refuses /pointsman/test/config to the user 'pointsman' with this password";
        assert_eq!(waits.log().matches(told).count(), 1, "{}", waits.log());
        assert_eq!(waits.log().matches(WAITS).count(), 1, "{}", waits.log());
    }
    let clients = early.redis.command(&["CLIENT", "LIST"]).text();
    assert!(!clients.contains("pm-agent"), "its Redis was left alone: {clients}");
}

#[test]
fn who_is_up_before_zookeeper_waits_for_it_says_so_once_and_goes_on() {
    let mut early = Early::new();
    let (mut agent, mut proxy) = (early.start("agent"), early.start("proxy"));
    early.zookeeper.restart();
    agent.wait_for_line(SOON, |line| line.contains("is the master of epoch 1"));
    proxy.wait_for_line(SOON, |line| line.contains("the master serves"));
    for mut waited in [agent, proxy] {
        waited.assert_no_undeclared_warnings(&[WAITS]);
        assert_eq!(waited.log().matches(WAITS).count(), 1, "{}", waited.log());
        waited.term();
        assert_eq!(waited.exit_code(SOON), Some(0));
    }
}

#[test]
fn who_waits_for_zookeeper_ends_at_once_when_asked() {
    let early = Early::new();
    for command in ["agent", "proxy"] {
        let mut waits = early.start(command);
        waits.term();
        assert_eq!(waits.exit_code(Duration::from_secs(2)), Some(0), "{command}");
    }
    let role = early.redis.command(&["CLIENT", "LIST"]).text();
    assert!(!role.contains("pm-agent"), "its Redis was left alone: {role}");
}
