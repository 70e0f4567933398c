//! Whole agents on real redis-servers and a real ZooKeeper.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pointsman::agent::host;
use pointsman::agent::machine::facts::Role;
use pointsman::agent::machine::timings::Timings;
use pointsman::agent::serve::{AgentError, OnStop, Start, serve};
use pointsman::clock;
use pointsman::peer::{Client, Kind, News};
use pointsman::store::{Lifetime, Settings, Store};
use pointsman::topology::codec::{self, NodeInfo, Place, Record, ShardState, Znode, decode, encode};
use pointsman::topology::{Addr, Epoch, NodeId, Phase, ShardId};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::agent::Server;
use crate::support::{Process, ZooKeeper, free_port};

pub const LIMIT: Duration = Duration::from_secs(30);
pub const SECRET: &[u8] = b"a secret of the cluster";

pub struct Agent {
    stop: CancellationToken,
    pub peer: Addr,
    task: JoinHandle<Result<(), AgentError>>,
}

/// A shard of three, each node with its agent.
pub struct Shard {
    pub zookeeper: ZooKeeper,
    /// A session of our own, to look with.
    pub store: Store,
    pub nodes: BTreeMap<NodeId, Server>,
    pub agents: BTreeMap<NodeId, Agent>,
    dir: tempfile::TempDir,
}

pub fn shard() -> ShardId {
    ShardId::from("s1")
}

pub fn start(id: &NodeId, port: u16, redis: Addr, zookeeper: &str, dir: &Path) -> Start {
    Start {
        host: host::Settings {
            node: id.clone(),
            shard: shard(),
            redis,
            login: Default::default(),
            secret: SECRET.into(),
            members: ["s1-a", "s1-b", "s1-c"].map(NodeId::from).into(),
            ack_replicas: 0,
            priority: 100,
            data_dir: dir.join(id.as_str()),
            timings: Timings::default(),
        },
        listen: Addr::new("127.0.0.1", port),
        store: Settings::new(zookeeper, "test"),
        zone: "z1".to_owned(),
        on_stop: OnStop::Leave,
        stop_patience: Duration::from_secs(5),
        at_once: CancellationToken::new(),
    }
}

impl Shard {
    pub async fn start() -> Self {
        let zookeeper = ZooKeeper::start();
        let store = Store::connect(&Settings::new(&zookeeper.connect(), "test"))
            .await
            .unwrap();
        let mut this = Self {
            zookeeper,
            store,
            nodes: BTreeMap::new(),
            agents: BTreeMap::new(),
            dir: tempfile::tempdir().unwrap(),
        };
        for id in ["s1-a", "s1-b", "s1-c"].map(NodeId::from) {
            this.nodes.insert(id.clone(), Server::start().await);
            this.start_agent(&id, free_port());
        }
        this
    }

    pub fn settings(&self, id: &NodeId, port: u16) -> Start {
        let redis = self.nodes[id].addr.clone();
        start(id, port, redis, &self.zookeeper.connect(), self.dir.path())
    }

