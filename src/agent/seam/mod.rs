//! The seam between an agent and the store: what host asks is done to znodes, what znodes say becomes events.
//!
//! ```text
//!  connection, hints --> reader --Synced, Lost, State, Nodes, Suspects, Wish, Proxies--> host
//!                           |  serving states --> news --> whoever is connected to the peer port
//!  host --Write--> writer --Written--> host
//!       --Record, Lost--> historian  (its own pace: a history never holds up a failover)
//!       --reports of proxies, a place each--> historian
//!       --Describe, Suspect--> presence (ephemerals, kept by the store house)
//! ```
//!
//! Owns: the tasks above and the conversions between znodes and the machine's types. Refuses: decisions.
//! Invariants: a znode with nonsense is said once and the last good value stays, so nonsense never looks like
//! "nothing"; an unknown outcome is passed on as such; every queue is bounded.

mod claim;
mod historian;
mod news;
mod presence;
mod reader;
mod reports;
mod request;
mod rivals;
mod tally;
mod writer;
mod znode;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::host::{StoreEvent, StoreRequest, StoreSeam};
use super::machine::action::Written;
use super::machine::outcome::Outcome;
use crate::peer::Bulletin;
use crate::store::Store;
use crate::topology::{NodeId, ShardId};

use historian::{Historian, Lost};
use news::News;
use reader::Reader;
use writer::{Write, Writer};

pub use claim::{Claim, claim};
pub use presence::{Presence, patience};
pub use reports::Reports;
pub use rivals::{Rival, Rivals};

/// Events that wait for the host.
const EVENTS_MAX: usize = 64;
/// Requests that wait for the store.
const REQUESTS_MAX: usize = 64;
/// Writes and reads that wait for their task.
const WAITING_MAX: usize = 8;

/// Starts the seam; it ends with `stop`. What is told to proxies at once comes out of the second part; the third ends when
/// the first was dropped and every record stands.
pub fn start(
    store: &Store,
    shard: &ShardId,
    node: &NodeId,
    presence: Presence,
    claim: Claim,
    stop: &CancellationToken,
) -> (StoreSeam, watch::Receiver<Bulletin>, JoinHandle<()>) {
    let (events, told) = mpsc::channel(EVENTS_MAX);
    let (requests, asked) = mpsc::channel(REQUESTS_MAX);
    let (news, heard) = News::new(shard.clone());
    let (reads, to_read) = mpsc::channel(WAITING_MAX);
    let (writes, to_write) = mpsc::channel(WAITING_MAX);
    let (records, to_record) = mpsc::channel(WAITING_MAX);
    let (losses, lost) = mpsc::channel(WAITING_MAX);
    let reports = Reports::default();
    let reader = Reader::new(store.clone(), shard.clone(), events.clone(), news.clone());
    let writer = Writer::new(store.clone(), shard, events.clone());
    let historian = Historian::new(store.clone(), shard.clone(), node.clone(), reports.clone());
    let sorter = Sorter {
        reads,
        writes,
        records,
        losses,
        presence,
        news,
        events,
    };
    tokio::spawn(stop.clone().run_until_cancelled_owned(reader.run(to_read)));
    tokio::spawn(stop.clone().run_until_cancelled_owned(writer.run(to_write)));
    let recording = stop.clone().run_until_cancelled_owned(historian.run(to_record, lost));
    let recorded = tokio::spawn(async {
        recording.await.unwrap_or_default();
    });
    tokio::spawn(stop.clone().run_until_cancelled_owned(sorter.run(asked)));
    let seam = StoreSeam {
        events: told,
        requests,
        reports,
        claim,
    };
    (seam, heard, recorded)
}

/// Gives each request to whom it concerns.
struct Sorter {
    reads: mpsc::Sender<()>,
    writes: mpsc::Sender<Write>,
    records: mpsc::Sender<Box<Outcome>>,
    losses: mpsc::Sender<Lost>,
    presence: Presence,
    news: News,
    events: mpsc::Sender<StoreEvent>,
}

