//! Two Redis servers, a real ZooKeeper and a proxy that knows the secret; the test itself is the agents, and does what an
//! executor does step by step.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ::pointsman::peer::{self, Attach, Bulletin, Inbound, News, Request, Role};
use ::pointsman::store::{Lifetime, Settings, Store};
use ::pointsman::topology::codec::{ClusterConfig, NodeInfo, Place, ShardState, encode};
use ::pointsman::topology::{Addr, Course, Epoch, NodeId, Phase, RunId, ShardId, Switch};
use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Client, Pointsman, Redis, START_DEADLINE, Value, ZooKeeper, eventually, free_port};

const SOON: Duration = Duration::from_secs(20);
const SECRET: &[u8] = b"a secret of 16 bytes and more";
const NAMES: [&str; 2] = ["a", "b"];
/// The name of each claim.
const COURSE: &str = "n";

/// A shard of two nodes, `a` and `b`, before a proxy of one worker.
pub struct Stage {
    /// The servers of `a` and `b`.
    pub redis: [Redis; 2],
    /// The proxy.
    pub proxy: Pointsman,
    /// Where the proxy listens.
    pub listen: String,
    /// Which of them is the master.
    pub master: usize,
    /// The epoch that was published last.
    pub epoch: u64,
    store: Store,
    asked: mpsc::Receiver<Inbound>,
    news: watch::Sender<Bulletin>,
    runtime: Runtime,
    _zookeeper: ZooKeeper,
    _dir: tempfile::TempDir,
}

impl Stage {
    /// Starts everything: `a` is the master in epoch 1, `b` follows it, the proxy serves and is connected to the agents.
    #[track_caller]
    pub fn start() -> Self {
        Self::with("")
    }

