//! Where a proxy's topology comes from: a real ZooKeeper with real agents, and a file with real redis-servers.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pointsman::peer::Relayed;
use pointsman::proxy::source::{Identity, SourceError, Topology, ear, nothing, run};
use pointsman::store::{Lifetime, Settings, Store};
use pointsman::topology::codec::{
    ClusterConfig, NodeInfo, Place, ProxyInfo, ShardConfig, ShardState, Slots, decode, encode,
};
use pointsman::topology::{Addr, Epoch, NodeId, Phase, RunId, ShardId, ShardIndex, Slot, Snapshot};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::agent::Server;
use crate::agent_store::{Shard, master};
use crate::support::ZooKeeper;

const LIMIT: Duration = Duration::from_secs(20);

/// A running source and what it said last.
struct Source {
    heard: watch::Receiver<Arc<Snapshot>>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), SourceError>>,
    /// What agents tell.
    relays: mpsc::Sender<Relayed>,
}

fn identity() -> Identity {
    Identity {
        id: "proxy-1".to_owned(),
        addr: Addr::new("127.0.0.1", 6400),
        admin: Some(Addr::new("127.0.0.1", 6401)),
        zone: "z1".to_owned(),
        drains: false,
    }
}

impl Source {
    fn start(topology: Topology) -> Self {
        let (out, heard) = watch::channel(nothing());
        let stop = CancellationToken::new();
        let (relays, relayed) = mpsc::channel(8);
        let task = tokio::spawn(run(
            topology,
            identity(),
            relayed,
            ear(Duration::from_millis(250)).1,
            out,
            stop.clone(),
        ));
        Self {
            heard,
            stop,
            task,
            relays,
        }
    }