impl Sorter {
    async fn run(self, mut asked: mpsc::Receiver<StoreRequest>) {
        while let Some(request) = asked.recv().await {
            match request {
                StoreRequest::Write(expect, state) => {
                    // The machine has one write outstanding at a time, so the queue is never full.
                    if self.writes.try_send(Write { expect, state }).is_err() {
                        let lost = StoreEvent::Written(Written::Unknown);
                        let _ended = self.events.send(lost).await;
                    }
                }
                // A read that waits already answers this one too.
                StoreRequest::Read => drop(self.reads.try_send(())),
                StoreRequest::Suspect(suspicion) => self.presence.suspect(suspicion.as_ref()),
                StoreRequest::Describe(described) => self.presence.describe(&described),
                StoreRequest::Relay(state) => self.news.tell(state.version, &znode::from_state(&state.state)),
                StoreRequest::Attach(attach) => self.news.attach(attach),
                StoreRequest::Record(outcome) => {
                    if self.records.try_send(Box::new(outcome)).is_err() {
                        tracing::warn!("a history record is dropped: the store has been away for long");
                    }
                }
                StoreRequest::Lost(epoch, bytes) => {
                    if self.losses.try_send(Lost { epoch, bytes }).is_err() {
                        tracing::debug!("a loss is not added to the history: the store has been away for long");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::agent::host::Described;
    use crate::agent::machine::action::Suspicion;
    use crate::agent::machine::facts::Role;
    use crate::agent::machine::state::{MasterOf, State};
    use crate::peer::Report;
    use crate::store::{Lifetime, Loss, Memory};
    use crate::topology::codec::{NodeInfo, Record, ShardState, Suspect, decode, encode};
    use crate::topology::{Addr, Epoch, Phase, RunId};

    const LIMIT: Duration = Duration::from_secs(5);

    struct Bench {
        ensemble: Memory,
        /// A session of somebody else.
        other: Store,
        seam: StoreSeam,
        news: watch::Receiver<Bulletin>,
        _stop: tokio_util::sync::DropGuard,
    }

    impl Bench {
        async fn start() -> Self {
            let ensemble = Memory::default();
            let (shard, node) = (ShardId::from("s1"), NodeId::from("a"));
            let info = NodeInfo {
                host: "h".to_owned(),
                redis: Addr::new("127.0.0.1", 1),
                peer: Addr::new("127.0.0.1", 2),
                run_id: None,
                role: None,
                replid: None,
                zone: String::new(),
                priority: 1,
                boot_id: String::new(),
            };
            let store = ensemble.store();
            let (presence, mut registration) = Presence::start(&store, &shard, &node, info);
            assert!(registration.held().await);
            let stop = CancellationToken::new();
            let (seam, news, _recorded) = start(&store, &shard, &node, presence, Claim::unrivalled(), &stop);
            Self {
                other: ensemble.store(),
                ensemble,
                seam,
                news,
                _stop: stop.drop_guard(),
            }
        }

        async fn ask(&self, request: StoreRequest) {
            self.seam.requests.send(request).await.unwrap();
        }

        /// The next event that `wanted` picks; others are passed over.
        async fn event<T>(&mut self, wanted: impl Fn(&StoreEvent) -> Option<T>) -> T {
            let next = async {
                loop {
                    let event = self.seam.events.recv().await.unwrap();
                    if let Some(picked) = wanted(&event) {
                        return picked;
                    }
                }
            };
            timeout(LIMIT, next).await.expect("the event comes")
        }

        /// Nothing more is told of the state until a marker, the evidence of somebody else, is.
        async fn state_is_silent(&mut self, marker: &str) {
            let evidence = Suspect {
                master: NodeId::from("m"),
                run_id: RunId::from("r"),
            };
            let path = format!("/shards/s1/suspects/{marker}");
            self.other
                .create(&path, encode(&evidence), Lifetime::Ephemeral)
                .await
                .unwrap();
            loop {
                let event = timeout(LIMIT, self.seam.events.recv()).await.unwrap().unwrap();
                match event {
                    StoreEvent::Suspects(all) if all.iter().any(|said| said.by.as_str() == marker) => return,
                    StoreEvent::State(state) => panic!("{state:?}"),
                    StoreEvent::Synced(Some(state)) => panic!("{state:?}"),
                    _ => {}
                }
            }
        }
    }

    fn state(epoch: u64) -> State {
        State {
            epoch: Epoch(epoch),
            phase: Phase::Serving,
            executor: NodeId::from("a"),
            nonce: format!("nonce{epoch}"),
            master: Some(MasterOf {
                node: NodeId::from("a"),
                addr: Addr::new("127.0.0.1", 1),
                run_id: RunId::from("a1"),
            }),
            lineage: vec!["r1".to_owned()],
            members: [NodeId::from("a")].into(),
            valid: [(NodeId::from("a"), RunId::from("a1"))].into(),
            ack_replicas: 0,
            switch: None,
            shrunk_from: 0,
            accept: None,
            moved: None,
        }
    }

    /// Collects what is logged.
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(event: &StoreEvent) -> Option<Written> {
        match event {
            StoreEvent::Written(written) => Some(*written),
            _ => None,
        }
    }

    fn synced(event: &StoreEvent) -> Option<Option<(i32, State)>> {
        match event {
            StoreEvent::Synced(read) => Some(read.as_ref().map(|read| (read.version, read.state.clone()))),
            _ => None,
        }
    }

    #[tokio::test]
    async fn an_own_write_of_unknown_outcome_is_recognised_by_a_synchronised_read() {
        let mut bench = Bench::start().await;
        assert_eq!(bench.event(synced).await, None);
        bench.ensemble.lose_next_write(Loss::Done);
        bench.ask(StoreRequest::Write(None, state(1))).await;
        assert_eq!(bench.event(written).await, Written::Unknown);
        bench.ask(StoreRequest::Read).await;
        assert_eq!(bench.event(synced).await, Some((0, state(1))));
        bench.ensemble.lose_next_write(Loss::NotDone);
        bench.ask(StoreRequest::Write(Some(0), state(2))).await;
        assert_eq!(bench.event(written).await, Written::Unknown);
        bench.ask(StoreRequest::Read).await;
        assert_eq!(bench.event(synced).await, Some((0, state(1))), "it did not happen");
        bench.ask(StoreRequest::Write(Some(0), state(2))).await;
        assert_eq!(bench.event(written).await, Written::Done(1));
        bench.ask(StoreRequest::Write(Some(0), state(3))).await;
        assert_eq!(bench.event(written).await, Written::Conflict);
    }

    #[tokio::test]
    async fn nonsense_is_said_once_and_never_looks_like_an_absent_state() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let log = tracing_subscriber::fmt().with_writer({
            let said = Arc::clone(&said);
            move || Lines(Arc::clone(&said))
        });
        let _log = tracing::subscriber::set_default(log.finish());
        let mut bench = Bench::start().await;
        let path = "/shards/s1/state";
        assert_eq!(bench.event(synced).await, None);
        let bytes = encode(&znode::from_state(&state(1)));
        bench.other.create(path, bytes, Lifetime::Persistent).await.unwrap();
        bench
            .event(|event| matches!(event, StoreEvent::State(_)).then_some(()))
            .await;
        bench.other.set(path, b"nonsense".to_vec(), 0).await.unwrap();
        bench.ask(StoreRequest::Read).await;
        bench.state_is_silent("one").await;
        bench.ensemble.stop();
        bench
            .event(|event| matches!(event, StoreEvent::Lost).then_some(()))
            .await;
        bench.ensemble.start();
        bench.state_is_silent("two").await;
        let bytes = encode(&znode::from_state(&state(2)));
        bench.other.set(path, bytes, 1).await.unwrap();
        // Synchronised: the host took the store for lost until now.
        assert_eq!(bench.event(synced).await, Some((2, state(2))));
        let said = said.lock().unwrap();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(said.matches("/shards/s1/state holds nonsense").count(), 1, "{said}");
    }

    #[tokio::test]
    async fn serving_states_are_relayed_once_and_never_backwards() {
        let mut bench = Bench::start().await;
        bench.ask(StoreRequest::Write(None, state(1))).await;
        timeout(LIMIT, bench.news.changed()).await.unwrap().unwrap();
        let told = bench.news.borrow_and_update().state().cloned().unwrap();
        assert_eq!(told.version, 0);
        let read: ShardState = decode(&told.state, "news").unwrap();
        assert_eq!(znode::to_state(read), state(1));
        let versioned = |version, epoch| {
            StoreRequest::Relay(crate::agent::machine::state::Versioned {
                version,
                state: state(epoch),
            })
        };
        bench.ask(versioned(5, 5)).await;
        bench.ask(versioned(4, 4)).await;
        bench.ask(versioned(6, 6)).await;
        let last = bench
            .news
            .wait_for(|told| told.state().is_some_and(|told| told.version >= 6));
        timeout(LIMIT, last).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_crowd_of_proxies_that_report_holds_up_no_write_and_none_of_them_is_lost() {
        const CROWD: u64 = 1000;
        let mut bench = Bench::start().await;
        bench.event(synced).await;
        let reports = bench.seam.reports.clone();
        let crowd = |held: u64| {
            for proxy in 0..CROWD {
                let report = Report {
                    held,
                    ..Report::default()
                };
                reports.note(format!("p{proxy}"), Epoch(1), report);
            }
        };
        // Nobody else runs meanwhile: whatever had a queue in common would be full.
        crowd(1);
        let write = StoreRequest::Write(None, state(1));
        bench.seam.requests.try_send(write).expect("there is room");
        assert_eq!(bench.event(written).await, Written::Done(0));
        // The historian waits for the store with one record while all of them report anew.
        bench.ensemble.stop();
        bench.ask(StoreRequest::Record(historian::tests::outcome(9))).await;
        bench.ask(StoreRequest::Record(historian::tests::outcome(1))).await;
        crowd(2);
        bench.ensemble.start();
        let mut watch = bench.other.watch("/history");
        let recorded = async {
            loop {
                if let Some(found) = bench.other.get("/history/s1/0000000001").await.unwrap() {
                    return decode::<Record>(&found.bytes, "p").unwrap();
                }
                watch.changed().await;
            }
        };
        let record = timeout(LIMIT, recorded).await.expect("the record comes");
        assert_eq!((record.epoch, record.held), (Epoch(1), Some(2 * CROWD)));
    }

    #[tokio::test]
    async fn presence_follows_redis_and_returns_in_a_new_session() {
        let mut bench = Bench::start().await;
        let described = Described {
            run_id: RunId::from("a1"),
            role: Role::Master,
            replid: "r1".to_owned(),
        };
        bench.ask(StoreRequest::Describe(described)).await;
        let suspicion = Suspicion {
            by: NodeId::from("a"),
            master: NodeId::from("m"),
            run_id: RunId::from("m1"),
        };
        bench.ask(StoreRequest::Suspect(Some(suspicion.clone()))).await;
        let evidence = |wanted: Vec<Suspicion>| {
            move |event: &StoreEvent| match event {
                StoreEvent::Suspects(all) => (*all == wanted).then_some(()),
                _ => None,
            }
        };
        bench.event(evidence(vec![suspicion.clone()])).await;
        bench.ensemble.expire();
        bench.event(evidence(vec![suspicion])).await;
        let node = bench.other.get("/shards/s1/nodes/a").await.unwrap().unwrap();
        let info: NodeInfo = decode(&node.bytes, "n").unwrap();
        assert_eq!(info.run_id, Some(RunId::from("a1")));
        bench.ask(StoreRequest::Suspect(None)).await;
        bench.event(evidence(Vec::new())).await;
    }
}
