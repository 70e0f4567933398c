//! Everything that a cluster is, each part on a host of its own: nodes `a`, `b` and `c` (a Redis and its agent), ZooKeeper
//! on `z1` ..., proxies on `p1` and `p2` with their clients beside them, and an operator who is never cut off.
//!
//! A Redis keeps nothing on disk: one that is started again is empty.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use pointsman::store::{Settings, Store};
use pointsman::topology::codec::{ClusterConfig, Place, ShardConfig, ShardState, Slots, decode, encode};
use pointsman::topology::{NodeId, Phase, ShardId};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::network::{Host, Namespace, Network};
use crate::support::zookeeper;
use crate::support::{Client, Output, Process, START_DEADLINE, Value, eventually, field, holds_within, run_by};

/// The nodes, which are the names of their hosts.
pub const NODES: [&str; 3] = ["a", "b", "c"];
/// The hosts of the proxies.
pub const PROXIES: [&str; 2] = ["p1", "p2"];
/// The hosts of an ensemble.
const ENSEMBLE: [&str; 3] = ["z1", "z2", "z3"];
const OPERATOR: &str = "operator";
const CLUSTER: &str = "chaos";
const SHARD: &str = "s1";

const REDIS: u16 = 6379;
const AGENT: u16 = 7400;
const PROXY: u16 = 6400;
const ZOOKEEPER: u16 = 2181;

/// How long a connection to a host that may be cut off is waited for.
const CONNECT_PATIENCE: Duration = Duration::from_millis(500);
/// How long a command that asks something of a host that may be cut off waits.
const ASK_PATIENCE: Duration = Duration::from_secs(2);
/// How soon everything is as it was after the last fault.
const RECOVERY: Duration = Duration::from_secs(60);

/// What a cluster is like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Servers of the ensemble: 1 or 3.
    pub zookeepers: usize,
    /// Replicas that acknowledge a write.
    pub w: u32,
    /// The proxies' policy of reads.
    pub reads: &'static str,
    /// How long ZooKeeper keeps a silent session, in milliseconds.
    pub session_ms: u64,
}

/// The way to a proxy from beside it.
#[derive(Clone)]
pub struct Door {
    namespace: Namespace,
    addr: SocketAddr,
}

impl Door {
    /// A new client of the proxy.
    pub fn open(&self) -> io::Result<Client> {
        Client::over(self.namespace.connect(self.addr, CONNECT_PATIENCE)?)
    }
}

/// The parts of a node, a proxy's host or a server of the ensemble that run.
struct Running {
    host: &'static str,
    /// A Redis, a proxy or a ZooKeeper.
    server: Process,
    /// A node's agent.
    agent: Option<Process>,
}

/// See the file's note.
pub struct Cluster {
    shape: Shape,
    network: Network,
    running: Vec<Running>,
    dir: TempDir,
}

impl Cluster {
    /// Starts everything and waits until it serves and every node counts. `None` where there can be no hosts.
    #[track_caller]
    pub fn start(shape: Shape) -> Option<Self> {
        let ensemble = &ENSEMBLE[..shape.zookeepers];
        let names = [&NODES[..], ensemble, &PROXIES, &[OPERATOR]].concat();
        let mut cluster = Self {
            shape,
            network: crate::network(&names)?,
            running: Vec::new(),
            dir: tempfile::tempdir().unwrap(),
        };
        let secret = cluster.secret();
        fs::write(&secret, "a secret of this cluster").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        for host in &names {
            fs::create_dir(cluster.dir.path().join(host)).unwrap();
        }
        for host in ensemble.iter().chain(&NODES) {
            cluster.start_server(host);
        }
        cluster.found();
        for node in NODES {
            cluster.start_agent(node);
        }
        for host in PROXIES {
            cluster.start_server(host);
            cluster.serves_at(host);
        }
        cluster.all_count();
        Some(cluster)
    }

    /// The network, to cut and to heal.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// How many replicas acknowledge a write.
    pub fn w(&self) -> u32 {
        self.shape.w
    }

    /// Whether all reads go to the master.
    pub fn reads_at_the_master(&self) -> bool {
        self.shape.reads == "master"
    }

