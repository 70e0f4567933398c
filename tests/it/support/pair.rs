//! Two Redis, a master and its replica, and a proxy that finds out from them which is which.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use super::{Client, Pointsman, Redis, START_DEADLINE, Value, eventually, free_port};

const SOON: Duration = Duration::from_secs(20);

/// See the file's note.
pub struct Pair {
    /// The first master.
    pub a: Redis,
    /// Its replica.
    pub b: Redis,
    /// The proxy, with two workers.
    pub proxy: Pointsman,
    /// Where the proxy listens.
    pub listen: String,
    topology: String,
    _dir: TempDir,
}

impl Pair {
    /// Starts all of them.
    #[track_caller]
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts all of them, both Redis with these arguments.
    #[track_caller]
    pub fn with(redis_args: &[&str]) -> Self {
        let a = Redis::start(&[&["--repl-diskless-sync-delay", "0"], redis_args].concat());
        let port = a.port().to_string();
        let b = Redis::start(&[&["--replicaof", "127.0.0.1", port.as_str()], redis_args].concat());
        eventually(SOON, || info(&b, "master_link_status:").as_deref() == Some("up"));
        let dir = tempfile::tempdir().unwrap();
        let topology = dir.path().join("topology.toml");
        let nodes = format!("\"{}\", \"{}\"", a.addr(), b.addr());
        fs::write(
            &topology,
            format!("[[topology.shards]]\nid = \"s1\"\nnodes = [{nodes}]\n"),
        )
        .unwrap();
        let topology = topology.to_str().unwrap().to_owned();
        let (proxy, listen) = proxy(&topology);
        Self {
            a,
            b,
            proxy,
            listen,
            topology,
            _dir: dir,
        }
    }

    /// Another proxy before the same Redis, and where it listens.
    #[track_caller]
    pub fn another_proxy(&self) -> (Pointsman, String) {
        proxy(&self.topology)
    }

    /// A new client of the proxy.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(self.listen.as_str())
    }

    /// Waits until the replica has what the master has.
    #[track_caller]
    pub fn settle(&self) {
        eventually(SOON, || {
            let offset = info(&self.a, "master_repl_offset:");
            offset.is_some() && offset == info(&self.b, "slave_repl_offset:")
        });
    }

    /// Makes B the master and A its replica, and waits until the proxy serves from B.
    #[track_caller]
    pub fn move_to_b(&self) {
        self.settle();
        assert_eq!(self.b.command(&["REPLICAOF", "NO", "ONE"]), Value::ok());
        let port = self.b.port().to_string();
        assert_eq!(self.a.command(&["REPLICAOF", "127.0.0.1", &port]), Value::ok());
        self.serves_from_b();
    }

    /// Kills A and makes B the master.
    #[track_caller]
    pub fn fail_over_to_b(&mut self) {
        self.settle();
        self.kill_a();
    }

    /// The same for whatever B has.
    #[track_caller]
    pub fn kill_a(&mut self) {
        self.a.kill9();
        assert_eq!(self.b.command(&["REPLICAOF", "NO", "ONE"]), Value::ok());
    }

    /// Waits until both workers serve from B.
    #[track_caller]
    pub fn serves_from_b(&self) {
        let line = format!("master={}", self.b.addr());
        eventually(SOON, || {
            let log = self.proxy.log();
            let serves = log.lines().filter(|text| text.contains("the master serves"));
            serves.filter(|text| text.contains(&line)).count() >= 2
        });
    }
}

#[track_caller]
fn proxy(topology: &str) -> (Pointsman, String) {
    let listen = format!("127.0.0.1:{}", free_port());
    let arguments = ["proxy", "--listen", &listen, "--topology", topology, "--workers", "2"];
    let mut proxy = Pointsman::start(&arguments);
    proxy.wait_for_line(START_DEADLINE, |line| line.contains("the master serves"));
    (proxy, listen)
}

fn info(redis: &Redis, field: &str) -> Option<String> {
    let text = redis.command(&["INFO", "replication"]).text();
    text.lines()
        .find_map(|line| line.strip_prefix(field))
        .map(str::to_owned)
}
