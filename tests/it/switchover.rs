//! Planned changes of master by whole agents on real servers; a proxy is played by the test where one is needed.

use std::collections::BTreeMap;
use std::time::Duration;

use pointsman::agent::machine::facts::Role;
use pointsman::agent::redis::{Connection, Login};
use pointsman::clock;
use pointsman::peer::{self, Client, Kind, News, Report, Request};
use pointsman::store::{Lifetime, Settings, Store};
use pointsman::topology::codec::{self, Ending, Place, ProxyInfo, Record, ShardState, SwitchRequest, encode};
use pointsman::topology::{Addr, NodeId, Phase};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent_store::{LIMIT, SECRET, Shard, master, shard};

impl Shard {
    /// Puts a request up and gives its id.
    pub async fn ask_for(&self, to: Option<&NodeId>) -> String {
        let id = format!("request{}", clock::unix_ms());
        let request = SwitchRequest {
            id: id.clone(),
            to: to.cloned(),
            asked_by: "a test".to_owned(),
        };
        let path = Place::Switch(shard()).to_string();
        self.store
            .create(&path, encode(&request), Lifetime::Persistent)
            .await
            .unwrap();
        id
    }

    /// The record that ends a request, once the request itself is gone.
    pub async fn ended(&self, id: &str) -> Record {
        let ends = |records: &[Record]| records.iter().any(|record| record.request.as_deref() == Some(id));
        let records = self.until_history("ended", ends).await;
        let path = Place::Switch(shard()).to_string();
        let end = clock::now() + LIMIT;
        while self.store.get(&path).await.unwrap().is_some() {
            assert!(clock::now() < end, "the request stays");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut ours = records
            .into_iter()
            .filter(|record| record.request.as_deref() == Some(id));
        let record = ours.next().unwrap();
        assert!(ours.next().is_none(), "one request, one record");
        println!(
            "{:?} {:?} -> {:?}, epoch {}: {} {:?}",
            record.result, record.from, record.to, record.epoch, record.why, record.phases_ms
        );
        record
    }

    /// Waits until the state is as wanted, in any phase.
    pub async fn until_state(&self, what: &str, wanted: impl Fn(&ShardState) -> bool) -> ShardState {
        let end = clock::now() + LIMIT;
        loop {
            let state: Option<ShardState> = self.read(&Place::State(shard())).await;
            match state {
                Some(state) if wanted(&state) => return state,
                state => assert!(clock::now() < end, "not {what}: {state:?}"),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until what the master writes arrives everywhere: after a synchronisation as a whole Redis begins to stream
    /// only with the replica's first acknowledgement, up to a second later.
    pub async fn flowing(&self, state: &ShardState) {
        self.nodes[&master(state)].ask(&["SET", "k", "v"]).await;
        for server in self.nodes.values() {
            server.until("replicated", |facts| facts.keys == 1).await;
        }
    }

    pub fn replica(&self, state: &ShardState) -> NodeId {
        let old = master(state);
        self.nodes.keys().find(|id| **id != old).unwrap().clone()
    }

    /// How often each node sent its whole data set to somebody.
    async fn full_syncs(&self) -> BTreeMap<NodeId, String> {
        let mut counts = BTreeMap::new();
        for (id, server) in &self.nodes {
            let stats = server.ask(&["INFO", "stats"]).await;
            let count = stats.lines().find(|line| line.starts_with("sync_full:")).unwrap();
            counts.insert(id.clone(), count.to_owned());
        }
        counts
    }

    /// What the log of a node holds, in order.
    async fn log(&self, id: &NodeId) -> Vec<u64> {
        let mut connection = Connection::open(&self.nodes[id].addr, &Login::default(), LIMIT)
            .await
            .unwrap();
        let reply = connection.ask(&["LRANGE", "log", "0", "-1"], LIMIT).await.unwrap();
        pointsman::agent::redis::texts(&reply)
            .into_iter()
            .map(|text| text.parse().unwrap())
            .collect()
    }

    /// All nodes hold the same log.
    async fn same_logs(&self) -> Vec<u64> {
        let end = clock::now() + LIMIT;
        loop {
            let mut logs = Vec::new();
            for id in self.nodes.keys() {
                logs.push(self.log(id).await);
            }
            if logs.iter().all(|log| *log == logs[0]) {
                return logs.remove(0);
            }
            assert!(clock::now() < end, "the nodes differ");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Appends numbers to the log of whoever is master, as fast as it answers, until told to stop; gives those that were
/// answered.
async fn write(nodes: BTreeMap<NodeId, Addr>, state: watch::Receiver<ShardState>, stop: CancellationToken) -> Vec<u64> {
    let mut answered = Vec::new();
    let mut number = 0;
    while !stop.is_cancelled() {
        let addr = nodes[&master(&state.borrow())].clone();
        let Ok(mut connection) = Connection::open(&addr, &Login::default(), LIMIT).await else {
            continue;
        };
        while !stop.is_cancelled() {
            number += 1;
            match connection.ask(&["RPUSH", "log", &number.to_string()], LIMIT).await {
                Ok(_) => answered.push(number),
                // Refused by a fenced master, or cut off: it may be there or not.
                Err(_) => break,
            }
        }
    }
    answered
}

#[tokio::test]
async fn a_switchover_moves_the_master_and_nobody_is_synchronised_anew() {
    let shard = Shard::start().await;
    let mut state = shard.whole(3).await;
    shard.flowing(&state).await;
    let full = shard.full_syncs().await;
    let addrs: BTreeMap<NodeId, Addr> = shard
        .nodes
        .iter()
        .map(|(id, node)| (id.clone(), node.addr.clone()))
        .collect();
    let (known, following) = watch::channel(state.clone());
    let stop = CancellationToken::new();
    let writer = tokio::spawn(write(addrs, following, stop.clone()));
    for round in 0..6 {
        let old = master(&state);
        let to = (round % 2 == 0).then(|| shard.replica(&state));
        let id = shard.ask_for(to.as_ref()).await;
        let record = shard.ended(&id).await;
        assert_eq!(
            (&record.kind, &record.result),
            (&codec::Kind::Switchover, &Ending::Done),
            "{record:?}"
        );
        assert_eq!((record.epoch, record.lost_bytes), (state.epoch.next(), Some(0)));
        assert_eq!(
            (record.from.as_ref(), record.asked_by.as_deref()),
            (Some(&old), Some("a test"))
        );
        let phases: Vec<&str> = record.phases_ms.0.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [
            "claim", "drain", "catch-up", "fence", "reach", "attach", "promote", "prove", "publish",
        ];
        assert_eq!(phases, expected);
        state = shard.until("published", |now| now.epoch > state.epoch).await;
        assert_eq!(state.master, record.to);
        assert!(to.is_none_or(|to| to == master(&state)) && master(&state) != old);
        known.send_replace(state.clone());
        state = shard.whole(3).await;
    }
    stop.cancel();
    let answered = writer.await.unwrap();
    let log = shard.same_logs().await;
    let held: std::collections::BTreeSet<u64> = log.iter().copied().collect();
    let lost: Vec<&u64> = answered.iter().filter(|number| !held.contains(number)).collect();
    println!("{} writes answered", answered.len());
    assert!(lost.is_empty(), "{lost:?} of {} are lost", answered.len());
    assert!(log.is_sorted(), "a later write went before an earlier one");
    assert_eq!(
        shard.full_syncs().await,
        full,
        "every link was taken up where it was left"
    );
}

#[tokio::test]
async fn the_credentials_of_an_epoch_go_with_it() {
    let shard = Shard::start().await;
    let first = shard.whole(3).await;
    shard.flowing(&first).await;
    let users = async |id: &NodeId| {
        let mut connection = Connection::open(&shard.nodes[id].addr, &Login::default(), LIMIT)
            .await
            .unwrap();
        let reply = connection.ask(&["ACL", "USERS"], LIMIT).await.unwrap();
        let names = pointsman::agent::redis::texts(&reply).into_iter().map(str::to_owned);
        let mut names: Vec<String> = names
            .filter(|name| name.starts_with("px-") || name.starts_with("repl-"))
            .collect();
        names.sort();
        names
    };
    let proof = |state: &ShardState| {
        let life = state.run_id.clone().unwrap();
        peer::token(SECRET, peer::Role::Proxy, &self::shard(), state.epoch, &life)
    };
    let to = shard.replica(&first);
    let mut connection = Connection::open(&shard.nodes[&to].addr, &Login::default(), LIMIT)
        .await
        .unwrap();
    connection.ask(&["AUTH", "px-1", &proof(&first)], LIMIT).await.unwrap();
    connection.ask(&["ROLE"], LIMIT).await.unwrap();
    connection.ask(&["GET", "k"], LIMIT).await.unwrap_err();
    let id = shard.ask_for(Some(&to)).await;
    assert_eq!(shard.ended(&id).await.result, Ending::Done);
    let second = shard.whole(3).await;
    for id in shard.nodes.keys() {
        // Replicas know the replicas' user as well: who is to join catches up behind one.
        assert_eq!(users(id).await, ["px-2", "repl-2"], "{id}");
    }
    connection.ask(&["PING"], LIMIT).await.unwrap_err();
    for id in shard.nodes.keys() {
        let mut connection = Connection::open(&shard.nodes[id].addr, &Login::default(), LIMIT)
            .await
            .unwrap();
        connection
            .ask(&["AUTH", "px-1", &proof(&first)], LIMIT)
            .await
            .unwrap_err();
        connection.ask(&["AUTH", "px-2", &proof(&second)], LIMIT).await.unwrap();
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_met_is_refused_with_its_reason() {
    let mut shard = Shard::start().await;
    let first = shard.whole(3).await;
    let to = shard.replica(&first);
    let third = shard
        .nodes
        .keys()
        .find(|id| **id != to && **id != master(&first))
        .unwrap()
        .clone();
    let port = shard.agents[&to].peer.port();
    shard.end_agent(&to).await;
    let mut settings = shard.settings(&to, port);
    settings.host.priority = 0;
    let stop = CancellationToken::new();
    let _ended = stop.clone().drop_guard();
    tokio::spawn(pointsman::agent::serve::serve(settings, stop));
    shard.end_agent(&third).await;
    for (to, why) in [
        (Some(master(&first)), "is the master already"),
        (
            Some(NodeId::from("s1-z")),
            "s1-z is no node of this shard, which has s1-a, s1-b, s1-c",
        ),
        (Some(third.clone()), "is not registered: its agent is down"),
        // By now the master's agent has heard from the one that was started anew.
        (Some(to.clone()), "is never to be promoted (priority 0)"),
        (None, "nobody can take over: "),
    ] {
        let id = shard.ask_for(to.as_ref()).await;
        let record = shard.ended(&id).await;
        assert_eq!(
            (&record.result, record.epoch),
            (&Ending::Refused, first.epoch),
            "{record:?}"
        );
        assert!(record.why.contains(why), "{record:?}");
    }
    let after = shard.until("serving", |_| true).await;
    assert_eq!((after.epoch, after.master), (first.epoch, first.master));
}

#[tokio::test]
async fn a_target_that_hangs_before_the_fence_leaves_everything_as_it_was() {
    let shard = Shard::start().await;
    let first = shard.whole(3).await;
    shard.flowing(&first).await;
    let to = shard.replica(&first);
    // Found out before anybody waits.
    shard.nodes[&to].signal("-STOP");
    let id = shard.ask_for(Some(&to)).await;
    let record = shard.ended(&id).await;
    assert_eq!(
        (&record.result, record.epoch),
        (&Ending::Refused, first.epoch),
        "{record:?}"
    );
    shard.nodes[&to].signal("-CONT");
    // It hangs when clients wait already.
    let mut proxy = Proxy::start(&shard).await;
    let id = shard.ask_for(Some(&to)).await;
    let switching = shard
        .until_state("switching", |state| state.phase == Phase::Switching)
        .await;
    shard.nodes[&to].signal("-STOP");
    let switch = switching.switch.unwrap();
    proxy.tell(Request::Drained(self::shard(), switch.epoch, None)).await;
    let record = shard.ended(&id).await;
    assert_eq!(
        (&record.result, record.epoch),
        (&Ending::RolledBack, first.epoch),
        "{record:?}"
    );
    let after = shard.until("serving", |_| true).await;
    assert_eq!((after.epoch, &after.master), (first.epoch, &first.master));
    assert_eq!(shard.nodes[&master(&first)].ask(&["SET", "other", "v"]).await, "OK");
    shard.nodes[&to].signal("-CONT");
    shard.nodes[&to]
        .until("linked", |facts| facts.link_up && facts.keys == 2)
        .await;
    drop(proxy);
    let id = shard.ask_for(Some(&to)).await;
    let record = shard.ended(&id).await;
    // The epoch that was reserved for the first attempt is not used again.
    assert_eq!(
        (&record.result, record.epoch),
        (&Ending::Done, switch.epoch.next()),
        "{record:?}"
    );
}

/// A proxy that tells of drains as the test wants it to.
pub struct Proxy {
    _session: Store,
    heard: Client,
}

impl Proxy {
    /// Connected to the agent of the present master.
    pub async fn start(shard: &Shard) -> Self {
        let state = shard.until("serving", |_| true).await;
        Self::start_at(shard, &shard.agents[&master(&state)].peer).await
    }

    pub async fn start_at(shard: &Shard, peer: &Addr) -> Self {
        let session = Store::connect(&Settings::new(&shard.zookeeper.connect(), "test"))
            .await
            .unwrap();
        let info = ProxyInfo {
            addr: Addr::new("127.0.0.1", 1),
            admin: None,
            zone: String::new(),
            epochs: BTreeMap::new(),
            drains: true,
        };
        let path = Place::Proxy("p1".to_owned()).to_string();
        session.create(&path, encode(&info), Lifetime::Ephemeral).await.unwrap();
        let end = clock::now() + LIMIT;
        // An agent in a process of its own needs a while to listen.
        let heard = loop {
            match Client::connect(peer, Kind::Proxy, "p1", SECRET).await {
                Ok(heard) => break heard,
                Err(error) => assert!(clock::now() < end, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        Self {
            _session: session,
            heard,
        }
    }

    pub async fn tell(&mut self, request: Request) {
        self.heard.ask(&request, LIMIT).await.unwrap();
    }

    /// The news of where to move.
    pub async fn attach(&mut self) -> peer::Attach {
        let hearing = async {
            loop {
                if let News::Attach(attach) = self.heard.hear().await.unwrap() {
                    return attach;
                }
            }
        };
        tokio::time::timeout(LIMIT, hearing).await.unwrap()
    }
}

#[tokio::test]
async fn proxies_are_waited_for_and_told_where_those_who_hear_move() {
    let shard = Shard::start().await;
    let first = shard.whole(3).await;
    shard.flowing(&first).await;
    let mut proxy = Proxy::start(&shard).await;
    let to = shard.replica(&first);
    let id = shard.ask_for(Some(&to)).await;
    let switching = shard
        .until_state("switching", |state| state.phase == Phase::Switching)
        .await;
    let switch = switching.switch.unwrap();
    assert_eq!((switching.epoch, &switch.to), (first.epoch, &to));
    assert_eq!(switching.executor, master(&first));
    let old = &shard.nodes[&master(&first)];
    assert_eq!(old.ask(&["SET", "in-flight", "v"]).await, "OK", "nobody is fenced yet");
    proxy.tell(Request::Drained(self::shard(), switch.epoch, None)).await;
    let attach = proxy.attach().await;
    assert_eq!((attach.epoch, &attach.node), (switch.epoch, &to));
    assert_eq!(attach.addr, shard.nodes[&to].addr);
    let facts = shard.nodes[&to].facts().await;
    assert_eq!((facts.run_id, facts.keys), (attach.run_id, 2), "it has all there is");
    proxy
        .tell(Request::Attached(self::shard(), switch.epoch, attach.course.clone()))
        .await;
    let report = Report {
        held: 3,
        ..Report::default()
    };
    let record = shard.ended(&id).await;
    proxy.tell(Request::Report(self::shard(), record.epoch, report)).await;
    assert_eq!(
        (&record.result, record.epoch),
        (&Ending::Done, switch.epoch),
        "{record:?}"
    );
}

#[tokio::test]
async fn a_target_that_dies_after_the_fence_is_passed_over_by_an_election() {
    let shard = Shard::start().await;
    let first = shard.whole(3).await;
    shard.flowing(&first).await;
    shard.nodes[&master(&first)].ask(&["RPUSH", "log", "1"]).await;
    let mut proxy = Proxy::start(&shard).await;
    let to = shard.replica(&first);
    let id = shard.ask_for(Some(&to)).await;
    let switching = shard
        .until_state("switching", |state| state.phase == Phase::Switching)
        .await;
    let reserved = switching.switch.unwrap().epoch;
    proxy.tell(Request::Drained(self::shard(), reserved, None)).await;
    proxy.attach().await;
    let start = clock::now();
    shard.nodes[&to].signal("-KILL");
    let after = shard.until("replaced", |state| state.epoch > reserved).await;
    println!("a master again after {:?}", clock::now() - start);
    assert_ne!(master(&after), to);
    let record = shard.ended(&id).await;
    assert_eq!(record.result, Ending::Failed, "{record:?}");
    assert_eq!(shard.log(&master(&after)).await, [1]);
    let facts = shard.nodes[&master(&after)].facts().await;
    assert_eq!(facts.role, Role::Master);
}

/// The executor dies at a moment that a proxy can tell.
async fn executor_killed(after_the_fence: bool) {
    let mut shard = Shard::start().await;
    let first = shard.whole(3).await;
    shard.flowing(&first).await;
    let old = master(&first);
    let port = shard.agents[&old].peer.port();
    shard.end_agent(&old).await;
    let mut agent = shard.start_agent_process(&old, port, "z1", 2000);
    let mut proxy = Proxy::start_at(&shard, &Addr::new("127.0.0.1", port)).await;
    // Clients that know of no proxy go on writing to the old master for as long as it takes that.
    let addrs = [(old.clone(), shard.nodes[&old].addr.clone())].into();
    let (_known, following) = watch::channel(first.clone());
    let stop = CancellationToken::new();
    let writer = tokio::spawn(write(addrs, following, stop.clone()));
    let to = shard.replica(&first);
    let id = shard.ask_for(Some(&to)).await;
    let switching = shard
        .until_state("switching", |state| state.phase == Phase::Switching)
        .await;
    let reserved = switching.switch.unwrap().epoch;
    if after_the_fence {
        proxy.tell(Request::Drained(self::shard(), reserved, None)).await;
        proxy.attach().await;
    }
    let start = clock::now();
    agent.kill9();
    let after = shard.until("serving again", |state| state.epoch > reserved).await;
    println!("{} is the master after {:?}", master(&after), clock::now() - start);
    let record = shard.ended(&id).await;
    assert_eq!(record.result, Ending::Failed, "{record:?}");
    stop.cancel();
    let answered = writer.await.unwrap();
    let _agent = shard.start_agent_process(&old, port, "z2", 4000);
    shard.whole(3).await;
    let held: std::collections::BTreeSet<u64> = shard.same_logs().await.into_iter().collect();
    let lost = answered.iter().filter(|number| !held.contains(number)).count();
    println!("{} writes answered", answered.len());
    assert_eq!(lost, 0, "of {} answered", answered.len());
}

#[tokio::test]
async fn an_executor_killed_before_the_fence_is_succeeded_and_its_request_ends() {
    executor_killed(false).await;
}

#[tokio::test]
async fn an_executor_killed_after_the_fence_is_succeeded_and_its_request_ends() {
    executor_killed(true).await;
}
