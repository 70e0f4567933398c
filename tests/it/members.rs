//! Members and W of whole agents on real servers, where replicas acknowledge. There is no proxy: the test writes, and counts
//! as acknowledged what WAIT says is.

use std::collections::BTreeSet;
use std::time::Duration;

use pointsman::agent::machine::facts::Role;
use pointsman::agent::redis::{Connection, Login};
use pointsman::clock;
use pointsman::operate::{Change, Cluster, Where};
use pointsman::store::Settings;
use pointsman::topology::codec::{Ending, Kind, Place, ShardConfig, WhenShort, encode};
use pointsman::topology::{Epoch, NodeId, Phase};

use crate::agent::Server;
use crate::agent_store::{LIMIT, SECRET, Shard, master, shard};
use crate::support::free_port;

/// A cluster as an operator sees it.
struct Operator {
    cluster: Cluster,
    _dir: tempfile::TempDir,
}

impl Operator {
    async fn of(shard: &Shard) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, SECRET).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&secret, private).unwrap();
        let settings = Settings::new(&shard.zookeeper.connect(), "test");
        let cluster = Cluster::find(&Where::ZooKeeper(settings, Some(secret))).await.unwrap();
        Self { cluster, _dir: dir }
    }

    /// Makes a change and waits until it is so.
    async fn change(&self, change: Change) -> String {
        let never = std::future::pending();
        let tell = |why: &str| println!("waiting: {why}");
        let done = self
            .cluster
            .change_members(&shard(), &change, "an operator".to_owned(), tell, never)
            .await;
        done.unwrap().sentence()
    }
}

fn ack_replicas(w: u32) -> Change {
    Change {
        ack_replicas: Some(w),
        ..Change::default()
    }
}

fn remove(node: &NodeId) -> Change {
    Change {
        remove: [node.clone()].into(),
        ..Change::default()
    }
}

/// A member that is not the master.
async fn replica(shard: &Shard) -> NodeId {
    let state = shard.until("serving", |_| true).await;
    let others = state.members.iter().filter(|id| Some(*id) != state.master.as_ref());
    others.into_iter().next_back().unwrap().clone()
}

