use tokio::time::timeout;

use super::*;
use crate::agent::machine::quorum::Grounds;
use crate::peer::Report;
use crate::store::{Lifetime, Loss, Memory};
use crate::topology::Addr;

const LIMIT: Duration = Duration::from_secs(10);

pub(in crate::agent::seam) fn outcome(epoch: u64) -> Outcome {
    Outcome {
        kind: Kind::Failover,
        result: Ending::Done,
        epoch: Epoch(epoch),
        from: None,
        to: Some(NodeId::from("a")),
        why: "a test".to_owned(),
        grounds: Some(Grounds::Quorum),
        offset: Some(0),
        lost_bytes: None,
        asked_by: None,
        request: None,
        phases: vec![("claim", Duration::from_millis(2))],
    }
}

pub(in crate::agent::seam) fn record(epoch: u64) -> Record {
    znode::record(&ShardId::from("s1"), outcome(epoch), 1)
}

async fn keep_one(store: &Store, record: &Record) -> Option<u64> {
    keep(store, &ShardId::from("s1"), &NodeId::from("a"), record).await
}

#[tokio::test]
async fn a_record_of_unknown_outcome_is_written_once() {
    let ensemble = Memory::default();
    let store = ensemble.store();
    for loss in [Loss::Done, Loss::NotDone] {
        ensemble.lose_next_write(loss);
        assert_eq!(keep_one(&store, &record(1)).await, Some(0), "{loss:?}");
        assert_eq!(store.children("/history/s1").await.unwrap().len(), 1, "{loss:?}");
        store.delete("/history/s1/0000000000", None).await.ok();
        store.delete("/history/s1", None).await.unwrap();
    }
}

#[tokio::test]
async fn the_oldest_records_go_at_the_limit_and_one_past_it() {
    let store = Memory::default().store();
    for _ in 0..RECORDS_MAX - 1 {
        store.append("/history/s1", b"{}".to_vec()).await.unwrap();
    }
    keep_one(&store, &record(1)).await;
    let names = store.children("/history/s1").await.unwrap();
    assert_eq!((names.len(), names[0].as_str()), (RECORDS_MAX, "0000000000"));
    keep_one(&store, &record(1)).await;
    let names = store.children("/history/s1").await.unwrap();
    assert_eq!((names.len(), names[0].as_str()), (RECORDS_MAX, "0000000001"));
}

/// A historian that runs, and what can be told it.
struct Bench {
    store: Store,
    outcomes: mpsc::Sender<Box<Outcome>>,
    reports: Reports,
    losses: mpsc::Sender<Lost>,
}

impl Bench {
    /// Beside proxies that report.
    async fn start(proxies: &[&str]) -> Self {
        let store = Memory::default().store();
        for id in proxies {
            let info = ProxyInfo {
                addr: Addr::new("127.0.0.1", 6400),
                admin: None,
                zone: String::new(),
                epochs: Default::default(),
                drains: !id.starts_with("mute"),
            };
            let path = format!("/proxies/{id}");
            store.create(&path, encode(&info), Lifetime::Persistent).await.unwrap();
        }
        let (outcomes, told) = mpsc::channel(8);
        let (losses, heard) = mpsc::channel(8);
        let reports = Reports::default();
        let historian = Historian::new(store.clone(), ShardId::from("s1"), NodeId::from("a"), reports.clone());
        tokio::spawn(historian.run(told, heard));
        Self {
            store,
            outcomes,
            reports,
            losses,
        }
    }

    fn report(&self, proxy: &str, epoch: u64, held: u64) {
        let report = Report {
            held,
            took_us: 1000 * held,
            ..Report::default()
        };
        self.reports.note(proxy.to_owned(), Epoch(epoch), report);
    }

    async fn ends(&self, epoch: u64) {
        self.outcomes.send(Box::new(outcome(epoch))).await.unwrap();
    }

    /// Waits until the last record says that so many were held, and returns how many records there are.
    async fn until_held(&self, held: Option<u64>) -> usize {
        let mut watch = self.store.watch("/history");
        let waiting = async {
            loop {
                let names = self.store.children("/history/s1").await.unwrap();
                if let Some(name) = names.last() {
                    let path = format!("/history/s1/{name}");
                    let value = self.store.get(&path).await.unwrap().unwrap();
                    if decode::<Record>(&value.bytes, &path).unwrap().held == held {
                        return names.len();
                    }
                }
                watch.changed().await;
            }
        };
        timeout(LIMIT, waiting).await.expect("the record comes")
    }
}

