//! `pointsman switchover` against a shard that the test plays: its state, and whoever answers requests.

use std::time::Duration;

use pointsman::clock;
use pointsman::store::{Lifetime, Settings, Store};
use pointsman::topology::codec::{ClusterConfig, Ending, Kind, Phases, Place, Record, SwitchRequest, decode, encode};
use pointsman::topology::{Epoch, NodeId, ShardId};
use serde_json::Value as Json;

use crate::support::{Output, Pointsman, ZooKeeper};

const LIMIT: Duration = Duration::from_secs(30);

struct Bench {
    zookeeper: ZooKeeper,
    store: Store,
}

fn shard() -> ShardId {
    ShardId::from("s1")
}

impl Bench {
    /// A shard whose master is s1-a.
    async fn start() -> Self {
        let zookeeper = ZooKeeper::start();
        let settings = Settings::new(&zookeeper.connect(), "test");
        let store = Store::connect(&settings).await.unwrap();
        let state = br#"{"epoch":3,"phase":"serving","executor":"s1-a","nonce":"n","master":"s1-a",
            "addr":"127.0.0.1:1","run_id":"a1","lineage":["l1"],"members":["s1-a","s1-b"],"valid":{"s1-a":"a1"},"w":0}"#;
        for (place, bytes) in [
            (Place::Config, encode(&ClusterConfig::default())),
            (Place::State(shard()), state.to_vec()),
            (Place::History(shard()), Vec::new()),
        ] {
            let path = place.to_string();
            store.create(&path, bytes, Lifetime::Persistent).await.unwrap();
        }
        Self { zookeeper, store }
    }

    /// Runs the command beside the test, which answers it.
    async fn run(&self, args: &[&str]) -> Output {
        let connect = self.zookeeper.connect();
        let place = ["switchover", "--zookeeper", &connect, "--cluster", "test"];
        let args: Vec<String> = place.iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        let running = tokio::task::spawn_blocking(move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            Pointsman::run(&args)
        });
        running.await.unwrap()
    }

    async fn request(&self) -> Option<SwitchRequest> {
        let path = Place::Switch(shard()).to_string();
        let found = self.store.get(&path).await.unwrap()?;
        Some(decode(&found.bytes, &path).unwrap())
    }

    /// Waits for a request and answers it as an executor does.
    async fn answer(&self, result: Ending, why: &str) -> SwitchRequest {
        let end = clock::now() + LIMIT;
        let request = loop {
            if let Some(request) = self.request().await {
                break request;
            }
            assert!(clock::now() < end, "nobody asks");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let phases = vec![("drain".to_owned(), Duration::from_micros(2500))];
        let record = Record {
            seq: 0,
            time: 1_700_000_000_000,
            shard: shard(),
            kind: Kind::Switchover,
            from: Some(NodeId::from("s1-a")),
            to: Some(NodeId::from("s1-b")),
            epoch: Epoch(4),
            phases_ms: Phases(phases),
            held: Some(1),
            resent: Some(2),
            indoubt: Some(0),
            failed: Some(0),
            offset: None,
            lost_bytes: Some(0),
            asked_by: Some(request.asked_by.clone()),
            request: Some(request.id.clone()),
            result,
            why: why.to_owned(),
        };
        let history = Place::History(shard()).to_string();
        self.store.append(&history, encode(&record)).await.unwrap();
        let path = Place::Switch(shard()).to_string();
        self.store.delete(&path, None).await.unwrap();
        request
    }

    /// What the command says to an answer of this kind.
    async fn told(&self, args: &[&str], result: Ending, why: &str) -> (Output, SwitchRequest) {
        tokio::join!(self.run(args), self.answer(result, why))
    }
}

