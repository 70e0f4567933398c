//! Causal reads from replicas on real servers: fences, facts and the sampler together.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize};
use std::thread;
use std::time::Duration;

use pointsman::clock;
use pointsman::proxy::shared::{
    Bond, ControlLogin, IDENTIFY, Identity, ReplicaFacts, Replicas, SamplerSettings, Unfit, identify, sample,
};
use pointsman::route::{
    Ask, Choice, FenceLog, Fences, Footprint, Need, ReadPolicy, SampleNumber, Standing, Stickiness, choose,
};
use pointsman::topology::{Epoch, Master, Node, NodeId, Phase, Shard, SlotMap, Snapshot};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::support::{Client, Redis, Value, eventually, holds_within};

const SOON: Duration = Duration::from_secs(20);
const MAX_LAG_MS: u64 = 1_000;

/// A master, its replicas, and a sampler that follows them.
struct Circuit {
    master: Redis,
    replicas: Vec<Redis>,
    known: Arc<Replicas>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    _runtime: Runtime,
}

impl Circuit {
    fn start(replicas: usize) -> Self {
        let master = master();
        let replicas = (0..replicas).map(|_| replica_of(&master)).collect();
        Self::around(master, replicas)
    }

    fn around(master: Redis, replicas: Vec<Redis>) -> Self {
        let known = Arc::new(Replicas::new(Arc::new(Fences::new())));
        let first = snapshot(1, Phase::Serving, &master, &replicas);
        let (snapshots, receiver) = watch::channel(Arc::new(first));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let settings = SamplerSettings {
            max_lag_ms: MAX_LAG_MS,
            login: Arc::new(|_, _, _| ControlLogin::default()),
        };
        runtime.spawn(sample(known.clone(), receiver, settings, CancellationToken::new()));
        Self {
            master,
            replicas,
            known,
            snapshots,
            _runtime: runtime,
        }
    }

    fn fences(&self) -> &Arc<Fences> {
        self.known.fences()
    }

    fn facts(&self, at: usize, epoch: u64) -> Arc<ReplicaFacts> {
        let addr = self.replicas[at].addr().parse().unwrap();
        self.known.facts(&"s1".into(), &node_id(at), &addr, Epoch(epoch))
    }

    fn publish(&self, epoch: u64, phase: Phase) {
        let next = snapshot(epoch, phase, &self.master, &self.replicas);
        self.snapshots.send_replace(Arc::new(next));
    }

    /// A log as a lane to the master keeps one.
    fn log(&self) -> FenceLog {
        FenceLog::new(self.fences().clone(), self.fences().shard(&"s1".into()))
    }

    /// Writes as a lane does: raise, send, settle.
    fn set(&self, log: &mut FenceLog, client: &mut Client, key: &str, value: &str) {
        let mut footprint = Footprint::default();
        footprint.writes_key(self.fences(), 0, key.as_bytes());
        log.appended(1, &footprint);
        assert_eq!(client.command(&["SET", key, value]), Value::ok());
        log.answered(1);
    }

    fn need(&self, key: &str) -> Need {
        let shard = self.fences().shard(&"s1".into());
        self.fences().need_of(key.as_bytes()).and(shard.need_of_keyed())
    }

    fn ask(&self, key: &str, session: u64) -> Ask {
        Ask {
            policy: ReadPolicy::Causal,
            need: self.need(key),
            requested: self.fences().requested(),
            now_ms: clock::monotonic_ms(),
            max_lag_ms: MAX_LAG_MS,
            session,
        }
    }

    fn has(&self, standing: Standing, key: &str) -> bool {
        standing.is_fresh(clock::monotonic_ms(), MAX_LAG_MS) && self.need(key).met_by(standing.passed)
    }
}

fn node_id(at: usize) -> NodeId {
    NodeId::new(format!("replica-{at}"))
}

fn snapshot(epoch: u64, phase: Phase, master: &Redis, replicas: &[Redis]) -> Snapshot {
    let node = |id: NodeId, redis: &Redis| Node {
        id,
        addr: redis.addr().parse().unwrap(),
        peer: None,
        run_id: None,
        zone: "".into(),
        is_member: true,
    };
    let mut nodes = vec![node("master".into(), master)];
    nodes.extend(replicas.iter().enumerate().map(|(at, redis)| node(node_id(at), redis)));
    let shard = Shard {
        id: "s1".into(),
        epoch: Epoch(epoch),
        phase,
        master: Some(Master {
            node: "master".into(),
            addr: master.addr().parse().unwrap(),
            run_id: None,
        }),
        nodes,
        ack_replicas: 0,
        switch: None,
        executor: None,
    };
    Snapshot {
        shards: vec![shard],
        slots: SlotMap::single(),
    }
}

fn master() -> Redis {
    Redis::start(&["--repl-diskless-sync-delay", "0"])
}

fn replica_of(master: &Redis) -> Redis {
    Redis::start(&["--replicaof", "127.0.0.1", &master.port().to_string()])
}

