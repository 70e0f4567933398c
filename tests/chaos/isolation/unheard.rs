//! Who may answer when the cluster cannot be heard: the lease of a master without acknowledgements, and `stale_reads`.

use std::thread;
use std::time::{Duration, Instant};

use pointsman::clock;

use super::{FAILOVER, REFUSAL, SMALL, SOON, Scene, agents, millis, refused, undisturbed};
use crate::cluster::{Cluster, PROXIES, Shape};
use crate::network::Network;
use crate::support::{Client, Value};

/// Nobody acknowledges what is written.
const ASYNC: Shape = Shape { w: 0, ..SMALL };
/// How long an answer may take that says that there is none.
const ANSWERED: Duration = Duration::from_secs(12);
/// What a proxy says that hears nobody.
const NOT_HEARD: &str = "MASTERDOWN neither ZooKeeper nor enough agents are heard";
/// `hold_max_ms`, and some time on a busy machine.
const HELD: Duration = Duration::from_millis(6500);

fn client(cluster: &Cluster, proxy: usize) -> Client {
    let client = cluster.door(PROXIES[proxy]).open().unwrap();
    client.set_read_timeout(ANSWERED);
    client
}

fn timed(client: &mut Client, request: &[&str]) -> (Value, Duration) {
    let asked: Instant = clock::now();
    let answer = client.try_command(request).unwrap();
    (answer, asked.elapsed())
}

/// Whether a node's Redis takes writes of anybody.
fn is_master(cluster: &Cluster, node: &str) -> bool {
    cluster.info(node).is_some_and(|info| info.contains("role:master"))
}

/// A master, its agent, a proxy and its clients on one side, all others on the other one: once somebody was elected there,
/// what is read and written on the first side is refused.
#[track_caller]
fn minority(shape: Shape) -> Option<(Scene, &'static str)> {
    let scene = Scene::start(shape)?;
    let cluster = &scene.cluster;
    let master = cluster.master().unwrap();
    let [mut here, mut there] = [0, 1].map(|proxy| client(cluster, proxy));
    assert_eq!(here.command(&["SET", "stale", "old"]), Value::ok());
    cluster.network().isolate(&[master, PROXIES[0]], &[]);
    let next = cluster.next_master(master);
    scene.get_on(&[1], FAILOVER);
    assert_eq!(there.command(&["SET", "stale", "new"]), Value::ok());
    for request in [&["GET", "stale"][..], &["SET", "stale", "older"], &["GET", "stale"]] {
        let (answer, took) = timed(&mut here, request);
        assert!(matches!(answer, Value::Error(_)), "{request:?} was answered {answer:?}");
        assert!(took < HELD, "{request:?} was answered {answer:?} after {took:?}");
    }
    let before = scene.workload.good(0);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(scene.workload.good(0), before, "the minority answers");
    cluster.network().heal();
    scene.get_on(&[0, 1], FAILOVER);
    let read = client(&scene.cluster, 0).command(&["GET", "stale"]);
    assert_eq!(read, Value::Bulk(b"new".to_vec()));
    assert_eq!(scene.cluster.master(), Some(next));
    Some((scene, master))
}

#[test]
fn a_minority_with_clients_reads_nothing_stale_where_replicas_acknowledge() {
    let Some((scene, _)) = minority(SMALL) else { return };
    let [minority, _] = scene.end().told;
    assert_eq!(minority.closed, 0, "{minority}");
}

#[test]
fn a_minority_with_clients_reads_nothing_stale_where_nobody_acknowledges() {
    let Some((scene, _)) = minority(ASYNC) else { return };
    let findings = scene.end();
    refused(findings.told[0]);
}