/// Writes numbers at the master and says how many replicas had the last one within `patience`.
async fn write(shard: &Shard, key: &str, patience: Duration) -> i64 {
    let state = shard.until("serving", |_| true).await;
    let server = &shard.nodes[&master(&state)];
    let mut connection = Connection::open(&server.addr, &Login::default(), LIMIT).await.unwrap();
    connection.ask(&["INCR", key], LIMIT).await.unwrap();
    let ms = patience.as_millis().to_string();
    let frame = connection.ask(&["WAIT", "1", &ms], LIMIT + patience).await.unwrap();
    match frame {
        redis_protocol::resp2::types::BytesFrame::Integer(count) => count,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn w_is_raised_and_lowered_by_epochs_of_the_same_master() {
    let shard = Shard::start().await;
    let first = shard.whole(3).await;
    let operator = Operator::of(&shard).await;
    let told = operator.change(ack_replicas(1)).await;
    assert!(told.contains("ack_replicas 1, in epoch 2"), "{told}");
    let second = shard.whole(3).await;
    assert_eq!((second.w, second.epoch), (1, Epoch(2)));
    assert_eq!((&second.master, &second.run_id), (&first.master, &first.run_id));
    assert_eq!(second.lineage, first.lineage, "the stream goes on");
    // The master shows the users of this epoch only; nobody had to be filled anew.
    let users = shard.nodes[&master(&second)].ask(&["ACL", "LIST"]).await;
    assert!(
        users.contains("repl-2 ") && users.contains("px-2 ") && !users.contains("repl-1 "),
        "{users}"
    );
    let stats = shard.nodes[&master(&second)].ask(&["INFO", "stats"]).await;
    let full = |stats: &str| {
        stats
            .lines()
            .find(|line| line.starts_with("sync_full:"))
            .map(str::to_owned)
    };
    println!("{:?}", full(&stats));
    assert!(write(&shard, "n", LIMIT).await >= 1);

    operator.change(ack_replicas(2)).await;
    let told = operator.change(ack_replicas(0)).await;
    assert!(told.contains("ack_replicas 0, in epoch 4"), "{told}");
    assert_eq!(
        full(&shard.nodes[&master(&second)].ask(&["INFO", "stats"]).await),
        full(&stats),
        "each time they go on where they were"
    );
    let members = |records: &[pointsman::topology::codec::Record]| {
        records.iter().filter(|record| record.kind == Kind::Members).count() == 3
    };
    let records = shard.until_history("recorded", members).await;
    let last = records.last().unwrap();
    assert_eq!(
        (&last.result, last.asked_by.as_deref()),
        (&Ending::Done, Some("an operator"))
    );
    assert_eq!(last.why, "ack_replicas 2 -> 0");
    let phases: Vec<&str> = last.phases_ms.0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(phases, ["claim", "drain", "renew", "prove", "publish"]);
    println!("{:?}", last.phases_ms);
}

#[tokio::test]
async fn a_replica_is_replaced_and_the_next_failover_counts_by_the_new_members() {
    let shard = &mut Shard::start().await;
    shard.whole(3).await;
    let operator = Operator::of(shard).await;
    operator.change(ack_replicas(1)).await;
    assert!(write(shard, "n", LIMIT).await >= 1);
    let (gone, new) = (replica(shard).await, NodeId::from("s1-d"));
    shard.nodes.insert(new.clone(), Server::start().await);
    shard.start_agent(&new, free_port());
    let place = Place::Node(shard_id(), new.clone()).to_string();
    let end = clock::now() + LIMIT;
    while shard.store.get(&place).await.unwrap().is_none() {
        assert!(clock::now() < end, "{new} does not register");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let replace = Change {
        add: [new.clone()].into(),
        ..remove(&gone)
    };
    operator.change(replace).await;
    let state = shard.whole(3).await;
    assert!(
        state.members.contains(&new) && !state.members.contains(&gone),
        "{state:?}"
    );
    shard.nodes[&gone].until("parked", |facts| facts.parked()).await;
    shard.nodes[&new]
        .until("filled", |facts| facts.keys == 1 && facts.link_up)
        .await;
    // One of three may be lost, and which three is settled.
    assert!(write(shard, "n", LIMIT).await >= 1);
    shard.kill(&master(&state)).await;
    let after = shard.until("replaced", |after| after.epoch > state.epoch).await;
    let server = &shard.nodes[&master(&after)];
    assert_eq!(server.ask(&["GET", "n"]).await, "2");
    assert_ne!(master(&after), gone);
}

fn shard_id() -> pointsman::topology::ShardId {
    shard()
}

#[tokio::test]
async fn a_foreign_replica_is_closed_where_replicas_acknowledge() {
    let shard = Shard::start().await;
    let state = shard.whole(3).await;
    let server = &shard.nodes[&master(&state)];
    let port = server.addr.port().to_string();
    // It logs in as anybody may, which Redis takes for a replica like any other.
    let foreign = Server::start_on(free_port(), &["--replicaof", "127.0.0.1", &port]).await;
    foreign.until("linked", |facts| facts.link_up).await;
    server.until("with three replicas", |facts| facts.replicas == 3).await;
    let operator = Operator::of(&shard).await;
    operator.change(ack_replicas(1)).await;
    // It comes again at once, and is closed each time.
    let end = clock::now() + Duration::from_secs(3);
    let mut connections = BTreeSet::new();
    while clock::now() < end && connections.len() < 3 {
        let list = server.ask(&["CLIENT", "LIST", "TYPE", "replica"]).await;
        let theirs = list.lines().filter(|line| line.contains("user=default"));
        connections.extend(theirs.filter_map(|line| line.split(' ').next().map(str::to_owned)));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(connections.len() > 1, "it stays: {connections:?}");
    shard.whole(3).await;
    server.until("with its own replicas", |facts| facts.replicas == 2).await;
}

#[tokio::test]
async fn a_pair_that_is_not_strict_goes_on_alone_and_heals_and_a_strict_one_waits() {
    let shard = &mut Shard::start().await;
    shard.whole(3).await;
    let operator = Operator::of(shard).await;
    let third = replica(shard).await;
    let pair = Change {
        ack_replicas: Some(1),
        ..remove(&third)
    };
    operator.change(pair).await;
    let before = shard.whole(2).await;
    let other = replica(shard).await;
    shard.nodes[&other].signal("-STOP");
    let acked = write(shard, "n", Duration::from_secs(1)).await;
    assert_eq!(acked, 0, "nobody acknowledges");
    let state = shard.until("strict", |_| true).await;
    assert_eq!(
        (state.epoch, state.w),
        (before.epoch, 1),
        "and nothing is changed for that"
    );

    let lax = Change {
        when_short: Some(WhenShort::Shrink),
        shrink_after_ms: Some(500),
        ..Change::default()
    };
    let config = {
        let path = Place::ShardConfig(shard_id()).to_string();
        let found = shard.store.get(&path).await.unwrap().unwrap();
        let mut config: ShardConfig = pointsman::topology::codec::decode(&found.bytes, &path).unwrap();
        (config.when_short, config.shrink_after_ms) = (WhenShort::Shrink, 500);
        shard.store.set(&path, encode(&config), found.version).await.unwrap();
        config
    };
    let alone = shard.until("alone", |state| state.w == 0).await;
    assert_eq!(
        (alone.epoch, alone.members.len(), alone.shrunk_from),
        (before.epoch, 1, 1)
    );
    assert_eq!(alone.valid.len(), 1);
    shard.nodes[&other].signal("-CONT");
    let healed = shard
        .until("healed", |state| state.w == 1 && state.valid.len() == 2)
        .await;
    assert!(healed.epoch > before.epoch && healed.shrunk_from == 0, "{healed:?}");
    assert_eq!(healed.members, config.members);
    assert!(write(shard, "n", LIMIT).await >= 1);
    // Asked for again it is so already.
    let told = operator.change(lax).await;
    assert!(told.contains("ack_replicas 1"), "{told}");
}

#[tokio::test]
async fn without_a_quorum_a_loss_is_accepted_by_the_operator_alone() {
    let shard = Shard::start().await;
    shard.whole(3).await;
    let operator = Operator::of(&shard).await;
    operator.change(ack_replicas(1)).await;
    let before = shard.whole(3).await;
    assert!(write(&shard, "n", LIMIT).await >= 1);
    let tell = |line: &str| println!("{line}");
    let never = || std::future::pending::<()>();
    let asked_by = || "an operator".to_owned();
    let refused = operator
        .cluster
        .accept_loss(&shard_id(), asked_by(), tell, never())
        .await;
    assert!(refused.unwrap_err().to_string().contains("use 'pointsman switchover'"));

    let (old, other) = (master(&before), replica(&shard).await);
    shard.nodes[&other].signal("-KILL");
    let end = clock::now() + LIMIT;
    while Connection::open(&shard.nodes[&other].addr, &Login::default(), LIMIT)
        .await
        .is_ok()
    {
        assert!(clock::now() < end, "it lives");
    }
    shard.nodes[&old].signal("-KILL");
    let end = clock::now() + Duration::from_secs(4);
    while clock::now() < end {
        let state: pointsman::topology::codec::ShardState = shard.read(&Place::State(shard_id())).await.unwrap();
        assert!(
            state.phase == Phase::Electing || state.epoch == before.epoch,
            "{state:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let accepted = operator
        .cluster
        .accept_loss(&shard_id(), asked_by(), tell, never())
        .await
        .unwrap();
    println!("{}", accepted.sentence());
    let record = accepted.record.unwrap();
    assert!(record.why.contains("an operator accepted the loss"), "{record:?}");
    let state = shard.until("replaced", |state| state.epoch > before.epoch).await;
    assert_eq!(state.accept, None);
    let server = &shard.nodes[&master(&state)];
    server.until("master", |facts| facts.role == Role::Master).await;
}
