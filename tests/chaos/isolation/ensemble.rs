//! ZooKeeper away.

use std::time::Duration;

use super::{FAILOVER, Scene};
use crate::cluster::{NODES, PROXIES, Shape};
use crate::workload::Promise;

#[test]
fn zookeepers_leader_killed_during_an_election() {
    let Some(mut scene) = Scene::start(Shape {
        zookeepers: 3,
        ..Shape::default()
    }) else {
        return;
    };
    let master = scene.cluster.master().unwrap();
    let leader = scene.cluster.zookeeper_leader().unwrap();
    scene.cluster.kill_server(master);
    scene.cluster.kill_server(leader);
    scene.get_on(&[0, 1], FAILOVER);
    assert_ne!(scene.cluster.next_master(master), master);
    scene.end(Promise::Async);
}

#[test]
fn the_whole_ensemble_down_for_a_minute() {
    let Some(mut scene) = Scene::start(Shape {
        zookeepers: 3,
        ..Shape::default()
    }) else {
        return;
    };
    let (master, epoch) = (scene.cluster.master(), scene.cluster.epoch());
    for server in scene.cluster.ensemble() {
        scene.cluster.kill_server(server);
    }
    scene.goes_on(&[0, 1], Duration::from_secs(60));
    for server in scene.cluster.ensemble() {
        scene.cluster.start_server(server);
    }
    scene.cluster.all_count();
    assert_eq!((scene.cluster.master(), scene.cluster.epoch()), (master, epoch));
    let findings = scene.end(Promise::Kept);
    for told in findings.told {
        assert_eq!((told.in_doubt, told.not_done, told.closed), (0, 0, 0), "{told}");
    }
}

#[test]
fn all_sessions_expired() {
    let Some(scene) = Scene::start(Shape::default()) else {
        return;
    };
    let (master, epoch) = (scene.cluster.master(), scene.cluster.epoch());
    let all = [&NODES[..], &PROXIES].concat();
    scene.cluster.network().cut(&all, scene.cluster.ensemble());
    scene.goes_on(&[0, 1], Duration::from_secs(6));
    scene.cluster.network().heal();
    scene.goes_on(&[0, 1], Duration::from_secs(2));
    scene.cluster.all_count();
    assert_eq!((scene.cluster.master(), scene.cluster.epoch()), (master, epoch));
    let findings = scene.end(Promise::Kept);
    for told in findings.told {
        assert_eq!((told.in_doubt, told.not_done, told.closed), (0, 0, 0), "{told}");
    }
}
