//! A planned change of master as the proxy goes through it: an executor by hand, real servers, a real ZooKeeper.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use pointsman::peer::{self, Attach, Bulletin, Inbound, News, Relayed, Report, Request, Role};
use pointsman::store::{Lifetime, Settings, Store};
use pointsman::topology::codec::{self, ClusterConfig, NodeInfo, Place, ProxyInfo, ShardState, decode};
use pointsman::topology::{Addr, Course, Epoch, NodeId, Phase, RunId, ShardId, Switch};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::support::{Client, Pointsman, Redis, Value, ZooKeeper, encode, eventually, free_port};

const SOON: Duration = Duration::from_secs(20);
const SECRET: &[u8] = b"a secret of the cluster";
const NAMES: [&str; 2] = ["a", "b"];
/// The name of each claim.
const COURSE: &str = "n";

/// An agent's ear and mouth: what it is told, and what it tells.
struct Agent {
    addr: Addr,
    news: watch::Sender<Bulletin>,
}

/// Two nodes, of which one is master, and a proxy of two workers before them.
pub struct Bench {
    runtime: Runtime,
    pub zookeeper: ZooKeeper,
    store: Store,
    pub nodes: [Redis; 2],
    lives: [RunId; 2],
    agents: [Agent; 2],
    told: Arc<Mutex<Vec<(String, Request)>>>,
    pub proxy: Pointsman,
    listen: String,
    epoch: u64,
    master: usize,
    dir: tempfile::TempDir,
}

fn shard() -> ShardId {
    ShardId::from("s1")
}

fn addr(redis: &Redis) -> Addr {
    Addr::new("127.0.0.1", redis.port())
}

fn info(redis: &Redis, section: &str, field: &str) -> String {
    let text = redis.command(&["INFO", section]).text();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.unwrap_or_default().to_owned()
}

fn run_id(redis: &Redis) -> RunId {
    RunId::new(info(redis, "server", "run_id"))
}

async fn agent(told: Arc<Mutex<Vec<(String, Request)>>>, name: &'static str) -> Agent {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = Addr::new("127.0.0.1", listener.local_addr().unwrap().port());
    let (requests, mut asked) = mpsc::channel::<Inbound>(16);
    let (news, heard) = watch::channel(Bulletin::default());
    tokio::spawn(peer::serve(
        listener,
        SECRET.into(),
        requests,
        heard,
        CancellationToken::new(),
    ));
    tokio::spawn(async move {
        while let Some(inbound) = asked.recv().await {
            assert_eq!(inbound.id, "proxy-1");
            told.lock().unwrap().push((name.to_owned(), inbound.request));
            let _ = inbound.reply.send("noted".into());
        }
    });
    Agent { addr, news }
}