    /// The hosts of the ensemble.
    pub fn ensemble(&self) -> &'static [&'static str] {
        &ENSEMBLE[..self.shape.zookeepers]
    }

    /// The way to a proxy.
    pub fn door(&self, proxy: &str) -> Door {
        let host = self.network.host(proxy);
        Door {
            namespace: host.namespace.clone(),
            addr: host.at(PROXY).parse().unwrap(),
        }
    }

    /// Starts what a host serves with; a Redis without data. Does not wait until it serves.
    #[track_caller]
    pub fn start_server(&mut self, host: &str) {
        let (command, log) = match host.as_bytes()[0] {
            b'z' => (self.zookeeper(host), "zookeeper.log"),
            b'p' => (self.proxy(host), "proxy.log"),
            _ => (self.redis(host), "redis.log"),
        };
        let server = self.spawn(host, command, log);
        match self.running.iter_mut().find(|running| running.host == host) {
            Some(running) => running.server = server,
            None => {
                let known = NODES.iter().chain(&PROXIES).chain(&ENSEMBLE);
                self.running.push(Running {
                    host: known.into_iter().find(|known| **known == host).unwrap(),
                    server,
                    agent: None,
                });
            }
        }
    }

    /// Starts a node's agent.
    #[track_caller]
    pub fn start_agent(&mut self, node: &str) {
        let agent = self.spawn(node, self.agent(node), "agent.log");
        self.at(node).agent = Some(agent);
    }

    /// Kills what a host serves with (SIGKILL).
    #[track_caller]
    pub fn kill_server(&mut self, host: &str) {
        self.at(host).server.kill9();
    }

    /// Kills a node's agent (SIGKILL).
    #[track_caller]
    pub fn kill_agent(&mut self, node: &str) {
        self.at(node).agent.as_mut().unwrap().kill9();
    }

    /// Kills every agent.
    #[track_caller]
    pub fn kill_agents(&mut self) {
        NODES.into_iter().for_each(|node| self.kill_agent(node));
    }

    /// Starts every agent.
    #[track_caller]
    pub fn start_agents(&mut self) {
        NODES.into_iter().for_each(|node| self.start_agent(node));
    }

    /// Has a node's agent leave, and starts it again.
    #[track_caller]
    pub fn restart_agent(&mut self, node: &str) {
        let agent = self.at(node).agent.as_mut().unwrap();
        agent.term();
        if agent.wait(START_DEADLINE).is_none() {
            panic!("the agent of {node} does not leave");
        }
        self.start_agent(node);
    }

    /// Signals what a host serves with.
    #[track_caller]
    pub fn signal_server(&mut self, host: &str, signal: Signal) {
        self.at(host).server.signal(signal);
    }

    /// Signals a node's agent.
    #[track_caller]
    pub fn signal_agent(&mut self, node: &str, signal: Signal) {
        self.at(node).agent.as_ref().unwrap().signal(signal);
    }

    /// Starts whatever does not run, and lets go on whatever is stopped.
    #[track_caller]
    pub fn revive(&mut self) {
        self.network.heal();
        let hosts: Vec<&str> = self.running.iter().map(|running| running.host).collect();
        for host in hosts {
            self.signal_server(host, Signal::SIGCONT);
            if !self.at(host).server.is_running() {
                self.start_server(host);
            }
            if let Some(agent) = &mut self.at(host).agent {
                agent.cont();
                if !agent.is_running() {
                    self.start_agent(host);
                }
            }
        }
    }

    /// Waits until a write through each proxy works and every node counts.
    #[track_caller]
    pub fn recovers(&self) {
        for proxy in PROXIES {
            self.serves_at(proxy);
        }
        self.all_count();
    }

    /// Fails if a process has ended by itself or has panicked.
    #[track_caller]
    pub fn assert_sound(&mut self) {
        for running in &mut self.running {
            let Running { host, server, agent } = running;
            assert!(server.is_running(), "what {host} serves with has ended");
            for process in agent.iter_mut().chain([server]) {
                assert!(process.is_running(), "a process of {host} has ended");
                let log = process.log();
                let panic = log.lines().find(|line| line.contains("panicked at"));
                assert_eq!(panic, None, "on {host}");
            }
        }
    }

    /// The master's node, as ZooKeeper says; `None` while there is none, or ZooKeeper does not answer.
    pub fn master(&self) -> Option<&'static str> {
        let state = self.state().filter(|state| state.phase == Phase::Serving)?;
        let master = state.master?;
        NODES.into_iter().find(|node| *node == master.as_str())
    }

    /// The nodes that are not the master.
    #[track_caller]
    pub fn replicas(&self) -> [&'static str; 2] {
        let master = self.master().unwrap();
        let others: Vec<&str> = NODES.into_iter().filter(|node| *node != master).collect();
        others.try_into().unwrap()
    }

    /// Waits until there is another master than `old`, and returns it.
    #[track_caller]
    pub fn next_master(&self, old: &str) -> &'static str {
        let mut next = None;
        eventually(RECOVERY, || {
            next = self.master().filter(|master| *master != old);
            next.is_some()
        });
        next.unwrap()
    }

    /// What the shard has agreed on; `None` if ZooKeeper does not say.
    pub fn state(&self) -> Option<ShardState> {
        let place = Place::State(ShardId::from(SHARD)).to_string();
        let read = self.store(async |store| store.get(&place).await.ok().flatten());
        decode(&read??.bytes, &place).ok()
    }

    /// The epoch.
    #[track_caller]
    pub fn epoch(&self) -> u64 {
        self.state().unwrap().epoch.0
    }

    /// Whether there is a master and every node counts, with the life that it has now.
    pub fn all_count_now(&self) -> bool {
        let Some(state) = self.state() else { return false };
        let lives = state.valid.iter().all(|(node, life)| {
            let info = self.info(node.as_str());
            info.is_some_and(|info| field(&info, "run_id") == life.as_str())
        });
        state.phase == Phase::Serving && state.valid.len() == NODES.len() && lives
    }

    /// Waits until there is a master and every node counts.
    #[track_caller]
    pub fn all_count(&self) {
        let counted = holds_within(RECOVERY, || self.all_count_now());
        assert!(counted, "not every node counts: {:?}", self.state());
    }

    /// Waits until every replica has what the master has now.
    #[track_caller]
    pub fn settles(&self) {
        let offset = |node: &str, name: &str| self.info(node).and_then(|info| field(&info, name).parse::<u64>().ok());
        let wanted = offset(self.master().unwrap(), "master_repl_offset").unwrap();
        for replica in self.replicas() {
            eventually(RECOVERY, || {
                offset(replica, "slave_repl_offset").is_some_and(|there| there >= wanted)
            });
        }
    }

    /// What a node's Redis says of itself, if it does.
    pub fn info(&self, node: &str) -> Option<String> {
        let mut redis = self.redis_client(node)?;
        let info = redis.try_command(&["INFO"]).ok()?;
        Some(info.text())
    }

    /// A connection of the operator to a node's Redis, around the proxies.
    pub fn redis_client(&self, node: &str) -> Option<Client> {
        let addr = self.network.host(node).at(REDIS).parse().unwrap();
        let stream = self.operator().namespace.connect(addr, CONNECT_PATIENCE).ok()?;
        let client = Client::over(stream).ok()?;
        client.set_read_timeout(ASK_PATIENCE);
        Some(client)
    }

    /// The records of the history of one kind.
    #[track_caller]
    pub fn history(&self, kind: &str) -> Vec<serde_json::Value> {
        let output = self.operate(&["history", "--json"]);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        let all: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
        let all = all.as_array().unwrap().iter();
        all.filter(|record| record["kind"] == kind).cloned().collect()
    }

    /// Runs one of the operator's commands.
    #[track_caller]
    pub fn operate(&self, args: &[&str]) -> Output {
        run_by(self.operator().namespace.spawner(), self.operation(args))
    }

    /// Begins one of the operator's commands and does not wait for its end.
    #[track_caller]
    pub fn begin(&self, args: &[&str]) -> Process {
        self.spawn(OPERATOR, self.operation(args), "operator.log")
    }

    /// The server that leads the ensemble, if one does.
    pub fn zookeeper_leader(&self) -> Option<&'static str> {
        let leads = |host: &&&str| {
            let at = self.network.host(host).at(ZOOKEEPER);
            let answer = self.operator().namespace.within(|| zookeeper::ask(&at, "srvr"));
            answer.contains("Mode: leader") || answer.contains("Mode: standalone")
        };
        self.ensemble().iter().find(leads).copied()
    }

    fn operation(&self, args: &[&str]) -> Command {
        let mut command = pointsman(args);
        command.args(["--zookeeper", &self.connect(), "--cluster", CLUSTER]);
        command.arg("--secret-file").arg(self.secret());
        command
    }

    /// Does something with ZooKeeper as the operator; `None` if it is away.
    fn store<T: Send>(&self, work: impl AsyncFnOnce(&Store) -> T + Send) -> Option<T> {
        let settings = Settings::new(&self.connect(), CLUSTER);
        self.operator().namespace.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let store = timeout(ASK_PATIENCE, Store::connect(&settings)).await.ok()?.ok()?;
                let done = timeout(ASK_PATIENCE, work(&store)).await.ok();
                // Its session would end by itself.
                let _ = timeout(ASK_PATIENCE, store.close()).await;
                done
            })
        })
    }

    /// Tells the cluster what it is, once ZooKeeper serves.
    #[track_caller]
    fn found(&self) {
        let shard = ShardId::from(SHARD);
        let members = NODES.into_iter().map(NodeId::from).collect();
        let config = ShardConfig {
            ack_replicas: self.shape.w,
            members,
            ..ShardConfig::default()
        };
        let slots = Slots::spread(std::slice::from_ref(&shard));
        let places = [
            (Place::Config, encode(&ClusterConfig::default())),
            (Place::ShardConfig(shard), encode(&config)),
            (Place::Slots, encode(&slots)),
        ];
        eventually(START_DEADLINE, || {
            let written = self.store(async |store| {
                for (place, bytes) in &places {
                    store.ensure(&place.to_string(), bytes.clone()).await?;
                }
                Ok::<_, pointsman::store::StoreError>(())
            });
            matches!(written, Some(Ok(())))
        });
    }

    #[track_caller]
    fn serves_at(&self, proxy: &str) {
        let door = self.door(proxy);
        let mut told = None;
        let serves = holds_within(RECOVERY, || {
            let told_now = door.open().and_then(|mut client| {
                client.set_read_timeout(ASK_PATIENCE * 5);
                client.try_command(&["SET", "serves", "1"])
            });
            let serves = matches!(&told_now, Ok(reply) if *reply == Value::ok());
            told = Some(told_now);
            serves
        });
        assert!(serves, "{proxy} does not serve: {told:?}");
    }

    #[track_caller]
    fn at(&mut self, host: &str) -> &mut Running {
        self.running.iter_mut().find(|running| running.host == host).unwrap()
    }

    fn operator(&self) -> &Host {
        self.network.host(OPERATOR)
    }

    #[track_caller]
    fn spawn(&self, host: &str, mut command: Command, log: &str) -> Process {
        let folder = self.folder(host);
        command.current_dir(&folder);
        Process::spawn_by(self.network.host(host).namespace.spawner(), command, &folder.join(log))
    }

    fn folder(&self, host: &str) -> PathBuf {
        self.dir.path().join(host)
    }

    fn secret(&self) -> PathBuf {
        self.dir.path().join("secret")
    }

    fn connect(&self) -> String {
        let servers: Vec<String> = self
            .ensemble()
            .iter()
            .map(|host| self.network.host(host).at(ZOOKEEPER))
            .collect();
        servers.join(",")
    }

    fn redis(&self, host: &str) -> Command {
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &REDIS.to_string(),
            "--bind",
            "0.0.0.0",
            "--protected-mode",
            "no",
        ]);
        command.arg("--dir").arg(self.folder(host));
        command.args(["--save", "", "--appendonly", "no"]);
        command.args(["--repl-diskless-sync", "no", "--repl-diskless-sync-delay", "0"]);
        command.args(["--replicaof", "127.0.0.1", "1"]);
        command
    }

    fn agent(&self, node: &str) -> Command {
        let host = self.network.host(node);
        let mut command = pointsman(&["agent", "--node", node, "--shard", SHARD, "--cluster", CLUSTER]);
        command.args(["--redis", &host.at(REDIS), "--listen", &host.at(AGENT)]);
        command.args(["--zookeeper", &self.connect()]);
        command.args(["--session-timeout-ms", &self.shape.session_ms.to_string()]);
        command.args(["--ack-replicas", &self.shape.w.to_string()]);
        command.args(NODES.iter().flat_map(|member| ["--member", member]));
        command.arg("--secret-file").arg(self.secret());
        command.arg("--data-dir").arg(self.folder(node));
        command
    }

    #[track_caller]
    fn proxy(&self, host: &str) -> Command {
        let config = self.folder(host).join("proxy.toml");
        let Shape { reads, session_ms, .. } = self.shape;
        let text =
            format!("[proxy]\nid = \"{host}\"\nreads = \"{reads}\"\nsession_timeout_ms = {session_ms}\nworkers = 1\n");
        fs::write(&config, text).unwrap();
        let mut command = pointsman(&["proxy", "--cluster", CLUSTER, "--zookeeper", &self.connect()]);
        command.args(["--listen", &self.network.host(host).at(PROXY)]);
        command.arg("--config").arg(&config);
        command.arg("--secret-file").arg(self.secret());
        command
    }

    #[track_caller]
    fn zookeeper(&self, host: &str) -> Command {
        let folder = self.folder(host);
        let tick = self.shape.session_ms / 10;
        let mut config = format!(
            "dataDir={}\nclientPort={ZOOKEEPER}\ntickTime={tick}\ninitLimit={}\nsyncLimit={}\nminSessionTimeout={}\n\
             maxSessionTimeout=60000\nmaxClientCnxns=0\nadmin.enableServer=false\n4lw.commands.whitelist=srvr\n",
            folder.display(),
            30_000 / tick,
            2_000 / tick,
            2 * tick,
        );
        if self.shape.zookeepers > 1 {
            for (number, server) in (1..).zip(self.ensemble()) {
                let address = &self.network.host(server).address;
                config += &format!("server.{number}={address}:2888:3888\n");
                if *server == host {
                    fs::write(folder.join("myid"), format!("{number}\n")).unwrap();
                }
            }
        }
        let file = folder.join("zoo.cfg");
        fs::write(&file, config).unwrap();
        zookeeper::server(Path::new(&file))
    }
}

fn pointsman(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman"));
    command.args(args).env_remove("POINTSMAN_LOG");
    command
}