/// Who is at the other end of a connection to a replica, asked as a lane does.
fn who(client: &mut Client) -> Result<Identity, Unfit> {
    let texts = IDENTIFY.map(|question| client.command(&question).text());
    identify(&texts.concat())
}

/// A connection to a replica once that is fit, and what binds it to the facts.
fn bound(circuit: &Circuit, at: usize, epoch: u64) -> (Client, Bond) {
    let mut client = circuit.replicas[at].client();
    let mut identity = None;
    eventually(SOON, || {
        identity = who(&mut client).ok();
        identity.is_some()
    });
    (client, Bond::new(circuit.facts(at, epoch), identity.unwrap()))
}

#[test]
fn after_a_write_the_replica_is_read_as_soon_as_it_has_it() {
    let circuit = Circuit::start(1);
    let (mut reader, bond) = bound(&circuit, 0, 1);
    let (mut log, mut writer) = (circuit.log(), circuit.master.client());
    for round in 0..50 {
        let value = round.to_string();
        circuit.set(&mut log, &mut writer, "k", &value);
        eventually(SOON, || circuit.has(bond.standing(), "k"));
        assert_eq!(reader.command(&["GET", "k"]), Value::bulk(&value));
    }
    assert!(circuit.fences().wanted() <= circuit.fences().requested());
}

#[test]
fn no_reader_ever_misses_what_was_acknowledged_or_read_before() {
    let circuit = Circuit::start(2);
    let (ask_forever, on_replicas) = (AtomicBool::new(true), AtomicUsize::new(0));
    // The highest value that anybody was shown, by an acknowledgement or by a read.
    let shown: [AtomicI64; 4] = Default::default();
    thread::scope(|scope| {
        let (circuit, ask_forever, on_replicas, shown) = (&circuit, &ask_forever, &on_replicas, &shown);
        for session in 0..3_u64 {
            scope.spawn(move || {
                let mut lanes = [bound(circuit, 0, 1), bound(circuit, 1, 1)];
                let (mut master, mut sticky) = (circuit.master.client(), Stickiness::default());
                while ask_forever.load(SeqCst) {
                    for (number, shown) in shown.iter().enumerate() {
                        let key = format!("k{number}");
                        let before = shown.load(SeqCst);
                        let ask = circuit.ask(&key, session);
                        let choice = choose(&ask, &mut sticky, 2, |at| lanes[at].1.standing());
                        let reply = match choice {
                            Choice::Master => master.command(&["GET", &key]),
                            Choice::Replica(at) => {
                                on_replicas.fetch_add(1, SeqCst);
                                lanes[at].0.command(&["GET", &key])
                            }
                        };
                        sticky.answered(circuit.fences().requested());
                        let value = reply.text().parse().unwrap_or(0);
                        assert!(value >= before, "{key} from {choice:?}: {value} after {before}");
                        shown.fetch_max(value, SeqCst);
                    }
                }
            });
        }
        let (mut log, mut writer) = (circuit.log(), circuit.master.client());
        let mut last = 0;
        let written = holds_within(Duration::from_secs(60), || {
            for number in 0..40 {
                last += 1;
                // The first key is busy, the last one nearly never written.
                let key = [0, 0, 0, 0, 1, 1, 2, 2, 0, 3][number % 10];
                circuit.set(&mut log, &mut writer, &format!("k{key}"), &last.to_string());
                shown[key].fetch_max(last, SeqCst);
            }
            last >= 4_000 && on_replicas.load(SeqCst) > 2_000
        });
        ask_forever.store(false, SeqCst);
        assert!(written, "{last} writes, {} reads on replicas", on_replicas.load(SeqCst));
    });
}

#[test]
fn a_frozen_replica_stops_being_eligible_and_delays_nobody() {
    let circuit = Circuit::start(2);
    let (_frozen_client, frozen) = bound(&circuit, 0, 1);
    let (mut reader, other) = bound(&circuit, 1, 1);
    eventually(SOON, || {
        circuit.has(frozen.standing(), "k") && circuit.has(other.standing(), "k")
    });
    circuit.replicas[0].stop();
    let passed_at_ms = frozen.standing().passed_at_ms;
    let (mut log, mut writer) = (circuit.log(), circuit.master.client());
    circuit.set(&mut log, &mut writer, "k", "new");
    assert!(
        !circuit.has(frozen.standing(), "k"),
        "it cannot have passed what was written since"
    );
    eventually(SOON, || circuit.has(other.standing(), "k"));
    assert_eq!(reader.command(&["GET", "k"]), Value::bulk("new"));
    eventually(SOON, || !circuit.has(frozen.standing(), "never written"));
    let over_ms = clock::monotonic_ms();
    // It may have passed a few more samples while it was being stopped.
    assert!(
        over_ms <= passed_at_ms + MAX_LAG_MS + 1_000,
        "{} ms",
        over_ms - passed_at_ms
    );
    circuit.replicas[0].cont();
    eventually(SOON, || circuit.has(frozen.standing(), "k"));
}