impl Bench {
    /// The first master is `a`, in epoch 1.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(args: &[&str]) -> Self {
        let runtime = Runtime::new().unwrap();
        let zookeeper = ZooKeeper::start();
        let args = [&["--repl-diskless-sync-delay", "0"], args].concat();
        let nodes = [Redis::start(&args), Redis::start(&args)];
        let told: Arc<Mutex<Vec<(String, Request)>>> = Arc::default();
        let agents = NAMES.map(|name| runtime.block_on(agent(told.clone(), name)));
        let store = runtime.block_on(async {
            let store = Store::connect(&Settings::new(&zookeeper.connect(), "test"))
                .await
                .unwrap();
            let config = codec::encode(&ClusterConfig::default());
            store.create("/config", config, Lifetime::Persistent).await.unwrap();
            store
        });
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, SECRET).unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let listen = format!("127.0.0.1:{}", free_port());
        let proxy = Pointsman::start(&[
            "proxy",
            "--id",
            "proxy-1",
            "--listen",
            &listen,
            "--zookeeper",
            &zookeeper.connect(),
            "--cluster",
            "test",
            "--workers",
            "2",
            "--secret-file",
            secret.to_str().unwrap(),
        ]);
        let bench = Self {
            runtime,
            zookeeper,
            store,
            lives: [run_id(&nodes[0]), run_id(&nodes[1])],
            nodes,
            agents,
            told,
            proxy,
            listen,
            epoch: 1,
            master: 0,
            dir,
        };
        bench.follow(1, 0);
        eventually(SOON, || {
            info(&bench.nodes[1], "replication", "master_link_status") == "up"
        });
        bench.admit(0, 1, 0);
        bench.register(0);
        bench.register(1);
        bench.publish(Phase::Serving, None);
        // The accepting end has one; each connection has its own.
        eventually(SOON, || {
            bench.agents.iter().all(|agent| agent.news.receiver_count() > 1)
        });
        // Both workers: one that has served no master has no change to report.
        bench.log_has("the master serves", 2);
        bench
    }

    pub fn client(&self) -> Client {
        Client::connect(self.listen.as_str())
    }

    /// Makes the proxies' user of an epoch whose master is `master`.
    fn admit(&self, at: usize, epoch: u64, master: usize) {
        let token = peer::token(SECRET, Role::Proxy, &shard(), Epoch(epoch), &self.lives[master]);
        let (user, token) = (format!("px-{epoch}"), format!(">{token}"));
        let rights = [
            "+@connection",
            "+select",
            "+@pubsub",
            "+role",
            "+info",
            "+time",
            "+config|get",
            "+wait",
            "+script",
            "+command",
        ];
        let command = [&["ACL", "SETUSER", &user, "reset", "on", &token, "&*"], &rights[..]].concat();
        assert_eq!(self.nodes[at].command(&command), Value::ok());
    }

    fn follow(&self, at: usize, master: usize) {
        let port = self.nodes[master].port().to_string();
        assert_eq!(self.nodes[at].command(&["REPLICAOF", "127.0.0.1", &port]), Value::ok());
        self.admit(at, self.epoch, master);
    }

    fn put(&self, place: &Place, bytes: Vec<u8>) {
        let path = place.to_string();
        self.runtime.block_on(async {
            match self.store.get(&path).await.unwrap() {
                None => self.store.create(&path, bytes, Lifetime::Persistent).await.unwrap(),
                Some(value) => drop(self.store.set(&path, bytes, value.version).await.unwrap()),
            }
        });
    }

    fn register(&self, at: usize) {
        let node = NodeInfo {
            host: "h".to_owned(),
            redis: addr(&self.nodes[at]),
            peer: self.agents[at].addr.clone(),
            run_id: Some(self.lives[at].clone()),
            role: None,
            replid: None,
            zone: String::new(),
            priority: 100,
            boot_id: String::new(),
        };
        self.put(&Place::Node(shard(), NodeId::from(NAMES[at])), codec::encode(&node));
    }

    fn state(&self, phase: Phase, switch: Option<Switch>) -> ShardState {
        ShardState {
            epoch: Epoch(self.epoch),
            phase,
            executor: NodeId::from(NAMES[self.master]),
            nonce: COURSE.to_owned(),
            master: Some(NodeId::from(NAMES[self.master])),
            addr: Some(addr(&self.nodes[self.master])),
            run_id: Some(self.lives[self.master].clone()),
            lineage: Vec::new(),
            members: NAMES.map(NodeId::from).into(),
            valid: Default::default(),
            w: 0,
            switch,
            shrunk_from: 0,
            accept: None,
            moved: None,
        }
    }

    fn publish(&self, phase: Phase, switch: Option<Switch>) {
        self.put(&Place::State(shard()), codec::encode(&self.state(phase, switch)));
    }

    fn target(&self) -> usize {
        1 - self.master
    }

    /// S0: the master is to be the other node.
    pub fn switching(&self) {
        let switch = Switch {
            to: NodeId::from(NAMES[self.target()]),
            epoch: Epoch(self.epoch + 1),
            request: String::new(),
            course: None,
        };
        self.publish(Phase::Switching, Some(switch));
    }

    pub fn roll_back(&self) {
        self.publish(Phase::Serving, None);
    }

    fn has_told(&self, wanted: impl Fn(&str, &Request) -> bool) -> bool {
        self.told
            .lock()
            .unwrap()
            .iter()
            .any(|(agent, request)| wanted(agent, request))
    }

    fn is_drained(&self) -> bool {
        let drained = Request::Drained(shard(), Epoch(self.epoch + 1), Some(Course::from(COURSE)));
        self.has_told(|agent, request| agent == NAMES[self.master] && *request == drained)
    }

    pub fn until_drained(&self) {
        eventually(SOON, || self.is_drained());
    }

    fn forget_told(&self) {
        self.told.lock().unwrap().clear();
    }

    /// S2: what the target has to reach.
    pub fn fence(&self) -> i64 {
        let mut client = self.nodes[self.master].client();
        client.command(&["MULTI"]);
        client.command(&["ACL", "DELUSER", &format!("px-{}", self.epoch)]);
        client.command(&["REPLICAOF", "127.0.0.1", "1"]);
        client.command(&["INFO", "replication"]);
        let Value::Array(replies) = client.command(&["EXEC"]) else {
            panic!("the fence is refused");
        };
        let text = replies.last().unwrap().text();
        let offset = text.lines().find_map(|line| line.strip_prefix("slave_repl_offset:"));
        offset.unwrap().parse().unwrap()
    }

    pub fn reach(&self, offset: i64) {
        let target = &self.nodes[self.target()];
        eventually(SOON, || {
            let applied: i64 = info(target, "replication", "slave_repl_offset").parse().unwrap();
            applied >= offset
        });
    }

    /// S3: what hears moves.
    pub fn attach(&self) {
        let target = self.target();
        let attach = Attach {
            shard: shard(),
            epoch: Epoch(self.epoch + 1),
            node: NodeId::from(NAMES[target]),
            addr: addr(&self.nodes[target]),
            run_id: self.lives[target].clone(),
            course: Some(Course::from(COURSE)),
        };
        let attached = Request::Attached(shard(), attach.epoch, attach.course.clone());
        self.agents[self.master]
            .news
            .send_if_modified(|told| told.post(News::Attach(attach)));
        eventually(SOON, || self.has_told(|_, request| *request == attached));
    }

    /// S4, without the publication.
    pub fn promote(&mut self) {
        let (old, new) = (self.master, self.target());
        self.nodes[new].command(&["ACL", "DELUSER", &format!("px-{}", self.epoch)]);
        (self.epoch, self.master) = (self.epoch + 1, new);
        self.admit(new, self.epoch, new);
        assert_eq!(self.nodes[new].command(&["REPLICAOF", "NO", "ONE"]), Value::ok());
        self.follow(old, new);
    }

    pub fn publish_master(&self) {
        self.publish(Phase::Serving, None);
    }

    /// The whole move.
    pub fn switch_over(&mut self) {
        self.switching();
        self.until_drained();
        let offset = self.fence();
        self.reach(offset);
        self.attach();
        self.promote();
        self.publish_master();
        eventually(SOON, || self.report().is_some());
    }

    /// What the proxy reported of the last change.
    fn report(&self) -> Option<Report> {
        let told = self.told.lock().unwrap();
        told.iter().find_map(|(agent, request)| match request {
            Request::Report(_, epoch, report) if *epoch == Epoch(self.epoch) && agent == NAMES[self.master] => {
                Some(report.clone())
            }
            _ => None,
        })
    }

    fn log_has(&self, text: &str, times: usize) {
        eventually(SOON, || self.proxy.log().matches(text).count() >= times);
    }
}