#[test]
fn without_acknowledgements_a_master_stands_down_before_another_is_elected() {
    let Some(scene) = Scene::start(ASYNC) else { return };
    let cluster = &scene.cluster;
    let master = cluster.master().unwrap();
    cluster.network().isolate(&[master, PROXIES[0]], &["operator"]);
    let begun = clock::now();
    while cluster.master() == Some(master) {
        assert!(begun.elapsed() < FAILOVER, "nobody else is elected");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(!is_master(cluster, master), "{master} reigns on");
    scene.get_on(&[1], FAILOVER);
    scene.cluster.network().heal();
    scene.get_on(&[0, 1], FAILOVER);
    scene.end();
}

/// A master without acknowledgements that is cut off from its replicas for so long, and from nobody else: nobody notices.
#[track_caller]
fn goes_on_without_replicas(cut: impl Fn(&Network, &[&str], &[&str]), length: Duration) {
    let Some(scene) = Scene::start(ASYNC) else { return };
    let reign = scene.reign();
    cut(scene.cluster.network(), &[reign.0], &scene.cluster.replicas());
    scene.goes_on(&[0, 1], length);
    assert_eq!(scene.reign(), reign);
    scene.cluster.network().heal();
    scene.goes_on(&[0, 1], Duration::from_secs(2));
    assert_eq!(scene.reign(), reign);
    let findings = scene.end();
    assert_eq!(findings.lost().1, 0, "acknowledged and lost");
    findings.told.into_iter().for_each(undisturbed);
}

#[test]
fn without_acknowledgements_a_master_that_only_its_replicas_do_not_hear_goes_on() {
    goes_on_without_replicas(Network::cut, Duration::from_secs(6));
}

#[test]
fn without_acknowledgements_a_master_that_its_replicas_do_not_hear_one_way_goes_on() {
    goes_on_without_replicas(Network::cut_one_way, Duration::from_secs(4));
}

#[test]
fn without_acknowledgements_everything_serves_on_while_the_ensemble_is_down() {
    let Some(mut scene) = Scene::start(ASYNC) else { return };
    let reign = scene.reign();
    scene.cluster.kill_server("z1");
    scene.goes_on(&[0, 1], Duration::from_secs(8));
    scene.cluster.start_server("z1");
    scene.cluster.all_count();
    assert_eq!(scene.reign(), reign);
    scene.end().told.into_iter().for_each(undisturbed);
}

#[test]
fn without_acknowledgements_everything_serves_on_while_all_agents_are_dead() {
    agents::everything_serves_on_without(ASYNC);
}

#[test]
fn a_proxy_that_hears_only_the_master_and_the_agent_beside_it_serves_on() {
    let Some(scene) = Scene::start(ASYNC) else { return };
    let reign = scene.reign();
    let away = [scene.cluster.ensemble(), &scene.cluster.replicas()].concat();
    scene.cluster.network().cut(&[PROXIES[0]], &away);
    scene.goes_on(&[0, 1], Duration::from_secs(5));
    assert_eq!(scene.reign(), reign);
    scene.cluster.network().heal();
    scene.end().told.into_iter().for_each(undisturbed);
}

/// What a proxy does that reaches every Redis, but neither ZooKeeper nor an agent: they are dead.
#[track_caller]
fn unheard(shape: Shape) -> Option<Scene> {
    let mut scene = Scene::start(shape)?;
    scene.cluster.kill_agents();
    scene.cluster.network().cut(&[PROXIES[0]], scene.cluster.ensemble());
    thread::sleep(Duration::from_secs(3));
    Some(scene)
}

#[test]
fn a_proxy_that_hears_nobody_refuses_what_might_be_stale() {
    let Some(mut scene) = unheard(ASYNC) else { return };
    let mut here = client(&scene.cluster, 0);
    for request in [&["GET", "key"][..], &["SET", "key", "value"]] {
        let (answer, took) = timed(&mut here, request);
        assert!(answer.is_error(NOT_HEARD), "{request:?} was answered {answer:?}");
        assert!(took < HELD, "{request:?} was answered {answer:?} after {took:?}");
    }
    scene.goes_on(&[1], SOON);
    scene.cluster.network().heal();
    scene.get_on(&[0, 1], SOON);
    scene.cluster.start_agents();
    let [unheard, other] = scene.end().told;
    refused(unheard);
    undisturbed(other);
}

/// The same proxy, where nothing that it may answer is wrong.
#[track_caller]
fn serves_on_unheard(shape: Shape) {
    let Some(mut scene) = unheard(shape) else { return };
    scene.goes_on(&[0, 1], Duration::from_secs(3));
    scene.cluster.network().heal();
    scene.cluster.start_agents();
    scene.end().told.into_iter().for_each(undisturbed);
}

#[test]
fn a_proxy_that_hears_nobody_serves_on_where_reads_may_be_stale() {
    serves_on_unheard(Shape {
        reads: "causal",
        ..ASYNC
    });
}

#[test]
fn a_proxy_that_hears_nobody_serves_on_where_replicas_acknowledge() {
    serves_on_unheard(SMALL);
}

/// What is in flight when the way to the master is cut is answered within `hold_max_ms`, and so is what comes later.
#[test]
fn a_client_of_a_proxy_that_is_cut_off_from_the_master_has_answers_in_time() {
    let Some(scene) = Scene::start(SMALL) else { return };
    let reign = scene.reign();
    let [mut reads, mut writes] = [0, 1].map(|_| client(&scene.cluster, 0));
    for client in [&mut reads, &mut writes] {
        assert_eq!(client.command(&["SET", "key", "value"]), Value::ok());
    }
    scene.cluster.network().cut(&[PROXIES[0]], &[reign.0]);
    let slow = thread::spawn(move || [timed(&mut reads, &["GET", "key"]), timed(&mut reads, &["GET", "key"])]);
    let (answer, took) = timed(&mut writes, &["SET", "key", "value"]);
    eprintln!("a write in flight: {answer:?} after {} ms", millis(took));
    // Twice `connect_timeout_ms`, or `ack_timeout_ms`; or it was never sent, because the connection was silent before.
    let limit = if answer.is_error("MASTERDOWN") {
        HELD
    } else {
        Duration::from_millis(3500)
    };
    assert!(matches!(answer, Value::Error(_)), "{answer:?}");
    assert!(took < limit, "{answer:?} after {took:?}");
    for (answer, took) in slow.join().unwrap() {
        eprintln!("a read: {answer:?} after {} ms", millis(took));
        assert!(matches!(answer, Value::Error(_)), "{answer:?}");
        assert!(took < HELD, "{took:?}");
    }
    thread::sleep(REFUSAL / 4);
    scene.heals_for_the_first_proxy(reign);
}