#[test]
fn a_restarted_replica_with_old_data_is_not_taken_for_the_one_that_had_passed() {
    let mut circuit = Circuit::start(1);
    let (mut log, mut writer) = (circuit.log(), circuit.master.client());
    let (_old_client, old) = bound(&circuit, 0, 1);
    circuit.set(&mut log, &mut writer, "k", "v1");
    eventually(SOON, || circuit.has(old.standing(), "k"));
    assert_eq!(circuit.replicas[0].command(&["SAVE"]), Value::ok());
    circuit.set(&mut log, &mut writer, "k", "v2");
    eventually(SOON, || circuit.has(old.standing(), "k"));
    let life = old.standing().life;

    // Without its master it cannot catch up: it answers v1, from the same address, under the same replication id.
    circuit.master.stop();
    circuit.replicas[0].restart();
    let mut reader = circuit.replicas[0].client();
    assert_eq!(reader.command(&["GET", "k"]), Value::bulk("v1"));
    assert_eq!(who(&mut reader), Err(Unfit::LinkDown));
    let facts = circuit.facts(0, 1);
    eventually(SOON, || !facts.is_in_service());
    assert!(!circuit.has(old.standing(), "k"));

    circuit.master.cont();
    let (mut reader, new) = bound(&circuit, 0, 1);
    eventually(SOON, || circuit.has(new.standing(), "k"));
    assert_eq!(reader.command(&["GET", "k"]), Value::bulk("v2"));
    assert_ne!(new.standing().life, life);
    assert_eq!(
        old.standing(),
        Standing::NONE,
        "the old connection leads to a process that is gone"
    );
}

#[test]
fn an_empty_replica_on_the_same_address_serves_only_what_it_got_since() {
    let mut circuit = Circuit::start(1);
    let (mut log, mut writer) = (circuit.log(), circuit.master.client());
    let (_old_client, old) = bound(&circuit, 0, 1);
    for round in 0..3 {
        let value = round.to_string();
        circuit.set(&mut log, &mut writer, "k", &value);
        eventually(SOON, || circuit.has(circuit.facts(0, 1).standing(), "k"));
        circuit.replicas[0].restart();
        // From the first moment on: whoever is bound and has what it takes, has the value.
        let (mut reader, new) = bound(&circuit, 0, 1);
        eventually(SOON, || circuit.has(new.standing(), "k"));
        assert_eq!(reader.command(&["GET", "k"]), Value::bulk(&value));
        assert_eq!(old.standing(), Standing::NONE);
    }
}

#[test]
fn offsets_of_another_replication_stream_are_never_compared() {
    let (master, stranger) = (master(), master());
    // The stranger's offset is far ahead: compared by number alone its replica would have passed everything.
    let mut client = stranger.client();
    let strays = replica_of(&stranger);
    eventually(SOON, || who(&mut strays.client()).is_ok());
    client.command(&["SET", "big", &"x".repeat(1 << 20)]);
    let circuit = Circuit::around(master, vec![strays]);
    let facts = circuit.facts(0, 1);
    let rounds = circuit.fences().requested().0 + 20;
    let served = holds_within(SOON, || {
        circuit.fences().want(SampleNumber(circuit.fences().requested().0 + 1));
        assert!(!facts.is_in_service(), "it follows another master");
        circuit.fences().requested().0 >= rounds
    });
    assert!(served, "there were rounds");
    // Once it follows the master it is taken in.
    let port = circuit.master.port().to_string();
    circuit.replicas[0].command(&["REPLICAOF", "127.0.0.1", &port]);
    eventually(SOON, || facts.is_in_service());
    assert_eq!(circuit.replicas[0].command(&["EXISTS", "big"]), Value::Int(0));
}

#[test]
fn without_a_master_replicas_serve_what_they_passed_until_it_is_too_old() {
    let mut circuit = Circuit::start(1);
    let (mut log, mut writer) = (circuit.log(), circuit.master.client());
    let (mut reader, bond) = bound(&circuit, 0, 1);
    circuit.set(&mut log, &mut writer, "k", "v");
    eventually(SOON, || circuit.has(bond.standing(), "k"));
    circuit.master.kill9();
    circuit.publish(2, Phase::Electing);
    let (before, killed_ms) = (bond.standing(), clock::monotonic_ms());
    eventually(SOON, || {
        let standing = bond.standing();
        let is_old = clock::monotonic_ms() > killed_ms + MAX_LAG_MS;
        assert!(standing.life == before.life, "it goes on serving what it has");
        is_old && !circuit.has(standing, "k")
    });
    assert_eq!(reader.command(&["GET", "k"]), Value::bulk("v"));
}

#[test]
fn a_new_epoch_ends_what_was_known_under_the_old() {
    let circuit = Circuit::start(1);
    let (_client, bond) = bound(&circuit, 0, 1);
    eventually(SOON, || circuit.has(bond.standing(), "k"));
    circuit.publish(2, Phase::Serving);
    eventually(SOON, || bond.standing() == Standing::NONE);
    let (_client, next) = bound(&circuit, 0, 2);
    eventually(SOON, || circuit.has(next.standing(), "k"));
    assert_eq!(bond.standing(), Standing::NONE);
}
