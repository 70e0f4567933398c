//! The master cut off.

use std::time::Duration;

use super::{FAILOVER, SOON, Scene};
use crate::cluster::{PROXIES, Shape};
use crate::workload::Promise;

#[test]
fn a_master_without_zookeeper_serves_on() {
    let Some(scene) = Scene::start(Shape::default()) else {
        return;
    };
    let (master, epoch) = (scene.cluster.master().unwrap(), scene.cluster.epoch());
    scene.cluster.network().cut(&[master], scene.cluster.ensemble());
    // Longer than its session lives.
    scene.goes_on(&[0, 1], Duration::from_secs(5));
    assert_eq!((scene.cluster.master(), scene.cluster.epoch()), (Some(master), epoch));
    let cluster_epoch = scene.cluster.epoch();
    let findings = scene.end(Promise::Kept);
    assert_eq!(cluster_epoch, epoch);
    for told in findings.told {
        assert_eq!((told.in_doubt, told.not_done, told.closed), (0, 0, 0), "{told}");
    }
}

#[test]
fn a_master_without_its_replicas() {
    let Some(scene) = Scene::start(Shape::default()) else {
        return;
    };
    let master = scene.cluster.master().unwrap();
    scene.cluster.network().cut(&[master], &scene.cluster.replicas());
    scene.goes_on(&[0, 1], Duration::from_secs(6));
    eprintln!("{master} {:?} {}", scene.cluster.master(), scene.cluster.epoch());
    scene.end(Promise::Async);
}

#[test]
fn a_master_and_a_proxy_on_the_minority_side() {
    let Some(scene) = Scene::start(Shape::default()) else {
        return;
    };
    let master = scene.cluster.master().unwrap();
    scene.cluster.network().isolate(&[master, PROXIES[0]], &[]);
    scene.cluster.next_master(master);
    scene.get_on(&[1], FAILOVER);
    scene.goes_on(&[1], Duration::from_secs(4));
    eprintln!("minority {}", scene.workload.good(0));
    scene.cluster.network().heal();
    scene.get_on(&[0, 1], FAILOVER);
    scene.end(Promise::Async);
}

#[test]
fn a_master_alone() {
    let Some(scene) = Scene::start(Shape::default()) else {
        return;
    };
    let master = scene.cluster.master().unwrap();
    scene.cluster.network().isolate(&[master], &[]);
    scene.cluster.next_master(master);
    scene.get_on(&[0, 1], FAILOVER);
    scene.cluster.network().heal();
    scene.get_on(&[0, 1], SOON);
    scene.end(Promise::Async);
}