#[test]
fn the_proxy_says_that_it_drains() {
    let bench = Bench::start();
    let path = Place::Proxy("proxy-1".to_owned()).to_string();
    let value = bench.runtime.block_on(bench.store.get(&path)).unwrap().unwrap();
    assert!(decode::<ProxyInfo>(&value.bytes, &path).unwrap().drains);
    assert!(bench.dir.path().join("secret").exists());
}

#[test]
fn writes_wait_while_the_master_moves_and_go_on_when_it_stays_after_all() {
    let mut bench = Bench::start();
    let (mut writer, mut reader, mut mixed) = (bench.client(), bench.client(), bench.client());
    for client in [&mut writer, &mut reader, &mut mixed] {
        assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
    }
    let connections = |bench: &Bench| {
        let list = bench.nodes[0].command(&["CLIENT", "LIST"]).text();
        let ids = list
            .lines()
            .filter(|line| line.contains("cmd=set") || line.contains("cmd=get"));
        ids.map(|line| line.split(' ').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let before = connections(&bench);
    bench.switching();
    bench.until_drained();
    writer.send(b"SET k 2\r\n");
    mixed.send(b"GET k\r\nINCR n\r\nGET n\r\n");
    assert_eq!(reader.command(&["GET", "k"]), Value::bulk("1"), "reads ride on");
    assert_eq!(mixed.read_reply(), Value::bulk("1"));
    for held in [&writer, &mixed] {
        held.set_read_timeout(Duration::from_millis(200));
    }
    assert!(
        writer.try_read_reply().is_err() && mixed.try_read_reply().is_err(),
        "writes wait"
    );
    bench.roll_back();
    for held in [&writer, &mixed] {
        held.set_read_timeout(SOON);
    }
    assert_eq!(writer.read_reply(), Value::ok());
    assert_eq!(mixed.read_reply(), Value::Int(1));
    assert_eq!(mixed.read_reply(), Value::bulk("1"));
    assert_eq!(reader.command(&["GET", "k"]), Value::bulk("2"));
    let after = connections(&bench);
    assert!(before.iter().all(|lane| after.contains(lane)), "{before:?} {after:?}");
    // A second attempt, to the same reserved epoch, is another one.
    bench.forget_told();
    bench.switch_over();
    assert_eq!(writer.command(&["SET", "k", "3"]), Value::ok());
    assert_eq!(bench.nodes[1].command(&["GET", "k"]), Value::bulk("3"));
    bench.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn drained_is_said_once_the_last_write_is_answered() {
    let bench = Bench::start();
    let mut client = bench.client();
    assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
    let mut other = bench.client();
    bench.nodes[0].stop();
    client.send(b"APPEND k 2\r\n");
    eventually(SOON, || {
        other.command(&["CLIENT", "LIST"]).text().contains("cmd=append")
    });
    bench.switching();
    bench.log_has("writes are held", 2);
    assert!(!bench.is_drained());
    bench.nodes[0].cont();
    assert_eq!(client.read_reply(), Value::Int(2));
    bench.until_drained();
}

#[test]
fn what_blocks_does_not_hold_up_a_move_and_gets_its_value_after_it() {
    let mut bench = Bench::start();
    let (mut popper, mut hasty, mut pusher) = (bench.client(), bench.client(), bench.client());
    popper.send(b"BLPOP q 60\r\nINCR after\r\n");
    hasty.send(b"BLPOP other 2\r\n");
    let blocked = |redis: &Redis| info(redis, "clients", "blocked_clients");
    eventually(SOON, || blocked(&bench.nodes[0]) == "2");
    bench.switch_over();
    eventually(SOON, || {
        blocked(&bench.nodes[1]) == "2" || blocked(&bench.nodes[1]) == "1"
    });
    assert_eq!(pusher.command(&["RPUSH", "q", "v"]), Value::Int(1));
    let popped = Value::Array(vec![Value::bulk("q"), Value::bulk("v")]);
    assert_eq!(popper.read_reply(), popped);
    assert_eq!(popper.read_reply(), Value::Int(1));
    assert_eq!(hasty.read_reply(), Value::Null);
    // A second move with somebody who was asked again already.
    popper.send(b"BLPOP q 60\r\n");
    eventually(SOON, || blocked(&bench.nodes[1]) == "1");
    bench.switch_over();
    eventually(SOON, || blocked(&bench.nodes[0]) == "1");
    bench.switch_over();
    assert_eq!(pusher.command(&["RPUSH", "q", "w"]), Value::Int(1));
    assert_eq!(
        popper.read_reply(),
        Value::Array(vec![Value::bulk("q"), Value::bulk("w")])
    );
    bench.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn pipelines_pass_through_moves_without_an_error_a_loss_or_a_duplicate() {
    const COMMANDS: usize = 100_000;
    let mut bench = Bench::start();
    let mut clients: Vec<Client> = (0..3).map(|_| bench.client()).collect();
    thread::scope(|scope| {
        for (number, client) in clients.iter_mut().enumerate() {
            let mut writer = client.stream().try_clone().unwrap();
            scope.spawn(move || {
                let pipeline: Vec<u8> = (0..COMMANDS)
                    .flat_map(|n| format!("INCR n{number}\r\nSET k{number} {n}\r\nGET k{number}\r\n").into_bytes())
                    .collect();
                std::io::Write::write_all(&mut writer, &pipeline).unwrap();
            });
            scope.spawn(move || {
                for n in 0..COMMANDS {
                    assert_eq!(
                        client.read_reply(),
                        Value::Int(i64::try_from(n).unwrap() + 1),
                        "INCR {n}"
                    );
                    assert_eq!(client.read_reply(), Value::ok(), "SET {n}");
                    assert_eq!(client.read_reply(), Value::bulk(&n.to_string()), "GET {n}");
                }
            });
        }
        for _ in 0..4 {
            bench.switch_over();
            let report = bench.report().unwrap();
            println!("{report:?}");
            assert_eq!((report.indoubt, report.failed), (0, 0));
        }
    });
    for number in 0..3 {
        let count = bench.nodes[0].command(&["GET", &format!("n{number}")]);
        assert_eq!(count, Value::bulk(&COMMANDS.to_string()));
    }
    bench.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_wait_after_a_move_is_asked_of_the_new_master() {
    let mut bench = Bench::start();
    let mut client = bench.client();
    assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
    bench.switch_over();
    eventually(SOON, || {
        info(&bench.nodes[0], "replication", "master_link_status") == "up"
    });
    assert_eq!(client.command(&["WAIT", "1", "5000"]), Value::Int(1));
    // After an election, whatever it was for, nobody vouches for what came before.
    assert_eq!(client.command(&["SET", "k", "2"]), Value::ok());
    let offset = bench.fence();
    bench.reach(offset);
    bench.promote();
    bench.publish_master();
    eventually(SOON, || bench.report().is_some());
    assert_eq!(client.command(&["WAIT", "1", "100"]), Value::Int(0));
}

#[test]
fn a_proxy_cut_off_from_zookeeper_follows_what_agents_relay() {
    let mut bench = Bench::start();
    let mut client = bench.client();
    assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
    bench.zookeeper.stop();
    let offset = bench.fence();
    bench.reach(offset);
    bench.promote();
    let relayed = News::State(Relayed {
        shard: shard(),
        version: 1,
        state: codec::encode(&bench.state(Phase::Serving, None)).into(),
    });
    bench.agents[1].news.send_if_modified(|told| told.post(relayed));
    assert_eq!(client.command(&["SET", "k", "2"]), Value::ok());
    assert_eq!(bench.nodes[1].command(&["GET", "k"]), Value::bulk("2"));
    eventually(SOON, || bench.report().is_some());
    bench.zookeeper.cont();
}

#[test]
fn what_a_move_cost_is_reported() {
    let mut bench = Bench::start();
    let mut client = bench.client();
    assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
    bench.switching();
    bench.until_drained();
    client.send(
        &[
            encode(&["SET", "k", "2"]),
            encode(&["SET", "k", "3"]),
            encode(&["GET", "k"]),
        ]
        .concat(),
    );
    client.set_read_timeout(Duration::from_millis(100));
    assert!(client.try_read_reply().is_err());
    let offset = bench.fence();
    bench.reach(offset);
    bench.promote();
    bench.publish_master();
    client.set_read_timeout(SOON);
    assert_eq!(
        (client.read_reply(), client.read_reply(), client.read_reply()),
        (Value::ok(), Value::ok(), Value::bulk("3"))
    );
    eventually(SOON, || bench.report().is_some());
    let report = bench.report().unwrap();
    assert!(report.held >= 2 && report.took_us >= 100_000, "{report:?}");
    assert_eq!((report.indoubt, report.failed), (0, 0));
}

#[test]
fn named_users_move_along() {
    let mut bench = Bench::start();
    for node in &bench.nodes {
        node.command(&[
            "ACL", "SETUSER", "alice", "on", ">wonder", "~*", "&*", "+@all", "-select",
        ]);
    }
    let (mut alice, mut other) = (bench.client(), bench.client());
    assert_eq!(alice.command(&["SELECT", "3"]), Value::ok());
    assert_eq!(alice.command(&["AUTH", "alice", "wonder"]), Value::ok());
    assert_eq!(alice.command(&["SET", "k", "3"]), Value::ok());
    assert_eq!(other.command(&["SET", "k", "0"]), Value::ok());
    bench.switch_over();
    assert_eq!(alice.command(&["INCR", "k"]), Value::Int(4));
    assert_eq!(other.command(&["INCR", "k"]), Value::Int(1));
    assert_eq!(alice.command(&["ACL", "WHOAMI"]), Value::bulk("alice"));
    bench.proxy.assert_no_undeclared_warnings(&[]);
}

#[test]
fn a_move_that_the_proxy_hears_of_too_late_costs_time_and_no_error() {
    const COMMANDS: i64 = 60_000;
    let mut bench = Bench::start();
    let mut client = bench.client();
    let mut writer = client.stream().try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut writer, &b"INCR n\r\n".repeat(COMMANDS as usize)).unwrap());
        scope.spawn(move || {
            for n in 1..=COMMANDS {
                assert_eq!(client.read_reply(), Value::Int(n));
            }
        });
        for _ in 0..2 {
            let offset = bench.fence();
            bench.reach(offset);
            bench.promote();
            bench.publish_master();
            eventually(SOON, || bench.report().is_some());
        }
    });
}
#[test]
fn a_master_that_lost_its_epochs_user_gets_nothing_more_whoever_the_clients_are() {
    let bench = Bench::start();
    let (mut client, mut popper) = (bench.client(), bench.client());
    bench.nodes[0].command(&["ACL", "SETUSER", "alice", "on", ">wonder", "~*", "&*", "+@all"]);
    assert_eq!(client.command(&["AUTH", "alice", "wonder"]), Value::ok());
    assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
    popper.send(b"BLPOP q 60\r\n");
    eventually(SOON, || info(&bench.nodes[0], "clients", "blocked_clients") == "1");
    // A fence without a park: alice's own lane would still be served.
    assert_eq!(bench.nodes[0].command(&["ACL", "DELUSER", "px-1"]), Value::Int(1));
    assert!(popper.read_reply().is_error("INDOUBT"), "it may have been popped");
    client.send(&encode(&["SET", "k", "zombie"]));
    bench.log_has("does not know px-1", 2);
    client.set_read_timeout(Duration::from_millis(100));
    assert!(client.try_read_reply().is_err());
    assert_eq!(bench.nodes[0].command(&["GET", "k"]), Value::bulk("1"));
    bench.admit(0, 1, 0);
    client.set_read_timeout(SOON);
    assert_eq!(client.read_reply(), Value::ok());
    assert_eq!(bench.nodes[0].command(&["GET", "k"]), Value::bulk("zombie"));
    bench.proxy.assert_no_undeclared_warnings(&["does not know px-1"]);
}

#[test]
fn a_master_that_came_back_empty_is_not_of_the_epoch() {
    let mut bench = Bench::start();
    let mut client = bench.client();
    assert_eq!(client.command(&["SET", "k", "1"]), Value::ok());
    eventually(SOON, || bench.nodes[1].command(&["GET", "k"]) == Value::bulk("1"));
    bench.nodes[0].kill9();
    bench.nodes[0].restart();
    client.send(&[encode(&["INCR", "k"]), encode(&["GET", "k"])].concat());
    bench.log_has("does not know px-1", 2);
    assert_eq!(bench.nodes[0].command(&["DBSIZE"]), Value::Int(0));
    bench.lives[0] = run_id(&bench.nodes[0]);
    bench.promote();
    bench.publish_master();
    assert_eq!(client.read_reply(), Value::Int(2));
    assert_eq!(client.read_reply(), Value::bulk("2"));
}
