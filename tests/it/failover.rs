//! Whole agents on real redis-servers, with a store in memory: what a failover does and how long it takes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pointsman::agent::host::{Claim, Reports, Settings, StoreEvent, StoreRequest, StoreSeam, run};
use pointsman::agent::machine::action::Written;
use pointsman::agent::machine::facts::Role;
use pointsman::agent::machine::state::{MasterOf, State, Versioned};
use pointsman::agent::machine::timings::Timings;
use pointsman::clock;
use pointsman::topology::{Addr, NodeId, ShardId};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::agent::Server;

const LIMIT: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Store {
    state: Option<Versioned>,
    agents: BTreeMap<NodeId, (Addr, Addr, mpsc::Sender<StoreEvent>)>,
}

impl Store {
    fn tell_all(&self, event: &StoreEvent) {
        for (_, _, agent) in self.agents.values() {
            let _ = agent.try_send(event.clone());
        }
    }

    fn handle(&mut self, from: &NodeId, request: StoreRequest) {
        let answer = match request {
            StoreRequest::Write(expect, state) => {
                let version = self.state.as_ref().map(|known| known.version);
                let next = version.map_or(0, |version| version + 1);
                if version == expect {
                    self.state = Some(Versioned { version: next, state });
                    let event = StoreEvent::State(self.state.clone().unwrap());
                    self.tell_all(&event);
                }
                StoreEvent::Written(if version == expect {
                    Written::Done(next)
                } else {
                    Written::Conflict
                })
            }
            StoreRequest::Read => StoreEvent::Synced(self.state.clone()),
            StoreRequest::Suspect(_)
            | StoreRequest::Relay(_)
            | StoreRequest::Record(_)
            | StoreRequest::Attach(_)
            | StoreRequest::Lost(..)
            | StoreRequest::Describe(_) => {
                return;
            }
        };
        let _ = self.agents[from].2.try_send(answer);
    }
}

struct Shard {
    store: Arc<Mutex<Store>>,
    nodes: BTreeMap<NodeId, Server>,
    stops: BTreeMap<NodeId, CancellationToken>,
    dir: tempfile::TempDir,
}

impl Shard {
    async fn start() -> Self {
        let mut shard = Self {
            store: Arc::default(),
            nodes: BTreeMap::new(),
            stops: BTreeMap::new(),
            dir: tempfile::tempdir().unwrap(),
        };
        for id in ["a", "b", "c"].map(NodeId::from) {
            shard.nodes.insert(id, Server::start().await);
        }
        for id in ["a", "b", "c"].map(NodeId::from) {
            shard.start_agent(&id).await;
        }
        shard
    }