    pub fn start_agent(&mut self, id: &NodeId, port: u16) {
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(self.settings(id, port), stop.clone()));
        let peer = Addr::new("127.0.0.1", port);
        self.agents.insert(id.clone(), Agent { stop, peer, task });
    }

    pub async fn end_agent(&mut self, id: &NodeId) {
        let agent = self.agents.remove(id).unwrap();
        agent.stop.cancel();
        agent.task.await.unwrap().unwrap();
    }

    pub async fn read<Z: Znode>(&self, place: &Place) -> Option<Z> {
        let path = place.to_string();
        let value = self.store.get(&path).await.ok()??;
        Some(decode(&value.bytes, &path).unwrap())
    }

    /// Waits until the state is published and as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&ShardState) -> bool) -> ShardState {
        let end = clock::now() + LIMIT;
        loop {
            let state: Option<ShardState> = self.read(&Place::State(shard())).await;
            if let Some(state) = &state
                && state.phase == Phase::Serving
                && wanted(state)
            {
                return state.clone();
            }
            assert!(clock::now() < end, "not {what}: {state:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// All of `count` members hold the epoch's data.
    pub async fn whole(&self, count: usize) -> ShardState {
        self.until("whole", |state| state.valid.len() == count).await
    }

    pub async fn history(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for name in self.store.children(&Place::History(shard()).to_string()).await.unwrap() {
            records.push(self.read(&Place::Record(shard(), name.parse().unwrap())).await.unwrap());
        }
        records
    }

    pub async fn until_history(&self, what: &str, wanted: impl Fn(&[Record]) -> bool) -> Vec<Record> {
        let end = clock::now() + LIMIT;
        loop {
            let records = self.history().await;
            if wanted(&records) {
                return records;
            }
            assert!(clock::now() < end, "not {what}: {records:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn until_node(&self, id: &NodeId, what: &str, wanted: impl Fn(Option<&NodeInfo>) -> bool) {
        let end = clock::now() + LIMIT;
        loop {
            let info: Option<NodeInfo> = self.read(&Place::Node(shard(), id.clone())).await;
            if wanted(info.as_ref()) {
                return;
            }
            assert!(clock::now() < end, "{id} is not {what}: {info:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn kill(&self, id: &NodeId) -> Duration {
        let before = self.until("serving", |_| true).await;
        let start = clock::now();
        self.nodes[id].signal("-KILL");
        self.until("replaced", |state| {
            state.epoch > before.epoch && state.master.as_ref() != Some(id)
        })
        .await;
        clock::now() - start
    }
}

pub fn master(state: &ShardState) -> NodeId {
    state.master.clone().unwrap()
}

#[tokio::test]
async fn two_masters_killed_in_a_row_are_replaced_and_the_history_says_so() {
    let mut shard = Shard::start().await;
    let first = shard.whole(3).await;
    assert_eq!(first.epoch, Epoch(1));
    shard.until_history("founded", |records| records.len() == 1).await;
    let old = master(&first);
    shard.nodes[&old].ask(&["SET", "k", "v"]).await;
    for server in shard.nodes.values() {
        server.until("replicated", |facts| facts.keys == 1).await;
    }
    // Whoever is connected to an agent hears of the new master from it, too.
    let other = shard.nodes.keys().find(|id| **id != old).unwrap().clone();
    let mut heard = Client::connect(&shard.agents[&other].peer, Kind::Proxy, "p", SECRET)
        .await
        .unwrap();

    println!("kill -9 to published: {:?}", shard.kill(&old).await);
    let second = shard.until("published", |state| state.epoch > first.epoch).await;
    let new = master(&second);
    let news = async {
        loop {
            let News::State(news) = heard.hear().await.unwrap() else {
                continue;
            };
            let state: ShardState = decode(&news.state, "news").unwrap();
            if state.epoch == second.epoch {
                return state;
            }
        }
    };
    let told = tokio::time::timeout(LIMIT, news).await.unwrap();
    assert_eq!((told.phase, told.master), (Phase::Serving, second.master.clone()));
    shard
        .until_node(&new, "registered as the master", |info| {
            info.is_some_and(|info| info.role == Some(codec::Role::Master) && info.run_id == second.run_id)
        })
        .await;
    let records = shard.until_history("recorded", |records| records.len() == 2).await;
    let record = &records[1];
    assert_eq!((&record.kind, record.epoch), (&codec::Kind::Failover, second.epoch));
    assert_eq!((record.from.as_ref(), record.to.as_ref()), (Some(&old), Some(&new)));
    let phases: Vec<&str> = record.phases_ms.0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(phases, ["detect", "claim", "park", "promote", "prove", "publish"]);

    // The next one dies before the first is back.
    shard.kill(&new).await;
    let third = shard.until("published", |state| state.epoch > second.epoch).await;
    let server = &shard.nodes[&master(&third)];
    server
        .until("master with the data", |facts| {
            facts.role == Role::Master && facts.keys == 1
        })
        .await;
    shard.until_history("recorded", |records| records.len() == 3).await;

    // Both come back empty, at their ports, and are filled.
    for id in [old, new] {
        let port = shard.nodes[&id].addr.port();
        let back = Server::start_on(port, &["--replicaof", "127.0.0.1", "1"]).await;
        shard.nodes.insert(id, back);
    }
    let last = shard.whole(3).await;
    assert_eq!((last.epoch, last.master), (third.epoch, third.master));
    for server in shard.nodes.values() {
        server.until("filled", |facts| facts.keys == 1).await;
    }
}

#[tokio::test]
async fn zookeeper_away_demotes_nobody_and_a_failover_works_when_it_is_back() {
    let mut shard = Shard::start().await;
    let first = shard.whole(3).await;
    shard.zookeeper.kill9();
    // The outage itself: longer than the sessions last, and than anyone waits for anything.
    let end = clock::now() + Duration::from_secs(6);
    while clock::now() < end {
        let server = &shard.nodes[&master(&first)];
        assert_eq!(server.ask(&["SET", "k", "v"]).await, "OK");
        server.until("still master", |facts| facts.role == Role::Master).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shard.zookeeper.restart();
    let after = shard.whole(3).await;
    assert_eq!((after.epoch, &after.master), (first.epoch, &first.master));
    for id in shard.nodes.keys() {
        shard.until_node(id, "registered", |info| info.is_some()).await;
    }
    shard.kill(&master(&first)).await;
    let second = shard.until("published", |state| state.epoch > first.epoch).await;
    let server = &shard.nodes[&master(&second)];
    server
        .until("master with the data", |facts| {
            facts.role == Role::Master && facts.keys == 1
        })
        .await;
}

#[tokio::test]
async fn an_agent_that_ends_and_comes_back_causes_no_failover() {
    let mut shard = Shard::start().await;
    let first = shard.whole(3).await;
    let id = master(&first);
    let port = shard.agents[&id].peer.port();
    shard.end_agent(&id).await;
    shard.until_node(&id, "gone at once", |info| info.is_none()).await;
    // Time enough for a wrong verdict.
    tokio::time::sleep(Timings::default().suspicion * 2).await;
    shard.start_agent(&id, port);
    shard
        .until_node(&id, "back", |info| info.is_some_and(|info| info.role.is_some()))
        .await;
    let after = shard.whole(3).await;
    assert_eq!((after.epoch, after.master), (first.epoch, first.master));
    shard.kill(&id).await;
}

#[tokio::test]
async fn a_stopped_master_is_replaced_and_follows_when_it_goes_on() {
    let shard = Shard::start().await;
    let first = shard.whole(3).await;
    let server = &shard.nodes[&master(&first)];
    server.signal("-STOP");
    let second = shard
        .until("replaced", |state| {
            state.epoch > first.epoch && state.master != first.master
        })
        .await;
    server.signal("-CONT");
    let addr = second.addr.clone();
    server
        .until("following", |facts| facts.follows == addr && facts.link_up)
        .await;
    let after = shard.whole(3).await;
    assert_eq!((after.epoch, after.master), (second.epoch, second.master));
}

/// Not a test: an agent in a process of its own, for tests that kill it. They start this binary with its settings.
#[tokio::test]
async fn an_agent_process() {
    let Ok(settings) = std::env::var(PROCESS) else { return };
    let parts: Vec<&str> = settings.split('|').collect();
    let [id, port, redis, zookeeper, dir, zone, session_ms] = parts[..] else {
        panic!("{settings}")
    };
    let dir = Path::new(dir);
    let redis = redis.parse().unwrap();
    let mut start = start(&NodeId::from(id), port.parse().unwrap(), redis, zookeeper, dir);
    zone.clone_into(&mut start.zone);
    start.store.session_timeout = Duration::from_millis(session_ms.parse().unwrap());
    serve(start, CancellationToken::new()).await.unwrap();
}

const PROCESS: &str = "POINTSMAN_TEST_AGENT";

impl Shard {
    pub fn start_agent_process(&self, id: &NodeId, port: u16, zone: &str, session_ms: u32) -> Process {
        let redis = &self.nodes[id].addr;
        let (zookeeper, dir) = (self.zookeeper.connect(), self.dir.path());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "agent_store::an_agent_process"]).env(
            PROCESS,
            format!("{id}|{port}|{redis}|{zookeeper}|{}|{zone}|{session_ms}", dir.display()),
        );
        Process::spawn(command, &dir.join("agent.log"))
    }
}

#[tokio::test]
async fn an_agent_that_is_killed_and_comes_back_causes_no_failover() {
    let mut shard = Shard::start().await;
    let first = shard.whole(3).await;
    let id = master(&first);
    let port = shard.agents[&id].peer.port();
    shard.end_agent(&id).await;
    // Each life has a zone of its own, by which it is told from the one before.
    let is = |zone: &'static str| {
        move |info: Option<&NodeInfo>| info.is_some_and(|info| info.role.is_some() && info.zone == zone)
    };
    let mut agent = shard.start_agent_process(&id, port, "z1", 50_000);
    shard.until_node(&id, "registered", is("z1")).await;
    // Killed and back before its session has expired: what it left is taken over at once.
    let gone = async {
        let mut watch = shard.store.watch(&Place::Node(self::shard(), id.clone()).to_string());
        loop {
            watch.changed().await;
            let info: Option<NodeInfo> = shard.read(&Place::Node(self::shard(), id.clone())).await;
            if info.is_none_or(|info| info.zone == "z2") {
                return clock::now();
            }
        }
    };
    agent.kill9();
    let start = clock::now();
    let mut agent = shard.start_agent_process(&id, port, "z2", 2000);
    let gone = tokio::time::timeout(LIMIT, gone).await.unwrap();
    assert!(gone - start < LIMIT, "no session had to expire");
    shard.until_node(&id, "registered again", is("z2")).await;
    // Killed and away for longer than its session.
    agent.kill9();
    shard.until_node(&id, "gone", |info| info.is_none()).await;
    let _agent = shard.start_agent_process(&id, port, "z3", 4000);
    shard.until_node(&id, "back", is("z3")).await;
    let after = shard.whole(3).await;
    assert_eq!((after.epoch, after.master), (first.epoch, first.master));
    shard.kill(&id).await;
}

#[tokio::test]
async fn the_connection_for_the_first_park_is_open_before_it_is_needed() {
    let shard = Shard::start().await;
    let state = shard.whole(3).await;
    let replica = shard.nodes.iter().find(|(id, _)| **id != master(&state)).unwrap().1;
    let is_open = async || replica.ask(&["CLIENT", "LIST"]).await.contains("user=pm-agent");
    for _ in 0..2 {
        let open = async {
            while !is_open().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, open).await.unwrap();
        replica.ask(&["CLIENT", "KILL", "USER", "pm-agent"]).await;
    }
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap()
        .trim()
        .to_owned()
}

#[tokio::test]
async fn a_name_that_a_living_agent_holds_is_refused_and_one_left_behind_is_taken_over() {
    let mut shard = Shard::start().await;
    let first = shard.whole(3).await;
    let id = shard.nodes.keys().find(|id| **id != master(&first)).unwrap().clone();
    let port = free_port();
    let refused = serve(shard.settings(&id, port), CancellationToken::new())
        .await
        .unwrap_err();
    let sentence = refused.to_string();
    assert!(matches!(refused, AgentError::Taken { .. }), "{sentence}");
    assert!(
        sentence.starts_with(&format!("node {id} is taken: the agent on ")),
        "{sentence}"
    );

    // What an agent leaves that was killed: its registration, under a session that nobody uses.
    let port = shard.agents[&id].peer.port();
    let path = Place::Node(self::shard(), id.clone());
    let mut left: NodeInfo = shard.read(&path).await.unwrap();
    left.run_id = None;
    assert_eq!((left.boot_id.as_str(), left.zone.as_str()), (boot_id().as_str(), "z1"));
    shard.end_agent(&id).await;
    shard.until_node(&id, "gone", |info| info.is_none()).await;
    let session = Store::connect(&Settings::new(&shard.zookeeper.connect(), "test"))
        .await
        .unwrap();
    session
        .create(&path.to_string(), encode(&left), Lifetime::Ephemeral)
        .await
        .unwrap();
    // That session goes on: nothing would ever expire.
    shard.start_agent(&id, port);
    shard
        .until_node(&id, "registered anew", |info| {
            info.is_some_and(|info| info.run_id.is_some())
        })
        .await;
    let owner = session.get(&path.to_string()).await.unwrap().unwrap().owner;
    assert_eq!(owner, pointsman::store::Owner::Other, "its own session holds it");
}

#[tokio::test]
async fn nonsense_in_the_state_changes_nothing_until_it_is_repaired() {
    let shard = Shard::start().await;
    let first = shard.whole(3).await;
    let path = Place::State(self::shard()).to_string();
    let value = shard.store.get(&path).await.unwrap().unwrap();
    let version = shard
        .store
        .set(&path, b"nonsense".to_vec(), value.version)
        .await
        .unwrap();
    let server = &shard.nodes[&master(&first)];
    let end = clock::now() + Duration::from_millis(1500);
    while clock::now() < end {
        server.until("still master", |facts| facts.role == Role::Master).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let found = shard.store.get(&path).await.unwrap().unwrap();
    assert_eq!(
        found.bytes, b"nonsense",
        "nobody takes it for a shard yet to be founded"
    );
    shard.store.set(&path, value.bytes, version).await.unwrap();
    shard.kill(&master(&first)).await;
}

#[tokio::test]
async fn an_agent_that_no_waiting_helps_says_so_in_a_sentence() {
    let shard = Shard::start().await;
    shard.whole(3).await;
    let id = NodeId::from("s1-a");
    let mut nowhere = shard.settings(&id, free_port());
    nowhere.store.connect = String::new();
    let error = serve(nowhere, CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains("is no ZooKeeper address"), "{error}");
    let port = shard.agents[&id].peer.port();
    let error = serve(shard.settings(&id, port), CancellationToken::new())
        .await
        .unwrap_err();
    let wanted = format!("cannot listen at 127.0.0.1:{port}: Address already in use");
    assert!(error.to_string().starts_with(&wanted), "{error}");
}