#[tokio::test]
async fn the_outcome_is_told_in_a_sentence_or_as_the_record() {
    let bench = Bench::start().await;
    let (output, request) = bench.told(&["s1"], Ending::Done, "").await;
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    assert_eq!(
        output.stdout,
        "s1: s1-a -> s1-b in epoch 4, 2.5 ms (drain 2.5 ms); held 1, resent 2, in doubt 0, failed 0\n"
    );
    assert_eq!(request.to, None);
    assert!(request.asked_by.contains('@'), "{request:?}");

    let (output, request) = bench.told(&["s1", "--to", "s1-b", "--json"], Ending::Done, "").await;
    let record: Json = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(
        [&record["result"], &record["request"], &record["seq"]],
        [&Json::from("done"), &request.id.into(), &1.into()]
    );
    assert_eq!(request.to, Some(NodeId::from("s1-b")));

    for (result, wanted) in [
        (Ending::Refused, "pointsman: the master of s1 was not moved: s1-b lags"),
        (Ending::RolledBack, "all is as before: s1-b lags"),
        (
            Ending::Failed,
            "an election follows, see 'pointsman history': s1-b lags",
        ),
    ] {
        let (output, _) = bench.told(&["s1"], result.clone(), "s1-b lags").await;
        assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""));
        assert!(output.stderr.contains(wanted), "{}", output.stderr);
        let (output, _) = bench.told(&["s1", "--json"], result, "s1-b lags").await;
        assert_eq!(output.code, Some(1));
        let record: Json = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!(record["why"], "s1-b lags");
    }
    let connect = bench.zookeeper.connect();
    let place = ["--zookeeper", connect.as_str(), "--cluster", "test"];
    let table = Pointsman::run(&[&["history", "--phases"], &place[..]].concat());
    assert_eq!(table.code, Some(0), "{}", table.stderr);
    assert!(
        table.stdout.contains("rolled-back") && table.stdout.contains("drain 2.5 ms"),
        "{}",
        table.stdout
    );
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_refused_with_what_there_is() {
    let bench = Bench::start().await;
    for (args, wanted) in [
        (&["s9"][..], "there is no shard s9: there is s1"),
        (
            &["s1", "--to", "s1-x"],
            "there is no node s1-x in s1: there is s1-a, s1-b",
        ),
    ] {
        let output = bench.run(args).await;
        assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""));
        assert_eq!(output.stderr, format!("pointsman: {wanted}\n"));
        assert_eq!(bench.request().await, None, "nothing was asked");
    }
    let theirs = SwitchRequest {
        id: "r1".to_owned(),
        to: None,
        asked_by: "node s1-a stops".to_owned(),
    };
    let path = Place::Switch(shard()).to_string();
    bench
        .store
        .create(&path, encode(&theirs), Lifetime::Persistent)
        .await
        .unwrap();
    let output = bench.run(&["s1"]).await;
    assert_eq!(output.code, Some(1));
    assert_eq!(
        output.stderr,
        "pointsman: a switchover of s1 is asked for already, by node s1-a stops: wait until it is over\n"
    );
    assert_eq!(bench.request().await, Some(theirs));
}

#[tokio::test]
async fn a_request_that_nobody_takes_is_taken_back() {
    let bench = Bench::start().await;
    let output = bench.run(&["s1"]).await;
    assert_eq!(output.code, Some(1));
    assert!(
        output
            .stderr
            .contains("nobody took the request within 5 s: see whether s1-a's agent runs"),
        "{}",
        output.stderr
    );
    assert_eq!(bench.request().await, None);
}

#[tokio::test]
async fn a_request_is_taken_back_by_who_gives_up_waiting() {
    let bench = Bench::start().await;
    let connect = bench.zookeeper.connect();
    let mut asking = Pointsman::start(&["switchover", "--zookeeper", &connect, "--cluster", "test", "s1"]);
    let end = clock::now() + LIMIT;
    while bench.request().await.is_none() {
        assert!(clock::now() < end, "nobody asks");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    asking.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(asking.exit_code(LIMIT), Some(1));
    assert!(asking.log().contains("the request is taken back"), "{}", asking.log());
    assert_eq!(bench.request().await, None);
}