    async fn start_agent(&mut self, id: &NodeId) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Addr::new("127.0.0.1", listener.local_addr().unwrap().port());
        let redis = self.nodes[id].addr.clone();
        let settings = Settings {
            node: id.clone(),
            shard: ShardId::from("s1"),
            redis: redis.clone(),
            login: Default::default(),
            secret: Arc::from(b"secret".as_slice()),
            members: ["a", "b", "c"].map(NodeId::from).into(),
            ack_replicas: 0,
            priority: 100,
            data_dir: self.dir.path().join(id.as_str()),
            timings: Timings::default(),
        };
        let (told, events) = mpsc::channel(64);
        let (requests, mut asked) = mpsc::channel(64);
        let stop = CancellationToken::new();
        {
            let mut store = self.store.lock().unwrap();
            told.try_send(StoreEvent::Synced(store.state.clone())).unwrap();
            store.agents.insert(id.clone(), (redis, peer, told));
            let nodes = store
                .agents
                .iter()
                .map(|(id, (redis, peer, _))| (id.clone(), redis.clone(), peer.clone()));
            let event = StoreEvent::Nodes(nodes.collect());
            store.tell_all(&event);
        }
        let (store, from) = (Arc::clone(&self.store), id.clone());
        tokio::spawn(async move {
            while let Some(request) = asked.recv().await {
                store.lock().unwrap().handle(&from, request);
            }
        });
        let (news, heard) = watch::channel(pointsman::peer::Bulletin::default());
        let seam = StoreSeam {
            events,
            requests,
            reports: Reports::default(),
            claim: Claim::unrivalled(),
        };
        let running = run(settings, listener, heard, seam, stop.clone());
        tokio::spawn(async move {
            let _news = news;
            running.await.unwrap();
        });
        self.stops.insert(id.clone(), stop);
    }

    fn state(&self) -> Option<State> {
        self.store
            .lock()
            .unwrap()
            .state
            .as_ref()
            .map(|known| known.state.clone())
    }

    /// Waits for a published state that satisfies `wanted`.
    async fn until(&self, what: &str, wanted: impl Fn(&State, &MasterOf) -> bool) -> (State, MasterOf) {
        let end = clock::now() + LIMIT;
        loop {
            let state = self.state();
            if let Some(state) = &state
                && let Some(master) = state.serving()
                && wanted(state, master)
            {
                return (state.clone(), master.clone());
            }
            assert!(clock::now() < end, "not {what}: {state:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn whole(&self) -> MasterOf {
        self.until("whole", |state, _| state.valid.len() == 3).await.1
    }
}

#[tokio::test]
async fn a_killed_master_is_replaced_and_again() {
    let mut shard = Shard::start().await;
    let first = shard.whole().await;
    shard.nodes[&first.node].ask(&["SET", "k", "v"]).await;
    for (id, server) in &shard.nodes {
        server.until(&format!("{id} replicated"), |facts| facts.keys == 1).await;
    }
    let start = clock::now();
    shard.nodes[&first.node].signal("-KILL");
    let (_, second) = shard.until("replaced", |_, master| master.node != first.node).await;
    let took = clock::now() - start;
    assert!(took < Duration::from_millis(500), "{took:?}");
    println!("kill -9 to published: {took:?}");
    let server = &shard.nodes[&second.node];
    server
        .until("master", |facts| facts.role == Role::Master && facts.keys == 1)
        .await;
    // The old one comes back empty at its port and wipes nobody.
    let port = first.addr.port();
    let back = Server::start_on(port, &["--replicaof", "127.0.0.1", "1"]).await;
    shard.nodes.insert(first.node.clone(), back);
    shard.until("whole again", |state, _| state.valid.len() == 3).await;
    shard.nodes[&first.node]
        .until("refilled", |facts| facts.keys == 1)
        .await;
    shard.nodes[&second.node].signal("-KILL");
    let (_, third) = shard
        .until("replaced again", |_, master| master.node != second.node)
        .await;
    shard.nodes[&third.node]
        .until("master", |facts| facts.role == Role::Master && facts.keys == 1)
        .await;
}

#[tokio::test]
async fn a_stopped_master_is_replaced_and_follows_when_it_goes_on() {
    let shard = Shard::start().await;
    let first = shard.whole().await;
    shard.nodes[&first.node].signal("-STOP");
    let start = clock::now();
    let (_, second) = shard.until("replaced", |_, master| master.node != first.node).await;
    assert!(
        clock::now() - start >= Duration::from_millis(800),
        "a hang is not a death"
    );
    shard.nodes[&first.node].signal("-CONT");
    shard.nodes[&first.node]
        .until("following", |facts| {
            facts.follows.as_ref() == Some(&second.addr) && facts.link_up
        })
        .await;
    shard.whole().await;
}

#[tokio::test]
async fn an_agent_that_ends_and_comes_back_changes_nothing() {
    let mut shard = Shard::start().await;
    let first = shard.whole().await;
    let epoch = shard.state().unwrap().epoch;
    shard.stops[&first.node].cancel();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    shard.start_agent(&first.node).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let state = shard.state().unwrap();
    assert_eq!((state.epoch, state.serving()), (epoch, Some(&first)));
}