    /// The same with lines of the proxy's config.
    #[track_caller]
    pub fn with(config: &str) -> Self {
        let redis = [(), ()].map(|()| Redis::start(&["--repl-diskless-sync-delay", "0"]));
        let zookeeper = ZooKeeper::start();
        let runtime = Runtime::new().unwrap();
        let connect = zookeeper.connect();
        let store = runtime
            .block_on(Store::connect(&Settings::new(&connect, "test")))
            .unwrap();
        let (peer, asked, news) = runtime.block_on(agents());
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, SECRET).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&secret, private).unwrap();
        let file = dir.path().join("proxy.toml");
        std::fs::write(&file, format!("[proxy]\n{config}")).unwrap();
        let listen = format!("127.0.0.1:{}", free_port());
        let mut stage = Self {
            redis,
            // It waits for its topology.
            proxy: Pointsman::start(&[
                "proxy",
                "--listen",
                &listen,
                "--zookeeper",
                &connect,
                "--cluster",
                "test",
                "--config",
                file.to_str().unwrap(),
                "--secret-file",
                secret.to_str().unwrap(),
                "--workers",
                "1",
            ]),
            listen,
            master: 0,
            epoch: 1,
            store,
            asked,
            news,
            runtime,
            _zookeeper: zookeeper,
            _dir: dir,
        };
        stage.follow(1);
        stage.admit(0, 1);
        stage.put(&Place::Config, encode(&ClusterConfig::default()));
        for (name, redis) in NAMES.iter().zip(&stage.redis) {
            let info = NodeInfo {
                host: "h".to_owned(),
                redis: Addr::new("127.0.0.1", redis.port()),
                peer: peer.clone(),
                run_id: Some(run_id(redis)),
                role: None,
                replid: None,
                zone: String::new(),
                priority: 1,
                boot_id: String::new(),
            };
            let place = Place::Node(shard(), NodeId::from(*name));
            stage.put(&place, encode(&info));
        }
        stage.publish();
        stage
            .proxy
            .wait_for_line(START_DEADLINE, |line| line.contains("the master serves"));
        stage
    }

    /// A new client of the proxy.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(self.listen.as_str())
    }

    /// The one that is no master.
    pub fn other(&self) -> usize {
        1 - self.master
    }

    /// All steps of a planned move to the other node, as they are when everybody is quick.
    #[track_caller]
    pub fn switch_over(&mut self) {
        self.begin();
        self.drained();
        self.fence();
        self.attach();
        self.attached();
        self.promote();
        self.publish();
        self.served();
        self.follow(self.other());
    }

    /// S0: the state says that the master is being moved.
    #[track_caller]
    pub fn begin(&mut self) {
        let mut state = self.state();
        state.phase = Phase::Switching;
        state.switch = Some(Switch {
            to: NodeId::from(NAMES[self.other()]),
            epoch: Epoch(self.epoch + 1),
            request: String::new(),
            course: None,
        });
        self.put_state(&state);
    }

    /// Takes that back.
    #[track_caller]
    pub fn roll_back(&mut self) {
        let state = self.state();
        self.put_state(&state);
    }

    /// S1: waits until the proxy has no write in flight.
    #[track_caller]
    pub fn drained(&mut self) {
        let epoch = Epoch(self.epoch + 1);
        self.await_request(|request| *request == Request::Drained(shard(), epoch, Some(Course::from(COURSE))));
    }

    /// S2: the old master takes no writes and no proxies any more, and everything it wrote reaches the other node.
    #[track_caller]
    pub fn fence(&self) {
        let user = peer::name(Role::Proxy, Epoch(self.epoch));
        let mut fence = self.redis[self.master].client();
        for step in [
            &["MULTI"][..],
            &["ACL", "DELUSER", &user],
            &["REPLICAOF", "127.0.0.1", "1"],
            &["INFO", "replication"],
        ] {
            fence.command(step);
        }
        let Value::Array(done) = fence.command(&["EXEC"]) else {
            panic!("the fence is refused");
        };
        let wanted: u64 = field(&done[2].text(), "master_repl_offset").parse().unwrap();
        eventually(SOON, || {
            let there = self.redis[self.other()].command(&["INFO", "replication"]).text();
            field(&there, "slave_repl_offset")
                .parse()
                .is_ok_and(|at: u64| at >= wanted)
        });
    }

    /// S3: tells the proxy to bring what hears to the other node.
    #[track_caller]
    pub fn attach(&self) {
        let redis = &self.redis[self.other()];
        self.attach_at(Addr::new("127.0.0.1", redis.port()));
    }

    /// The same with another address than the node's.
    #[track_caller]
    pub fn attach_at(&self, addr: Addr) {
        let attach = Attach {
            shard: shard(),
            epoch: Epoch(self.epoch + 1),
            node: NodeId::from(NAMES[self.other()]),
            addr,
            run_id: run_id(&self.redis[self.other()]),
            course: Some(Course::from(COURSE)),
        };
        self.news.send_if_modified(|told| told.post(News::Attach(attach)));
    }

    /// Waits until the proxy says that it did.
    #[track_caller]
    pub fn attached(&mut self) {
        let epoch = Epoch(self.epoch + 1);
        self.await_request(|request| *request == Request::Attached(shard(), epoch, Some(Course::from(COURSE))));
    }

    /// S4: the other node is promoted in the next epoch, and is the one to be published.
    #[track_caller]
    pub fn promote(&mut self) {
        self.promote_in(self.other(), self.epoch + 1);
    }

    /// A node is promoted in an epoch.
    #[track_caller]
    pub fn promote_in(&mut self, node: usize, epoch: u64) {
        (self.master, self.epoch) = (node, epoch);
        assert_eq!(self.redis[node].command(&["REPLICAOF", "NO", "ONE"]), Value::ok());
        self.admit(node, epoch);
    }

    /// S5: publishes the master.
    #[track_caller]
    pub fn publish(&mut self) {
        let state = self.state();
        self.put_state(&state);
    }

    /// Waits until the proxy gives the master all kinds of requests.
    #[track_caller]
    pub fn served(&mut self) {
        let epoch = format!(" epoch={} ", self.epoch);
        let serves = |line: &str| line.contains("the master serves") && line.contains(&epoch);
        self.proxy.wait_for_line(SOON, serves);
    }

    /// Publishes that there is none.
    #[track_caller]
    pub fn elect(&mut self) {
        let mut state = self.state();
        state.phase = Phase::Electing;
        self.put_state(&state);
    }

    /// A node follows the master, and knows its proxies.
    #[track_caller]
    pub fn follow(&self, node: usize) {
        let port = self.redis[self.master].port().to_string();
        let follower = &self.redis[node];
        assert_eq!(follower.command(&["REPLICAOF", "127.0.0.1", &port]), Value::ok());
        self.admit(node, self.epoch);
        eventually(SOON, || {
            let info = follower.command(&["INFO", "replication"]).text();
            info.contains("master_link_status:up") && info.contains("master_sync_in_progress:0")
        });
    }

    /// Makes the proxies' user of an epoch.
    #[track_caller]
    fn admit(&self, node: usize, epoch: u64) {
        let name = peer::name(Role::Proxy, Epoch(epoch));
        let life = run_id(&self.redis[self.master]);
        let token = format!(">{}", peer::token(SECRET, Role::Proxy, &shard(), Epoch(epoch), &life));
        let rule = "reset on &* +@connection +@pubsub +role +info +time +config|get +wait +select +script +command";
        let mut command = vec!["ACL", "SETUSER", &name, &token];
        command.splice(3..3, rule.split(' '));
        assert_eq!(self.redis[node].command(&command), Value::ok());
    }

    fn state(&self) -> ShardState {
        let master = NodeId::from(NAMES[self.master]);
        ShardState {
            epoch: Epoch(self.epoch),
            phase: Phase::Serving,
            executor: NodeId::from(NAMES[self.master]),
            nonce: COURSE.to_owned(),
            addr: Some(Addr::new("127.0.0.1", self.redis[self.master].port())),
            run_id: Some(run_id(&self.redis[self.master])),
            master: Some(master),
            lineage: vec!["r1".to_owned()],
            members: BTreeSet::from(NAMES.map(NodeId::from)),
            valid: Default::default(),
            w: 0,
            switch: None,
            shrunk_from: 0,
            accept: None,
            moved: None,
        }
    }

    #[track_caller]
    fn put_state(&self, state: &ShardState) {
        self.put(&Place::State(shard()), encode(state));
    }

    #[track_caller]
    fn put(&self, place: &Place, bytes: Vec<u8>) {
        let path = place.to_string();
        let put = async {
            match self.store.get(&path).await? {
                None => self.store.create(&path, bytes, Lifetime::Persistent).await,
                Some(value) => self.store.set(&path, bytes, value.version).await.map(drop),
            }
        };
        self.runtime.block_on(put).unwrap();
    }

    /// Answers what the proxy says until it says what is wanted.
    #[track_caller]
    fn await_request(&mut self, wanted: impl Fn(&Request) -> bool) {
        let asked = &mut self.asked;
        let waiting = async {
            while let Some(inbound) = asked.recv().await {
                let found = wanted(&inbound.request);
                // It may have left meanwhile.
                let _ = inbound.reply.send(Bytes::from_static(b"\"noted\""));
                if found {
                    return;
                }
            }
        };
        let heard = self.runtime.block_on(async { timeout(SOON, waiting).await });
        assert!(heard.is_ok(), "the proxy does not say it: {}", self.proxy.log());
    }
}

async fn agents() -> (Addr, mpsc::Receiver<Inbound>, watch::Sender<Bulletin>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = Addr::new("127.0.0.1", listener.local_addr().unwrap().port());
    let (sender, asked) = mpsc::channel(1024);
    let (news, heard) = watch::channel(Bulletin::default());
    let secret: Arc<[u8]> = Arc::from(SECRET);
    tokio::spawn(peer::serve(listener, secret, sender, heard, CancellationToken::new()));
    (addr, asked, news)
}

fn shard() -> ShardId {
    ShardId::from("s1")
}

fn run_id(redis: &Redis) -> RunId {
    RunId::from(field(&redis.command(&["INFO", "server"]).text(), "run_id").as_str())
}

/// The value of a line of INFO; empty if there is none.
pub fn field(info: &str, name: &str) -> String {
    let value = |line: &str| {
        line.strip_prefix(name)?
            .strip_prefix(':')
            .map(|value| value.trim().to_owned())
    };
    info.lines().find_map(value).unwrap_or_default()
}