    /// Waits for a snapshot as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut heard = self.heard.clone();
        let waiting = async { heard.wait_for(|now| wanted(now)).await.map(|now| Arc::clone(&now)) };
        match tokio::time::timeout(LIMIT, waiting).await {
            Ok(Ok(now)) => now,
            Ok(Err(_)) => panic!("the source ended"),
            Err(_) => panic!("not {what}: {:?}", self.now()),
        }
    }

    fn now(&self) -> Arc<Snapshot> {
        Arc::clone(&self.heard.borrow())
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn serves(snapshot: &Snapshot, epoch: u64) -> bool {
    snapshot
        .shards
        .iter()
        .any(|shard| shard.epoch == Epoch(epoch) && shard.phase == Phase::Serving)
}

async fn proxy(store: &Store) -> Option<ProxyInfo> {
    let path = Place::Proxy("proxy-1".to_owned()).to_string();
    let value = store.get(&path).await.ok()??;
    Some(decode(&value.bytes, &path).unwrap())
}

async fn until_registered(store: &Store, epoch: u64) {
    let waiting = async {
        loop {
            let info = proxy(store).await;
            if info.is_some_and(|info| info.epochs.get(&ShardId::from("s1")) == Some(&Epoch(epoch))) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let registered = tokio::time::timeout(LIMIT, waiting).await;
    assert!(registered.is_ok(), "{:?}", proxy(store).await);
}

#[tokio::test]
async fn the_snapshot_follows_a_failover_and_the_proxy_says_so() {
    let shard = Shard::start().await;
    let source = Source::start(Topology::ZooKeeper(Settings::new(&shard.zookeeper.connect(), "test")));
    let first = shard.whole(3).await;
    let snapshot = source
        .until("serving", |now| serves(now, 1) && now.shards[0].nodes.len() == 3)
        .await;
    let found = &snapshot.shards[0];
    assert_eq!(found.id, ShardId::from("s1"));
    let published = found.master.clone().unwrap();
    assert_eq!(
        (published.node, published.run_id),
        (master(&first), first.run_id.clone())
    );
    for node in &found.nodes {
        assert_eq!((&node.addr, &*node.zone), (&shard.nodes[&node.id].addr, "z1"));
        assert!(node.peer.is_some());
    }
    until_registered(&shard.store, 1).await;
    shard.kill(&master(&first)).await;
    let second = shard.until("published", |state| state.epoch > first.epoch).await;
    let snapshot = source.until("re-pointed", |now| serves(now, second.epoch.0)).await;
    assert_eq!(
        snapshot.shards[0].master.as_ref().map(|new| &new.node),
        second.master.as_ref()
    );
    until_registered(&shard.store, second.epoch.0).await;
    let info = proxy(&shard.store).await.unwrap();
    assert_eq!(
        (info.addr, info.admin, info.zone.as_str()),
        (identity().addr, identity().admin, "z1")
    );
    source.end().await;
    assert_eq!(proxy(&shard.store).await, None, "a proxy that ends leaves at once");
}

/// A cluster of which only the znodes exist.
struct Znodes {
    zookeeper: ZooKeeper,
    store: Store,
}

impl Znodes {
    async fn start() -> Self {
        let zookeeper = ZooKeeper::start();
        let store = Store::connect(&Settings::new(&zookeeper.connect(), "test"))
            .await
            .unwrap();
        store
            .create("/config", encode(&ClusterConfig::default()), Lifetime::Persistent)
            .await
            .unwrap();
        Self { zookeeper, store }
    }

    fn source(&self) -> Source {
        Source::start(Topology::ZooKeeper(Settings::new(&self.zookeeper.connect(), "test")))
    }

    async fn put(&self, place: &Place, bytes: Vec<u8>) {
        let path = place.to_string();
        match self.store.get(&path).await.unwrap() {
            None => self.store.create(&path, bytes, Lifetime::Persistent).await.unwrap(),
            Some(value) => drop(self.store.set(&path, bytes, value.version).await.unwrap()),
        }
    }

    fn state(epoch: u64, phase: Phase) -> ShardState {
        ShardState {
            epoch: Epoch(epoch),
            phase,
            executor: NodeId::from("a"),
            nonce: "n".to_owned(),
            master: Some(NodeId::from("a")),
            addr: Some(Addr::new("127.0.0.1", 7001)),
            run_id: Some(RunId::from("a1")),
            lineage: vec!["r1".to_owned()],
            members: ["a", "b"].map(NodeId::from).into(),
            valid: Default::default(),
            w: 1,
            switch: None,
            shrunk_from: 0,
            accept: None,
            moved: None,
        }
    }

    async fn put_state(&self, shard: &str, epoch: u64, phase: Phase) {
        let state = Self::state(epoch, phase);
        self.put(&Place::State(ShardId::from(shard)), encode(&state)).await;
    }

    /// Registers a node, as a mark that is seen behind whatever was written before.
    async fn put_node(&self, shard: &str, name: &str) {
        let info = NodeInfo {
            host: "h".to_owned(),
            redis: Addr::new("127.0.0.1", 7002),
            peer: Addr::new("127.0.0.1", 7202),
            run_id: None,
            role: None,
            replid: None,
            zone: String::new(),
            priority: 1,
            boot_id: String::new(),
        };
        let place = Place::Node(ShardId::from(shard), NodeId::from(name));
        self.put(&place, encode(&info)).await;
    }
}

fn has_node(snapshot: &Snapshot, name: &str) -> bool {
    snapshot
        .shards
        .iter()
        .flat_map(|shard| &shard.nodes)
        .any(|node| node.id.as_str() == name)
}

#[tokio::test]
async fn a_lower_epoch_is_never_taken_and_nonsense_changes_nothing() {
    let znodes = Znodes::start().await;
    let source = znodes.source();
    znodes.put_state("s1", 5, Phase::Serving).await;
    source.until("serving", |now| serves(now, 5)).await;

    znodes.put_state("s1", 4, Phase::Serving).await;
    znodes.put_node("s1", "mark-1").await;
    source.until("marked", |now| has_node(now, "mark-1")).await;
    assert!(serves(&source.now(), 5));

    let state = Place::State(ShardId::from("s1"));
    znodes.put(&state, b"nonsense".to_vec()).await;
    znodes
        .put(&Place::Slots, b"{\"version\":1,\"ranges\":[]}".to_vec())
        .await;
    let node = Place::Node(ShardId::from("s1"), NodeId::from("b"));
    znodes.put(&node, b"[]".to_vec()).await;
    znodes.put_node("s1", "mark-2").await;
    source.until("marked", |now| has_node(now, "mark-2")).await;
    assert!(serves(&source.now(), 5) && !has_node(&source.now(), "b"));

    // A proxy that starts now has no last good state: the shard has no master yet, and nobody is invented.
    let late = znodes.source();
    let snapshot = late.until("marked", |now| has_node(now, "mark-2")).await;
    assert_eq!(
        (snapshot.shards[0].epoch, snapshot.shards[0].phase),
        (Epoch(0), Phase::Electing)
    );

    znodes.put_state("s1", 6, Phase::Electing).await;
    znodes.put_state("s1", 6, Phase::Serving).await;
    source.until("repaired", |now| serves(now, 6)).await;
    late.until("repaired", |now| serves(now, 6)).await;
}

#[tokio::test]
async fn several_shards_need_slots_and_follow_them() {
    let znodes = Znodes::start().await;
    let source = znodes.source();
    let config = ShardConfig {
        ack_replicas: 0,
        ..ShardConfig::default()
    };
    for shard in ["s1", "s2"] {
        znodes
            .put(&Place::ShardConfig(ShardId::from(shard)), encode(&config))
            .await;
        znodes.put_state(shard, 1, Phase::Serving).await;
    }
    let ids = ["s1", "s2"].map(ShardId::from);
    znodes.put(&Place::Slots, encode(&Slots::spread(&ids))).await;
    let snapshot = source
        .until("two shards", |now| {
            now.shards.len() == 2 && now.shards.iter().all(|shard| shard.phase == Phase::Serving)
        })
        .await;
    assert_eq!(snapshot.slots.owner(Slot(0)), ShardIndex(0));
    assert_eq!(snapshot.slots.owner(Slot(16_383)), ShardIndex(1));
    let swapped = ["s2", "s1"].map(ShardId::from);
    znodes.put(&Place::Slots, encode(&Slots::spread(&swapped))).await;
    source
        .until("swapped", |now| now.slots.owner(Slot(0)) == ShardIndex(1))
        .await;
    // Slots of a shard that does not exist: what was known stays.
    let strange = ["s1", "s9"].map(ShardId::from);
    znodes.put(&Place::Slots, encode(&Slots::spread(&strange))).await;
    znodes.put(&Place::Slots, encode(&Slots::spread(&ids))).await;
    source
        .until("back", |now| now.slots.owner(Slot(0)) == ShardIndex(0))
        .await;
    assert_eq!(source.now().shards.len(), 2);
}

#[tokio::test]
async fn zookeeper_away_changes_nothing_and_what_was_missed_is_read_after() {
    let mut znodes = Znodes::start().await;
    let source = znodes.source();
    znodes.put_state("s1", 1, Phase::Serving).await;
    znodes.put_node("s1", "b").await;
    let before = source
        .until("serving", |now| serves(now, 1) && has_node(now, "b"))
        .await;
    until_registered(&znodes.store, 1).await;
    znodes.zookeeper.kill9();
    // The outage itself: longer than the session.
    let mut heard = source.heard.clone();
    heard.mark_unchanged();
    let outage = tokio::time::timeout(Duration::from_secs(6), heard.changed()).await;
    assert!(outage.is_err() && source.now() == before);
    znodes.zookeeper.restart();
    let connected = async {
        while znodes.store.get("/slots").await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, connected).await.unwrap();
    znodes.put_state("s1", 2, Phase::Serving).await;
    source.until("followed again", |now| serves(now, 2)).await;
    until_registered(&znodes.store, 2).await;
}

#[tokio::test]
async fn with_zookeeper_away_what_agents_relay_is_taken_and_never_goes_back() {
    let mut znodes = Znodes::start().await;
    let source = znodes.source();
    znodes.put_state("s1", 3, Phase::Serving).await;
    source.until("serving", |now| serves(now, 3)).await;
    znodes.zookeeper.kill9();
    let relay = async |version, epoch, phase| {
        let state = encode(&Znodes::state(epoch, phase));
        let relayed = Relayed {
            shard: ShardId::from("s1"),
            version,
            state: state.into(),
        };
        source.relays.send(relayed).await.unwrap();
    };
    relay(5, 4, Phase::Serving).await;
    source.until("relayed", |now| serves(now, 4)).await;
    // None of these is news: an older epoch, an older version, and a state that serves nobody.
    relay(9, 3, Phase::Serving).await;
    relay(4, 4, Phase::Serving).await;
    relay(6, 5, Phase::Electing).await;
    relay(7, 6, Phase::Serving).await;
    let snapshot = source.until("relayed", |now| serves(now, 6)).await;
    assert_eq!(snapshot.shards[0].phase, Phase::Serving);
    znodes.zookeeper.restart();
    source.end().await;
}

fn write(path: &Path, nodes: &[&Addr]) {
    let nodes: Vec<String> = nodes.iter().map(|addr| format!("\"{addr}\"")).collect();
    let text = format!("[[topology.shards]]\nid = \"s1\"\nnodes = [{}]\n", nodes.join(", "));
    fs::write(path, text).unwrap();
}

#[tokio::test]
async fn a_file_names_the_nodes_and_their_role_the_master() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("topology.toml");
    let (a, b) = (Server::start().await, Server::start().await);
    a.ask(&["REPLICAOF", "NO", "ONE"]).await;
    write(&path, &[&a.addr]);
    let source = Source::start(Topology::File(path.clone(), Default::default()));
    let points_to = |snapshot: &Snapshot, addr: Option<&Addr>| {
        snapshot
            .shards
            .iter()
            .any(|shard| shard.master.as_ref().map(|master| &master.addr) == addr)
    };
    let first = source
        .until("the master is found", |now| points_to(now, Some(&a.addr)))
        .await;
    // The file changes: a second node.
    write(&path, &[&b.addr, &a.addr]);
    let second = source
        .until("the file is read again", |now| now.shards[0].nodes.len() == 2)
        .await;
    assert_eq!(second.shards[0].epoch, first.shards[0].epoch, "the master is the same");
    // The file becomes nonsense: nothing changes.
    fs::write(&path, "nonsense").unwrap();
    // Two masters: none.
    b.ask(&["REPLICAOF", "NO", "ONE"]).await;
    let none = source.until("nobody is taken", |now| points_to(now, None)).await;
    assert!(none.shards[0].epoch > second.shards[0].epoch && none.shards[0].phase == Phase::Electing);
    a.ask(&["REPLICAOF", b.addr.host(), &b.addr.port().to_string()]).await;
    let last = source
        .until("the other one is left", |now| points_to(now, Some(&b.addr)))
        .await;
    assert!(serves(&last, none.shards[0].epoch.0 + 1));
    // A master that is silent stays until somebody else is one.
    b.signal("-STOP");
    let mut heard = source.heard.clone();
    heard.mark_unchanged();
    let changed = tokio::time::timeout(Duration::from_millis(1500), heard.changed()).await;
    assert!(changed.is_err(), "{:?}", source.now());
    b.signal("-CONT");
    source.end().await;
}

#[tokio::test]
async fn a_source_that_cannot_begin_says_why_in_a_sentence() {
    let missing = Path::new("/nowhere/topology.toml").to_owned();
    let error = Source::start(Topology::File(missing, Default::default()))
        .task
        .await
        .unwrap()
        .unwrap_err();
    let sentence = error.to_string();
    assert!(
        sentence.starts_with("cannot read the topology file /nowhere/topology.toml: No such file"),
        "{sentence}"
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("topology.toml");
    fs::write(&path, "[topology]\nshard = 1\n").unwrap();
    let error = Source::start(Topology::File(path.clone(), Default::default()))
        .task
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("{}:2: unknown field `shard`", path.display())),
        "{error}"
    );
    let znodes = Znodes::start().await;
    znodes.put(&Place::Config, b"{\"schema\":2}".to_vec()).await;
    let error = znodes.source().task.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("schema 2"), "{error}");
}
