//! The master cut off.

use std::time::Duration;

use super::{FAILOVER, SMALL, SOON, Scene, undisturbed, waited};
use crate::cluster::{PROXIES, Shape};
use crate::workload::Promise;

#[test]
fn a_master_whose_agent_is_without_zookeeper_serves_on() {
    let Some(scene) = Scene::start(SMALL) else { return };
    let reign = scene.reign();
    scene.cluster.network().cut(&[reign.0], scene.cluster.ensemble());
    // Longer than its session lives.
    scene.goes_on(&[0, 1], Duration::from_secs(5));
    assert_eq!(scene.reign(), reign);
    scene.end().told.into_iter().for_each(undisturbed);
}

#[test]
fn a_master_without_its_replicas_is_replaced_by_one_of_them() {
    let Some(scene) = Scene::start(SMALL) else { return };
    let master = scene.cluster.master().unwrap();
    scene.cluster.network().cut(&[master], &scene.cluster.replicas());
    let next = scene.cluster.next_master(master);
    scene.get_on(&[0, 1], FAILOVER);
    scene.cluster.network().heal();
    scene.get_on(&[0, 1], SOON);
    assert_eq!(scene.cluster.master(), Some(next));
    scene.end().told.into_iter().for_each(|told| waited(told, FAILOVER));
}

#[test]
fn a_master_on_the_minority_side_with_clients_is_replaced_and_they_follow_when_it_is_healed() {
    let Some(scene) = Scene::start(SMALL) else { return };
    let master = scene.cluster.master().unwrap();
    scene.cluster.network().isolate(&[master, PROXIES[0]], &[]);
    let next = scene.cluster.next_master(master);
    scene.get_on(&[1], FAILOVER);
    scene.goes_on(&[1], Duration::from_secs(4));
    scene.cluster.network().heal();
    scene.get_on(&[0, 1], FAILOVER);
    assert_eq!(scene.cluster.master(), Some(next));
    let [minority, majority] = scene.end().told;
    assert_eq!(minority.closed, 0, "{minority}");
    waited(majority, FAILOVER);
}

#[test]
fn without_acknowledgements_a_minority_loses_what_it_wrote_until_its_master_stood_down() {
    let Some(scene) = Scene::start(Shape { w: 0, ..SMALL }) else {
        return;
    };
    let master = scene.cluster.master().unwrap();
    scene.cluster.network().isolate(&[master, PROXIES[0]], &[]);
    scene.cluster.next_master(master);
    scene.goes_on(&[1], Duration::from_secs(2));
    let before = scene.workload.good(0);
    scene.goes_on(&[1], Duration::from_secs(1));
    assert_eq!(scene.workload.good(0), before, "the minority goes on");
    scene.cluster.network().heal();
    let findings = scene.end();
    let (_, lost) = findings.lost();
    assert!(lost > 0, "the old master took writes that nobody has");
    // Whoever looks for broken promises finds these.
    let wrong = findings.wrong(Promise::Kept);
    assert!(wrong.iter().any(|line| line.contains("acknowledged")), "{wrong:?}");
    assert!(wrong.iter().any(|line| line.contains("no order fits")), "{wrong:?}");
}

#[test]
fn a_master_that_reaches_nobody_is_replaced() {
    let Some(scene) = Scene::start(SMALL) else { return };
    let master = scene.cluster.master().unwrap();
    scene.cluster.network().isolate(&[master], &[]);
    let next = scene.cluster.next_master(master);
    scene.get_on(&[0, 1], FAILOVER);
    scene.cluster.network().heal();
    scene.get_on(&[0, 1], SOON);
    assert_eq!(scene.cluster.master(), Some(next));
    scene.end().told.into_iter().for_each(|told| waited(told, FAILOVER));
}

#[test]
fn a_replica_that_reaches_nobody_is_not_missed() {
    let Some(scene) = Scene::start(SMALL) else { return };
    let reign = scene.reign();
    scene.cluster.network().isolate(&scene.cluster.replicas()[..1], &[]);
    scene.goes_on(&[0, 1], Duration::from_secs(5));
    assert_eq!(scene.reign(), reign);
    scene.end().told.into_iter().for_each(undisturbed);
}
