//! What is lost one way only.

use std::thread;
use std::time::Duration;

use super::{FAILOVER, SMALL, SOON, Scene, undisturbed, waited};
use crate::cluster::PROXIES;

/// Longer than a failover takes.
const A_WHILE: Duration = Duration::from_secs(5);

/// Cuts something of a master that is to be replaced then.
#[track_caller]
fn is_replaced(cut: impl FnOnce(&Scene, &'static str)) {
    let Some(scene) = Scene::start(SMALL) else { return };
    let master = scene.cluster.master().unwrap();
    cut(&scene, master);
    let next = scene.cluster.next_master(master);
    scene.get_on(&[0, 1], FAILOVER);
    scene.cluster.network().heal();
    scene.get_on(&[0, 1], SOON);
    assert_eq!(scene.cluster.master(), Some(next));
    scene.end().told.into_iter().for_each(|told| waited(told, FAILOVER));
}

/// Cuts something between the first proxy and the master, which stays master.
#[track_caller]
fn concerns_one_proxy(cut: impl FnOnce(&Scene, &'static str)) {
    let Some(scene) = Scene::start(SMALL) else { return };
    let reign = scene.reign();
    cut(&scene, reign.0);
    scene.goes_on(&[1], A_WHILE);
    assert_eq!(scene.reign(), reign);
    scene.cluster.network().heal();
    scene.get_on(&[0, 1], FAILOVER);
    let [cut, other] = scene.end().told;
    assert_eq!(cut.closed, 0, "{cut}");
    undisturbed(other);
}

#[test]
fn a_master_that_its_replicas_do_not_hear_is_replaced() {
    is_replaced(|scene, master| {
        scene
            .cluster
            .network()
            .cut_one_way(&[master], &scene.cluster.replicas())
    });
}

#[test]
fn a_master_that_does_not_hear_its_replicas_is_replaced() {
    is_replaced(|scene, master| {
        scene
            .cluster
            .network()
            .cut_one_way(&scene.cluster.replicas(), &[master])
    });
}

#[test]
fn a_master_that_nobody_hears_is_replaced() {
    is_replaced(|scene, master| {
        let others = scene.cluster.network().names();
        scene.cluster.network().cut_one_way(&[master], &others);
    });
}

#[test]
fn a_proxy_that_does_not_hear_the_master_is_the_only_one_to_suffer() {
    concerns_one_proxy(|scene, master| scene.cluster.network().cut_one_way(&[master], &[PROXIES[0]]));
}

#[test]
fn a_proxy_that_the_master_does_not_hear_is_the_only_one_to_suffer() {
    concerns_one_proxy(|scene, master| scene.cluster.network().cut_one_way(&[PROXIES[0]], &[master]));
}

#[test]
fn a_master_that_loses_a_third_of_what_it_sends_is_slow_and_keeps_its_promises() {
    let Some(scene) = Scene::start(SMALL) else { return };
    let master = scene.cluster.master().unwrap();
    let others = scene.cluster.network().names();
    scene.cluster.network().lose_some(&[master], &others);
    thread::sleep(A_WHILE);
    scene.cluster.network().heal();
    scene.get_on(&[0, 1], FAILOVER);
    for told in scene.end().told {
        assert_eq!(told.closed, 0, "{told}");
    }
}