#[tokio::test]
async fn reports_stand_in_the_record_whether_they_come_before_it_in_time_or_late() {
    let bench = Bench::start(&["p1", "p2", "mute"]).await;
    bench.report("p1", 2, 1);
    bench.ends(2).await;
    bench.report("p2", 2, 2);
    assert_eq!(bench.until_held(Some(3)).await, 1);
    // Nobody reports in time.
    bench.ends(3).await;
    assert_eq!(bench.until_held(None).await, 2);
    bench.report("p1", 3, 10);
    bench.report("p2", 3, 20);
    assert_eq!(bench.until_held(Some(30)).await, 2, "the same record");
    // One of them never does: what is known is added in the end.
    bench.ends(4).await;
    assert_eq!(bench.until_held(None).await, 3);
    bench.report("p2", 4, 7);
    assert_eq!(bench.until_held(Some(7)).await, 3);
}

#[tokio::test]
async fn a_loss_is_added_by_who_was_master_and_stays_when_reports_come_late() {
    let bench = Bench::start(&["p1"]).await;
    for (node, bytes) in [("b", 7), ("a", 8)] {
        let record = Record {
            from: Some(NodeId::from(node)),
            ..record(bytes)
        };
        bench.store.append("/history/s1", encode(&record)).await.unwrap();
    }
    for epoch in [7, 8] {
        let lost = Lost {
            epoch: Epoch(epoch),
            bytes: 30,
        };
        bench.losses.send(lost).await.unwrap();
    }
    let lost = async |name: &str| {
        let found = bench.store.get(&format!("/history/s1/{name}")).await.unwrap().unwrap();
        decode::<Record>(&found.bytes, "p").unwrap().lost_bytes
    };
    let mut watch = bench.store.watch("/history");
    while lost("0000000001").await.is_none() {
        timeout(LIMIT, watch.changed()).await.expect("the loss is added");
    }
    assert_eq!((lost("0000000000").await, lost("0000000001").await), (None, Some(30)));

    bench.ends(9).await;
    while bench.until_held(None).await < 3 {
        timeout(LIMIT, watch.changed()).await.expect("the next record comes");
    }
    let path = "/history/s1/0000000002";
    let found = bench.store.get(path).await.unwrap().unwrap();
    let whole = Record {
        lost_bytes: Some(5),
        ..decode(&found.bytes, path).unwrap()
    };
    bench.store.set(path, encode(&whole), found.version).await.unwrap();
    bench.report("p1", 9, 4);
    assert_eq!(bench.until_held(Some(4)).await, 3);
    assert_eq!(lost("0000000002").await, Some(5));
}

#[tokio::test]
async fn a_record_waits_for_nobody_when_the_next_operation_has_ended() {
    let bench = Bench::start(&["p1"]).await;
    bench.ends(2).await;
    bench.ends(3).await;
    bench.report("p1", 3, 5);
    assert_eq!(bench.until_held(Some(5)).await, 2);
    let first = bench.store.get("/history/s1/0000000000").await.unwrap().unwrap();
    assert_eq!(decode::<Record>(&first.bytes, "p").unwrap().epoch, Epoch(2));
}

#[tokio::test]
async fn a_request_that_a_record_answers_already_gets_no_second_one() {
    let store = Memory::default().store();
    let request = crate::topology::codec::SwitchRequest {
        id: "r1".to_owned(),
        to: None,
        asked_by: String::new(),
    };
    let path = "/shards/s1/switch";
    store
        .create(path, encode(&request), Lifetime::Persistent)
        .await
        .unwrap();
    let answers = |phases: Vec<(&'static str, Duration)>| {
        let outcome = Outcome {
            kind: Kind::Switchover,
            request: Some("r1".to_owned()),
            phases,
            ..outcome(2)
        };
        znode::record(&ShardId::from("s1"), outcome, 1)
    };
    // The executor wrote its record and died.
    let whole = answers(vec![("claim", Duration::from_millis(2))]);
    store.append("/history/s1", encode(&whole)).await.unwrap();
    assert_eq!(keep_one(&store, &answers(Vec::new())).await, None);
    assert_eq!(store.children("/history/s1").await.unwrap().len(), 1);
    assert_eq!(store.get(path).await.unwrap(), None, "but the request ends");
}
