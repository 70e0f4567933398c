//! A proxy cut off.

use std::time::Duration;

use super::{FAILOVER, Scene};
use crate::cluster::{PROXIES, Shape};
use crate::workload::Promise;

#[test]
fn a_proxy_without_zookeeper_serves_on_and_follows_a_failover() {
    let Some(mut scene) = Scene::start(Shape::default()) else {
        return;
    };
    scene.cluster.network().cut(&[PROXIES[0]], scene.cluster.ensemble());
    scene.goes_on(&[0, 1], Duration::from_secs(4));
    let master = scene.cluster.master().unwrap();
    scene.cluster.kill_server(master);
    scene.cluster.next_master(master);
    scene.get_on(&[0, 1], FAILOVER);
    scene.end(Promise::Async);
}

#[test]
fn a_proxy_without_the_master() {
    let Some(scene) = Scene::start(Shape::default()) else {
        return;
    };
    let (master, epoch) = (scene.cluster.master().unwrap(), scene.cluster.epoch());
    scene.cluster.network().cut(&[PROXIES[0]], &[master]);
    scene.goes_on(&[1], Duration::from_secs(8));
    assert_eq!((scene.cluster.master(), scene.cluster.epoch()), (Some(master), epoch));
    scene.cluster.network().heal();
    scene.get_on(&[0, 1], FAILOVER);
    scene.end(Promise::Kept);
}

#[test]
fn a_proxy_without_anybody() {
    let Some(scene) = Scene::start(Shape::default()) else {
        return;
    };
    let (master, epoch) = (scene.cluster.master().unwrap(), scene.cluster.epoch());
    scene.cluster.network().isolate(&[PROXIES[0]], &[]);
    scene.goes_on(&[1], Duration::from_secs(8));
    assert_eq!((scene.cluster.master(), scene.cluster.epoch()), (Some(master), epoch));
    scene.cluster.network().heal();
    scene.get_on(&[0, 1], FAILOVER);
    scene.end(Promise::Kept);
}
