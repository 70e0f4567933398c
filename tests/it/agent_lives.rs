//! How agents begin and end: two for one Redis, one name used twice, signals.

use std::time::Duration;

use nix::sys::signal::Signal;
use pointsman::agent::serve::{AgentError, serve};
use pointsman::peer::{self, Kind, Report, Request};
use pointsman::store::{Lifetime, Settings, Store};
use pointsman::topology::codec::{NodeInfo, Phases, Place, ProxyInfo, decode, encode};
use pointsman::topology::{Addr, NodeId, ShardId};
use tokio_util::sync::CancellationToken;

use crate::agent::Server;
use crate::agent_store::{SECRET, Shard, master, start};
use crate::support::{Client, Pointsman, Up, Value, ZooKeeper, free_port};

const SOON: Duration = Duration::from_secs(20);
/// Short, so that the living are told from the dead early.
const SESSION: Duration = Duration::from_millis(1000);

/// The working connections of agents at a Redis, as it numbers them.
async fn agents_of(server: &Server) -> Vec<String> {
    let list = server.ask(&["CLIENT", "LIST"]).await;
    let agents = list.lines().filter(|line| line.contains(" user=pm-agent "));
    agents.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_second_agent_for_a_redis_and_a_second_life_of_a_name_are_refused_and_change_nothing() {
    let shard = Shard::start().await;
    let first = shard.whole(3).await;
    let id = NodeId::from("s1-a");
    let server = &shard.nodes[&id];
    let (agents, facts) = (agents_of(server).await, server.facts().await);
    assert_eq!(agents.len(), 1);
    let other_name = Addr::new("localhost", server.addr.port());
    for (node, of, redis) in [
        ("s1-d", "s1", server.addr.clone()),
        ("s1-d", "s1", other_name),
        ("s1-a", "s2", server.addr.clone()),
        ("s1-a", "s1", server.addr.clone()),
    ] {
        let mut start = shard.settings(&id, free_port());
        start.host.node = NodeId::from(node);
        start.host.shard = ShardId::from(of);
        start.host.members.insert(NodeId::from(node));
        start.host.redis = redis.clone();
        start.store.session_timeout = SESSION;
        let refused = serve(start, CancellationToken::new()).await.unwrap_err();
        let sentence = refused.to_string();
        let wanted = match refused {
            AgentError::Taken { .. } if (node, of) == ("s1-a", "s1") => "node s1-a is taken: the agent on ".to_owned(),
            _ => format!("redis {redis} has an agent already, that of node s1-a of shard s1 on "),
        };
        assert!(sentence.starts_with(&wanted), "{sentence}");
        assert_eq!(agents_of(server).await, agents, "the first agent's connection lives");
        let now = server.facts().await;
        assert_eq!(
            (now.epoch, now.role, now.follows),
            (facts.epoch, facts.role, facts.follows.clone())
        );
    }
    let after = shard.whole(3).await;
    assert_eq!((after.epoch, after.master), (first.epoch, first.master));
    let nodes = shard
        .store
        .children(&Place::Nodes(ShardId::from("s1")).to_string())
        .await
        .unwrap();
    assert_eq!(nodes, ["s1-a", "s1-b", "s1-c"]);
}

#[tokio::test]
async fn of_two_agents_that_start_at_once_on_one_redis_one_goes_on() {
    let (zookeeper, server) = (ZooKeeper::start(), Server::start().await);
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let mut running = tokio::task::JoinSet::new();
    for node in ["s1-a", "s1-b"] {
        let connect = zookeeper.connect();
        let mut start = start(
            &NodeId::from(node),
            free_port(),
            server.addr.clone(),
            &connect,
            dir.path(),
        );
        start.host.members.clear();
        start.store.session_timeout = SESSION;
        running.spawn(serve(start, stop.clone()));
    }
    let ended = tokio::time::timeout(SOON, running.join_next()).await.unwrap();
    let refused = ended.unwrap().unwrap().unwrap_err();
    assert!(matches!(refused, AgentError::Shared { .. }), "{refused}");
    // The other one goes to work.
    server.until("master", |facts| facts.follows.is_none()).await;
    assert_eq!(agents_of(&server).await.len(), 1);
    stop.cancel();
    let ended = running.join_next().await.unwrap().unwrap();
    assert!(ended.is_ok(), "{ended:?}");
}

#[tokio::test]
async fn two_agents_that_call_a_redis_differently_while_it_is_down_do_not_fight_over_it() {
    let (zookeeper, dir, port) = (ZooKeeper::start(), tempfile::tempdir().unwrap(), free_port());
    let store = Store::connect(&Settings::new(&zookeeper.connect(), "test"))
        .await
        .unwrap();
    let registered = async |count: usize, wanted: &dyn Fn(&NodeInfo) -> bool| {
        let mut watch = store.watch("/shards");
        let waiting = async {
            loop {
                let parent = Place::Nodes(ShardId::from("s1")).to_string();
                let mut found = 0;
                for name in store.children(&parent).await.unwrap() {
                    let path = format!("{parent}/{name}");
                    let value = store.get(&path).await.unwrap();
                    let info = value.and_then(|value| decode::<NodeInfo>(&value.bytes, &path).ok());
                    found += usize::from(info.is_some_and(|info| wanted(&info)));
                }
                if found == count {
                    return;
                }
                watch.changed().await;
            }
        };
        tokio::time::timeout(SOON, waiting).await.expect("they register");
    };
    let stop = CancellationToken::new();
    let mut running = tokio::task::JoinSet::new();
    for (node, host) in [("s1-b", "localhost"), ("s1-a", "127.0.0.1")] {
        let mut start = start(
            &NodeId::from(node),
            free_port(),
            Addr::new(host, port),
            &zookeeper.connect(),
            dir.path(),
        );
        start.host.members.clear();
        start.store.session_timeout = SESSION;
        let name = NodeId::from(node);
        let serving = serve(start, stop.clone());
        running.spawn(async move { (name, serving.await) });
        registered(running.len(), &|info| info.run_id.is_none()).await;
    }
    let server = Server::start_on(port, &["--replicaof", "127.0.0.1", "1"]).await;
    // Both see the same life and say so.
    registered(2, &|info| info.run_id.is_some()).await;
    assert!(agents_of(&server).await.len() <= 1, "not both work on it");
    let (ended, refused) = tokio::time::timeout(SOON, running.join_next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let refused = refused.unwrap_err();
    assert!(matches!(refused, AgentError::Shared { .. }), "{refused}");
    assert_eq!(ended, NodeId::from("s1-a"), "the later one");
    assert!(
        refused.to_string().contains("that of node s1-b of shard s1"),
        "{refused}"
    );
    server.until("master", |facts| facts.follows.is_none()).await;
    assert_eq!(agents_of(&server).await.len(), 1);
    // The user of agents was made once: Redis logs who was refused, and a fight would have changed its password in between.
    assert_eq!(server.ask(&["ACL", "LOG"]).await, "Array([])");
    stop.cancel();
    let (node, ended) = running.join_next().await.unwrap().unwrap();
    assert!(ended.is_ok() && node == NodeId::from("s1-b"), "{ended:?}");
}

#[test]
fn a_second_agent_process_ends_with_1_and_one_sentence() {
    let up = Up::start(&["--replicas", "1", "--session-timeout-ms", "1000"]);
    up.all_count("s1");
    let config = up.dir().join("s1-a").join("agent.toml");
    let (listen, admin) = (
        format!("127.0.0.1:{}", free_port()),
        format!("127.0.0.1:{}", free_port()),
    );
    let own = [
        "agent",
        "--config",
        config.to_str().unwrap(),
        "--listen",
        &listen,
        "--admin",
        &admin,
    ];
    let other = [
        "--node", "s1-c", "--member", "s1-a", "--member", "s1-b", "--member", "s1-c",
    ];
    for (more, wanted) in [
        (&[][..], "pointsman: node s1-a is taken: the agent on "),
        (&other, " has an agent already, that of node s1-a of shard s1 on "),
    ] {
        let second = Pointsman::run(&[&["--log", "error"], &own[..], more].concat());
        assert_eq!((second.code, second.stdout.as_str()), (Some(1), ""));
        assert!(second.stderr.contains(wanted), "{}", second.stderr);
        assert_eq!(second.stderr.lines().count(), 1, "{}", second.stderr);
    }
    assert_eq!(up.client().command(&["SET", "k", "v"]), Value::ok());
    up.assert_calm(&[]);
}

#[tokio::test]
async fn what_proxies_report_of_a_failover_stands_in_its_record() {
    let shard = Shard::start().await;
    let first = shard.whole(3).await;
    let proxy = ProxyInfo {
        addr: Addr::new("127.0.0.1", 6400),
        admin: None,
        zone: String::new(),
        epochs: Default::default(),
        drains: true,
    };
    let path = Place::Proxy("p1".to_owned()).to_string();
    let registered = shard.store.create(&path, encode(&proxy), Lifetime::Ephemeral).await;
    registered.unwrap();
    shard.kill(&master(&first)).await;
    let state = shard.until("published", |state| state.epoch > first.epoch).await;
    let executor = Place::Node(ShardId::from("s1"), state.executor.clone());
    let executor: NodeInfo = shard.read(&executor).await.unwrap();
    let mut peer = peer::Client::connect(&executor.peer, Kind::Proxy, "p1", SECRET)
        .await
        .unwrap();
    let report = Report {
        held: 5,
        resent: 4,
        indoubt: 3,
        failed: 2,
        took_us: 12_500,
    };
    let report = Request::Report(ShardId::from("s1"), state.epoch, report);
    peer.ask(&report, SOON).await.unwrap();
    let records = shard
        .until_history("reported", |records| records.iter().any(|record| record.held.is_some()))
        .await;
    let record = records.last().unwrap();
    assert_eq!(
        (record.epoch, record.held, record.resent),
        (state.epoch, Some(5), Some(4))
    );
    assert_eq!((record.indoubt, record.failed), (Some(3), Some(2)));
    let repoint = record.phases_ms.of(Phases::REPOINT);
    assert_eq!(repoint, Some(Duration::from_micros(12_500)));
    assert_eq!(records.len(), 2, "the founding and one failover: {records:?}");
}

#[test]
fn a_second_signal_ends_an_agent_that_waits_for_its_handover() {
    let up = Up::start(&["--replicas", "1"]);
    up.all_count("s1");
    let (master, epoch) = (up.master("s1"), up.shard("s1")["epoch"].clone());
    let mut agent = up.handing_over(&master);
    up.all_count("s1");
    // An ended and started agent is no failover.
    assert_eq!((up.master("s1"), &up.shard("s1")["epoch"]), (master, &epoch));
    // Nothing is handed over while ZooKeeper stands still.
    up.signal_zookeeper(Signal::SIGSTOP);
    agent.term();
    agent.wait_for_line(SOON, |line| line.contains("asked to end"));
    assert!(agent.is_running());
    agent.term();
    assert_eq!(agent.exit_code(SOON), Some(0));
    assert!(agent.log().contains("s1 is not handed over"), "{}", agent.log());
    up.signal_zookeeper(Signal::SIGCONT);
    assert_eq!(up.client().command(&["SET", "k", "v"]), Value::ok());
    assert!(Client::try_connect(up.listen.as_str()).is_ok());
}

#[test]
fn an_up_that_ends_hands_nothing_over() {
    let mut up = Up::start(&["--replicas", "1"]);
    up.all_count("s1");
    let text = std::fs::read_to_string(up.dir().join("s1-a").join("agent.toml")).unwrap();
    assert!(text.contains("on_stop = \"leave\""), "{text}");
    up.up.term();
    assert_eq!(up.up.exit_code(SOON), Some(0));
    assert!(!up.up.log().contains("hand"), "{}", up.up.log());
}
