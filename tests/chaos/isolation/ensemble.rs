//! ZooKeeper away.

use std::time::Duration;

use super::{ENSEMBLE, FAILOVER, SMALL, Scene, undisturbed, waited};
use crate::cluster::{NODES, PROXIES};

#[test]
fn zookeepers_leader_that_dies_during_an_election_only_makes_it_longer() {
    let Some(mut scene) = Scene::start(ENSEMBLE) else {
        return;
    };
    let master = scene.cluster.master().unwrap();
    let leader = scene.cluster.zookeeper_leader().unwrap();
    scene.cluster.kill_server(master);
    scene.cluster.kill_server(leader);
    scene.get_on(&[0, 1], FAILOVER);
    assert_ne!(scene.cluster.next_master(master), master);
    scene.end().told.into_iter().for_each(|told| waited(told, FAILOVER));
}

#[test]
fn while_the_whole_ensemble_is_down_for_a_minute_everything_serves_on() {
    let Some(mut scene) = Scene::start(ENSEMBLE) else {
        return;
    };
    let reign = scene.reign();
    for server in scene.cluster.ensemble() {
        scene.cluster.kill_server(server);
    }
    scene.goes_on(&[0, 1], Duration::from_secs(60));
    for server in scene.cluster.ensemble() {
        scene.cluster.start_server(server);
    }
    scene.cluster.all_count();
    assert_eq!(scene.reign(), reign);
    scene.end().told.into_iter().for_each(undisturbed);
}

#[test]
fn when_all_sessions_have_expired_everything_serves_on() {
    let Some(scene) = Scene::start(SMALL) else { return };
    let reign = scene.reign();
    let all = [&NODES[..], &PROXIES].concat();
    scene.cluster.network().cut(&all, scene.cluster.ensemble());
    // ZooKeeper ends them after 2 s.
    scene.goes_on(&[0, 1], Duration::from_secs(6));
    scene.cluster.network().heal();
    scene.goes_on(&[0, 1], Duration::from_secs(2));
    scene.cluster.all_count();
    assert_eq!(scene.reign(), reign);
    scene.end().told.into_iter().for_each(undisturbed);
}
